"""The LSTM recurrence over many tokens: by PyTorch's fused LSTM on CUDA devices, else with a hand-written gradient.

The fused LSTM (cuDNN's) returns h after every token, but c after the last one only. The gates follow from x and h by
one product, and then c by a linear recurrence without products. On a CPU that is no faster than the loop.

Letters: S sequences, L tokens, E = hidden, G = 4 * hidden: the gates i, f, g, o side by side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad_bench.blocks.fast.scan import scan
from rad_bench.blocks.memory import KERNELS, in_full_precision, kernels_are_off

sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward  # (gradient, output)


def unavailable(device: torch.device, dtype: torch.dtype) -> str:
    """Return why the fused LSTM does not compute tensors of this device and type, or an empty string if it does."""
    if device.type != "cuda":
        return f"on {device.type}, not on a CUDA device"
    if kernels_are_off():
        return f"{KERNELS}=off"
    return "" if dtype in (torch.float32, torch.float64) else f"not for {dtype}"


@in_full_precision
def fused(x_SLD: Tensor, input_GD: Tensor, bias_G: Tensor, weight_GE: Tensor, h_SE: Tensor, c_SE: Tensor) -> Tensor:
    """Return h after each of L tokens, [S, L, E]."""
    weights = input_GD, weight_GE, bias_G, torch.zeros_like(bias_G)
    # As in training also in `eval()`, or cuDNN would have no backward pass.
    h_SLE, *_ = torch.lstm(x_SLD, (h_SE[None], c_SE[None]), weights, True, 1, 0.0, True, False, True)
    return h_SLE


@in_full_precision
def cells(
    x_SLD: Tensor, input_GD: Tensor, bias_G: Tensor, weight_GE: Tensor, h_SE: Tensor, c_SE: Tensor, h_SLE: Tensor
) -> Tensor:
    """Return c after each of L tokens, [S, L, E], from h after them and the state before."""
    ifg = slice(3 * h_SE.shape[1])  # all gates but the last
    before_SLE = torch.cat([h_SE[:, None], h_SLE[:, :-1]], 1)
    gates = F.linear(x_SLD, input_GD[ifg], bias_G[ifg]) + F.linear(before_SLE, weight_GE[ifg])
    i, f, g = gates.chunk(3, -1)
    return scan(f.sigmoid(), i.sigmoid() * g.tanh(), c_SE)


@in_full_precision
def recurrence(gates_LSG: Tensor, weight_GE: Tensor, h_SE: Tensor, c_SE: Tensor) -> tuple[Tensor, Tensor]:
    """Return h and c after each of L tokens, both [L, S, E]; `gates_LSG` is W x + b, without R h."""
    h_LSE, c_LSE, *_ = _Recurrence.apply(gates_LSG, weight_GE, h_SE, c_SE)
    return h_LSE, c_LSE


class _Recurrence(torch.autograd.Function):
    """The cell over L tokens, with a hand-written gradient.

    Autograd would record every operation of the loop and sum the weight's gradient token by token. Here the loop holds
    only what depends on the neighbouring token; the rest is computed for all tokens at once.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gates_LSG: Tensor, weight_GE: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        activated_LSG, tokens = gates_LSG.clone(), []
        for gates in activated_LSG.unbind():
            i, f, g, o = gates.add_(h @ weight_GE.T).chunk(4, -1)
            i.sigmoid_()
            f.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            c = torch.addcmul(f * c, i, g)
            tanh_c = c.tanh()
            h = o * tanh_c
            tokens.append((h, c, tanh_c))
        h_LSE, c_LSE, tanh_LSE = (torch.stack(values) for values in zip(*tokens, strict=True))
        return h_LSE, c_LSE, tanh_LSE, activated_LSG

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _, weight_GE, h_SE, c_SE = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(weight_GE, h_SE, c_SE, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh_LSE: Tensor, dc_LSE: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        weight_GE, h_SE, c_SE, h_LSE, c_LSE, tanh_c, activated_LSG = ctx.saved_tensors
        h_before, c_before = torch.cat([h_SE[None], h_LSE[:-1]]), torch.cat([c_SE[None], c_LSE[:-1]])
        i, f, g, o = activated_LSG.chunk(4, -1)
        dh_dc = tanh_backward(o, tanh_c)
        # Derivatives of c by the first three gates and of h by the last. The loop multiplies them by dc and dh.
        dc_dgates = sigmoid_backward(g, i), sigmoid_backward(c_before, f), tanh_backward(i, g)
        dgates = torch.stack((*dc_dgates, sigmoid_backward(tanh_c, o)), 2)
        dh, dc = torch.zeros_like(h_SE), torch.zeros_like(c_SE)
        for t in reversed(range(len(dgates))):
            dh = dh_LSE[t] + dh
            dc = torch.addcmul(dc_LSE[t] + dc, dh, dh_dc[t])
            dgates[t, :, :3] *= dc[:, None]
            dgates[t, :, 3] *= dh
            dh, dc = dgates[t].flatten(1) @ weight_GE, dc * f[t]
        dgates_LSG = dgates.flatten(2)
        return dgates_LSG, dgates_LSG.flatten(0, 1).T @ h_before.flatten(0, 1), dh, dc
