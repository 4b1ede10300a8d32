"""The inputs of a check, and comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rad_bench.blocks.memory import MemoryBlock, State, leaves, map_state

# Relative to the largest expected value, or to 1 if that is smaller.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}


@dataclass(frozen=True)
class Case:
    """How a block is built and run in a check."""

    block_class: type[MemoryBlock]
    options: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    dim: int
    sequences: int
    frames: int
    tokens: int  # a frame

    def probe(self) -> Probe:
        """Return a perturbed block and random frames, the same at each call: the generator is seeded."""
        torch.manual_seed(0)
        block = self.build()
        perturb(block)
        shape = 2, self.sequences, self.frames, self.tokens, self.dim
        x, noisy = torch.randn(shape, dtype=torch.float64).to(self.device, self.dtype)
        return Probe(self, block, x, noisy)

    def build(self) -> MemoryBlock:
        """Return a new block."""
        return self.block_class(self.dim, **self.options).to(self.device, self.dtype)


@dataclass(frozen=True)
class Probe:
    """The inputs of a check: a block and random sequences."""

    case: Case
    block: MemoryBlock
    x_STKD: Tensor  # clean
    noisy_STKD: Tensor

    @property
    def frames(self) -> int:
        return self.x_STKD.shape[1]

    def start(self) -> State:
        return self.block.initial_state(len(self.x_STKD))


def perturb(module: nn.Module, size: float = 0.1, generator: torch.Generator | None = None) -> None:
    """Add noise to all parameters, drawn on the CPU from `generator`, by default PyTorch's global one."""
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.add_(size * noise.to(parameter))


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value, or to 1 if that is smaller."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if not expected.numel():
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    # NaN compares false, so it would pass as a small difference.
    largest = (actual - expected).abs().nan_to_num(nan=math.inf).max()
    return float(largest / expected.abs().max().clamp(min=1.0))


def same(what: str, actual: Tensor, expected: Tensor) -> float:
    """Return the difference of two tensors. Raises `AssertionError` if it is beyond the tolerance."""
    error, tolerance = difference(actual, expected), TOLERANCE.get(expected.dtype, 0.0)
    assert error <= tolerance, f"{what} differ by {error:.2g} (tolerance {tolerance:.0g})"
    return error


def same_state(what: str, actual: State, expected: State) -> None:
    """Raise `AssertionError` if two states differ beyond the tolerance."""
    for a, b in zip(leaves(actual), leaves(expected), strict=True):
        same(what, a, b)


def differentiable(state: State) -> State:
    """Return a copy of a state whose floating-point tensors require gradients."""
    return map_state(lambda leaf: leaf.detach().clone().requires_grad_(leaf.is_floating_point()), state)


def floating(state: State) -> list[Tensor]:
    """Return the floating-point tensors of a state."""
    return [leaf for leaf in leaves(state) if leaf.is_floating_point()]
