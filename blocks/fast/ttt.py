"""The inner model of TTT and the gradient of its loss, written by hand.

Letters: S sequences, H heads, K tokens, P channels a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rad_bench.blocks.memory import State

Gradient = list[tuple[Tensor, Tensor]]  # of each layer: its inputs, and the loss's gradient at its output


def inner_model(k: Tensor, weights: State) -> tuple[Tensor, Tensor, Tensor | None]:
    """Apply the inner model. Return its output, the input of its last layer, and gelu's derivative (None if linear)."""
    if len(weights) == 2:
        return k @ weights[0] + weights[1], k, None
    a = k @ weights[0] + weights[1]
    cdf = 0.5 * (1 + torch.erf(a / math.sqrt(2)))
    slope = cdf + a * torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
    hidden = a * cdf
    return hidden @ weights[2] + weights[3], hidden, slope


def loss_gradient(k: Tensor, v: Tensor, eta: Tensor, weights: State, norm: tuple[Tensor, ...]) -> Gradient:
    """Return the gradient of a frame's loss, layer by layer.

    k, v [S, H, K, P], eta [S, H, K, 1]; `norm` is LN's scale and shift, empty without LN. The gradient of a weight is
    inputs^T error, that of a bias is the sum of error over K.
    """
    out, hidden, slope = inner_model(k, weights)
    if not norm:
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


def descend(weights: State, gradient: Gradient) -> State:
    """Return the inner model's parameters after one step."""
    return _add(weights, gradient, -1)


def ascend(weights: State, gradient: Gradient) -> State:
    """Return the inner model's parameters before a step: `descend` undone, but for rounding."""
    return _add(weights, gradient, 1)


def _add(weights: State, gradient: Gradient, sign: int) -> State:
    added: State = ()
    for layer, (inputs, error) in enumerate(gradient):
        weight, bias = weights[2 * layer : 2 * layer + 2]
        factors = (tensor.flatten(0, 1) for tensor in (weight, inputs.transpose(-1, -2), error))
        weight_added = torch.baddbmm(*factors, alpha=sign).view_as(weight)
        added += weight_added, torch.add(bias, error.sum(-2, keepdim=True), alpha=sign)
    return added


def model_after_each_token(q: Tensor, weights: State, gradient: Gradient) -> Tensor:
    """Apply to each token's q [S, H, K, P] the inner model after a step on the loss of its frame's tokens up to it.

    The loss is their mean; `gradient` is that of the mean over all K tokens. Weights after a token are never formed:
    with weights W, inputs x and errors e, the token's output is q W - sum_j (q . x_j) e_j (the paper's dual form).
    """
    K = q.shape[-2]
    token = torch.arange(1, K + 1, device=q.device, dtype=q.dtype)
    share = (K / token[:, None]).expand(K, K).tril()  # of token j in the step before token k
    out = q
    for layer, (inputs, error) in enumerate(gradient):
        weight, bias = weights[2 * layer : 2 * layer + 2]
        x = F.gelu(out) if layer else out
        out = x @ weight + bias - (share * (x @ inputs.mT + 1)) @ error
    return out
