"""No memory, but parameters: y = U gelu(W x), each token by itself.

The control that tells what a memory's parameters give without its memory.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.memory import MemoryBlock, State


class FeedForward(MemoryBlock):
    """Carries nothing, at any number of parameters: the control for a memory's size."""

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
