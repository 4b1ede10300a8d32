"""TTT (Sun et al. 2024, arXiv 2407.04620): the memory is a small model, trained while it is used.

Each head carries an inner model f(.; W) and takes one gradient step a frame on how well it maps keys to values:

    f(k; W) = k + LN(inner(k; W))                   inner: W k + b, or W2 gelu(W1 k + b1) + b2
    loss_t(W) = mean over the K tokens of eta_k |f(k; W) - v|^2 / 2
    y_t = f(q_t; W_{t-1}),   W_t = W_{t-1} - grad loss_t(W_{t-1})

W_0, LN's scale and the rate eta_k = `rate` * sigmoid(linear(x_k)) are learned. With `inner_norm: false` there is no LN,
and the linear inner model becomes the delta rule. The state is the inner model's parameters, each [S, H, ...]. There
are two forms:

    adapted   As above. A frame reads before it writes, so it sees only earlier frames. q, k and v are linear in x, and
              keys and queries are L2-normalised; the outputs pass through an RMS norm. Queries start as copies of keys.
    paper     As published, in the Mamba backbone, with a frame as the mini-batch: token k of a frame reads after the
              step on tokens 1..k. Queries and keys are one projection of x, each convolved over 4 tokens by itself
              (with `tied: true` their convolutions start equal), and not normalised; eta_k is divided by P. The outputs
              pass through a layer norm and the gate gelu(W_g x). W_0 starts small. The state begins with the
              convolutions' tail, [S, 3, H * P]. Left out: positions within the mini-batch, and learned shares of
              its tokens in the step, as their number is the trunk's.

The gradient of the inner loss is written by hand (`fast/ttt.py`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.convolution import PUBLISHED_TAPS, convolve_apart, convolve_clip
from rad_bench.blocks.fast.ttt import Gradient, inner_model, loss_gradient, model_after_each_token
from rad_bench.blocks.memory import MemoryBlock, Prefetched, State, in_full_precision
from rad_bench.blocks.start import Form, start_as_conv1d, starts_tied, tie_queries


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
        form: Form = "adapted",
        tied: bool | None = None,
    ) -> None:
        super().__init__(dim)
        if heads < 1 or head_dim < 2 or rate <= 0:
            raise ValueError("ttt needs heads >= 1, head_dim >= 2 and rate > 0")
        self.heads, self.head_dim, self.rate, self.inner_norm, self.form = heads, head_dim, rate, inner_norm, form
        width = heads * head_dim
        self.qkv = nn.Linear(dim, (3 if form == "adapted" else 2) * width, bias=False)
        if form == "adapted" and starts_tied(form, tied):
            tie_queries(self.qkv.weight, 0, width, width)
        self.rate_logit = nn.Linear(dim, heads)
        self.norm_scale = nn.Parameter(torch.ones(heads, 1, head_dim))
        self.norm_shift = nn.Parameter(torch.zeros(heads, 1, head_dim))
        widths = [head_dim, head_dim] if inner == "linear" else [head_dim, 4 * head_dim, head_dim]
        self.initial = nn.ParameterList()
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            scale = math.sqrt(fan_in) if form == "adapted" else 50.0
            self.initial.append(nn.Parameter(torch.randn(heads, fan_in, fan_out) / scale))
            self.initial.append(nn.Parameter(torch.zeros(heads, 1, fan_out)))
        self.output_norm = nn.Parameter(torch.ones(width))
        self.output = nn.Linear(width, dim, bias=False)
        if form == "paper":
            self.output_shift = nn.Parameter(torch.zeros(width))
            self.open = nn.Linear(dim, width, bias=False)
            self.conv_weight = nn.Parameter(
                start_as_conv1d(PUBLISHED_TAPS, PUBLISHED_TAPS, 2 * width)
            )  # of queries, then of keys
            self.conv_bias = nn.Parameter(start_as_conv1d(PUBLISHED_TAPS, 2 * width))
            if starts_tied(form, tied):
                tie_queries(self.conv_weight.T, 0, width, width)
                tie_queries(self.conv_bias, 0, width, width)
            with torch.no_grad():
                self.rate_logit.weight.normal_(0, 0.02)
                self.rate_logit.bias.zero_()

    def initial_state(self, sequences: int) -> State:
        weights = tuple(weight.expand(sequences, *weight.shape) for weight in self.initial)
        if self.form == "adapted":
            return weights
        return self.zeros(sequences, PUBLISHED_TAPS - 1, self.heads * self.head_dim), *weights

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        x_STKD, (tail, weights) = x_SKD[:, None], self._parts(state)
        (q, k, v, eta), _, tail = self._clean(x_STKD, tail)
        recalled, weights = self._frame(q[:, 0], k[:, 0], v[:, 0], eta[:, 0], weights)
        return self._finish(self._normed(q, recalled[:, None]), x_STKD)[:, 0], (*tail, *weights)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        if self.form == "paper":
            return super().read(x_SKD, state)
        x_STKD = x_SKD[:, None]
        q = self._queries(x_STKD)
        return self._finish(self._normed(q, inner_model(q[:, 0], state)[0][:, None]), x_STKD)[:, 0]

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        # Projections and norms are one call each for all frames; only the inner model runs frame by frame. Each frame
        # reads right away: reading all frames later, from stacked weights, is limited by memory bandwidth.
        tail, weights = self._parts(state)
        (q, k, v, eta), tails, tail = self._clean(x_STKD, tail)
        memory, recalled = [], []
        for q_t, k_t, v_t, eta_t in zip(*(tensor.unbind(1) for tensor in (q, k, v, eta)), strict=True):
            memory.append(weights)
            read, weights = self._frame(q_t, k_t, v_t, eta_t, weights)
            recalled.append(read)
        y_STKD = self._finish(self._normed(q, torch.stack(recalled, 1)), x_STKD)
        return Prefetched(y_STKD, (memory, tails), (*tail, *weights))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        memory, tails = prefetched.memory
        memory = memory[-x_STKD.shape[1] :]
        if self.form == "adapted":
            q = self._queries(x_STKD)
            recalled = [inner_model(q_t, weights)[0] for q_t, weights in zip(q.unbind(1), memory, strict=True)]
        else:
            u, v = self.qkv(x_STKD).chunk(2, -1)
            qk = convolve_apart(torch.cat([u, u], -1), tails, self.conv_weight, self.conv_bias)
            q, *written = self._project(torch.cat([qk, v], -1), x_STKD)
            frames = zip(*(tensor.unbind(1) for tensor in (q, *written)), memory, strict=True)
            recalled = [self._frame(*frame)[0] for frame in frames]
        return self._finish(self._normed(q, torch.stack(recalled, 1)), x_STKD)

    def _parts(self, state: State) -> tuple[State, State]:
        """Return the tail, if there is one, and the inner model's parameters."""
        return state[: -len(self.initial)], state[-len(self.initial) :]

    def _clean(self, x_STKD: Tensor, tail: State) -> tuple[tuple[Tensor, ...], Tensor | None, State]:
        """Return what `_project` does for consecutive frames, the tails before them, and the last tail."""
        qkv = self.qkv(x_STKD)
        if self.form == "adapted":
            return self._project(qkv, x_STKD), None, ()
        u, v = qkv.chunk(2, -1)
        twice = torch.cat([u, u], -1), torch.cat([*tail, *tail], -1)
        qk, tails, last = convolve_clip(*twice, self.conv_weight, self.conv_bias)
        return self._project(torch.cat([qk, v], -1), x_STKD), tails, (last[..., : u.shape[-1]],)

    def _project(self, qkv: Tensor, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v as [S, T, H, K, P] and the rates eta / K as [S, T, H, K, 1]."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, self.head_dim)).permute(3, 0, 1, 4, 2, 5).unbind(0)
        eta = self.rate / x_STKD.shape[2] * self.rate_logit(x_STKD).sigmoid().transpose(2, 3)[..., None]
        if self.form == "paper":
            return q, k, v, eta / self.head_dim
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

    def _frame(self, q: Tensor, k: Tensor, v: Tensor, eta: Tensor, weights: State) -> tuple[Tensor, State]:
        """Return what a frame reads, before the norm, and the weights after it; eta [S, H, K, 1], rest [S, H, K, P]."""
        if self.form == "adapted":
            return inner_model(q, weights)[0], self._write(k, v, eta, weights)
        return self._write_and_read(q, k, v, eta, weights)

    @in_full_precision
    def _write(self, k: Tensor, v: Tensor, eta: Tensor, weights: State) -> State:
        """Take one gradient step on a frame; k, v [S, H, K, P], eta [S, H, K, 1]."""
        return _descend(weights, loss_gradient(k, v, eta, weights, self._norm()))

    @in_full_precision
    def _write_and_read(self, q: Tensor, k: Tensor, v: Tensor, eta: Tensor, weights: State) -> tuple[Tensor, State]:
        gradient = loss_gradient(k, v, eta, weights, self._norm())
        return model_after_each_token(q, weights, gradient), _descend(weights, gradient)

    def _finish(self, y_STHKP: Tensor, x_STKD: Tensor) -> Tensor:
        y = y_STHKP.transpose(2, 3).flatten(3)
        if self.form == "adapted":
            return self.output(F.rms_norm(y, y.shape[-1:], self.output_norm))
        y = F.layer_norm(y, y.shape[-1:], self.output_norm, self.output_shift)
        return self.output(y * F.gelu(self.open(x_STKD), approximate="tanh"))


def _descend(weights: State, gradient: Gradient) -> State:
    """Return the inner model's parameters after one step."""
    written: State = ()
    for layer, (inputs, error) in enumerate(gradient):
        weight, bias = weights[2 * layer : 2 * layer + 2]
        factors = (tensor.flatten(0, 1) for tensor in (weight, inputs.transpose(-1, -2), error))
        written += torch.baddbmm(*factors, alpha=-1).view_as(weight), bias - error.sum(-2, keepdim=True)
    return written
