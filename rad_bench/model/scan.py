"""Layouts that turn a video's token grid into the sequences of a memory block, and back.

A memory *step* processes `frames_per_step` frames together.

    location   one sequence per token location, S = B * N, K = frames_per_step
    block      one per square of b x b locations, S = B * N / b^2, K = frames_per_step * b^2
    frame      one per video, S = B, K = frames_per_step * N
    pooled     one per video, of its mean token, S = B, K = frames_per_step; every location gets its output
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange, repeat
from torch import Tensor


@dataclass(frozen=True)
class Scan:
    """A layout of sequences over a grid of `rows` x `columns` tokens."""

    kind: str
    rows: int
    columns: int
    frames_per_step: int
    block: int = 1

    def sequences(self, videos: int) -> int:
        """Return S for B videos."""
        tokens = self.rows * self.columns
        return videos * {"location": tokens, "block": tokens // self.block**2, "frame": 1, "pooled": 1}[self.kind]

    @property
    def tokens_per_step(self) -> int:
        """Return K, the tokens of a memory step in a sequence."""
        tokens = self.rows * self.columns
        return self.frames_per_step * {"location": 1, "block": self.block**2, "frame": tokens, "pooled": 1}[self.kind]

    def fold(self, x_BTND: Tensor) -> Tensor:
        """[B, T, N, D] -> [S, T / frames_per_step, K, D]."""
        f = self.frames_per_step
        if self.kind == "location":
            return rearrange(x_BTND, "b (t f) n d -> (b n) t f d", f=f)
        if self.kind == "frame":
            return rearrange(x_BTND, "b (t f) n d -> b t (f n) d", f=f)
        if self.kind == "pooled":
            return rearrange(x_BTND.mean(2), "b (t f) d -> b t f d", f=f)
        return rearrange(x_BTND, "b (t f) (r i c j) d -> (b r c) t (f i j) d", f=f, **self._grid())

    def unfold(self, y_STKD: Tensor) -> Tensor:
        """Invert `fold`; a pooled output is repeated over the N locations."""
        f, n = self.frames_per_step, self.rows * self.columns
        if self.kind == "location":
            return rearrange(y_STKD, "(b n) t f d -> b (t f) n d", n=n)
        if self.kind == "frame":
            return rearrange(y_STKD, "b t (f n) d -> b (t f) n d", f=f)
        if self.kind == "pooled":
            return repeat(y_STKD, "b t f d -> b (t f) n d", n=n)
        return rearrange(y_STKD, "(b r c) t (f i j) d -> b (t f) (r i c j) d", f=f, **self._grid())

    def _grid(self) -> dict[str, int]:
        return {
            "r": self.rows // self.block,
            "c": self.columns // self.block,
            "i": self.block,
            "j": self.block,
        }
