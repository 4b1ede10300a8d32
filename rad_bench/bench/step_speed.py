"""A training step at the preset of memory_blocks.yaml: what a memory adds, in time and FLOPs; what compiling takes off.

The whole step: clips (prepared before), noise, forward, backward, clipping, optimiser, average. FLOPs are those of the
forward pass; the backward pass of a product has twice as many on both sides.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rad_bench.bench.race import Race
from rad_bench.blocks.contract import perturb
from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.data import Episodes
from rad_bench.errors import UserError
from rad_bench.model.budget import ModelPlan
from rad_bench.model.experiment import open_experiment
from rad_bench.model.registry import block_names
from rad_bench.training.distributed import Group
from rad_bench.training.loop import Trainer, make_trainer

BUDGET = 70_000  # memory parameters of each model in memory_blocks.yaml
UNROLLED = ("ttt",)  # by the compiler, a gradient step a frame, for many minutes
COMPILED_TOLERANCE = 1e-5  # of the loss


@dataclass(frozen=True)
class Stepping:
    """A trainer that takes the same step again and again."""

    trainer: Trainer
    clips: Episodes
    plan: ModelPlan

    def __call__(self) -> Sequence[Tensor]:
        return [self.trainer.step(self.clips, 0)]

    @property
    def flops(self) -> int:
        """A frame, forward."""
        return self.plan.memory_flops + self.plan.trunk_flops


def races(device: torch.device) -> Iterator[Race]:
    """Yield a step without memory against one with each built-in block."""
    bare = stepping("none", device)
    for name in block_names():
        if name != "none":
            full = stepping(name, device)
            notes = {"times_the_flops": full.flops / bare.flops}
            yield Race("a training step without memory", f"with {name}", bare, full, None, notes=notes)


def compiled_races(device: torch.device) -> Iterator[Race]:
    """Yield steps whose layers `torch.compile` has compiled against the same steps without, which learn the same."""
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("bench compile: PyTorch compiles for a CPU by a C++ compiler, and there is no g++ here.")
    for name in block_names():
        if name in UNROLLED:
            continue
        torch.compiler.reset()  # or the layers of all blocks count as one whose compilation is given up in the end
        eager, compiled = (stepping(name, device, LaunchConfig(compile=compile)) for compile in (False, True))
        for stepper in (eager, compiled):  # a new trunk predicts nothing, whatever its layers compute
            perturb(stepper.trainer.trunk, generator=torch.Generator().manual_seed(0))
        yield Race(f"a step with {name}, compiled", "eager", compiled, eager, COMPILED_TOLERANCE)


def stepping(name: str, device: torch.device, launch: LaunchConfig = LaunchConfig()) -> Stepping:
    """Return training steps of the preset around the named block."""
    run = RunConfig.model_validate({"memory": name, "match": {"by": "parameters", "budget": BUDGET}})
    experiment = open_experiment(run, device)
    trainer = make_trainer(experiment, launch, Group())
    clips = experiment.dataset.training_batch(0, 0, run.training.batch, run.training.frames)
    return Stepping(trainer, clips, experiment.plan)
