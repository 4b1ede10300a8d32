"""Whether runs fit the memory of their GPU, and what would make them fit. Nothing is run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from rad_bench.config import LaunchConfig, SweepConfig
from rad_bench.run.footprint import Footprint, Model, footprint
from rad_bench.sweep.grid import launch_of
from rad_bench.sweep.plan import PlannedModel

GB = 10**9
SPARE = 0.1  # of a GPU: CUDA's own memory, kernels' workspaces, the allocator's fragments, an autoencoder


def gpu_bytes(launch: LaunchConfig) -> int | None:
    """Return the memory of the GPU that runs use: as `launch.gpu_memory_gb` says, or of the one that is here."""
    if launch.gpu_memory_gb is not None:
        return int(launch.gpu_memory_gb * GB)
    if launch.device != "cpu" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return None


def memory_lines(models: Sequence[PlannedModel], sweep: SweepConfig) -> list[str]:
    """Return a line for each model: the memory that it needs, and what makes it fit if it does not."""
    lines = []
    for model in models:
        launch = launch_of(sweep, model.runs[0])
        available = gpu_bytes(launch)
        if available is None:
            continue
        try:
            lines.append(f"{model.label}: {memory_line(model.shapes, launch, available)}")
        except Exception as error:  # a user's block that reads values cannot be predicted
            lines.append(f"{model.label}: not predicted, {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return lines


def memory_line(model: Model, launch: LaunchConfig, available: int) -> str:
    """Return what a model needs on a GPU with so many bytes, and what makes it fit if it does not."""
    found, room = as_launched(model, launch), (1 - SPARE) * available
    training, evaluation = peaks(model, launch, found)
    advice = []
    if training > room:
        ways = _ways(model, launch, found)
        advice.append(next((way for way, peak in ways if peak <= room), "a smaller trunk or shorter clips"))
    if evaluation > room:
        fitting = int(model.run.evaluation.batch * room / evaluation)
        advice.append(f"run.evaluation.batch={fitting}" if fitting else "a shorter evaluation.context and horizon")
    needs = f"{_gb(training)} in training, {_gb(evaluation)} in evaluation"
    if not advice:
        return f"{needs}: fits {_gb(available)}"
    return f"{needs}: DOES NOT FIT {_gb(available)} with {SPARE:.0%} to spare; {' and '.join(advice)} would"


def as_launched(model: Model, launch: LaunchConfig) -> Footprint:
    """Return what a model needs with the micro-batches of `launch`."""
    return footprint(model, _clips(model, launch), launch.activation_checkpointing)


def peaks(model: Model, launch: LaunchConfig, found: Footprint) -> tuple[int, int]:
    """Return the peak bytes of training and of evaluation."""
    return found.training(1, launch.accumulate > 1, _processes(launch)), found.evaluation()


def _ways(model: Model, launch: LaunchConfig, found: Footprint) -> Iterator[tuple[str, int]]:
    """Yield other ways to train, those that cost least first, with the peak of each."""
    clips, processes, given = _clips(model, launch), _processes(launch), launch.accumulate
    divisors = [count for count in range(2, clips + 1) if clips % count == 0]
    for pieces in divisors:
        yield f"launch.accumulate={given * pieces}", found.training(pieces, True, processes)
    bf16 = model.run.training.model_copy(update={"precision": "bf16"})
    rounded = replace(model, run=model.run.model_copy(update={"training": bf16}))
    both = "launch.activation_checkpointing=true"
    for other, way in ((model, both), (rounded, f"{both} with run.training.precision=bf16")):
        leaner = footprint(other, clips, checkpointing=True)
        yield way, leaner.training(1, given > 1, processes)
        for pieces in divisors:
            yield f"{way} with launch.accumulate={given * pieces}", leaner.training(pieces, True, processes)


def _processes(launch: LaunchConfig) -> int:
    return math.prod(launch.tasks("slurm" if launch.slurm.gpus else "local"))


def _clips(model: Model, launch: LaunchConfig) -> int:
    """Return the clips of a micro-batch."""
    return model.run.training.batch // _processes(launch) // launch.accumulate


def _gb(count: float) -> str:
    return f"{count / GB:.{0 if count >= 10 * GB else 1}f} GB"
