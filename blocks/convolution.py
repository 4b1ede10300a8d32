"""A short causal convolution over the tokens of all frames, channel by channel, as several recurrent layers have it.

    y_l = bias + sum_i weight_i * u_{l - taps + 1 + i}

Its memory is a *tail*: the inputs of the `taps - 1` tokens before a frame. A block carries it in its state. A clean
frame follows all clean tokens before it; a noisy frame follows the clean tokens before its clean twin.

On CUDA devices it is computed by causal-conv1d's kernel, if installed (`fast/convolution_kernel.py`).

Letters: S sequences, T or Q frames, K tokens a frame, J = taps - 1, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad_bench.blocks.fast import convolution_kernel as kernel
from rad_bench.blocks.memory import Path

PUBLISHED_TAPS = 4  # of mLSTM, Gated DeltaNet, TTT and Mamba2


def convolve_clip(
    u_STKC: Tensor, tail_SJC: Tensor, weight: Tensor, bias: Tensor, silu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve consecutive frames. Return y_STKC, the tail before each frame [S, T, J, C], and the tail after them."""
    T, K = u_STKC.shape[1:3]
    inputs = torch.cat([tail_SJC, u_STKC.flatten(1, 2)], 1)
    tails = inputs.unfold(1, len(weight) - 1, K)[:, :T].transpose(2, 3)
    y_STKC = convolve(inputs, weight, bias, silu).unflatten(1, (T, K))
    return y_STKC, tails, inputs[:, -(len(weight) - 1) :]


def convolve_apart(u_SQKC: Tensor, tails_STJC: Tensor, weight: Tensor, bias: Tensor, silu: bool = False) -> Tensor:
    """Convolve Q frames, each after its own tail: they are the last of T frames with these tails."""
    return convolve(torch.cat([tails_STJC[:, -u_SQKC.shape[1] :], u_SQKC], 2), weight, bias, silu)


def convolve(inputs: Tensor, weight: Tensor, bias: Tensor, silu: bool = False) -> Tensor:
    """Convolve channel by channel along the last dimension but one: [..., taps - 1 + K, C] -> [..., K, C].

    y_k = bias + sum_i weight_i * x_{k+i}, with weight [taps, C]; then SiLU, if asked for.
    """
    inputs = inputs.to(weight.dtype)
    # The compiler makes one kernel of the form in PyTorch, and could not look into another package's.
    if not (torch.compiler.is_compiling() or kernel.unavailable(inputs.device, weight.dtype, len(weight))):
        return kernel.convolve(inputs, weight, bias, silu)
    y: Tensor = _Convolution.apply(inputs, weight, bias)
    return F.silu(y) if silu else y


def with_convolution(path: Path, device: torch.device, dtype: torch.dtype, taps: int) -> Path:
    """Return a block's path with what computes its convolution."""
    why_not = kernel.unavailable(device, dtype, taps)
    if why_not:
        return Path(path.name, f"{path.why}; causal-conv1d not used: {why_not}")
    return Path(f"{path.name}, causal-conv1d", path.why)


class _Convolution(torch.autograd.Function):
    """`convolve` with a hand-written gradient: autograd would allocate a tensor of zeros for each tap's slice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = bias.expand_as(x[..., len(weight) - 1 :, :])
        for tap, window in zip(weight, _windows(x, len(weight)), strict=True):
            y = torch.addcmul(y, tap, window)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dx = torch.zeros_like(x)
        for tap, window in zip(weight, _windows(dx, len(weight)), strict=True):
            window += tap * dy
        dweight = [(dy * window).flatten(0, -2).sum(0) for window in _windows(x, len(weight))]
        return dx, torch.stack(dweight), dy.flatten(0, -2).sum(0)


def _windows(x: Tensor, taps: int) -> list[Tensor]:
    """Return, for each tap, the view of x that it is multiplied with."""
    return [x.narrow(-2, i, x.shape[-2] - taps + 1) for i in range(taps)]
