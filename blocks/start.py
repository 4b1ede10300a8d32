"""Initial values that several blocks share, and the forms in which a block comes.

paper        the layer as its paper publishes it, gates, norms, convolutions and initial values included
paper-tied   the same, but queries start as copies of keys (of blocks that have them)
adapted      the layer as it is adapted to video, queries as copies of keys too: each block says what differs, and why

Trials on validation episodes chose the defaults (`sweeps/forms.yaml`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Form = Literal["adapted", "paper", "paper-tied"]
FormWithoutQueries = Literal["adapted", "paper"]


@torch.no_grad()
def tie_queries(weight: Tensor, query: int, key: int, size: int) -> None:
    """Start the queries of a weight (`size` rows from `query` on) as copies of its keys (those from `key` on).

    A frame then reads, from the first training step on, what was written at its own pose. From independent queries, a
    memory of constant size has to learn first where to look.
    """
    weight[query : query + size] = weight[key : key + size]


def decay_start(heads: int, form: Form, lowest: float) -> tuple[Tensor, Tensor]:
    """Return `bias` and `log_rate` of a decay exp(-exp(log_rate) softplus(bias + ...)), for each head.

    A token is a piece of a word in the papers and a frame here. Adapted, memory decays over tens of frames; as
    published, with rates of `lowest` to 16, over about one to a thousand tokens.
    """
    least, most = (0.1, 1.0) if form == "adapted" else (0.001, 0.1)
    step = torch.exp(torch.empty(heads).uniform_(math.log(least), math.log(most)))
    bias = step + torch.log(-torch.expm1(-step))  # softplus of it is the step
    if form == "adapted":
        return bias, torch.empty(heads).uniform_(math.log(0.01), math.log(0.1))
    return bias, torch.empty(heads).uniform_(lowest, 16.0).clamp(min=1e-4).log()


def start_as_conv1d(taps: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Return weights or biases as `nn.Conv1d` starts those of a convolution by channel, times `scale`."""
    return scale * torch.empty(shape).uniform_(-1, 1) / math.sqrt(taps)
