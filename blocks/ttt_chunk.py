"""TTT with large chunks (Zhang et al. 2025, arXiv 2505.23884): one inner step in several frames.

    y_t = f(q_t; W),   G <- G + grad loss_t(W)      for each of the `chunk` frames that share W
    W <- W - G,        G <- 0                       after the last of them

Inner model, loss and rate are those of `ttt` in its adapted form; `chunk: 1` is `ttt`. A frame does not see the other
frames of its chunk; the trunk's attention window sees them if it is as long. All frames of a chunk are written and read
at once. The paper's own inner model and optimiser (SwiGLU, Muon) are not here.
The state is W and G, each the inner model's parameters [S, H, ...], and the number of frames in G, [S].
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor

from rad_bench.blocks.fast.ttt import inner_model, loss_gradient
from rad_bench.blocks.memory import Prefetched, State, in_full_precision, map_state
from rad_bench.blocks.ttt import TTT


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
        super().__init__(dim, inner, heads, head_dim, rate, inner_norm)
        if chunk < 1:
            raise ValueError("ttt_chunk needs chunk >= 1")
        self.chunk = chunk

    def initial_state(self, sequences: int) -> State:
        weights = super().initial_state(sequences)
        written = torch.zeros(sequences, dtype=torch.int64, device=weights[0].device)
        return weights, map_state(torch.zeros_like, weights), written

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        weights, gradient, written = state
        x_STKD = x_SKD[:, None]
        q, k, v, eta = self._project(self.qkv(x_STKD), x_STKD)
        y_SKD = self._finish(self._normed(q, inner_model(q[:, 0], weights)[0][:, None]), x_STKD)[:, 0]
        return y_SKD, self._add(self._sum(k, v, eta, weights), 1, weights, gradient, written)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        return super().read(x_SKD, state[0])

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        weights, gradient, written = state
        q, k, v, eta = self._project(self.qkv(x_STKD), x_STKD)
        T, first = x_STKD.shape[1], 0
        memory: list[State] = []
        while first < T:
            # Sequences of a batch may be at different places in their chunks. Stop where the first of them ends.
            last = min(first + self.chunk - int(written.max()), T)
            memory += [weights] * (last - first)
            added = self._sum(k[:, first:last], v[:, first:last], eta[:, first:last], weights)
            weights, gradient, written = self._add(added, last - first, weights, gradient, written)
            first = last
        return Prefetched(self._finish(self._read(q, memory), x_STKD), memory, (weights, gradient, written))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        return self._finish(self._read(self._queries(x_STKD), prefetched.memory[-x_STKD.shape[1] :]), x_STKD)

    def _read(self, q: Tensor, memory: list[State]) -> Tensor:
        """Return f(q; W) for q [S, T, H, K, P]; frames that share W are one product."""
        recalled, T = [], q.shape[1]
        for _, group in itertools.groupby(range(T), key=lambda t: id(memory[t])):
            frames = list(group)
            q_chunk = q[:, frames[0] : frames[-1] + 1]
            out = inner_model(_as_one_frame(q_chunk), memory[frames[0]])[0]
            recalled.append(out.unflatten(2, (len(frames), -1)).transpose(1, 2))
        return self._normed(q, torch.cat(recalled, 1))

    @in_full_precision
    def _sum(self, k: Tensor, v: Tensor, eta: Tensor, weights: State) -> State:
        """Return the gradient of all frames' loss at the given weights; k, v [S, T, H, K, P], eta [S, T, H, K, 1]."""
        k, v, eta = _as_one_frame(k), _as_one_frame(v), _as_one_frame(eta)
        gradient: State = ()
        for inputs, error in loss_gradient(k, v, eta, weights, self._norm()):
            gradient += inputs.transpose(-1, -2) @ error, error.sum(-2, keepdim=True)
        return gradient

    def _add(self, added: State, frames: int, weights: State, gradient: State, written: Tensor) -> State:
        """Add the gradient of some frames, and update the weights of the sequences whose chunk ends with them."""
        gradient, written = map_state(torch.add, gradient, added), written + frames
        ends = written == self.chunk

        def where_it_ends(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(ends.view(-1, *[1] * (old.ndim - 1)), new, old)

        weights = map_state(lambda weight, g: where_it_ends(weight - g, weight), weights, gradient)
        gradient = map_state(lambda g: where_it_ends(torch.zeros_like(g), g), gradient)
        return weights, gradient, where_it_ends(torch.zeros_like(written), written)


def _as_one_frame(x_STHKP: Tensor) -> Tensor:
    """Join the tokens of all T frames: [S, H, T * K, P]."""
    return x_STHKP.transpose(1, 2).flatten(2, 3)
