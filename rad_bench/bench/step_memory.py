"""The memory that a training step needs, predicted and measured.

On a GPU models have the size of `sweeps/gpu/scale.yaml`, and PyTorch's allocator says what it has handed out. On a CPU
they have a size that takes seconds, and the events of PyTorch's profiler say it. The second step is measured, because
the first one makes the optimiser's moments.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile

from rad_bench.bench.gpu_size import gpu_size
from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.model.experiment import open_experiment
from rad_bench.run.footprint import Model, footprint
from rad_bench.training.batches import training_clips
from rad_bench.training.distributed import Group
from rad_bench.training.trainer import make_trainer

MB = 10**6
SMALL = {
    "data": {"name": "rooms", "size": 32},
    "trunk": {"width": 64, "depth": 3, "patch": 8, "window": 4},
    "match": {"by": "parameters", "budget": 200_000},
    "training": {"batch": 4, "frames": 24, "loss_from": 8},
    "evaluation": {"context": 12, "horizon": 8, "episodes": 4, "probe": 4},
}


@dataclass(frozen=True)
class StepMemory:
    """Bytes at the peak of a training step of one block's model."""

    block: str
    options: dict[str, Any]
    clips: int  # of a micro-batch
    resident: int  # weights, their average and the optimiser's moments, which are a part of both that follow
    predicted: int
    measured: int | None  # None: the device has less than the step needs

    def record(self) -> dict[str, Any]:
        """Return the bytes as they are stored."""
        return asdict(self)


def step_memory(block: str, device: torch.device, checkpointing: bool = False) -> StepMemory:
    """Predict the peak of a training step with the named block, and measure it."""
    gc.collect()  # what an earlier block has left in circles
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    run, launch = _size(block, device)
    launch = launch.model_copy(update={"activation_checkpointing": checkpointing})
    experiment = open_experiment(run, device)
    data, options, clips = experiment.dataset, experiment.plan.options, run.training.batch // launch.accumulate
    model = Model(run, options, experiment.codec.frame_shape, data.action_size, data.pose_size)
    foreseen = footprint(model, clips, checkpointing)
    resident = foreseen.training(1, False, 1) - foreseen.gradient
    trainer, batch = make_trainer(experiment, launch, Group()), training_clips(run, data, 0)
    measured: int | None
    try:
        with sdpa_kernel(SDPBackend.MATH):  # attention is computed as matrix products on a GPU
            trainer.step(batch, 0)
            if device.type == "cuda":
                measured = _cuda_peak(lambda: trainer.step(batch, 1), device) - before
            else:
                measured = resident + _cpu_peak(lambda: trainer.step(batch, 1))
    except torch.OutOfMemoryError:
        measured = None
    predicted = foreseen.training(1, launch.accumulate > 1, 1)
    return StepMemory(block, options, clips, resident, predicted, measured)


def _size(block: str, device: torch.device) -> tuple[RunConfig, LaunchConfig]:
    if device.type == "cuda":
        return gpu_size(block)
    return RunConfig.model_validate({**SMALL, "memory": block}), LaunchConfig()


def _cuda_peak(work: Callable[[], object], device: torch.device) -> int:
    """Return the largest number of bytes that were allocated while the work was done."""
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return int(torch.cuda.max_memory_allocated(device))


def _cpu_peak(work: Callable[[], object]) -> int:
    """Return the peak of the bytes that PyTorch's allocator handed out on the CPU for the work."""
    with profile(profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def table(found: Sequence[StepMemory]) -> Table:
    """Return what was predicted and measured as a table, a row a block."""
    rich_table = Table(title="bench memory", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    columns = ("memory", "clips at a time", "weights and moments, MB", "a step, predicted, MB", "measured", "ratio")
    for heading in columns:
        rich_table.add_column(heading, justify="left" if heading == "memory" else "right")
    for f in found:
        measured, ratio = "did not fit", ""
        if f.measured is not None:
            measured, ratio = f"{f.measured / MB:,.0f}", f"{f.measured / f.predicted:.2f}"
        rich_table.add_row(
            f.block, str(f.clips), f"{f.resident / MB:,.0f}", f"{f.predicted / MB:,.0f}", measured, ratio
        )
    return rich_table
