"""The inner model of TTT and the gradient of its loss, written by hand.

Letters: S sequences, H heads, K tokens, P channels a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rad_bench.blocks.memory import State


def inner_model(k: Tensor, weights: State) -> tuple[Tensor, Tensor, Tensor | None]:
    """Apply the inner model. Return its output, the input of its last layer, and gelu's derivative (None if linear)."""
    if len(weights) == 2:
        return k @ weights[0] + weights[1], k, None
    a = k @ weights[0] + weights[1]
    cdf = 0.5 * (1 + torch.erf(a / math.sqrt(2)))
    slope = cdf + a * torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
    hidden = a * cdf
    return hidden @ weights[2] + weights[3], hidden, slope


def loss_gradient(
    k: Tensor, v: Tensor, eta: Tensor, weights: State, norm: tuple[Tensor, Tensor] | None
) -> list[tuple[Tensor, Tensor]]:
    """Return, for each layer of the inner model, its inputs and the loss's gradient at its output.

    k, v [S, H, K, P], eta [S, H, K, 1]; `norm` is LN's scale and shift, None without LN. The gradient of a weight is
    inputs^T error, that of a bias is the sum of error over K.
    """
    out, hidden, slope = inner_model(k, weights)
    if norm is None:
        error = k + out - v
    else:
        scale, shift = norm
        mean, variance = out.mean(-1, keepdim=True), out.var(-1, keepdim=True, unbiased=False)
        inverse_deviation = torch.rsqrt(variance + 1e-5)
        normal = (out - mean) * inverse_deviation
        error = (k + normal * scale + shift - v) * scale
        centred = error - error.mean(-1, keepdim=True)
        error = (centred - normal * (error * normal).mean(-1, keepdim=True)) * inverse_deviation
    error = error * eta
    if slope is None:
        return [(hidden, error)]
    return [(k, (error @ weights[2].transpose(-1, -2)) * slope), (hidden, error)]
