"""Attention over all past frames: the ceiling that a memory of constant size is measured against.

    y_t = U softmax(q_t [k_0..k_t]^T / sqrt(P)) [v_0..v_t]

Queries and keys are RMS-normalised (Henry et al. 2020, arXiv 2010.04245) and carry no position, so that nothing breaks
at lengths beyond training. A frame sees all tokens of earlier frames and its own. The state is the cache of keys and
values, both [S, L, H, P], where L grows by K a frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.memory import MemoryBlock, Prefetched, State


class Attention(MemoryBlock):
    """Full attention over the past: exact recall, at a cost that grows with every frame."""

    size_option = "head_dim"
    fine_option = "heads"

    def __init__(self, dim: int, heads: int = 2, head_dim: int = 32) -> None:
        super().__init__(dim)
        if heads < 1 or head_dim < 1:
            raise ValueError("attention needs heads >= 1 and head_dim >= 1")
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.sharpness = nn.Parameter(torch.full((head_dim,), 2.0))
        self.output = nn.Linear(heads * head_dim, dim)

    def initial_state(self, sequences: int) -> State:
        empty = self.zeros(sequences, 0, self.heads, self.head_dim)
        return empty, empty

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v = self._project(x_SKD)
        k, v = torch.cat([state[0], k], 1), torch.cat([state[1], v], 1)
        return self._attend(q, k, v, None), (k, v)

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        T, K = x_STKD.shape[1:3]
        q, k, v = self._project(x_STKD.flatten(1, 2))
        k, v = torch.cat([state[0], k], 1), torch.cat([state[1], v], 1)
        frame = torch.arange(T, device=q.device).repeat_interleave(K)
        cached = frame.new_full((state[0].shape[1],), -1)
        visible = torch.cat([cached, frame])[None, :] <= frame[:, None]
        y_STKD = self._attend(q, k, v, visible).unflatten(1, (T, K))
        return Prefetched(y_STKD, (k, v, T), (k, v))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        k_clean, v_clean, T = prefetched.memory
        noisy, K = x_STKD.shape[1:3]
        q, k, v = self._project(x_STKD.flatten(1, 2))
        frame = torch.arange(T - noisy, T, device=q.device).repeat_interleave(K)
        clean = torch.arange(T, device=q.device).repeat_interleave(K)
        cached = clean.new_full((k_clean.shape[1] - T * K,), -1)
        before = torch.cat([cached, clean])[None, :] < frame[:, None]
        itself = frame[None, :] == frame[:, None]
        visible = torch.cat([before, itself], 1)
        y = self._attend(q, torch.cat([k_clean, k], 1), torch.cat([v_clean, v], 1), visible)
        return y.unflatten(1, (noisy, K))

    def _project(self, x_SLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x_SLD).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        return F.rms_norm(q, q.shape[-1:]) * self.sharpness, F.rms_norm(k, k.shape[-1:]), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.output(y.transpose(1, 2).flatten(2))
