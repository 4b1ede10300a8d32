"""TTT with large chunks (Zhang et al. 2025, arXiv 2505.23884): one inner step in several frames.

    y_t = f(q_t; W),   G <- G + grad loss_t(W)      for each of the `chunk` frames that share W
    W <- W - G,        G <- 0                       after the last of them

Inner model, loss and rate are those of `ttt` in its adapted form; `chunk: 1` is `ttt`. A frame does not see the other
frames of its chunk; the trunk's attention window sees them if it is as long. All frames of a chunk are written and read
at once. The paper's own inner model and optimiser (SwiGLU, Muon) are not here.
The state is W and G, each the inner model's parameters [S, H, ...], and the number of frames in G. It is the length of
an empty tensor [S, frames, 0], because the host has to know it, and reading a number from a GPU waits for the GPU.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rad_bench.blocks.fast.ttt import inner_model, loss_gradient
from rad_bench.blocks.memory import MemoryBlock, Prefetched, State, in_full_precision, map_state
from rad_bench.blocks.ttt import TTT, as_frames, as_one_frame, too_large


class ChunkTTT(TTT):
    """Test-time training in chunks of frames: fewer, larger inner steps."""

    def __init__(
        self,
        dim: int,
        inner: Literal["linear", "mlp"] = "linear",
        heads: int = 4,
        head_dim: int = 16,
        rate: float = 1.0,
        inner_norm: bool = True,
        chunk: int = 4,
    ) -> None:
        super().__init__(dim, inner, heads, head_dim, rate, inner_norm, form="adapted")
        if chunk < 1:
            raise ValueError("ttt_chunk needs chunk >= 1")
        self.chunk = chunk

    def initial_state(self, sequences: int) -> State:
        weights = super().initial_state(sequences)
        return weights, map_state(torch.zeros_like, weights), self.zeros(sequences, 0, 0)

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        weights, *sums = state
        x_STKD = x_SKD[:, None]
        q, k, v, eta = self._project(self.qkv(x_STKD), x_STKD)
        y_SKD = self._finish(self._normed(q, inner_model(q[:, 0], weights)[0][:, None]), x_STKD)[:, 0]
        return y_SKD, self._add(self._sum(k, v, eta, weights), 1, weights, *sums)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        return super().read(x_SKD, state[0])

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        q, k, v, eta = self._project(self.qkv(x_STKD), x_STKD)
        T, first = x_STKD.shape[1], 0
        memory: list[State] = []
        while first < T:
            weights, gradient, counted = state
            last = min(first + self.chunk - counted.shape[1], T)
            memory += [weights] * (last - first)
            added = self._sum(k[:, first:last], v[:, first:last], eta[:, first:last], weights)
            state = self._add(added, last - first, weights, gradient, counted)
            first = last
        return Prefetched(self._finish(self._read_all(q, memory), x_STKD), memory, state)

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        return self._finish(self._read_all(self._queries(x_STKD), prefetched.memory[-x_STKD.shape[1] :]), x_STKD)

    def remember(
        self, clean_STKD: Tensor, noisy_SQKD: Tensor | None, state: State
    ) -> tuple[Tensor, Tensor | None, State]:
        weights, gradient, counted = state
        T, chunk = clean_STKD.shape[1], self.chunk
        if not too_large(weights, T // chunk):
            return MemoryBlock.remember(self, clean_STKD, noisy_SQKD, state)
        cut = chunk - counted.shape[1] if counted.shape[1] else T - T % chunk
        if cut >= T:
            y_STKD, y_SQKD, weights = self._replay(clean_STKD, noisy_SQKD, weights)
            return y_STKD, y_SQKD, (weights, gradient, counted)
        # First the frames up to the first end of a chunk, or the last.
        early, late = None, noisy_SQKD
        if late is not None and (count := late.shape[1] - (T - cut)) > 0:
            early, late = late[:, :count], late[:, count:]
        y_first, read_first, state = self.remember(clean_STKD[:, :cut], early, state)
        y_then, read_then, state = self.remember(clean_STKD[:, cut:], late, state)
        if read_first is not None and read_then is not None:
            read_then = torch.cat([read_first, read_then], 1)
        return torch.cat([y_first, y_then], 1), read_then, state

    def _read_all(self, q: Tensor, memory: list[State]) -> Tensor:
        """Return f(q; W) for q [S, T, H, K, P]; frames that share W are one product."""
        T, first = q.shape[1], 0
        recalled = []
        for end in range(1, T + 1):
            if end == T or memory[end][0] is not memory[first][0]:
                q_chunk = as_one_frame(q[:, first:end])
                recalled.append(as_frames(inner_model(q_chunk, memory[first])[0], q.shape[3]))
                first = end
        return self._normed(q, torch.cat(recalled, 1))

    @in_full_precision
    def _sum(self, k: Tensor, v: Tensor, eta: Tensor, weights: State) -> State:
        """Return the gradient of all frames' loss at the given weights; k, v [S, T, H, K, P], eta [S, T, H, K, 1]."""
        k, v, eta = as_one_frame(k), as_one_frame(v), as_one_frame(eta)
        gradient: State = ()
        for inputs, error in loss_gradient(k, v, eta, weights, self._norm()):
            gradient += inputs.transpose(-1, -2) @ error, error.sum(-2, keepdim=True)
        return gradient

    def _add(self, added: State, frames: int, weights: State, gradient: State, counted: Tensor) -> State:
        """Add the gradient of some frames, and update the weights if the chunk ends with them."""
        gradient = map_state(torch.add, gradient, added)
        if counted.shape[1] + frames < self.chunk:
            return weights, gradient, counted.new_zeros(len(counted), counted.shape[1] + frames, 0)
        weights = map_state(torch.sub, weights, gradient)
        return weights, map_state(torch.zeros_like, gradient), counted.new_zeros(len(counted), 0, 0)
