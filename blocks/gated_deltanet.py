"""Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): a matrix memory that corrects what a key recalls, and forgets.

    M_l = a_l M_{l-1} (I - b_l k_l k_l^T) + b_l v_l k_l^T    a = exp(-rate softplus(w_a x + c)), b = sigmoid(w_b x)
    h = M q,   y = U (RMSNorm(h) * SiLU(W_g x))

With a = 1 and b = 1 a key's old value is replaced by its new one; a forgets everything at once. Keys and queries are
L2-normalised. A frame reads the memory of the frames before it; then its K tokens are written in order. The state is M,
[S, H, P, P]. The layer's short convolution is left out: neighbouring tokens here are places of a frame, not a text.

`step` is the recurrence as written: the reference. `prefetch` writes a chunk of whole frames at once (Yang et al. 2024,
arXiv 2406.06484). If M_0 enters the chunk and g_l = a_1 ... a_l, then

    M_l = g_l M_0 + sum_{j <= l} (g_l / g_j) w_j k_j^T
    w_l = b_l (v_l - g_l M_0 k_l - sum_{j < l} (g_l / g_j) (k_j . k_l) w_j)

The second line is a triangular system, so all w of a chunk are one solve. It is not inverted by powers of its matrix:
where keys are alike these grow beyond what fp32 can cancel. A frame reads the first line, at the last token before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.memory import MemoryBlock, Prefetched, State, in_full_precision


@dataclass(frozen=True)
class Memory:
    """Clean frames as `retrieve` reads them, in C chunks of L tokens."""

    k: Tensor  # [S, H, C, L, P]
    w: Tensor  # [S, H, C, L, P]: what is written at k
    left: Tensor  # [S, H, C, L, L]: of each w, before the frame of each token
    entering: Tensor  # [S, H, C, P, P]: M before each chunk
    kept: Tensor  # [S, H, C, L, 1]: of it, before the frame of each token


class GatedDeltaNet(MemoryBlock):
    """The gated delta rule: a matrix memory that overwrites what it knew of a key."""

    size_option = "head_dim"
    fine_option = "heads"

    def __init__(self, dim: int, heads: int = 4, head_dim: int = 16, chunk: int = 32) -> None:
        super().__init__(dim)
        if min(heads, head_dim, chunk) < 1:
            raise ValueError("gated_deltanet needs heads, head_dim, chunk >= 1")
        self.heads, self.head_dim, self.chunk = heads, head_dim, chunk
        inner = heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.gates = nn.Linear(dim, 2 * heads, bias=False)
        # As in `mamba2`, time is counted in frames: decay over tens of them.
        step = torch.exp(torch.empty(heads).uniform_(math.log(0.1), math.log(1.0)))
        self.decay_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.log_rate = nn.Parameter(torch.empty(heads).uniform_(math.log(0.01), math.log(0.1)))
        self.open = nn.Linear(dim, inner, bias=False)
        self.norm = nn.Parameter(torch.ones(inner))
        self.output = nn.Linear(inner, dim, bias=False)

    def initial_state(self, sequences: int) -> State:
        return (self.zeros(sequences, self.heads, self.head_dim, self.head_dim),)

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v, log_a, b = self._project(x_SKD[:, None])
        y_SKD = self._finish(q @ state[0].mT, x_SKD)
        return y_SKD, (_write(k, v, log_a.exp(), b, state[0]),)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        return self._finish(self._queries(x_SKD[:, None]) @ state[0].mT, x_SKD)

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        T, K = x_STKD.shape[1:3]
        q, *written = self._project(x_STKD)
        chunks = math.ceil(T / max(1, self.chunk // K))
        L = math.ceil(T / chunks) * K  # chunks alike, of whole frames
        memory, M = _write_chunks(*(_in_chunks(part, L) for part in written), state[0], K)
        return Prefetched(self._finish(_read(q, memory, 0), x_STKD), memory, (M,))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        Q, K = x_STKD.shape[1:3]
        absent = (prefetched.y_STKD.shape[1] - Q) * K
        return self._finish(_read(self._queries(x_STKD), prefetched.memory, absent), x_STKD)

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v as [S, H, T * K, P] and log a, b as [S, H, T * K, 1]."""
        q, k, v = self._by_head(self.qkv(x_STKD), 3)
        a, b = self._by_head(self.gates(x_STKD), 2)
        log_a = -self.log_rate.exp()[:, None, None] * F.softplus(a + self.decay_bias[:, None, None])
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, log_a, b.sigmoid()

    def _queries(self, x_STKD: Tensor) -> Tensor:
        """Return q alone, for frames that do not write."""
        q = F.linear(x_STKD, self.qkv.weight[: self.heads * self.head_dim])
        return F.normalize(self._by_head(q, 1)[0], dim=-1)

    def _by_head(self, parts_STK: Tensor, number: int) -> Tensor:
        """Order so many projections as [number, S, H, T * K, ...]."""
        parts = parts_STK.flatten(1, 2).unflatten(-1, (number, self.heads, -1))
        return parts.permute(2, 0, 3, 1, 4).contiguous()

    def _finish(self, h_SHLP: Tensor, x: Tensor) -> Tensor:
        """Normalise, gate and project what the tokens of x [S, ..., K, D] have read."""
        h = h_SHLP.transpose(1, 2).reshape(*x.shape[:-1], -1)
        return self.output(F.rms_norm(h, h.shape[-1:], self.norm) * F.silu(self.open(x)))


@in_full_precision
def _write(k: Tensor, v: Tensor, a: Tensor, b: Tensor, M: Tensor) -> Tensor:
    """Write the K tokens of a frame in order; k, v [S, H, K, P], gates [S, H, K, 1], M [S, H, P, P]."""
    for token in range(k.shape[2]):
        k_t, v_t, a_t, b_t = (part[:, :, token, :, None] for part in (k, v, a, b))
        M = a_t * M + b_t * (v_t - a_t * (M @ k_t)) @ k_t.mT
    return M


@in_full_precision
def _write_chunks(k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, M: Tensor, K: int) -> tuple[Memory, Tensor]:
    """Write chunk after chunk of tokens, K a frame; k, v [S, H, C, L, P], gates [S, H, C, L, 1], M [S, H, P, P]."""
    passed = log_a.cumsum(-2)  # log g
    kept = passed.exp()  # of M_0, after each token
    left = (passed - passed.mT).clamp(max=0).exp().tril()  # of w_j, after each token l >= j
    bk = b * k
    system = left * (bk @ k.mT)  # the solve takes what is below the diagonal, and ones on it
    target, recalling, at_end = b * v, kept * bk, left.mT[..., -1:] * k
    entering, written = [], []
    for matrix, b_v, recall, k_left, M_left in zip(
        *(part.unbind(2) for part in (system, target, recalling, at_end, kept[..., -1:, :])), strict=True
    ):
        w = torch.linalg.solve_triangular(matrix, b_v - recall @ M.mT, upper=False, unitriangular=True)
        entering.append(M)
        written.append(w)
        M = M_left * M + w.mT @ k_left
    left, kept = _before_frames(left, K, 0.0), _before_frames(kept, K, 1.0)
    return Memory(k, torch.stack(written, 2), left, torch.stack(entering, 2), kept), M


def _before_frames(part: Tensor, K: int, first: float) -> Tensor:
    """Of values after each token of a chunk [..., L, :], give each token that before its frame."""
    return F.pad(part[..., K - 1 : -1 : K, :], (0, 0, 1, 0), value=first).repeat_interleave(K, -2)


def _read(q: Tensor, memory: Memory, absent: int) -> Tensor:
    """Return h [S, H, N, P] of queries of that shape, which stand `absent` tokens after the memory's first."""
    L = memory.k.shape[3]
    chunks, ahead = divmod(absent, L)
    parts = memory.k, memory.w, memory.left, memory.entering, memory.kept
    k, w, left, entering, kept = (part[:, :, chunks:] for part in parts) if chunks else parts
    q_SHCLP = _in_chunks(F.pad(q, (0, 0, ahead, 0)) if ahead else q, L)
    h = kept * (q_SHCLP @ entering.mT) + (left * (q_SHCLP @ k.mT)) @ w
    return h.flatten(2, 3)[:, :, ahead : ahead + q.shape[2]]


def _in_chunks(part: Tensor, L: int) -> Tensor:
    """Cut [S, H, N, ...] to [S, H, C, L, ...], after zeros are added: tokens that neither decay nor write."""
    absent = -part.shape[2] % L
    return (F.pad(part, (0, 0, 0, absent)) if absent else part).unflatten(2, (-1, L))
