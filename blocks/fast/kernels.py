"""What the kernels of other packages share: when they cannot be used, and batches that do not fit their grid."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from rad_bench.blocks.memory import KERNELS, kernels_are_off

LARGEST_GRID = 65535  # CUDA's limit in the grid dimension that holds sequences (times chunks or heads)


def unavailable(device: torch.device, dtype: torch.dtype) -> str:
    """Return why no Triton kernels can be used on this device and type; empty if they can."""
    if device.type != "cuda":
        return "they need a CUDA device" if torch.cuda.is_available() else "no CUDA device"
    if kernels_are_off():
        return f"{KERNELS}=off in the environment"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"they do not compute in {str(dtype).removeprefix('torch.')}"
    return ""


def missing(*packages: tuple[str, str]) -> str:
    """Return which of (module, package) cannot be found; empty if all can."""
    absent = next((package for module, package in packages if importlib.util.find_spec(module) is None), None)
    return f"{absent} is not installed" if absent else ""


def pieces(sequences: int, blocks: int) -> list[slice]:
    """Split sequences into the fewest slices that fit the grid, where each sequence takes `blocks` of its places."""
    size = max(LARGEST_GRID // blocks, 1)
    return [slice(first, min(first + size, sequences)) for first in range(0, sequences, size)]


def concatenate(tensors: list[Tensor]) -> Tensor:
    """Return the pieces as one tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
