"""A short timed probe of what a run will take: its own training and evaluation, shortened, on the device of its runs.

The evaluation is timed over two short horizons from the middle of the whole one, where a memory that grows has its mean
size: what a frame adds is their difference, the rest is the context's. On a CPU large models are timed on fewer clips
and episodes, and in proportion. Not seen: checkpoints, and how much runs beside each other slow each other down.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.data import Dataset, Episodes
from rad_bench.data.recordings import Recordings
from rad_bench.evaluation.evaluate import evaluate
from rad_bench.evaluation.probe import probe
from rad_bench.model.budget import ModelPlan
from rad_bench.model.codec import Codec
from rad_bench.model.trunk import Trunk
from rad_bench.store.run_folder import RunFolder
from rad_bench.sweep.estimate import Cost
from rad_bench.training.distributed import Group
from rad_bench.training.loop import train

ENOUGH, MOST_STEPS = 1.0, 10  # seconds, and steps, of training that are timed after the first
LONG = 4  # steps of the longer horizon; the shorter has one
PROBED = 16  # clips of the linear probe, at most
LARGEST_CPU = 2e11  # FLOPs of a training step, or of an evaluation, that a CPU is asked for


class _EnoughError(Exception):
    """The steps that were to be timed are taken."""


class _WithLatents:
    """A data set whose training clips carry empty latents: runs read theirs from disk, where the first put them."""

    def __init__(self, data: Recordings, codec: Codec) -> None:
        self.data, self.codec, self.identity = data, codec, data.identity

    def training_batch(self, seed: int, step: int, batch: int, frames: int, rows: slice = slice(None)) -> Episodes:
        clips = self.data.training_batch(seed, step, batch, frames, rows)
        return replace(clips, latents=torch.zeros(len(clips.frames), frames, *self.codec.frame_shape))


def probe_cost(
    run: RunConfig, plan: ModelPlan, trunk: Trunk, dataset: Dataset, codec: Codec, device: torch.device,
    launch: LaunchConfig,
) -> Cost:  # fmt: skip
    """Time a few steps of the run's training and a short evaluation on `device`, and return what they come to.

    `trunk` is moved there and trained. Raises what the run would raise, such as `torch.OutOfMemoryError`.
    """
    F, C, H = run.trunk.frames_per_step, run.evaluation.context, run.evaluation.horizon
    short, long = F, min(LONG * F, H)
    generated = len(run.evaluation.interventions) * (run.diffusion.sampler_steps + 1) * long
    frames = (3 * run.training.frames, C + H // 2 + generated)  # that a clip, and an episode, take through the trunk
    flops = [count * (plan.memory_flops + plan.trunk_flops) for count in frames]
    clips, episodes = run.training.batch, run.evaluation.episodes
    if device.type == "cpu":
        clips = min(clips, 1 + int(LARGEST_CPU / flops[0]))
        episodes = min(episodes, 2 + int(LARGEST_CPU / flops[1]))  # two can swap memories

    step = _step(run, clips, trunk.to(device), dataset, codec, device, launch) * run.training.batch / clips

    def evaluated(horizon: int) -> float:
        changes = {"tasks": ["continuation"], "episodes": episodes, "context": C + (H - long) // 2 // F * F}
        shortened = _with(run, "evaluation", **changes, horizon=horizon)
        began = time.perf_counter()
        evaluate(shortened, trunk, dataset, codec, device, lambda done, of: None)
        return (time.perf_counter() - began) * run.evaluation.episodes / episodes

    evaluated(short)  # warms up
    first, last = evaluated(short), evaluated(long)
    a_frame = max(last - first, 0.0) / (long - short) if long > short else last / long
    reading = max(first - short * a_frame, 0.0) * C / (C + (H - long) // 2)
    horizons = [H if name == "continuation" else (C - 1) // F * F for name in run.evaluation.tasks]
    seconds = sum(reading + horizon * a_frame for horizon in horizons)
    began, probed = time.perf_counter(), min(run.evaluation.probe, PROBED)
    probe(_with(run, "evaluation", probe=probed), trunk, dataset, codec, device)
    seconds += (time.perf_counter() - began) * run.evaluation.probe / max(probed, 1)
    whole = (clips, episodes) == (run.training.batch, run.evaluation.episodes)
    return Cost(step, run.training.steps, seconds, "timed" if whole else "timed in part")


def _step(
    run: RunConfig, clips: int, trunk: Trunk, dataset: Dataset, codec: Codec, device: torch.device, launch: LaunchConfig
) -> float:
    """Return the seconds of a training step on so many clips, by one process and without compilation."""
    data: Any = dataset if codec.lossless or not isinstance(dataset, Recordings) else _WithLatents(dataset, codec)
    few = _with(run, "training", batch=clips, steps=max(run.training.steps, MOST_STEPS + 1), checkpoint_every=1 << 30)
    alone = launch.model_copy(update={"compile": False, "accumulate": 1})
    marks: list[float] = []

    def watch(*_: object) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())
        if len(marks) > MOST_STEPS or marks[-1] - marks[0] > ENOUGH:  # the first step warms up
            raise _EnoughError

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        train(few, trunk, data, codec, RunFolder(Path(folder)), device, alone, Group(), watch)
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def _with(run: RunConfig, section: str, **changes: Any) -> RunConfig:
    return run.model_copy(update={section: getattr(run, section).model_copy(update=changes)})
