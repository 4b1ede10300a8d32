"""A short causal convolution over the tokens of all frames, channel by channel, as several recurrent layers have it.

    y_l = bias + sum_i weight_i * u_{l - taps + 1 + i}

Its memory is a *tail*: the inputs of the `taps - 1` tokens before a frame. A block carries it in its state. A clean
frame follows all clean tokens before it; a noisy frame follows the clean tokens before its clean twin.

Letters: S sequences, T or Q frames, K tokens a frame, J = taps - 1, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PUBLISHED_TAPS = 4  # of mLSTM, Gated DeltaNet, TTT and Mamba2


def convolve_clip(u_STKC: Tensor, tail_SJC: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve consecutive frames. Return y_STKC, the tail before each frame [S, T, J, C], and the tail after them."""
    T, K = u_STKC.shape[1:3]
    inputs = torch.cat([tail_SJC, u_STKC.flatten(1, 2)], 1)
    tails = inputs.unfold(1, len(weight) - 1, K)[:, :T].transpose(2, 3)
    y_STKC = convolve(inputs, weight, bias).unflatten(1, (T, K))
    return y_STKC, tails, inputs[:, -(len(weight) - 1) :]


def convolve_apart(u_SQKC: Tensor, tails_STJC: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve Q frames, each after its own tail: they are the last of T frames with these tails."""
    return convolve(torch.cat([tails_STJC[:, -u_SQKC.shape[1] :], u_SQKC], 2), weight, bias)


def convolve(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve channel by channel along the last dimension but one: [..., taps - 1 + K, C] -> [..., K, C].

    y_k = bias + sum_i weight_i * x_{k+i}, with weight [taps, C].
    """
    y: Tensor = _Convolution.apply(inputs.to(weight.dtype), weight, bias)
    return y


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
