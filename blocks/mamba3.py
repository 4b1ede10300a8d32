"""Mamba-3 (Lahoti et al. 2026, arXiv 2603.15569): a state space model whose state also turns, written in two halves.

    z, x, B, C, dt, A, m, r = projections of the token
    B = RMSNorm(B) + b,   C = RMSNorm(C) + c            b and c by head
    dt = softplus(dt + bias),   A = -softplus(A),   m = sigmoid(m)
    h_l = exp(dt_l A_l) R_l (h_{l-1} + (1 - m_l) dt_l x_{l-1} B_{l-1}^T) + m_l dt_l x_l B_l^T      [P, N] a head
    y_l = h_l C_l + skip * x_l,   out = U (y * SiLU(z))

A token is written in two halves: at its own time and at the next token's (the trapezoidal rule). There is no short
convolution. R_l turns a quarter of the state's N channels against another quarter, pair by pair, by pi dt_l tanh(r_l):
these pairs are complex numbers. The other channels do not turn. All heads share r, and B and C up to their biases.

The paper turns B and C instead, by the sum of all angles so far (rotary embeddings that depend on the data). That is
the same, since only the angle between two tokens matters. Here the state turns: a sum over a day of video would lose
this difference in fp32, and would be one more thing to carry. The state is the last token's x and B, [S, H, P] and
[S, H, N], and h, [S, H, P, N]. There are two forms, the same layer with other initial values:

    adapted   Rates r start at 0, so nothing turns before that is learned: on a way back, a key that has turned would
              miss the query of its own pose. Biases of B and C start at 0, so that keys of different poses are nearly
              orthogonal. Queries C start as copies of keys B.
    paper     As published: rates as PyTorch starts them, biases of 1, and queries apart from keys, or in `paper-tied`
              as copies.

Decay starts as published in both, over about 14 to 1,400 tokens. The variant with several inputs and outputs a head
(MIMO) is left out.

`step` is the recurrence as written. `prefetch` and `retrieve` compute it in chunks (`fast/mamba3.py`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.fast import mamba3 as chunked
from rad_bench.blocks.fast.mamba3 import Memory, Tokens, turn
from rad_bench.blocks.memory import MemoryBlock, Prefetched, State, in_full_precision
from rad_bench.blocks.start import Form, decay_start, tie_queries

SLOWEST = 1e-4  # decay of a state, so that none lasts for ever
EPSILON = 1e-5  # of the norms of B and C


class Mamba3(MemoryBlock):
    """The Mamba-3 layer with one input and output a head: a selective state space memory of constant size."""

    size_option = "head_dim"
    fine_option = "state"
    count_option = "heads"

    def __init__(
        self, dim: int, heads: int = 2, head_dim: int = 32, state: int = 32, chunk: int = 64, form: Form = "adapted",
    ) -> None:  # fmt: skip
        super().__init__(dim)
        if min(heads, head_dim, state, chunk) < 1:
            raise ValueError("mamba3 needs heads, head_dim, state, chunk >= 1")
        self.heads, self.head_dim, self.state_size, self.chunk = heads, head_dim, state, chunk
        inner, pairs = heads * head_dim, state // 4
        self.sizes = inner, inner, state, state, heads, heads, heads, pairs
        self.input = nn.Linear(dim, sum(self.sizes), bias=False)
        if form != "paper":
            tie_queries(self.input.weight, 2 * inner + state, 2 * inner, state)  # C from B
        bias = torch.ones(heads, state)
        if form == "adapted":
            bias.zero_()
            nn.init.zeros_(self.input.weight[sum(self.sizes) - pairs :])
        self.B_norm, self.C_norm = nn.Parameter(torch.ones(state)), nn.Parameter(torch.ones(state))
        self.B_bias, self.C_bias = nn.Parameter(bias), nn.Parameter(bias.clone())
        self.dt_bias = nn.Parameter(decay_start(heads, "paper", lowest=1.0)[0])
        self.skip = nn.Parameter(torch.ones(heads))
        self.output = nn.Linear(inner, dim, bias=False)

    def initial_state(self, sequences: int) -> State:
        sizes = (self.head_dim,), (self.state_size,), (self.head_dim, self.state_size)
        return tuple(self.zeros(sequences, self.heads, *size) for size in sizes)

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        z, tokens = self._project(x_SKD[:, None])
        y_SKHP, state = _recur(*(tensor[:, 0] for tensor in tokens), state)
        return self._finish(y_SKHP[:, None], tokens, z)[:, 0], state

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        z, tokens = self._project(x_SKD[:, None])
        return self._finish(chunked.read_state(tokens, state), tokens, z)[:, 0]

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        z, tokens = self._project(x_STKD)
        entering, state = chunked.write(tokens, state, self.chunk)
        memory = Memory(tokens, entering)
        return Prefetched(self._finish(chunked.read(tokens, memory, self.chunk), tokens, z), memory, state)

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        z, tokens = self._project(x_STKD)
        return self._finish(chunked.read(tokens, prefetched.memory, self.chunk), tokens, z)

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tokens]:
        """Return the gate z, and what the recurrence needs of each token."""
        z, x, B, C, dt, A, m, r = self.input(x_STKD).split(self.sizes, -1)
        B, C = (F.rms_norm(tensor, tensor.shape[-1:], eps=EPSILON)[..., None, :] for tensor in (B, C))
        B, C = self.B_norm * B + self.B_bias, self.C_norm * C + self.C_bias
        dt, m = F.softplus(dt + self.dt_bias), m.sigmoid()
        log_a = -F.softplus(A).clamp(min=SLOWEST) * dt
        angle = math.pi * dt[..., None] * r.tanh()[..., None, :]
        return z, Tokens(x.unflatten(-1, (self.heads, -1)), B, C, log_a, (1 - m) * dt, m * dt, angle)

    def _finish(self, y_STKHP: Tensor, tokens: Tokens, z: Tensor) -> Tensor:
        return self.output((y_STKHP + self.skip[:, None] * tokens.x).flatten(-2) * F.silu(z))


@in_full_precision
def _recur(
    x_SKHP: Tensor, B_SKHN: Tensor, C_SKHN: Tensor, log_a_SKH: Tensor, before_SKH: Tensor, own_SKH: Tensor,
    angle_SKHR: Tensor, state: State,
) -> tuple[Tensor, State]:  # fmt: skip
    """Process the K tokens of a frame in order. Return what each reads once it has written, and the new state."""
    x_last, B_last, h = state
    outputs = []
    tokens = (tensor.unbind(1) for tensor in (x_SKHP, B_SKHN, C_SKHN, log_a_SKH, before_SKH, own_SKH, angle_SKHR))
    for x, B, C, log_a, before, own, angle in zip(*tokens, strict=True):
        h = h + torch.einsum("sh,shp,shn->shpn", before, x_last, B_last)
        h = log_a.exp()[..., None, None] * turn(h, angle[:, :, None])
        h = h + torch.einsum("sh,shp,shn->shpn", own, x, B)
        outputs.append(torch.einsum("shpn,shn->shp", h, C))
        x_last, B_last = x, B
    return torch.stack(outputs, 1), (x_last, B_last, h)
