"""Attention over all past frames (Vaswani et al. 2017, arXiv 1706.03762), or over the last `span` frames.

    y_t = U softmax(q_t [k_0..k_t]^T / sqrt(P)) [v_0..v_t]

Without `span` it is the upper bound for memories of constant size. With `span` it is a control: it has a memory's
input and parameters, but remembers only a window. Queries and keys are RMS-normalised (Henry et al. 2020, arXiv
2010.04245) and have no positions, so it also works at lengths beyond training. A frame sees all tokens of earlier
frames and its own. The state is a cache of keys and one of values, each a tuple of tensors [S, H, L, P]. With `span`,
it is one tensor of the last `span` frames. Without, it is one for every 32 frames: only the last of them grows, so a
step of a rollout need not copy the whole cache.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.memory import MemoryBlock, Prefetched, State
from rad_bench.blocks.start import tie_queries

PIECE = 32  # frames in a tensor of the cache


class Attention(MemoryBlock):
    """Full attention over the past: exact recall, with a cost that grows with every frame."""

    size_option = "head_dim"
    fine_option = count_option = "heads"

    def __init__(self, dim: int, heads: int = 2, head_dim: int = 32, span: int | None = None) -> None:
        super().__init__(dim)
        if heads < 1 or head_dim < 1 or (span is not None and span < 1):
            raise ValueError("attention needs heads >= 1, head_dim >= 1 and span >= 1 frames, or none")
        self.heads, self.head_dim, self.span = heads, head_dim, span
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        tie_queries(self.qkv.weight, 0, heads * head_dim, heads * head_dim)
        self.sharpness = nn.Parameter(torch.full((head_dim,), 2.0))
        self.output = nn.Linear(heads * head_dim, dim)

    def initial_state(self, sequences: int) -> State:
        empty = self.zeros(sequences, self.heads, 0, self.head_dim)
        return (empty,), (empty,)

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v = self._project(x_SKD)
        y_SKD = self._attend(q, _joined(state[0], k), _joined(state[1], v), None)
        return y_SKD, self._written(k, v, x_SKD.shape[1], state)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        # Concatenating keys and values would copy the whole cache at every denoising step. So only scores are joined.
        q, k, v = self._project(x_SKD)
        keys, values = (*state[0], k), (*state[1], v)
        scores = torch.cat([q @ piece.mT for piece in keys], -1) / math.sqrt(self.head_dim)
        weights = scores.softmax(-1).split([piece.shape[2] for piece in keys], -1)
        recalled = [weight @ piece for weight, piece in zip(weights, values, strict=True)]
        return self._output(functools.reduce(torch.add, recalled))

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        T, K = x_STKD.shape[1:3]
        q, k, v = self._project(x_STKD.flatten(1, 2))
        k, v = k.contiguous(), v.contiguous()  # or every read of what is cached would copy it
        after = self._written(k, v, K, state)
        k, v = _joined(state[0], k), _joined(state[1], v)
        frame = _frames(k, K, T)
        visible = self._visible(frame[-T * K :], frame, own=True)
        y_STKD = self._attend(q, k, v, visible).unflatten(1, (T, K))
        return Prefetched(y_STKD, (k, v, T), after)

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        k_clean, v_clean, T = prefetched.memory
        noisy, K = x_STKD.shape[1:3]
        q, k, v = self._project(x_STKD.flatten(1, 2))
        clean = _frames(k_clean, K, T)
        frame = clean[-noisy * K :]
        itself = frame[None, :] == frame[:, None]
        visible = torch.cat([self._visible(frame, clean, own=False), itself], 1)
        y = self._attend(q, torch.cat([k_clean, k], 2), torch.cat([v_clean, v], 2), visible)
        return y.unflatten(1, (noisy, K))

    def remember(
        self, clean_STKD: Tensor, noisy_SQKD: Tensor | None, state: State
    ) -> tuple[Tensor, Tensor | None, State]:
        if noisy_SQKD is not None or clean_STKD.shape[1] > 1:
            return super().remember(clean_STKD, noisy_SQKD, state)
        x_SKD = clean_STKD[:, 0]  # a rollout writes one frame, for which `prefetch` would copy the whole cache
        _, k, v = self._project(x_SKD)
        return self.read(x_SKD, state)[:, None], None, self._written(k, v, x_SKD.shape[1], state)

    def _visible(self, query: Tensor, key: Tensor, own: bool) -> Tensor:
        """Return which keys each query sees: those of earlier frames within the span, and of its own frame if `own`."""
        age = query[:, None] - key[None, :]
        visible = age >= (0 if own else 1)
        return visible if self.span is None else visible & (age <= self.span)

    def _written(self, k: Tensor, v: Tensor, K: int, state: State) -> State:
        """Return the cache after further keys and values, as far as later frames can see them."""
        if self.span is None:
            return tuple(_appended(cache, new, PIECE * K) for cache, new in zip(state, (k, v), strict=True))
        seen = slice(-self.span * K, None)
        return tuple((_joined(cache, new)[:, :, seen],) for cache, new in zip(state, (k, v), strict=True))

    def _project(self, x_SLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, each [S, H, L, P]."""
        q, k, v = self.qkv(x_SLD).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.rms_norm(q, q.shape[-1:]) * self.sharpness, F.rms_norm(k, k.shape[-1:]), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        return self._output(F.scaled_dot_product_attention(q, k, v, attn_mask=visible))

    def _output(self, y_SHLP: Tensor) -> Tensor:
        return self.output(y_SHLP.transpose(1, 2).flatten(2))


def _joined(cache: tuple[Tensor, ...], new: Tensor) -> Tensor:
    """Return the keys or values of a cache and new ones, [S, H, L, P]."""
    return torch.cat([*cache, new], 2) if cache[-1].shape[2] else new


def _appended(cache: tuple[Tensor, ...], new: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return a cache with new keys or values, up to `size` in a tensor. Tensors that are full stay as they are."""
    *full, last = cache
    new = new.to(last.dtype)  # under autocast it is rounded
    if 0 < last.shape[2] < size:
        room = size - last.shape[2]
        last, new = torch.cat([last, new[:, :, :room]], 2), new[:, :, room:]
    pieces = (*full, last) if last.shape[2] else ()
    return (*pieces, *new.split(size, 2)) if new.shape[2] else pieces


def _frames(k_SHLP: Tensor, K: int, T: int) -> Tensor:
    """Return the frame number of each key, [L]; the last T frames are 0..T-1, frames before them are negative."""
    frames = k_SHLP.shape[2] // K
    return torch.arange(T - frames, T, device=k_SHLP.device).repeat_interleave(K)
