"""Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): a matrix memory with the delta rule and decay.

    M_l = a_l M_{l-1} (I - b_l k_l k_l^T) + b_l v_l k_l^T    a = exp(-rate softplus(w_a x + c)), b = sigmoid(w_b x)
    h = M q,   y = U (RMSNorm(h) * SiLU(W_g x))

With a = 1 and b = 1, the new value of a key replaces the old one; a decays all keys. Keys and queries are
L2-normalised. A frame reads the memory of the frames before it; then its K tokens are written in order. The state is M,
[S, H, P, P]. The paper's short convolution is left out: neighbouring tokens here are locations in a frame, not words.

`step` is the recurrence as written. `prefetch` writes chunks of whole frames at once (`fast/gated_deltanet.py`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.fast.gated_deltanet import in_chunks, read, write_chunks
from rad_bench.blocks.memory import MemoryBlock, Prefetched, State, in_full_precision, tie_queries


class GatedDeltaNet(MemoryBlock):
    """The gated delta rule: a matrix memory whose writes replace the old value of a key."""

    size_option = "head_dim"
    fine_option = "heads"

    def __init__(self, dim: int, heads: int = 4, head_dim: int = 16, chunk: int = 32) -> None:
        super().__init__(dim)
        if min(heads, head_dim, chunk) < 1:
            raise ValueError("gated_deltanet needs heads, head_dim, chunk >= 1")
        self.heads, self.head_dim, self.chunk = heads, head_dim, chunk
        inner = heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        tie_queries(self.qkv, 0, inner, inner)
        self.gates = nn.Linear(dim, 2 * heads, bias=False)
        # As in `mamba2`, a step of time is a frame: decay over tens of frames.
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
        L = math.ceil(T / chunks) * K  # tokens a chunk: whole frames, the same number in each
        memory, M = write_chunks(*(in_chunks(tensor, L) for tensor in written), state[0], K)
        return Prefetched(self._finish(read(q, memory, 0), x_STKD), memory, (M,))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        Q, K = x_STKD.shape[1:3]
        skipped = (prefetched.y_STKD.shape[1] - Q) * K  # clean tokens before the first noisy frame
        return self._finish(read(self._queries(x_STKD), prefetched.memory, skipped), x_STKD)

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v as [S, H, T * K, P] and log a, b as [S, H, T * K, 1]."""
        q, k, v = self._by_head(self.qkv(x_STKD), 3)
        a, b = self._by_head(self.gates(x_STKD), 2)
        log_a = -self.log_rate.exp()[:, None, None] * F.softplus(a + self.decay_bias[:, None, None])
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, log_a, b.sigmoid()

    def _queries(self, x_STKD: Tensor) -> Tensor:
        """Return q only, for frames that do not write."""
        q = F.linear(x_STKD, self.qkv.weight[: self.heads * self.head_dim])
        return F.normalize(self._by_head(q, 1)[0], dim=-1)

    def _by_head(self, projections_STK: Tensor, number: int) -> Tensor:
        """Split the last dimension into `number` projections and move the heads: [number, S, H, T * K, ...]."""
        projections = projections_STK.flatten(1, 2).unflatten(-1, (number, self.heads, -1))
        return projections.permute(2, 0, 3, 1, 4).contiguous()

    def _finish(self, h_SHLP: Tensor, x: Tensor) -> Tensor:
        """Normalise, gate and project what the tokens of x [S, ..., K, D] read."""
        h = h_SHLP.transpose(1, 2).reshape(*x.shape[:-1], -1)
        return self.output(F.rms_norm(h, h.shape[-1:], self.norm) * F.silu(self.open(x)))


@in_full_precision
def _write(k: Tensor, v: Tensor, a: Tensor, b: Tensor, M: Tensor) -> Tensor:
    """Write the K tokens of a frame in order; k, v [S, H, K, P], gates [S, H, K, 1], M [S, H, P, P]."""
    for token in range(k.shape[2]):
        k_t, v_t, a_t, b_t = (tensor[:, :, token, :, None] for tensor in (k, v, a, b))
        M = a_t * M + b_t * (v_t - a_t * (M @ k_t)) @ k_t.mT
    return M
