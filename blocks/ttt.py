"""TTT (Sun et al. 2024, arXiv 2407.04620): the memory is a small model, trained while it is used.

Each head carries an inner model f(.; W) and takes one gradient step a frame on how well it maps keys to values:

    f(k; W) = k + LN(inner(k; W))                   inner: W k + b, or W2 gelu(W1 k + b1) + b2
    loss_t(W) = mean over the K tokens of eta_k |f(k; W) - v|^2 / 2
    y_t = f(q_t; W_{t-1}),   W_t = W_{t-1} - grad loss_t(W_{t-1})

A frame reads before it writes, so it sees only earlier frames. Keys and queries are L2-normalised; W_0, LN's scale
and the rate eta_k = `rate` * sigmoid(linear(x_k)) are learned. With `inner_norm: false` there is no LN, and the linear
inner model becomes the delta rule. The state is the inner model's parameters, each [S, H, ...].

The gradient of the inner loss is written by hand (`fast/ttt.py`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.fast.ttt import inner_model, loss_gradient
from rad_bench.blocks.memory import MemoryBlock, Prefetched, State, in_full_precision, tie_queries


class TTT(MemoryBlock):
    """Test-time training: each head trains an inner model (linear or MLP) on the frames as they arrive."""

    size_option = "head_dim"
    fine_option = "heads"

    def __init__(
        self,
        dim: int,
        inner: Literal["linear", "mlp"] = "linear",
        heads: int = 4,
        head_dim: int = 16,
        rate: float = 1.0,
        inner_norm: bool = True,
    ) -> None:
        super().__init__(dim)
        if heads < 1 or head_dim < 2 or rate <= 0:
            raise ValueError("ttt needs heads >= 1, head_dim >= 2 and rate > 0")
        self.heads, self.head_dim, self.rate, self.inner_norm = heads, head_dim, rate, inner_norm
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        tie_queries(self.qkv, 0, heads * head_dim, heads * head_dim)
        self.rate_logit = nn.Linear(dim, heads)
        self.norm_scale = nn.Parameter(torch.ones(heads, 1, head_dim))
        self.norm_shift = nn.Parameter(torch.zeros(heads, 1, head_dim))
        widths = [head_dim, head_dim] if inner == "linear" else [head_dim, 4 * head_dim, head_dim]
        self.initial = nn.ParameterList()
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            self.initial.append(nn.Parameter(torch.randn(heads, fan_in, fan_out) / math.sqrt(fan_in)))
            self.initial.append(nn.Parameter(torch.zeros(heads, 1, fan_out)))
        self.output_norm = nn.Parameter(torch.ones(heads * head_dim))
        self.output = nn.Linear(heads * head_dim, dim, bias=False)

    def initial_state(self, sequences: int) -> State:
        return tuple(weight.expand(sequences, *weight.shape) for weight in self.initial)

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v, eta = self._project(x_SKD[:, None])
        y_SKD = self._finish(self._normed(q, inner_model(q[:, 0], state)[0][:, None]))[:, 0]
        return y_SKD, self._write(k[:, 0], v[:, 0], eta[:, 0], state)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        q = self._queries(x_SKD[:, None])
        return self._finish(self._normed(q, inner_model(q[:, 0], state)[0][:, None]))[:, 0]

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        # Projections and norms are one call each for all frames; only the inner model runs frame by frame. Each frame
        # reads right away: reading all frames later, from stacked weights, is limited by memory bandwidth.
        q, k, v, eta = self._project(x_STKD)
        memory, recalled = [], []
        for q_t, k_t, v_t, eta_t in zip(*(tensor.unbind(1) for tensor in (q, k, v, eta)), strict=True):
            memory.append(state)
            recalled.append(inner_model(q_t, state)[0])
            state = self._write(k_t, v_t, eta_t, state)
        return Prefetched(self._finish(self._normed(q, torch.stack(recalled, 1))), memory, state)

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        q = self._queries(x_STKD)
        memory = prefetched.memory[-x_STKD.shape[1] :]
        recalled = [inner_model(q_t, weights)[0] for q_t, weights in zip(q.unbind(1), memory, strict=True)]
        return self._finish(self._normed(q, torch.stack(recalled, 1)))

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v as [S, T, H, K, P] and the rates eta / K as [S, T, H, K, 1]."""
        qkv = self.qkv(x_STKD).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        eta = self.rate / x_STKD.shape[2] * self.rate_logit(x_STKD).sigmoid().transpose(2, 3)[..., None]
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, eta

    def _queries(self, x_STKD: Tensor) -> Tensor:
        """Return q only, for frames that do not write."""
        q = F.linear(x_STKD, self.qkv.weight[: self.heads * self.head_dim])
        return F.normalize(q.unflatten(-1, (self.heads, self.head_dim)).transpose(2, 3), dim=-1)

    def _normed(self, q: Tensor, out: Tensor) -> Tensor:
        """Return f(q; W) = q + LN(out), both [..., H, K, P]."""
        if self.inner_norm:
            out = F.layer_norm(out, out.shape[-1:]) * self.norm_scale + self.norm_shift
        return q + out

    def _norm(self) -> tuple[Tensor, Tensor] | None:
        return (self.norm_scale, self.norm_shift) if self.inner_norm else None

    @in_full_precision
    def _write(self, k: Tensor, v: Tensor, eta: Tensor, weights: State) -> State:
        """Take one gradient step on a frame; k, v [S, H, K, P], eta [S, H, K, 1]."""
        written: State = ()
        for layer, (inputs, error) in enumerate(loss_gradient(k, v, eta, weights, self._norm())):
            weight, bias = weights[2 * layer : 2 * layer + 2]
            factors = (tensor.flatten(0, 1) for tensor in (weight, inputs.transpose(-1, -2), error))
            written += torch.baddbmm(*factors, alpha=-1).view_as(weight), bias - error.sum(-2, keepdim=True)
        return written

    def _finish(self, y_STHKP: Tensor) -> Tensor:
        y = y_STHKP.transpose(2, 3).flatten(3)
        return self.output(F.rms_norm(y, y.shape[-1:], self.output_norm))
