"""mLSTM (Beck et al. 2024, arXiv 2405.04517): a matrix memory with exponential gates and a normaliser.

    C_t = f_t C_{t-1} + i_t v_t k_t^T,   n_t = f_t n_{t-1} + i_t k_t      f = sigmoid(w_f x), i = exp(w_i x), one a head
    h = C q / max(|n . q|, 1),           y = U (RMSNorm(h) * sigmoid(W_o x))

C and n are kept divided by exp(m), where m_t = max(log f_t + m_{t-1}, log i_t): nothing overflows. A frame reads the
memory of the frames before it; then its K tokens are written in order. So reads of all frames are one product, and the
writes, which do not look at the memory, are the only recurrence. The state is C [S, H, P, P], n [S, H, P], m [S, H].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.memory import MemoryBlock, Prefetched, State, in_full_precision, map_state


class MLSTM(MemoryBlock):
    """xLSTM's matrix memory: keys and values, forgotten by gates."""

    size_option = "head_dim"
    fine_option = "heads"

    def __init__(self, dim: int, heads: int = 4, head_dim: int = 16) -> None:
        super().__init__(dim)
        if heads < 1 or head_dim < 1:
            raise ValueError("mlstm needs heads >= 1 and head_dim >= 1")
        self.heads, self.head_dim = heads, head_dim
        inner = heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
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
        q, k, v, i, f = self._project(x_SKD[:, None])
        y_SKD = self._finish(_recall(q[:, 0], state)[:, None], x_SKD[:, None])[:, 0]
        return y_SKD, _write(k[:, 0], v[:, 0], i[:, 0], f[:, 0], state)

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        q, k, v, i, f = self._project(x_STKD)
        memory = []
        for t in range(x_STKD.shape[1]):
            memory.append(state)
            state = _write(k[:, t], v[:, t], i[:, t], f[:, t], state)
        stacked = map_state(lambda *leaf: torch.stack(leaf, 1), *memory)
        return Prefetched(self._finish(_recall(q, stacked), x_STKD), stacked, state)

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        frames = x_STKD.shape[1]
        memory = map_state(lambda leaf: leaf[:, -frames:], prefetched.memory)
        return self._finish(_recall(self._project(x_STKD)[0], memory), x_STKD)

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v as [S, T, H, K, P] and the logarithms of both gates as [S, T, H, K]."""
        qkv = self.qkv(x_STKD).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        i, f = self.gates(x_STKD).transpose(2, 3).chunk(2, 2)
        return q, k / math.sqrt(self.head_dim), v, i, F.logsigmoid(f)

    def _finish(self, h_STHKP: Tensor, x_STKD: Tensor) -> Tensor:
        h = h_STHKP.transpose(2, 3).flatten(3)
        return self.output(F.rms_norm(h, h.shape[-1:], self.norm) * self.open(x_STKD).sigmoid())


@in_full_precision  # a quotient of sums that may cancel
def _recall(q: Tensor, memory: State) -> Tensor:
    """h for queries q [..., H, K, P]."""
    C, n, m = memory
    found = q @ C.transpose(-1, -2)
    size = (q @ n[..., None]).abs()
    return found / torch.maximum(size, torch.exp(-m)[..., None, None])


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
