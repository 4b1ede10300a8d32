"""mLSTM (Beck et al. 2024, arXiv 2405.04517): a matrix memory with exponential gates and a normaliser.

    C_t = f_t C_{t-1} + i_t v_t k_t^T,   n_t = f_t n_{t-1} + i_t k_t      f = sigmoid(w_f x), i = exp(w_i x), one a head
    h = C q / max(|n . q|, 1),           y = U (RMSNorm(h) * sigmoid(W_o x))

C and n are stored divided by exp(m), m_t = max(log f_t + m_{t-1}, log i_t), so that nothing overflows. A frame reads
the memory of the frames before it; then its K tokens are written in order. The state is C [S, H, P, P], n [S, H, P] and
m [S, H].

`step` is the recurrence as written. `prefetch` and `retrieve` take frames in chunks (`fast/mlstm.py`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.fast.mlstm import prefetch_chunks, recall_by_chunk
from rad_bench.blocks.memory import MemoryBlock, Prefetched, State, in_full_precision, tie_queries


class MLSTM(MemoryBlock):
    """xLSTM's matrix memory: keys and values, with input and forget gates."""

    size_option = "head_dim"
    fine_option = "heads"

    def __init__(self, dim: int, heads: int = 4, head_dim: int = 16, chunk: int = 64) -> None:
        super().__init__(dim)
        if min(heads, head_dim, chunk) < 1:
            raise ValueError("mlstm needs heads, head_dim, chunk >= 1")
        self.heads, self.head_dim, self.chunk = heads, head_dim, chunk
        inner = heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        tie_queries(self.qkv, 0, inner, inner)
        self.gates = nn.Linear(dim, 2 * heads)
        self.open = nn.Linear(dim, inner)
        self.norm = nn.Parameter(torch.ones(inner))
        self.output = nn.Linear(inner, dim, bias=False)
        with torch.no_grad():  # heads forget over 1 / (1 - sigmoid(3..6)) = 20 to 400 tokens
            self.gates.weight.mul_(0.1)
            i, f = self.gates.bias.chunk(2)
            i.zero_()
            f.copy_(torch.linspace(3.0, 6.0, heads))

    def initial_state(self, sequences: int) -> State:
        H, P = self.heads, self.head_dim
        return self.zeros(sequences, H, P, P), self.zeros(sequences, H, P), self.zeros(sequences, H)

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v, i, f = (tensor[:, :, 0] for tensor in self._project(x_SKD[:, None]))
        y_SKD = self._finish(_recall(q, state)[:, :, None], x_SKD[:, None])[:, 0]
        return y_SKD, _write(k, v, i, f, state)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        q = self._queries(x_SKD[:, None])
        return self._finish(_recall(q[:, :, 0], state)[:, :, None], x_SKD[:, None])[:, 0]

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        q, k, v, i, f = self._project(x_STKD)
        memory, state = prefetch_chunks(k, v, i, f, state, self.chunk)
        return Prefetched(self._finish(recall_by_chunk(q, memory), x_STKD), memory, state)

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        return self._finish(recall_by_chunk(self._queries(x_STKD), prefetched.memory), x_STKD)

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v as [S, H, T, K, P] and the logarithms of both gates as [S, H, T, K]."""
        qkv = self.qkv(x_STKD).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).contiguous().unbind(0)
        i, f = self.gates(x_STKD).permute(0, 3, 1, 2).chunk(2, 1)
        return q, k / math.sqrt(self.head_dim), v, i, F.logsigmoid(f)

    def _queries(self, x_STKD: Tensor) -> Tensor:
        """Return q only, for frames that do not write."""
        q = F.linear(x_STKD, self.qkv.weight[: self.heads * self.head_dim])
        return q.unflatten(-1, (self.heads, self.head_dim)).permute(0, 3, 1, 2, 4)

    def _finish(self, h_SHTKP: Tensor, x_STKD: Tensor) -> Tensor:
        h = h_SHTKP.permute(0, 2, 3, 1, 4).flatten(3)
        return self.output(F.rms_norm(h, h.shape[-1:], self.norm) * self.open(x_STKD).sigmoid())


@in_full_precision  # a quotient of sums that may cancel
def _recall(q: Tensor, state: State) -> Tensor:
    """Return h [S, H, K, P] for queries q of that shape."""
    C, n, m = state
    largest = m.clamp(min=0)[..., None, None]  # log of the larger of exp(m), the weight of C, and 1
    q = torch.exp(m[..., None, None] - largest) * q
    return q @ C.transpose(-1, -2) / torch.maximum((q @ n[..., None]).abs(), torch.exp(-largest))


def _write(k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor, state: State) -> State:
    """Write the K tokens of a frame in order; k, v [S, H, K, P], gates [S, H, K]."""
    C, n, m = state
    for token in range(k.shape[2]):
        k_t, v_t, i, f = k[:, :, token], v[:, :, token], log_i[..., token], log_f[..., token]
        larger = torch.maximum(f + m, i)
        keep, add = torch.exp(f + m - larger), torch.exp(i - larger)
        C = keep[..., None, None] * C + (add[..., None] * v_t)[..., :, None] * k_t[..., None, :]
        n = keep[..., None] * n + add[..., None] * k_t
        m = larger
    return C, n, m
