"""Mamba-3 (Lahoti et al. 2026, arXiv 2603.15569): a state space model whose state also turns, written in two halves.

    z, x, B, C, dt, A, m, r = projections of the token
    B = RMSNorm(B) + b,   C = RMSNorm(C) + c            b and c by head
    dt = softplus(dt + bias),   A = -softplus(A),   m = sigmoid(m)
    h_l = exp(dt_l A_l) R_l (h_{l-1} + (1 - m_l) dt_l x_{l-1} B_{l-1}^T) + m_l dt_l x_l B_l^T      [P, N] a head
    y_l = h_l C_l + skip * x_l,   out = U (y * SiLU(z))

With a `rank` R above 1 (MIMO: several inputs and outputs a head), a token has R keys B and queries C. It writes R outer
products into the same state, and reads it R times:

    x_r = s_r x,   h = ... + sum_r x_r B_r^T,   y_r = h C_r + skip * x_r,   y = sum_r o_r y_r SiLU(g_r z)

s, g and o are weights [R, P] a head. So the state is used more, at the same size: for each value of it that is moved,
R times as much is computed.

A token is written in two halves: at its own time and at the next token's (the trapezoidal rule). There is no short
convolution. R_l turns a quarter of the state's N channels against another quarter, pair by pair, by pi dt_l tanh(r_l):
these pairs are complex numbers. The other channels do not turn. All heads share r, and B and C up to their biases.

The paper turns B and C instead, by the sum of all angles so far (rotary embeddings that depend on the data). That is
the same, since only the angle between two tokens matters. Here the state turns: a sum over a day of video would lose
this difference in fp32, and would be one more thing to carry. The state is the last token's x and B, [S, H, P] and
[S, H, R, N], and h, [S, H, P, N]. There are two forms, the same layer with other initial values:

    adapted   Rates r start at 0, so nothing turns before that is learned: on a way back, a key that has turned would
              miss the query of its own pose. Biases of B and C start at 0, so that keys of different poses are nearly
              orthogonal. Queries C start as copies of keys B.
    paper     As published: rates as PyTorch starts them, biases of 1, and queries apart from keys, or in `paper-tied`
              as copies.

Decay starts as published in both, over about 14 to 1,400 tokens.

`step` is the recurrence as written. `prefetch` and `retrieve` compute it in chunks (`fast/mamba3.py`), or on CUDA
devices by flash-linear-attention's kernels, if installed (`fast/fla_kernels.py`). These turn B and C, within a clip.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.fast import mamba3 as chunked
from rad_bench.blocks.fast.fla_kernels import ScannedBlock
from rad_bench.blocks.fast.mamba3 import Memory, Scanned, Tokens, turn
from rad_bench.blocks.memory import Prefetched, State, in_full_precision
from rad_bench.blocks.start import Form, decay_start, tie_queries

SLOWEST = 1e-4  # decay of a state, so that none lasts for ever
EPSILON = 1e-5  # of the norms of B and C


class Mamba3(ScannedBlock):
    """The Mamba-3 layer: a selective state space memory of constant size."""

    size_option = "head_dim"
    fine_option = "state"
    count_option = "heads"

    def __init__(
        self, dim: int, heads: int = 2, head_dim: int = 32, state: int = 32, rank: int = 1, chunk: int = 64,
        form: Form = "adapted",
    ) -> None:  # fmt: skip
        super().__init__(dim)
        if min(heads, head_dim, state, rank, chunk) < 1:
            raise ValueError("mamba3 needs heads, head_dim, state, rank, chunk >= 1")
        self.heads, self.head_dim, self.state_size, self.rank = heads, head_dim, state, rank
        self.chunk = max(chunk // rank, 1)
        inner, keys, pairs = heads * head_dim, rank * state, state // 4
        self.sizes = inner, inner, keys, keys, heads, heads, heads, pairs
        self.input = nn.Linear(dim, sum(self.sizes), bias=False)
        if form != "paper":
            tie_queries(self.input.weight, 2 * inner + keys, 2 * inner, keys)  # C from B
        bias = torch.ones(heads, rank, state)
        if form == "adapted":
            bias.zero_()
            nn.init.zeros_(self.input.weight[sum(self.sizes) - pairs :])
        self.B_norm, self.C_norm = nn.Parameter(torch.ones(state)), nn.Parameter(torch.ones(state))
        self.B_bias, self.C_bias = nn.Parameter(bias), nn.Parameter(bias.clone())
        self.dt_bias = nn.Parameter(decay_start(heads, "paper", lowest=1.0)[0])
        self.skip = nn.Parameter(torch.ones(heads))
        if rank > 1:
            self.spread = nn.Parameter(torch.full((heads, rank, head_dim), 1 / rank))
            self.gates = nn.Parameter(torch.ones(heads, rank, head_dim))
            self.gather = nn.Parameter(torch.full((heads, rank, head_dim), 1 / rank))
        self.output = nn.Linear(inner, dim, bias=False)

    def initial_state(self, sequences: int) -> State:
        sizes = (self.head_dim,), (self.rank, self.state_size), (self.head_dim, self.state_size)
        return tuple(self.zeros(sequences, self.heads, *size) for size in sizes)

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        z, x, tokens = self._project(x_SKD[:, None])
        y_SKHRP, state = _recur(*(tensor[:, 0] for tensor in tokens), self._entering(state))
        return self._finish(y_SKHRP[:, None], tokens, z)[:, 0], _left(x, state)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        z, _, tokens = self._project(x_SKD[:, None])
        return self._finish(chunked.read_state(tokens, self._entering(state)), tokens, z)[:, 0]

    def _prefetch_chunks(self, x_STKD: Tensor, state: State) -> Prefetched:
        z, x, tokens = self._project(x_STKD)
        entering, state = chunked.write(tokens, self._entering(state), self.chunk)
        memory = Memory(tokens, entering)
        y_STKHRP = chunked.read(tokens, memory, self.chunk)
        return Prefetched(self._finish(y_STKHRP, tokens, z), memory, _left(x, state))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        z, _, tokens = self._project(x_STKD)
        memory = prefetched.memory
        scanned = isinstance(memory, Scanned)
        y = chunked.read_scanned(tokens, memory) if scanned else chunked.read(tokens, memory, self.chunk)
        return self._finish(y, tokens, z)

    def _scan(
        self, clean_STKD: Tensor, noisy_SQKD: Tensor | None, state: State
    ) -> tuple[Tensor, Tensor | None, Scanned, State]:
        z, x, tokens = self._project(clean_STKD)
        noisy = None if noisy_SQKD is None else self._project(noisy_SQKD)
        y, read, memory, after = chunked.scan(tokens, noisy and noisy[-1], self._entering(state))
        y_SQKD = None if noisy is None or read is None else self._finish(read, noisy[-1], noisy[0])
        return self._finish(y, tokens, z), y_SQKD, memory, _left(x, after)

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tokens]:
        """Return z and x, [S, T, K, H, P], and what the recurrence needs of each token."""
        z, x, B, C, dt, A, m, r = self.input(x_STKD).split(self.sizes, -1)
        z, x = (tensor.unflatten(-1, (self.heads, -1)) for tensor in (z, x))
        B, C = (tensor.unflatten(-1, (1, self.rank, -1)) for tensor in (B, C))  # the same for all heads
        B = self.B_norm * F.rms_norm(B, B.shape[-1:], eps=EPSILON) + self.B_bias
        C = self.C_norm * F.rms_norm(C, C.shape[-1:], eps=EPSILON) + self.C_bias
        dt, m = F.softplus(dt + self.dt_bias), m.sigmoid()
        log_a = -F.softplus(A).clamp(min=SLOWEST) * dt
        angle = math.pi * dt[..., None] * r.tanh()[..., None, :]
        return z, x, Tokens(self._inputs(x), B, C, log_a, (1 - m) * dt, m * dt, angle)

    def _inputs(self, x_HP: Tensor) -> Tensor:
        """Return x_r, [..., H, R, P], of tokens [..., H, P]."""
        return x_HP[..., None, :] if self.rank == 1 else self.spread * x_HP[..., None, :]

    def _entering(self, state: State) -> State:
        """Return a state as the scan has it: with x_r of the last token, [S, H, R, P], for x."""
        return self._inputs(state[0]), *state[1:]

    def _finish(self, y_STKHRP: Tensor, tokens: Tokens, z_STKHP: Tensor) -> Tensor:
        y_STKHRP = y_STKHRP + self.skip[:, None, None] * tokens.x
        if self.rank == 1:
            y_STKHP = y_STKHRP[..., 0, :] * F.silu(z_STKHP)
        else:
            y_STKHP = (self.gather * y_STKHRP * F.silu(self.gates * z_STKHP[..., None, :])).sum(-2)
        return self.output(y_STKHP.flatten(-2))


def _left(x_STKHP: Tensor, state: State) -> State:
    """Return a state that the scan leaves as it is carried: with x of the last token, which autocast may round."""
    return x_STKHP[:, -1, -1].to(state[-1].dtype), *state[1:]


@in_full_precision
def _recur(
    x_SKHRP: Tensor, B_SKHRN: Tensor, C_SKHRN: Tensor, log_a_SKH: Tensor, before_SKH: Tensor, own_SKH: Tensor,
    angle_SKHA: Tensor, state: State,
) -> tuple[Tensor, State]:  # fmt: skip
    """Process the K tokens of a frame in order. Return what each reads once it has written, and the new state."""
    x_last, B_last, h = state
    outputs = []
    tokens = (tensor.unbind(1) for tensor in (x_SKHRP, B_SKHRN, C_SKHRN, log_a_SKH, before_SKH, own_SKH, angle_SKHA))
    for x, B, C, log_a, before, own, angle in zip(*tokens, strict=True):
        h = h + torch.einsum("sh,shrp,shrn->shpn", before, x_last, B_last)
        h = log_a.exp()[..., None, None] * turn(h, angle[:, :, None])
        h = h + torch.einsum("sh,shrp,shrn->shpn", own, x, B)
        outputs.append(torch.einsum("shpn,shrn->shrp", h, C))
        x_last, B_last = x, B
    return torch.stack(outputs, 1), (x_last, B_last, h)
