"""The LSTM recurrence over many tokens, with a hand-written gradient.

Letters: S sequences, L tokens, E = hidden, G = 4 * hidden: the gates i, f, g, o side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad_bench.blocks.memory import in_full_precision

sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward  # (gradient, output)


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
