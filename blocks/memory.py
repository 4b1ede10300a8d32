"""The contract of a memory block.

A block carries memory along S independent sequences of T frames with K tokens each, D channels wide. How a video's
token grid becomes sequences is not its business.

Letters: S sequences, T frames, K tokens a frame, D channels, H heads, P channels a head.
"""

from __future__ import annotations

import contextlib
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

KERNELS = "BLOCK_KERNELS"  # `off` in the environment: PyTorch alone, no kernels of other packages
State = tuple[Any, ...]  # a (nested) tuple of tensors, each with S as its first dimension


@dataclass(frozen=True)
class Prefetched:
    """What a pass over clean frames leaves behind."""

    y_STKD: Tensor  # the clean frames' own outputs
    memory: Any  # the memory before each of the T frames, in whatever form the block's `retrieve` reads
    state: State  # the state after the last frame


@dataclass(frozen=True)
class Path:
    """What computes a block's `prefetch` and `retrieve` on some device."""

    name: str
    why: str = ""  # this one and no other, in a few words


class MemoryBlock(nn.Module, ABC):
    """Base of all memory blocks. `initial_state` and `step` alone make a valid one.

    The constructor takes `dim` (D) and the block's options as keyword arguments with annotations and defaults;
    the annotations are enforced when a config names the block.

    Training in mixed precision runs a block under autocast, where products round to bf16. What carries a state from
    frame to frame is decorated with `in_full_precision`.
    """

    size_option: ClassVar[str | None] = None  # the option that a budget may solve for
    fine_option: ClassVar[str | None] = None  # another that it may move, where steps of the first are too coarse
    memoryless: ClassVar[bool] = False  # True: frames are promised not to influence later ones

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def initial_state(self, sequences: int) -> State:
        """Return the state of `sequences` sequences that have seen no frame."""

    @abstractmethod
    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one frame: return y_SKD and the state after it.

        Pure: keep the new state to write the frame into memory, drop it to only read.
        """

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        """Let one noisy frame read the memory; nothing is written.

        This form is the reference: a `step` whose new state is dropped. Override it where making that state costs.
        """
        y_SKD, _ = self.step(x_SKD, state)
        return y_SKD

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        """Write T clean frames, keeping the memory as it was before each of them.

        This form is the reference: a loop over `step`. Override it with a parallel one.
        """
        memory, outputs = [], []
        for x_SKD in x_STKD.unbind(1):
            memory.append(state)
            y_SKD, state = self.step(x_SKD, state)
            outputs.append(y_SKD)
        return Prefetched(torch.stack(outputs, 1), memory, state)

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        """Let noisy frames read the memory before them, all in parallel; nothing is written.

        `x_STKD` may cover only the last frames of those prefetched. This form is the reference: each frame is
        one `step` whose new state is dropped, with T folded into S where the states' shapes allow.
        """
        S, T = x_STKD.shape[:2]
        memory: list[State] = prefetched.memory[-T:]
        shapes = {tuple(leaf.shape for leaf in leaves(state)) for state in memory}
        if len(shapes) > 1:  # a growing state: one frame at a time
            return torch.stack([self.step(x_STKD[:, t], memory[t])[0] for t in range(T)], 1)
        folded = map_state(lambda *leaf: torch.stack(leaf, 1).flatten(0, 1), *memory)
        y_SKD, _ = self.step(x_STKD.flatten(0, 1), folded)
        return y_SKD.unflatten(0, (S, T))

    def path(self, device: torch.device, dtype: torch.dtype) -> Path:
        """Say what computes on tensors of this device and type. A block with several ways overrides it."""
        own, base = type(self), MemoryBlock
        forms = [name for name in ("prefetch", "retrieve") if getattr(own, name) is not getattr(base, name)]
        if not forms:
            return Path("loop over step", "the block has no parallel form")
        return Path("PyTorch, own " + " and ".join(forms), "its only form")

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros on the device and in the type of the block's parameters."""
        parameter = next(self.parameters())
        return torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)


def kernels_are_off() -> bool:
    """Return whether blocks are asked to do without other packages' kernels."""
    return os.environ.get(KERNELS) == "off"


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Ask blocks to do without other packages' kernels, for a while."""
    before = os.environ.get(KERNELS)
    os.environ[KERNELS] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[KERNELS]
        else:
            os.environ[KERNELS] = before


def in_full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a recurrence to end autocast at it: tensors and states among its arguments are cast to fp32.

    What is harmless in one product adds up in a state that is rounded hundreds of times. Without autocast nothing
    changes.
    """

    @functools.wraps(function)
    def precise(*arguments: Any) -> Any:
        device = next(part.device.type for part in arguments if isinstance(part, Tensor))
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return function(*arguments)
        with torch.autocast(device, enabled=False):
            return function(*map(_in_fp32, arguments))

    return precise


def _in_fp32(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.float() if argument.is_floating_point() else argument
    return map_state(_in_fp32, argument) if isinstance(argument, tuple) else argument


def leaves(state: State) -> Iterator[Tensor]:
    """Iterate over the tensors of a state."""
    for part in state:
        if isinstance(part, tuple):
            yield from leaves(part)
        else:
            yield part


def map_state(function: Callable[..., Tensor], *states: State) -> State:
    """Apply `function` to the corresponding tensors of one or several states of the same structure."""
    return tuple(
        function(*parts) if isinstance(parts[0], Tensor) else map_state(function, *parts)
        for parts in zip(*states, strict=True)
    )


def state_bytes(state: State) -> int:
    """Count the bytes that a state's tensors hold."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(state))
