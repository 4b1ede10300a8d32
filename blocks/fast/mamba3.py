"""Mamba-3 in chunks of frames: a scan as Mamba2's (`mamba2.py`), of keys that turn and weights in two halves.

With a_l the sum of log decays and g_l that of the angles since the chunk's start, and R(g) the turn by g:

    y_l = exp(a_l) h_0 C'_l + sum_{j <= l} exp(a_l - a_j) w_lj (B'_j . C'_l) x_j
    B'_l = R(-g_l) B_l,   C'_l = R(-g_l) C_l
    w_lj = m_j dt_j + (1 - m_{j+1}) dt_{j+1}    if j < l, and m_l dt_l if j = l

h_0 is the state that enters the chunk; j = 0 is the last token before it, of which only the second half is missing in
h_0. A noisy frame reads h_0, the clean tokens of the chunk's earlier frames, and its own tokens. Its first token is the
one that completes the last clean token before the frame.

A kernel (`fla_kernels.py`) does the same for a whole clip: sums and h_0 are from its start. Angles are summed in fp64
and taken modulo 2 pi, as rounding would otherwise grow with them. Each input of a token is a token of the kernel, which
reads one output. A token is written whole, and what it then reads of its own second half is taken off again. The last
token of a frame gets its second half after noisy frames have read: it is written once more before the next frame.

Letters: S sequences, T or Q frames, K tokens a frame, L tokens, H heads, R inputs and outputs a head (o where they
read), P channels a head, N state channels, A pairs of them that turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from rad_bench.blocks.fast import fla_kernels as kernels
from rad_bench.blocks.fast.mamba2 import chunks_with_queries, frames_per_chunk
from rad_bench.blocks.memory import State, in_full_precision


class Tokens(NamedTuple):
    """Projected tokens of T frames, the inputs of the recurrence."""

    x: Tensor  # [S, T, K, H, R, P]
    B: Tensor  # [S, T, K, H, R, N]
    C: Tensor  # [S, T, K, H, R, N]
    log_a: Tensor  # [S, T, K, H]: log decay, dt A
    before: Tensor  # [S, T, K, H]: weight of the second half of the token before, (1 - m) dt
    own: Tensor  # [S, T, K, H]: weight of the first half of the token itself, m dt
    angle: Tensor  # [S, T, K, H, A]

    def frames(self, frames: slice) -> Tokens:
        """Return the tokens of some frames."""
        return Tokens(*(tensor[:, frames] for tensor in self))


@dataclass(frozen=True)
class Memory:
    """Clean frames as `retrieve` needs them."""

    tokens: Tokens
    entering: list[State]  # the state before each chunk


@dataclass(frozen=True)
class Scanned:
    """Clean frames as a kernel writes them: before the tokens of each, the last token before it once more."""

    written: kernels.Written  # k is B of each input, turned back to the clip's start
    angle: Tensor  # [S, T, H, A]: of all tokens before each frame


def turn(vectors: Tensor, angle: Tensor) -> Tensor:
    """Turn the first A of N channels [..., N] against the next A by an angle [..., A]; the rest stays."""
    A = angle.shape[-1]
    first, second, rest = vectors.split((A, A, vectors.shape[-1] - 2 * A), -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)


def write(tokens: Tokens, state: State, chunk: int) -> tuple[list[State], State]:
    """Write frames in chunks of about `chunk` tokens. Return the state before each chunk, and the last one."""
    T, K = tokens.own.shape[1:3]
    size = frames_per_chunk(chunk, K)
    entering = []
    for first in range(0, T, size):
        entering.append(state)
        written = tokens.frames(slice(first, first + size))
        clean = _lay_out(written, state)
        h = _advance(clean.x, clean.keys, clean.own + _next(clean.before), clean.log_a, clean.angle, state[-1])
        state = clean.x[:, -1], written.B[:, -1, -1], h
    return entering, state


def read(queries: Tokens, memory: Memory, chunk: int) -> Tensor:
    """Return y_SQKHRP, before skip and gate, of Q query frames; frame q reads what was written before frame T - Q + q.

    `chunk` is the same as in `write`.
    """
    T, K = memory.tokens.own.shape[1:3]
    outputs = []
    for number, written, asked, offset in chunks_with_queries(T, queries.own.shape[1], frames_per_chunk(chunk, K)):
        reading, clean = queries.frames(asked), memory.tokens.frames(written)
        outputs.append(_read_chunk(reading, clean, offset, memory.entering[number]))
    return torch.cat(outputs, 1)


def read_state(queries: Tokens, state: State) -> Tensor:
    """Return y_SQKHRP of one query frame that reads a state and its own tokens."""
    return _read_chunk(queries, queries.frames(slice(0)), 0, state)


class _Clean(NamedTuple):
    """The last token before a chunk and then the chunk's, as seen from the chunk's start."""

    x: Tensor  # [S, 1 + L, H, R, P]
    keys: Tensor  # [S, 1 + L, H, R, N]: B, turned back
    log_a: Tensor  # [S, 1 + L, H]: of all tokens so far
    angle: Tensor  # [S, 1 + L, H, A]: of all tokens so far
    before: Tensor  # [S, 1 + L, H]
    own: Tensor  # [S, 1 + L, H]: 0 for the first, which the state has


def _lay_out(tokens: Tokens, state: State) -> _Clean:
    x, B, _, log_a, before, own, angle = (tensor.flatten(1, 2) for tensor in tokens)
    log_a, before, own = (F.pad(tensor, (0, 0, 1, 0)) for tensor in (log_a, before, own))
    angle = F.pad(angle, (0, 0, 0, 0, 1, 0)).cumsum(1)
    x, B = torch.cat([state[0][:, None], x], 1), torch.cat([state[1][:, None], B], 1)
    return _Clean(x, turn(B, -angle[..., None, :]), log_a.cumsum(1), angle, before, own)


def _next(before: Tensor) -> Tensor:
    """Return, for each token [S, ..., L, H], the weight of its second half; the last has none yet."""
    return F.pad(before[..., 1:, :], (0, 0, 0, 1))


@in_full_precision
def _advance(
    x_SLHRP: Tensor, keys_SLHRN: Tensor, weight_SLH: Tensor, log_a_SLH: Tensor, angle_SLHA: Tensor, h: Tensor
) -> Tensor:
    """Return h after the given tokens."""
    weight_SLH = weight_SLH * torch.exp(log_a_SLH[:, -1:] - log_a_SLH)
    written = torch.einsum("slhrp,slhrn->shpn", weight_SLH[..., None, None] * x_SLHRP, keys_SLHRN)
    return turn(torch.exp(log_a_SLH[:, -1])[..., None, None] * h + written, angle_SLHA[:, -1, :, None])


def _read_chunk(queries: Tokens, tokens: Tokens, offset: int, state: State) -> Tensor:
    """Read the clean tokens of earlier frames of a chunk, the state that entered it, and the query frame itself."""
    clean = _lay_out(tokens, state)
    Q, K = queries.own.shape[1:3]
    last = torch.arange(offset, offset + Q, device=clean.own.device) * K  # the clean token before each query frame
    own_log_a = queries.log_a.cumsum(2)
    log_a = clean.log_a[:, last, None] + own_log_a  # [S, Q, K, H]
    angle = clean.angle[:, last, None] + queries.angle.cumsum(2)
    C, B = turn(queries.C, -angle[..., None, :]), turn(queries.B, -angle[..., None, :])
    entered = log_a.exp()[..., None, None] * torch.einsum("sqkhon,shpn->sqkhop", C, state[-1])

    token = torch.arange(clean.own.shape[1], device=last.device)
    completed = torch.where((token == last[:, None])[..., None], queries.before[:, :, :1], _next(clean.before)[:, None])
    weight = rearrange(clean.own[:, None] + completed, "s q l h -> s h q 1 l")
    decay = rearrange(log_a, "s q k h -> s h q k 1") - rearrange(clean.log_a, "s l h -> s h 1 1 l")
    decay = decay.masked_fill((token > last[:, None])[:, None], -torch.inf).exp()
    scores = torch.einsum("sqkhon,slhrn->shqkolr", C, clean.keys) * _each(weight * decay)
    earlier = torch.einsum("shqkolr,slhrp->sqkhop", scores, clean.x)
    return entered + earlier + _read_own(queries, C, B, own_log_a)


def _read_own(queries: Tokens, C: Tensor, B: Tensor, own_log_a: Tensor) -> Tensor:
    """Return what query frames read of their own tokens; C and B turned, own_log_a [S, Q, K, H] cumulated by frame."""
    K = C.shape[2]
    place = torch.arange(K, device=C.device)
    completed = (place < place[:, None]) * rearrange(_next(queries.before), "s q j h -> s q h 1 j")
    weight = rearrange(queries.own, "s q j h -> s q h 1 j") + completed
    decay = rearrange(own_log_a, "s q k h -> s q h k 1") - rearrange(own_log_a, "s q j h -> s q h 1 j")
    decay = decay.masked_fill(place > place[:, None], -torch.inf).exp()
    scores = torch.einsum("sqkhon,sqjhrn->sqhkojr", C, B) * _each(weight * decay)
    return torch.einsum("sqhkojr,sqjhrp->sqkhop", scores, queries.x)


def _each(factor: Tensor) -> Tensor:
    """Return the factors of reads by tokens, [..., k, l], for all their outputs and inputs, [..., k, 1, l, 1]."""
    return factor[..., :, None, :, None]


def scan(tokens: Tokens, queries: Tokens | None, state: State) -> tuple[Tensor, Tensor | None, Scanned, State]:
    """Write clean frames by a kernel, and let noisy ones, if any, read.

    Return y_STKHRP and, of given queries, y_SQKHRP, both before skip and gate; what `read_scanned` reads; and the state
    after.
    """
    x_last, B_last, h = state
    T, K, _, R = tokens.x.shape[1:5]
    angle = tokens.angle.flatten(1, 2).double().cumsum(1).remainder(2 * math.pi).to(h.dtype).unflatten(1, (T, K))
    C, B = turn(tokens.C, -angle[..., None, :]), turn(tokens.B, -angle[..., None, :])
    own, second = tokens.own[..., None, None], _next(tokens.before)[..., None, None]  # second: 0 for a frame's last
    first = tokens.before[:, :, :1, :, None, None]
    written = kernels.Written(
        k=_by_head(_after_last(B, B_last)),
        v=_by_head(_after_last(tokens.x, x_last)),
        log_a=_by_head(F.pad(tokens.log_a[..., None, None], (0, 0, 0, R - 1, 0, 0, 1, 0))),  # once a token
        b=_by_head(torch.cat([first, own + second], 2).expand(-1, -1, -1, -1, R, -1)),
        M=h,
    )
    memory = Scanned(written, F.pad(angle[:, :-1, -1], (0, 0, 0, 0, 1, 0)))
    readers, answer = ([], None) if queries is None else _asked(queries, memory)
    recalled, y, M = kernels.scan("simple_gla", written, readers, F.pad(_by_head(C), (0, 0, R, 0)))
    not_yet = torch.ones(R, R, dtype=torch.bool, device=h.device).triu(1)  # inputs written after an output is read
    missing = torch.einsum("stkhon,stkhrn->stkhor", C, B) * torch.where(not_yet, own, -second)
    y_STKHRP = _by_token(y, R)[:, :, 1:] + torch.einsum("stkhor,stkhrp->stkhop", missing, tokens.x)
    after = tokens.x[:, -1, -1], tokens.B[:, -1, -1], turn(M, angle[:, -1, -1, :, None])
    return y_STKHRP, None if answer is None else answer(*recalled), memory, after


def read_scanned(queries: Tokens, memory: Scanned) -> Tensor:
    """Return y_SQKHRP as `read` does, of the last Q frames before which a kernel wrote."""
    readers, answer = _asked(queries, memory)
    recalled, _, _ = kernels.scan("simple_gla", memory.written, readers)
    return answer(*recalled)


def _asked(queries: Tokens, memory: Scanned) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
    """Return what query frames ask of the memory before each, and a function from the answer to what they read."""
    Q, R = queries.x.shape[1], queries.x.shape[4]
    own_log_a = queries.log_a.cumsum(2)
    angle = memory.angle[:, -Q:, None] + queries.angle.cumsum(2)
    C, B = turn(queries.C, -angle[..., None, :]), turn(queries.B, -angle[..., None, :])
    C_decayed = own_log_a.exp()[..., None, None] * C

    def answer(entered: Tensor) -> Tensor:
        x_last, B_last = (last[:, :, -Q:, :R].movedim(1, 2) for last in (memory.written.v, memory.written.k))
        scores = queries.before[:, :, :1, :, None, None] * torch.einsum("sqkhon,sqhrn->sqkhor", C_decayed, B_last)
        completed = torch.einsum("sqkhor,sqhrp->sqkhop", scores, x_last)
        return _by_token(entered, R) + completed + _read_own(queries, C, B, own_log_a)

    return [_by_head(C_decayed)], answer


def _after_last(tokens: Tensor, last: Tensor) -> Tensor:
    """Put the last token before each frame before its tokens, [S, T, K, H, ...]; `last` is that of the first."""
    return torch.cat([torch.cat([last[:, None], tokens[:, :-1, -1]], 1)[:, :, None], tokens], 2)


def _by_head(tokens: Tensor) -> Tensor:
    """Rearrange [S, T, K, H, R, ...] as the kernel has it: [S, H, T, K * R, ...]."""
    return tokens.movedim(3, 1).flatten(3, 4)


def _by_token(tokens: Tensor, R: int) -> Tensor:
    return tokens.unflatten(3, (-1, R)).movedim(1, 3)
