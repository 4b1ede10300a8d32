"""No memory: y = 0. What is left is exactly the trunk."""

from __future__ import annotations

import torch
from torch import Tensor

from rad_bench.blocks.memory import MemoryBlock, State


class NoMemory(MemoryBlock):
    """Carries nothing and adds nothing: the trunk with its attention window alone."""

    memoryless = True

    def initial_state(self, sequences: int) -> State:
        return ()

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        return torch.zeros_like(x_SKD), state
