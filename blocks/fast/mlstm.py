"""mLSTM in chunks of frames: reads are masked sums over tokens, as in attention.

Writes do not depend on the memory. So if C and m enter a chunk, the memory after its tokens 1..l is

    exp(F_l) (exp(m) C + sum_{j <= l} exp(log i_j - F_j) v_j k_j^T),    F_l = log f_1 + ... + log f_l

and n is the same with 1 for v. Frames read this sum token by token; the matrix itself is computed only at the end of
the chunk. All weights, and the 1 in max(|n . q|, 1), are divided by the largest of them, so that nothing overflows.

A kernel (`fla_kernels.py`) does it for a whole clip with C and n as stored, divided by exp(m): at token l they decay by
exp(log f_l + m_{l-1} - m_l), and it is written with the weight exp(log i_l - m_l). Neither is above 1, as m_l is F_l +
the largest of m_0 and log i_j - F_j, j <= l.

Letters: S sequences, H heads, T or Q frames, K tokens a frame, P channels a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rad_bench.blocks.fast.fla_kernels import Written
from rad_bench.blocks.memory import State, in_full_precision


class Chunk(NamedTuple):
    """T clean frames as `recall_by_chunk` reads them. The last channel of v is 1, so the last row of C is n."""

    k_SHJKP: Tensor  # of the J = T - 1 frames that later frames of the chunk read
    v_SHJKO: Tensor  # O = P + 1
    C_SHOP: Tensor  # before the chunk
    token: Tensor  # [S, H, T, J, K]: weight of each token, for reads by each frame
    entering: Tensor  # [S, H, T]: weight of C
    one: Tensor  # [S, H, T]: weight of the 1 in the denominator; the largest of the three weights is 1
    log_one: Tensor  # [S, H, T]: its logarithm


class Scanned(NamedTuple):
    """T clean frames as a kernel writes them: the last channel of v is 1, so the last row of M is n."""

    written: Written
    m: Tensor  # [S, H, T]: before each frame


def prefetch_chunks(
    k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor, state: State, chunk: int
) -> tuple[list[Chunk], State]:
    """Write T frames, in chunks of about `chunk` tokens; k, v [S, H, T, K, P], gates [S, H, T, K].

    Return what `recall_by_chunk` needs, and the last state.
    """
    C, n, m = state
    C_SHOP = torch.cat([C, n[..., None, :]], -2)
    frames = max(1, chunk // k.shape[3])
    tensors = k, F.pad(v, (0, 1), value=1.0), log_i, log_f
    memory = []
    for k, v, log_i, log_f in zip(*(tensor.split(frames, 2) for tensor in tensors), strict=True):
        memory.append(Chunk(k[:, :, :-1], v[:, :, :-1], C_SHOP, *_weigh(log_i[:, :, :-1], log_f[:, :, :-1], m)))
        C_SHOP, m = _advance(k, v, log_i, log_f, C_SHOP, m)
    return memory, (C_SHOP[..., :-1, :], C_SHOP[..., -1, :], m)


@in_full_precision
def _advance(k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor, C: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Write T frames at once; k [S, H, T, K, P], v [S, H, T, K, O], gates [S, H, T, K], C [S, H, O, P], m [S, H]."""
    F_SHTK = _cumulated(log_f)
    end = F_SHTK[:, :, -1, -1]
    token, entering = log_i + end[..., None, None] - F_SHTK, m + end
    m = torch.maximum(token.amax((2, 3)), entering)
    written = torch.einsum("shtko,shtkp->shop", v, torch.exp(token - m[..., None, None])[..., None] * k)
    return torch.exp(entering - m)[..., None, None] * C + written, m


@in_full_precision
def _weigh(log_i: Tensor, log_f: Tensor, m: Tensor) -> tuple[Tensor, ...]:
    """Return the weights in a `Chunk` from the gates of its first J frames [S, H, J, K] and m [S, H] before it.

    All are divided by the decay since the chunk's start, exp(F_l), and by the largest of them.
    """
    J = log_i.shape[2]
    F_SHJK = _cumulated(log_f)
    token, entering, one = log_i - F_SHJK, m[..., None], -F.pad(F_SHJK[..., -1], (1, 0))
    largest = torch.cat([entering, token.amax(3)], 2).cummax(2).values
    largest = torch.maximum(largest, one).detach()  # it cancels in the quotient
    unread = torch.ones(J + 1, J, dtype=torch.bool, device=m.device).triu()[..., None]
    token = (token[:, :, None] - largest[..., None, None]).masked_fill(unread, -torch.inf)
    log_one = one - largest
    return token.exp(), torch.exp(entering - largest), log_one.exp(), log_one


def _cumulated(log_f: Tensor) -> Tensor:
    """Return the cumulative sum of gates [S, H, T, K] over all tokens."""
    return log_f.flatten(2).cumsum(2).view_as(log_f)


def recall_by_chunk(q: Tensor, memory: list[Chunk], *own: Tensor) -> Tensor:
    """Return h for queries q [S, H, Q, K, P] of the last Q frames in memory.

    They read the memory before their frame. With `own`, the k, v, log i and log f of these frames, a token also reads
    its frame's tokens up to itself.
    """
    sizes: list[int] = []  # query frames in each chunk
    for chunk in reversed(memory):
        sizes.insert(0, min(chunk.one.shape[2], q.shape[2] - sum(sizes)))
    pieces = zip(*(tensor.split(sizes, 2) for tensor in (q, *own)), strict=True)
    recalled = []
    for (q_chunk, *own_chunk), (*written, one, log_one) in zip(pieces, memory, strict=True):
        last = slice(one.shape[2] - q_chunk.shape[2], None)
        if q_chunk.shape[2]:
            read = _read_chunk(q_chunk, *written)
            if own:
                recalled.append(_add_own(q_chunk, read, log_one[:, :, last, None, None], *own_chunk))
            else:
                recalled.append(_quotient(read, one[:, :, last, None, None]))
    return torch.cat(recalled, 2)


@in_full_precision
def _read_chunk(q: Tensor, k: Tensor, v: Tensor, C: Tensor, token: Tensor, entering: Tensor) -> Tensor:
    """Return numerator and denominator of h side by side, [S, H, Q, K, O], divided as `Chunk.one` is."""
    last = slice(entering.shape[2] - q.shape[2], None)
    scores = torch.einsum("shtkp,shjlp->shtkjl", q, k) * token[:, :, last, None]
    from_tokens = torch.einsum("shtkjl,shjlo->shtko", scores, v)
    from_state = torch.einsum("shtkp,shop->shtko", entering[:, :, last, None, None] * q, C)
    return from_tokens + from_state


@in_full_precision
def _quotient(read: Tensor, one: Tensor) -> Tensor:
    Cq, nq = read.split([read.shape[-1] - 1, 1], -1)
    return Cq / torch.maximum(nq.abs(), one)


@in_full_precision
def _add_own(q: Tensor, read: Tensor, log_one: Tensor, k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor) -> Tensor:
    """Return h of tokens that also read their frame's tokens up to themselves; k, v [S, H, Q, K, P]."""
    F_SHQK = log_f.cumsum(3)
    future = torch.ones(k.shape[3], k.shape[3], dtype=torch.bool, device=k.device).triu(1)
    token = (F_SHQK[..., :, None] + (log_i - F_SHQK)[..., None, :]).masked_fill(future, -torch.inf)
    earlier = F_SHQK[..., None] - log_one
    largest = torch.maximum(earlier, token.amax(-1, keepdim=True)).clamp(min=0).detach()
    scores = q @ k.mT * torch.exp(token - largest)
    read = torch.exp(earlier - largest) * read + scores @ F.pad(v, (0, 1), value=1.0)
    return _quotient(read, torch.exp(-largest))


@in_full_precision
def lay_out(k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor, state: State) -> tuple[Scanned, Tensor]:
    """Return T frames as a kernel writes them, and m [S, H, T, K] after each token; arguments as `prefetch_chunks`."""
    C, n, m = state
    F_SHTK = _cumulated(log_f.double())  # sums over a clip, of which differences matter
    entering = m[..., None].double()
    largest = torch.cat([entering, (log_i - F_SHTK).flatten(2)], 2).cummax(2).values
    log_a = (largest[..., :-1] - largest[..., 1:]).view_as(F_SHTK)
    m_SHTK = F_SHTK + largest[..., 1:].view_as(F_SHTK)
    before = torch.cat([entering, m_SHTK[:, :, :-1, -1]], 2)
    log_a, b = (gate[..., None].to(m.dtype) for gate in (log_a, torch.exp(log_i - m_SHTK)))
    written = Written(k, F.pad(v, (0, 1), value=1.0), log_a, b, torch.cat([C, n[..., None, :]], -2))
    return Scanned(written, before.to(m.dtype)), m_SHTK.to(m.dtype)


@in_full_precision
def recall(read: Tensor, m: Tensor) -> Tensor:
    """Return h of numerator and denominator side by side [S, H, Q, K, O], divided by exp(m), m [S, H, Q, K or 1]."""
    largest = m.clamp(min=0)[..., None]
    return _quotient(torch.exp(m[..., None] - largest) * read, torch.exp(-largest))


def recall_before(q: Tensor, read: Tensor, m_SHT: Tensor, *own: Tensor) -> Tensor:
    """Return h as `recall_by_chunk` does, of what a kernel has read for q before the last Q frames."""
    m_SHQ1 = m_SHT[:, :, -q.shape[2] :, None]
    return _add_own(q, read, -m_SHQ1[..., None], *own) if own else recall(read, m_SHQ1)
