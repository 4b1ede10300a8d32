"""mLSTM (Beck et al. 2024, arXiv 2405.04517): a matrix memory with exponential gates and a normaliser.

    C_t = f_t C_{t-1} + i_t v_t k_t^T,   n_t = f_t n_{t-1} + i_t k_t      f = sigmoid(w_f x), i = exp(w_i x), one a head
    h = C q / max(|n . q|, 1),           y = U (RMSNorm(h) * sigmoid(W_o x))

C and n are kept divided by exp(m), where m_t = max(log f_t + m_{t-1}, log i_t): nothing overflows. A frame reads the
memory of the frames before it; then its K tokens are written in order. The state is C [S, H, P, P], n [S, H, P] and m
[S, H].

`step` is the recurrence as written: the reference. `prefetch` and `retrieve` take frames in chunks of `chunk` tokens,
one frame at least. Writes do not look at the memory, so after tokens 1..l of a chunk that C and m entered it is

    exp(F_l) (exp(m) C + sum_{j <= l} exp(log i_j - F_j) v_j k_j^T),    F_l = log f_1 + ... + log f_l

and n is the same with 1 for v. Frames read it as a sum over tokens, as in attention; the matrix is made at the chunk's
end alone. Tokens, C and the 1 under the fraction are divided by whichever weighs most.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.memory import MemoryBlock, Prefetched, State, in_full_precision


class Chunk(NamedTuple):
    """T clean frames as their readers need them. The last channel of v is 1: n is the last row of C."""

    k_SHJKP: Tensor  # of the J = T - 1 frames that later ones read
    v_SHJKO: Tensor  # O = P + 1
    C_SHOP: Tensor  # before the chunk
    token: Tensor  # [S, H, T, J, K]: weights of the tokens for readers in each frame, ...
    entering: Tensor  # [S, H, T]: ... of C, ...
    one: Tensor  # [S, H, T]: ... and of the 1 under the fraction; the largest is 1


class MLSTM(MemoryBlock):
    """xLSTM's matrix memory: keys and values, forgotten by gates."""

    size_option = "head_dim"
    fine_option = "heads"

    def __init__(self, dim: int, heads: int = 4, head_dim: int = 16, chunk: int = 64) -> None:
        super().__init__(dim)
        if min(heads, head_dim, chunk) < 1:
            raise ValueError("mlstm needs heads, head_dim, chunk >= 1")
        self.heads, self.head_dim, self.chunk = heads, head_dim, chunk
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
        q, k, v, i, f = (part[:, :, 0] for part in self._project(x_SKD[:, None]))
        y_SKD = self._finish(_recall(q, state)[:, :, None], x_SKD[:, None])[:, 0]
        return y_SKD, _write(k, v, i, f, state)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        q = self._queries(x_SKD[:, None])
        return self._finish(_recall(q[:, :, 0], state)[:, :, None], x_SKD[:, None])[:, 0]

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        C, n, m = state
        C_SHOP = torch.cat([C, n[..., None, :]], -2)
        q, k, v, i, f = self._project(x_STKD)
        frames = max(1, self.chunk // x_STKD.shape[2])
        parts = (part.split(frames, 2) for part in (k, F.pad(v, (0, 1), value=1.0), i, f))
        memory = []
        for k, v, i, f in zip(*parts, strict=True):
            memory.append(Chunk(k[:, :, :-1], v[:, :, :-1], C_SHOP, *_weigh(i[:, :, :-1], f[:, :, :-1], m)))
            C_SHOP, m = _advance(k, v, i, f, C_SHOP, m)
        y_STKD = self._finish(_recall_by_chunk(q, memory), x_STKD)
        return Prefetched(y_STKD, memory, (C_SHOP[..., :-1, :], C_SHOP[..., -1, :], m))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        return self._finish(_recall_by_chunk(self._queries(x_STKD), prefetched.memory), x_STKD)

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v as [S, H, T, K, P] and the logarithms of both gates as [S, H, T, K]."""
        qkv = self.qkv(x_STKD).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).contiguous().unbind(0)
        i, f = self.gates(x_STKD).permute(0, 3, 1, 2).chunk(2, 1)
        return q, k / math.sqrt(self.head_dim), v, i, F.logsigmoid(f)

    def _queries(self, x_STKD: Tensor) -> Tensor:
        """Return q alone, for frames that do not write."""
        q = F.linear(x_STKD, self.qkv.weight[: self.heads * self.head_dim])
        return q.unflatten(-1, (self.heads, self.head_dim)).permute(0, 3, 1, 2, 4)

    def _finish(self, h_SHTKP: Tensor, x_STKD: Tensor) -> Tensor:
        h = h_SHTKP.permute(0, 2, 3, 1, 4).flatten(3)
        return self.output(F.rms_norm(h, h.shape[-1:], self.norm) * self.open(x_STKD).sigmoid())


@in_full_precision  # a quotient of sums that may cancel
def _recall(q: Tensor, memory: State) -> Tensor:
    """h for queries q [S, H, K, P]."""
    C, n, m = memory
    largest = m.clamp(min=0)[..., None, None]  # of the weights of C and 1
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


@in_full_precision
def _advance(k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor, C: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Write T frames at once; k [S, H, T, K, P], v [S, H, T, K, O], gates [S, H, T, K], C [S, H, O, P], m [S, H]."""
    passed = _cumulated(log_f)
    end = passed[:, :, -1, -1]
    token, entering = log_i + end[..., None, None] - passed, m + end
    m = torch.maximum(token.amax((2, 3)), entering)
    written = torch.einsum("shtko,shtkp->shop", v, torch.exp(token - m[..., None, None])[..., None] * k)
    return torch.exp(entering - m)[..., None, None] * C + written, m


@in_full_precision
def _weigh(log_i: Tensor, log_f: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights in a `Chunk` from gates of its J first frames [S, H, J, K] and m [S, H] before it.

    All are relative to the decay since the chunk's start, and to the largest of them.
    """
    J = log_i.shape[2]
    passed = _cumulated(log_f)
    token, entering, one = log_i - passed, m[..., None], -F.pad(passed[..., -1], (1, 0))
    largest = torch.cat([entering, token.amax(3)], 2).cummax(2).values
    largest = torch.maximum(largest, one).detach()  # it cancels in the fraction
    unread = torch.ones(J + 1, J, dtype=torch.bool, device=m.device).triu()[..., None]
    token = (token[:, :, None] - largest[..., None, None]).masked_fill(unread, -torch.inf)
    return token.exp(), torch.exp(entering - largest), torch.exp(one - largest)


def _cumulated(log_f: Tensor) -> Tensor:
    """Sum gates [S, H, T, K] over the tokens up to each, itself included."""
    return log_f.flatten(2).cumsum(2).view_as(log_f)


def _recall_by_chunk(q: Tensor, memory: list[Chunk]) -> Tensor:
    """h for queries q [S, H, Q, K, P] of the last Q frames in memory."""
    sizes: list[int] = []  # of q's share in each chunk
    for chunk in reversed(memory):
        sizes.insert(0, min(chunk.one.shape[2], q.shape[2] - sum(sizes)))
    shares = zip(q.split(sizes, 2), memory, strict=True)
    return torch.cat([_recall_in_chunk(share, *chunk) for share, chunk in shares if share.shape[2]], 2)


@in_full_precision
def _recall_in_chunk(
    q: Tensor, k: Tensor, v: Tensor, C: Tensor, token: Tensor, entering: Tensor, one: Tensor
) -> Tensor:
    last = slice(one.shape[2] - q.shape[2], None)
    scores = torch.einsum("shtkp,shjlp->shtkjl", q, k) * token[:, :, last, None]
    from_tokens = torch.einsum("shtkjl,shjlo->shtko", scores, v)
    from_state = torch.einsum("shtkp,shop->shtko", entering[:, :, last, None, None] * q, C)
    found, size = (from_tokens + from_state).split([q.shape[-1], 1], -1)
    return found / torch.maximum(size.abs(), one[:, :, last, None, None])
