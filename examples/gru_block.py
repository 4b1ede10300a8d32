import torch
from torch import nn

from rad_bench.blocks.memory import MemoryBlock


class GRU(MemoryBlock):
    size_option = "hidden"  # the option that a parameter budget solves for

    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__(dim)
        self.cell, self.output = nn.GRUCell(dim, hidden), nn.Linear(hidden, dim)

    def initial_state(self, sequences):  # a tuple of tensors [sequences, ...]
        return (self.zeros(sequences, self.cell.hidden_size),)

    def step(self, x_SKD, state):  # one frame of K tokens in each sequence -> its output, the new state
        (h,), outputs = state, []
        for x in x_SKD.unbind(1):
            h = self.cell(x, h)
            outputs.append(self.output(h))
        return torch.stack(outputs, 1), (h,)
