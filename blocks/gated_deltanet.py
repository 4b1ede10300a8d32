"""Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): a matrix memory that corrects what a key recalls, and forgets.

    M_t = a_t M_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T    a = exp(-rate softplus(w_a x + c)), b = sigmoid(w_b x)
    h = M q,   y = U (RMSNorm(h) * SiLU(W_g x))

With a = 1 and b = 1 a key's old value is replaced by its new one; a forgets everything at once. Keys and queries are
L2-normalised. A frame reads the memory of the frames before it; then its K tokens are written in order. The state is M,
[S, H, P, P]. The layer's short convolution is left out: neighbouring tokens here are places of a frame, not a text.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.memory import MemoryBlock, Prefetched, State, in_full_precision


class GatedDeltaNet(MemoryBlock):
    """The gated delta rule: a matrix memory that overwrites what it knew of a key."""

    size_option = "head_dim"
    fine_option = "heads"

    def __init__(self, dim: int, heads: int = 4, head_dim: int = 16) -> None:
        super().__init__(dim)
        if heads < 1 or head_dim < 1:
            raise ValueError("gated_deltanet needs heads >= 1 and head_dim >= 1")
        self.heads, self.head_dim = heads, head_dim
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
        q, k, v, a, b = self._project(x_SKD[:, None])
        y_SKD = self._finish(q[:, 0] @ state[0].transpose(-1, -2), x_SKD)
        return y_SKD, (_write(k[:, 0], v[:, 0], a[:, 0], b[:, 0], state[0]),)

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        q, k, v, a, b = self._project(x_STKD)
        M, memory = state[0], []
        for t in range(x_STKD.shape[1]):
            memory.append(M)
            M = _write(k[:, t], v[:, t], a[:, t], b[:, t], M)
        before = torch.stack(memory, 1)
        return Prefetched(self._finish(q @ before.transpose(-1, -2), x_STKD), before, (M,))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        before = prefetched.memory[:, -x_STKD.shape[1] :]
        return self._finish(self._project(x_STKD)[0] @ before.transpose(-1, -2), x_STKD)

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v as [S, T, H, K, P] and the gates a, b as [S, T, H, K]."""
        qkv = self.qkv(x_STKD).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        a, b = self.gates(x_STKD).chunk(2, -1)
        a = torch.exp(-self.log_rate.exp() * F.softplus(a + self.decay_bias))
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, a.transpose(2, 3), b.sigmoid().transpose(2, 3)

    def _finish(self, h: Tensor, x: Tensor) -> Tensor:
        """Normalise, gate and project what was read: h [..., H, K, P], x [..., K, D]."""
        h = h.transpose(-3, -2).flatten(-2)
        return self.output(F.rms_norm(h, h.shape[-1:], self.norm) * F.silu(self.open(x)))


@in_full_precision
def _write(k: Tensor, v: Tensor, a: Tensor, b: Tensor, M: Tensor) -> Tensor:
    """Write the K tokens of a frame in order; k, v [S, H, K, P], gates [S, H, K], M [S, H, P, P]."""
    for token in range(k.shape[2]):
        k_t, v_t = k[:, :, token, :, None], v[:, :, token, :, None]
        a_t, b_t = a[:, :, token, None, None], b[:, :, token, None, None]
        M = a_t * M + b_t * (v_t - a_t * (M @ k_t)) @ k_t.transpose(-1, -2)
    return M
