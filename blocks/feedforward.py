"""No memory, but as many parameters: y = U gelu(W x) for each token.

A control: it shows what a memory's parameters give without the memory.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.memory import MemoryBlock, Prefetched, State


class FeedForward(MemoryBlock):
    """A memoryless block with any number of parameters: the control for a memory's parameters."""

    size_option = "hidden"
    memoryless = True

    def __init__(self, dim: int, hidden: int = 128) -> None:
        super().__init__(dim)
        if hidden < 1:
            raise ValueError("feedforward needs hidden >= 1")
        self.input, self.output = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def initial_state(self, sequences: int) -> State:
        return ()

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        return self.output(F.gelu(self.input(x_SKD))), state

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        return Prefetched(self.step(x_STKD, state)[0], [state] * x_STKD.shape[1], state)
