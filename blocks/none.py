"""No memory: y = 0. The model is exactly the trunk."""

from __future__ import annotations

import torch
from torch import Tensor

from rad_bench.blocks.memory import MemoryBlock, Prefetched, State


class NoMemory(MemoryBlock):
    """A block without memory and output: only the trunk's attention window remains."""

    memoryless = True

    def initial_state(self, sequences: int) -> State:
        return ()

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        return torch.zeros_like(x_SKD), state

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        return Prefetched(self.step(x_STKD, state)[0], [state] * x_STKD.shape[1], state)
