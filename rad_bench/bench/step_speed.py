"""A training step at the default config: what a memory adds in time and FLOPs, and what compiling or recording saves.

A step has noise, forward, backward, gradient clipping, optimiser and average; its clips are prepared before. FLOPs are
those of the forward pass; the backward pass of a product has twice as many, on both sides of a comparison.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rad_bench.bench.comparison import Comparison
from rad_bench.blocks.contract import perturb
from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.data import Episodes
from rad_bench.errors import UserError
from rad_bench.model.budget import ModelPlan
from rad_bench.model.experiment import open_experiment
from rad_bench.model.graphs import Record, record_on_cuda
from rad_bench.model.registry import block_names
from rad_bench.training.distributed import Group
from rad_bench.training.trainer import Trainer, make_trainer

BUDGET = 70_000  # memory parameters of each model in memory_blocks.yaml
COMPILED_TOLERANCE = 1e-5  # of the loss


@dataclass(frozen=True)
class Stepping:
    """A trainer that repeats one step."""

    trainer: Trainer
    clips: Episodes
    plan: ModelPlan

    def __call__(self) -> Sequence[Tensor]:
        return [self.trainer.step(self.clips, 0)]

    @property
    def flops(self) -> int:
        """FLOPs of the forward pass, per frame."""
        return self.plan.memory_flops + self.plan.trunk_flops


def comparisons(device: torch.device) -> Iterator[Comparison]:
    """Compare a step without memory with a step of each built-in block."""
    bare = stepping("none", device)
    for name in block_names():
        if device.type == "cuda":
            yield recorded(name, device, record_on_cuda)
        if name != "none":
            full = stepping(name, device)
            notes = {"times_the_flops": full.flops / bare.flops}
            yield Comparison("a training step without memory", f"with {name}", bare, full, None, notes=notes)


def compiled_comparisons(device: torch.device) -> Iterator[Comparison]:
    """Compare steps with layers compiled by `torch.compile` with the same steps without; their losses must agree."""
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("bench compile: PyTorch needs a C++ compiler to compile for a CPU, and there is no g++.")
    for name in block_names():
        torch.compiler.reset()  # else PyTorch stops compiling: it counts the layers of all blocks as one
        eager, compiled = (stepping(name, device, LaunchConfig(compile=compile)) for compile in (False, True))
        for stepper in (eager, compiled):  # a new trunk predicts zeros, whatever its layers compute
            perturb(stepper.trainer.trunk, generator=torch.Generator().manual_seed(0))
        yield Comparison(f"a step with {name}, compiled", "eager", compiled, eager, COMPILED_TOLERANCE)


def recorded(name: str, device: torch.device, record: Record) -> Comparison:
    """Compare steps whose passes are recorded and repeated with the same steps without; their losses must agree."""
    ours, called = (stepping(name, device, record=how) for how in (record, None))
    for stepper in (ours, called):
        perturb(stepper.trainer.trunk, generator=torch.Generator().manual_seed(0))
    return Comparison(f"a step with {name}, recorded", "called", ours, called, COMPILED_TOLERANCE)


def stepping(
    name: str, device: torch.device, launch: LaunchConfig = LaunchConfig(), record: Record | None = None
) -> Stepping:
    """Return training steps of the default config around the named block."""
    run = RunConfig.model_validate({"memory": name, "match": {"by": "parameters", "budget": BUDGET}})
    experiment = open_experiment(run, device, record)
    trainer = make_trainer(experiment, launch, Group())
    clips = experiment.dataset.training_batch(0, 0, run.training.batch, run.training.frames)
    return Stepping(trainer, clips, experiment.plan)
