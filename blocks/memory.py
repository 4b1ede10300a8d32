"""The contract of a memory block.

A block carries memory along S independent sequences of T frames with K tokens each, D channels wide. The trunk decides
how a video's token grid becomes sequences.

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

KERNELS = "BLOCK_KERNELS"  # environment variable; `off`: PyTorch only, no kernels of other packages
State = tuple[Any, ...]  # a (nested) tuple of tensors, each with S as its first dimension


@dataclass(frozen=True)
class Prefetched:
    """The result of `prefetch` over clean frames."""

    y_STKD: Tensor  # the clean frames' own outputs
    memory: Any  # the memory before each of the T frames, in the form that the block's `retrieve` reads
    state: State  # the state after the last frame


@dataclass(frozen=True)
class Path:
    """The implementation of a block's `prefetch` and `retrieve` on a device."""

    name: str
    why: str = ""  # why this one is used, in a few words


class MemoryBlock(nn.Module, ABC):
    """Base class of all memory blocks. A subclass must define `initial_state` and `step`.

    The constructor takes `dim` (D) and the block's options as keyword arguments with annotations and defaults;
    the annotations are enforced when a config names the block.

    Training in mixed precision runs a block under autocast, which rounds matrix products to bf16. Decorate functions
    that carry a state from frame to frame with `in_full_precision`.
    """

    size_option: ClassVar[str | None] = None  # the option that a budget solves for
    fine_option: ClassVar[str | None] = None  # a second option that it may change if the first is too coarse
    count_option: ClassVar[str | None] = None  # what it solves for instead, where `size_option` would exceed 128
    memoryless: ClassVar[bool] = False  # True: no frame influences a later one

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def initial_state(self, sequences: int) -> State:
        """Return the state of `sequences` sequences before their first frame."""

    @abstractmethod
    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one frame: return y_SKD and the state after it.

        Pure: keep the new state to write the frame into memory; discard it to only read.
        """

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        """Read the memory with one noisy frame; nothing is written.

        This is the reference: a `step` whose new state is discarded. Override it if computing that state is expensive.
        """
        y_SKD, _ = self.step(x_SKD, state)
        return y_SKD

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        """Write T clean frames, and keep the memory before each of them.

        This is the reference: a loop over `step`. Override it with a parallel form.
        """
        memory, outputs = [], []
        for x_SKD in x_STKD.unbind(1):
            memory.append(state)
            y_SKD, state = self.step(x_SKD, state)
            outputs.append(y_SKD)
        return Prefetched(torch.stack(outputs, 1), memory, state)

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        """Read, with each noisy frame, the memory before it, all frames in parallel; nothing is written.

        `x_STKD` may cover only the last of the prefetched frames. This is the reference: each frame is one `step` whose
        new state is discarded, with T folded into S where all states have the same shape.
        """
        S, T = x_STKD.shape[:2]
        memory: list[State] = prefetched.memory[-T:]
        shapes = {tuple(leaf.shape for leaf in leaves(state)) for state in memory}
        if len(shapes) > 1:  # a growing state: one frame at a time
            return torch.stack([self.step(x_STKD[:, t], memory[t])[0] for t in range(T)], 1)
        folded = map_state(lambda *leaf: torch.stack(leaf, 1).flatten(0, 1), *memory)
        y_SKD, _ = self.step(x_STKD.flatten(0, 1), folded)
        return y_SKD.unflatten(0, (S, T))

    def remember(
        self, clean_STKD: Tensor, noisy_SQKD: Tensor | None, state: State
    ) -> tuple[Tensor, Tensor | None, State]:
        """Write clean frames, and let noisy ones, if any, read: `prefetch` and `retrieve` in one, as the trunk needs.

        Return what clean and noisy frames read, and the new state. Override it where the memory before each of the
        frames is too large to be kept.
        """
        prefetched = self.prefetch(clean_STKD, state)
        y_noisy = None if noisy_SQKD is None else self.retrieve(noisy_SQKD, prefetched)
        return prefetched.y_STKD, y_noisy, prefetched.state

    def path(self, device: torch.device, dtype: torch.dtype) -> Path:
        """Return the implementation for tensors of this device and type. Override it if a block has several."""
        own, base = type(self), MemoryBlock
        forms = [name for name in ("prefetch", "retrieve") if getattr(own, name) is not getattr(base, name)]
        if not forms:
            return Path("loop over step", "the block has no parallel form")
        return Path("PyTorch, own " + " and ".join(forms), "its only form")

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros with the device and dtype of the block's parameters."""
        parameter = next(self.parameters())
        return torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)


def kernels_are_off() -> bool:
    """Return whether kernels of other packages are switched off."""
    return os.environ.get(KERNELS) == "off"


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Switch kernels of other packages off within the context."""
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
    """Decorate a recurrence to run without autocast: tensors and states among its arguments are cast to fp32.

    A state is rounded at every frame, and in bf16 these errors would add up. Without autocast nothing changes.
    """

    @functools.wraps(function)
    def precise(*arguments: Any) -> Any:
        device = next(argument.device.type for argument in arguments if isinstance(argument, Tensor))
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
    for item in state:
        if isinstance(item, tuple):
            yield from leaves(item)
        else:
            yield item


def map_state(function: Callable[..., Tensor], *states: State) -> State:
    """Apply `function` to the corresponding tensors of one or several states of the same structure."""
    return tuple(
        function(*items) if isinstance(items[0], Tensor) else map_state(function, *items)
        for items in zip(*states, strict=True)
    )


def state_bytes(state: State) -> int:
    """Return the bytes of a state's tensors."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(state))
