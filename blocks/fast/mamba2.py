"""Mamba2 in chunks of frames: the chunked scan (Dao & Gu 2024, section 6) and its reads by noisy frames.

Within a chunk, y is a masked product as in attention; across chunks, the SSM state is carried:

    y_l = exp(a_l) S_0 C_l + sum_{j <= l} exp(a_l - a_j) dt_j (B_j . C_l) x_j,    a_l = (dt_1 + ... + dt_l) A

S_0 is the state that enters the chunk. A noisy frame reads S_0, the clean tokens of the chunk's earlier frames, and its
own tokens.

Letters: S sequences, T or Q frames, K tokens a frame, L = T * K, H heads, P channels a head, N state channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from rad_bench.blocks.memory import in_full_precision


@dataclass(frozen=True)
class Tokens:
    """Projected tokens of T frames, the inputs of the recurrence."""

    x_STKHP: Tensor
    B_STKN: Tensor
    C_STKN: Tensor
    dt_STKH: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """Apply `function` to each tensor."""
        return Tokens(*map(function, (self.x_STKHP, self.B_STKN, self.C_STKN, self.dt_STKH)))

    def frames(self, frames: slice) -> Tokens:
        """Return the tokens of some frames."""
        return self.map(lambda tensor: tensor[:, frames])


@dataclass(frozen=True)
class Memory:
    """Clean frames as `retrieve` needs them."""

    tokens: Tokens
    entering: list[Tensor]  # the SSM state before each chunk, [S, H, P, N]; kernels need only the first
    tails: Tensor  # [S, T, conv-1, channels]: inputs of the convolution before each frame


def write(tokens: Tokens, ssm: Tensor, A_log: Tensor, chunk: int) -> tuple[list[Tensor], Tensor]:
    """Write frames in chunks of about `chunk` tokens. Return the SSM state before each chunk, and the last one."""
    T, K = tokens.dt_STKH.shape[1:3]
    size = frames_per_chunk(chunk, K)
    entering = []
    for first in range(0, T, size):
        entering.append(ssm)
        written = tokens.frames(slice(first, first + size))
        ssm = _advance(ssm, written.x_STKHP, written.B_STKN, written.dt_STKH, A_log)
    return entering, ssm


def read(queries: Tokens, memory: Memory, A_log: Tensor, chunk: int) -> Tensor:
    """Return y_SQKHP, before skip and gate, of Q query frames; frame q reads what was written before frame T - Q + q.

    `chunk` is the same as in `write`.
    """
    T, K = memory.tokens.dt_STKH.shape[1:3]
    outputs = []
    for number, written, asked, offset in chunks_with_queries(T, queries.dt_STKH.shape[1], frames_per_chunk(chunk, K)):
        reading, clean = queries.frames(asked), memory.tokens.frames(written)
        outputs.append(_read_chunk(reading, clean, offset, memory.entering[number], A_log))
    return torch.cat(outputs, 1)


def read_state(queries: Tokens, ssm: Tensor, A_log: Tensor) -> Tensor:
    """Return y_SQKHP of query frames that all read the same SSM state, and each its own tokens."""
    decay = (queries.dt_STKH * -A_log.exp()).cumsum(2)
    return _read_entering(queries, ssm, decay) + _read_itself(queries, decay)


def frames_per_chunk(chunk: int, tokens_per_frame: int) -> int:
    """Return how many whole frames have about `chunk` tokens."""
    return max(1, chunk // tokens_per_frame)


def chunks_with_queries(T: int, Q: int, size: int) -> Iterator[tuple[int, slice, slice, int]]:
    """Yield the chunks of `size` of T frames in which some of the last Q frames are read.

    Each has its number, its frames, the query frames that read it, and the place of the first of these within it.
    """
    skipped = T - Q  # clean frames before the first query frame
    for number, first in enumerate(range(0, T, size)):
        last = min(first + size, T)
        if last > skipped:
            asked = slice(max(first - skipped, 0), last - skipped)
            yield number, slice(first, last), asked, asked.start + skipped - first


@in_full_precision
def _advance(ssm: Tensor, x_STKHP: Tensor, B_STKN: Tensor, dt_STKH: Tensor, A_log: Tensor) -> Tensor:
    """Return the SSM state after the given frames."""
    dt_SLH = dt_STKH.flatten(1, 2)
    a_SLH = (dt_SLH * -A_log.exp()).cumsum(1)
    weight_SLH = dt_SLH * torch.exp(a_SLH[:, -1:] - a_SLH)
    x_SLHP, B_SLN = x_STKHP.flatten(1, 2), B_STKN.flatten(1, 2)
    written = torch.einsum("slhp,sln->shpn", weight_SLH[..., None] * x_SLHP, B_SLN)
    return torch.exp(a_SLH[:, -1])[..., None, None] * ssm + written


def _read_chunk(queries: Tokens, clean: Tokens, offset: int, entering: Tensor, A_log: Tensor) -> Tensor:
    """Read the clean tokens of earlier frames of a chunk, the state that entered it, and the query frame itself."""
    A = -A_log.exp()
    Q, K = queries.dt_STKH.shape[1:3]
    T = clean.dt_STKH.shape[1]
    own = (queries.dt_STKH * A).cumsum(2)  # log decay within the query frame, inclusive
    passed = (clean.dt_STKH * A).flatten(1, 2).cumsum(1)  # log decay from the chunk's start, inclusive
    frame_end = passed.unflatten(1, (T, K))[:, :, -1]
    before = F.pad(frame_end, (0, 0, 1, 0))[:, offset : offset + Q]  # log decay up to the query frame, exclusive
    total = before[:, :, None] + own  # [S, Q, K, H]

    scores = torch.einsum("sqkn,sln->sqkl", queries.C_STKN, clean.B_STKN.flatten(1, 2))
    decay = rearrange(total, "s q k h -> s h q k 1") - rearrange(passed, "s l h -> s h 1 1 l")
    frame = torch.arange(T, device=own.device).repeat_interleave(K)
    earlier = frame[None, :] < torch.arange(offset, offset + Q, device=own.device)[:, None]
    weights = scores[:, None] * decay.masked_fill(~earlier[:, None], -torch.inf).exp()
    values = clean.dt_STKH[..., None] * clean.x_STKHP
    y = torch.einsum("shqkl,slhp->sqkhp", weights, values.flatten(1, 2))

    return y + _read_entering(queries, entering, total) + _read_itself(queries, own)


def _read_entering(queries: Tokens, ssm: Tensor, decay_SQKH: Tensor) -> Tensor:
    """Read an SSM state after the given log decay."""
    return decay_SQKH.exp()[..., None] * torch.einsum("sqkn,shpn->sqkhp", queries.C_STKN, ssm)


def _read_itself(queries: Tokens, own: Tensor) -> Tensor:
    """Let each query token read its frame's tokens up to itself; `own` is their log decay, inclusive."""
    K = own.shape[2]
    scores = torch.einsum("sqkn,sqjn->sqkj", queries.C_STKN, queries.B_STKN)
    decay = rearrange(own, "s q k h -> s q h k 1") - rearrange(own, "s q j h -> s q h 1 j")
    future = torch.ones(K, K, dtype=torch.bool, device=own.device).triu(1)
    weights = scores[:, :, None] * decay.masked_fill(future, -torch.inf).exp()
    return torch.einsum("sqhkj,sqjhp->sqkhp", weights, queries.dt_STKH[..., None] * queries.x_STKHP)
