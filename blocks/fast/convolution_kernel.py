"""The short convolution by causal-conv1d's CUDA kernel, where it is installed.

One function of the package (BSD-3) is used. The kernel is launched once forward and once backward, SiLU included;
PyTorch launches an operation or more for each tap.

It has never run on a GPU here: run `rad-bench check` there first. The tests hold it to the form in PyTorch with a
stand-in for the package, which makes the same demands (`tests/blocks/test_convolution_kernel.py`).

Letters: S sequences, L tokens, C channels.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rad_bench.blocks.fast import kernels

TAPS = range(2, 5)  # for which the kernel is compiled
CHANNELS = 8  # their number must be a multiple of it: the kernel reads 16 bytes at a time


def unavailable(device: torch.device, dtype: torch.dtype, taps: int) -> str:
    """Return why the kernel cannot compute so many taps on this device and type; empty if it can."""
    if why_not := kernels.unavailable(device, dtype):
        return why_not
    if taps not in TAPS:
        return f"it has {TAPS[0]} to {TAPS[-1]} taps, not {taps}"
    function = load()
    return function if isinstance(function, str) else ""


@functools.cache
def load() -> Callable[..., Tensor] | str:
    """Return the package's function, or why it cannot be imported."""
    try:
        function: Callable[..., Tensor] = importlib.import_module("causal_conv1d").causal_conv1d_fn
    except Exception as error:  # a broken installation can raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == "causal_conv1d":
            return "causal-conv1d is not installed"
        return f"causal-conv1d cannot be imported: {type(error).__name__}: {error}"
    return function


def convolve(inputs: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """Compute `convolution.convolve`: [..., taps - 1 + K, C] -> [..., K, C], in the weight's type.

    The inputs begin with the tail. The package could take it apart from them, as an initial state, but a block needs
    both in one tensor anyway, for the tails of later frames. So its tokens are convolved too, and dropped.
    """
    function = load()
    assert callable(function)
    C, missing = inputs.shape[-1], -inputs.shape[-1] % CHANNELS
    if missing:  # a budget may choose any number of channels
        inputs, weight, bias = (F.pad(tensor, (0, missing)) for tensor in (inputs, weight, bias))
    x_SLC = inputs.flatten(0, -3).contiguous()
    y_SLC = function(x_SLC.mT, weight.T, bias, activation="silu" if silu else None).mT
    return y_SLC[:, len(weight) - 1 :, :C].unflatten(0, inputs.shape[:-2])
