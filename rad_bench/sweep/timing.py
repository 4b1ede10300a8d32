"""A short timed probe of a run's cost: its own training and evaluation, shortened, on the device of its runs.

The evaluation is timed over two short horizons in the middle of the whole one, where a growing memory has its mean
size. Their difference gives the time of a generated frame, the rest is the time of the context. On a CPU, large models
are timed on fewer clips and episodes, and the times are scaled up. The probe includes no checkpoints, and does not know
how much parallel runs slow each other down.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rad_bench.config import LaunchConfig
from rad_bench.data import Episodes
from rad_bench.data.encoded import Encoded
from rad_bench.data.recordings import Recordings
from rad_bench.evaluation.evaluate import evaluate
from rad_bench.evaluation.fvd import fvd_absent, logits
from rad_bench.evaluation.probe import probe
from rad_bench.evaluation.tasks import generated_frames
from rad_bench.model.codec import Codec
from rad_bench.model.experiment import Experiment
from rad_bench.store.run_folder import RunFolder
from rad_bench.sweep.estimate import Cost
from rad_bench.training.distributed import Group
from rad_bench.training.loop import train

ENOUGH, MOST_STEPS = 1.0, 10  # timing of steps ends after so many seconds, or steps
LONG = 4  # rollout steps of the longer horizon; the shorter has one
PROBED = 16  # clips of the linear probe, at most
LARGEST_CPU = 2e11  # FLOPs of a training step, or of an evaluation, that is timed on a CPU


class _EnoughError(Exception):
    """Enough steps have been timed."""


class _WithLatents:
    """A data set whose training clips have zeros as latents: the first run writes the real ones to disk."""

    def __init__(self, data: Recordings, codec: Codec) -> None:
        self.data, self.codec = data, codec

    def training_batch(
        self, seed: int, step: int, batch: int, frames: int, rows: slice = slice(None), with_surfaces: bool = False
    ) -> Episodes:
        clips = self.data.training_batch(seed, step, batch, frames, rows, with_surfaces)
        return replace(clips, latents=torch.zeros(len(clips.frames), frames, *self.codec.frame_shape))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)


def probe_cost(experiment: Experiment, launch: LaunchConfig) -> Cost:
    """Time a few steps of training and a short evaluation, and return the estimated cost of a whole run.

    It trains the experiment's trunk. Raises what the run would raise, such as `torch.OutOfMemoryError`.
    """
    run, plan = experiment.config, experiment.plan
    F, C, H = run.trunk.frames_per_step, run.evaluation.context, run.evaluation.horizon
    short, long = F, min(LONG * F, H)
    generated = len(run.evaluation.interventions) * (run.diffusion.sampler_steps + 1) * long
    frames = (3 * run.training.frames, C + H // 2 + generated)  # that the trunk computes: of a clip, of an episode
    flops = [count * (plan.memory_flops + plan.trunk_flops) for count in frames]
    clips, episodes = run.training.batch, run.evaluation.episodes
    if experiment.device.type == "cpu":
        clips = min(clips, 1 + int(LARGEST_CPU / flops[0]))
        episodes = min(episodes, 2 + int(LARGEST_CPU / flops[1]))  # swapping memories needs two

    step = _step_seconds(experiment, clips, launch) * run.training.batch / clips

    def evaluation_seconds(horizon: int) -> float:
        changes = {"tasks": ["continuation"], "episodes": episodes, "context": C + (H - long) // 2 // F * F, "fvd": 0}
        shortened = _with(experiment, "evaluation", **changes, horizon=horizon)
        began = time.perf_counter()
        evaluate(shortened, lambda done, of: None)
        return (time.perf_counter() - began) * run.evaluation.episodes / episodes

    evaluation_seconds(short)  # warms up
    at_short, at_long = evaluation_seconds(short), evaluation_seconds(long)
    a_frame = max(at_long - at_short, 0.0) / (long - short) if long > short else at_long / long
    context_seconds = max(at_short - short * a_frame, 0.0) * C / (C + (H - long) // 2)
    horizons = [generated_frames(name, run.evaluation, F) for name in run.evaluation.tasks]
    at, interventions = len(run.evaluation.at), len(run.evaluation.interventions)  # snapshots: under `keep` alone
    seconds = sum(context_seconds * (1 + at) + horizon * a_frame * (1 + at / interventions) for horizon in horizons)
    began, probed = time.perf_counter(), min(run.evaluation.probe, PROBED)
    probe(_with(experiment, "evaluation", probe=probed))
    seconds += (time.perf_counter() - began) * run.evaluation.probe / max(probed, 1)
    seconds += _fvd_seconds(experiment)
    whole = (clips, episodes) == (run.training.batch, run.evaluation.episodes)
    return Cost(step, run.training.steps, seconds, "timed" if whole else "timed in part")


def _step_seconds(experiment: Experiment, clips: int, launch: LaunchConfig) -> float:
    """Return the seconds of a training step on so many clips, in one process and without compilation."""
    steps, device = max(experiment.config.training.steps, MOST_STEPS + 1), experiment.device
    few = _with(experiment, "training", batch=clips, steps=steps, checkpoint_every=1 << 30)
    few = _with(few, "evaluation", at=())
    if isinstance(few.dataset, Encoded):
        few = replace(few, dataset=_WithLatents(few.dataset.data, few.codec))
    alone = launch.model_copy(update={"compile": False, "accumulate": 1})
    marks: list[float] = []

    def watch(*_: object) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())
        if len(marks) > MOST_STEPS or marks[-1] - marks[0] > ENOUGH:  # the first step warms up
            raise _EnoughError

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        train(few, RunFolder(Path(folder)), alone, Group(), watch)
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def _fvd_seconds(experiment: Experiment) -> float:
    """Return the seconds that the features of the run's own clips take.

    Those of the truth and the controls are computed once for all runs of a sweep, and are not counted.
    """
    run, device = experiment.config, experiment.device
    config, F = run.evaluation, run.trunk.frames_per_step
    if not config.fvd:
        return 0.0
    clips = [config.episodes * (generated_frames(name, config, F) // config.fvd) for name in config.tasks]
    count = sum(number for number in clips if fvd_absent(number) is None)
    if not count:
        return 0.0
    clip = torch.zeros(config.fvd, *experiment.dataset.frame_shape, dtype=torch.uint8)
    logits(clip, device)  # reads the weights
    began = time.perf_counter()
    logits(clip, device)
    return (time.perf_counter() - began) * count


def _with(experiment: Experiment, section: str, **changes: Any) -> Experiment:
    changed = getattr(experiment.config, section).model_copy(update=changes)
    return replace(experiment, config=experiment.config.model_copy(update={section: changed}))
