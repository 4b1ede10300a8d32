"""The pass over a micro-batch, forward and back, recorded once and then repeated (`model/graphs.py`)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from rad_bench.model.graphs import Record, Repeats
from rad_bench.model.trunk import Streams, Trunk


class RecordedPass:
    """Adds the gradients of micro-batches to a trunk's."""

    def __init__(self, trunk: Trunk, streams: Streams, record: Record) -> None:
        """`streams`: of a micro-batch, made beforehand, since a recording cannot copy from the host."""
        self.network = functools.partial(trunk, streams=streams)
        self.parameters = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
        self.reached: list[int] = []  # numbers of the parameters that the pass has a gradient of
        self.repeats = Repeats(record)

    def __call__(self, compute_loss: Callable[..., Tensor], share: float, *batch: Tensor) -> Tensor:
        """Add `share` of the gradient of `compute_loss(network, *batch)`; return the loss."""

        def gradient(*batch: Tensor) -> tuple[Tensor, ...]:
            loss = compute_loss(self.network, *batch)
            found = torch.autograd.grad(loss * share, self.parameters, allow_unused=True)
            # The optimiser leaves parameters without a gradient alone; those whose gradient is zero would decay.
            self.reached = [number for number, part in enumerate(found) if part is not None]
            return loss.detach(), *(part for part in found if part is not None)

        loss, *gradients = self.repeats(gradient, *batch)
        for number, added in zip(self.reached, gradients, strict=True):
            parameter = self.parameters[number]
            parameter.grad = added if parameter.grad is None else parameter.grad + added
        return loss
