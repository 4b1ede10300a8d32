"""Attention over all past frames (Vaswani et al. 2017, arXiv 1706.03762), or over the last `span` frames.

    y_t = U softmax(q_t [k_0..k_t]^T / sqrt(P)) [v_0..v_t]

Without `span` it is the upper bound for memories of constant size. With `span` it is a control: it has a memory's
input and parameters, but remembers only a window. Queries and keys are RMS-normalised (Henry et al. 2020, arXiv
2010.04245) and have no positions, so it also works at lengths beyond training. A frame sees all tokens of earlier
frames and its own. The state is the cache of keys and values, both [S, H, L, P]; L grows by K a frame, up to `span`
frames.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.memory import MemoryBlock, Prefetched, State
from rad_bench.blocks.start import tie_queries


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
        return empty, empty

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v = self._project(x_SKD)
        k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        return self._attend(q, k, v, None), self._kept(k, v, x_SKD.shape[1])

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        # Concatenating keys and values would copy the whole cache at every denoising step. So only scores are joined.
        q, k, v = self._project(x_SKD)
        k_past, v_past = state
        scores = torch.cat([q @ k_past.mT, q @ k.mT], -1) / math.sqrt(self.head_dim)
        past, own = scores.softmax(-1).split([k_past.shape[2], k.shape[2]], -1)
        return self._output(past @ v_past + own @ v)

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        T, K = x_STKD.shape[1:3]
        q, k, v = self._project(x_STKD.flatten(1, 2))
        k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        frame = _frames(k, K, T)
        visible = self._visible(frame[-T * K :], frame, own=True)
        y_STKD = self._attend(q, k, v, visible).unflatten(1, (T, K))
        return Prefetched(y_STKD, (k, v, T), self._kept(k, v, K))

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

    def _visible(self, query: Tensor, key: Tensor, own: bool) -> Tensor:
        """Return which keys each query sees: those of earlier frames within the span, and of its own frame if `own`."""
        age = query[:, None] - key[None, :]
        visible = age >= (0 if own else 1)
        return visible if self.span is None else visible & (age <= self.span)

    def _kept(self, k: Tensor, v: Tensor, K: int) -> State:
        """Return the keys and values that later frames can see."""
        return (k, v) if self.span is None else (k[:, :, -self.span * K :], v[:, :, -self.span * K :])

    def _project(self, x_SLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, each [S, H, L, P]."""
        q, k, v = self.qkv(x_SLD).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.rms_norm(q, q.shape[-1:]) * self.sharpness, F.rms_norm(k, k.shape[-1:]), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        return self._output(F.scaled_dot_product_attention(q, k, v, attn_mask=visible))

    def _output(self, y_SHLP: Tensor) -> Tensor:
        return self.output(y_SHLP.transpose(1, 2).flatten(2))


def _frames(k_SHLP: Tensor, K: int, T: int) -> Tensor:
    """Return the frame number of each key, [L]; the last T frames are 0..T-1, frames before them are negative."""
    frames = k_SHLP.shape[2] // K
    return torch.arange(T - frames, T, device=k_SHLP.device).repeat_interleave(K)
