"""What each model of a sweep takes in time: all of them in turns, in one process, at the sweep's own sizes.

Runs are timed while others run beside them, so their times do not compare. Here a turn takes one training step and two
frames of a rollout with every model, right after one another: whatever slows one slows all, and the ratios stay. How
much of the machine was busy with other work is measured too, because that can still change them (caches, memory).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rad_bench.bench.comparison import Work, cpu_seconds, work_seconds
from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.evaluation.tasks import generated_frames
from rad_bench.model.cache import Cache
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.experiment import Experiment, open_experiment
from rad_bench.model.rollout import rollout
from rad_bench.model.trunk import Trunk
from rad_bench.store.result import Timing
from rad_bench.training.batches import training_clips
from rad_bench.training.distributed import Group
from rad_bench.training.trainer import make_trainer

FEWEST, MOST = 5, 25  # turns
SECONDS = 10.0  # for each model, if so many turns do not need more
LIMIT = 300.0  # seconds; what would take longer is not measured
VIDEOS = 32  # rolled out together, at most
PIECE = 32  # frames that are committed together


class TooSlowError(Exception):
    """The fewest turns would take longer than `LIMIT`."""


@dataclass(frozen=True)
class Turns:
    """The times of all turns, and what else the machine did meanwhile."""

    timings: dict[str, Timing]
    others: float | None  # cores that other work kept busy; None where the system does not tell


def take_turns(configs: Mapping[str, RunConfig], launch: LaunchConfig, device: torch.device) -> Turns:
    """Time a training step, the first and the last frame of each model.

    Raises `TooSlowError`, or what a model raises, such as `torch.OutOfMemoryError`.
    """
    works = {name: _works(open_experiment(config, device), launch) for name, config in configs.items()}
    began = time.perf_counter()
    for own in works.values():  # not timed: the first call of each also allocates
        for work in own.values():
            work()
    if (turn := time.perf_counter() - began) * FEWEST > LIMIT:
        raise TooSlowError(f"{FEWEST} turns of all models would take about {turn * FEWEST:.0f} s")
    seconds: dict[str, dict[str, list[float]]] = {name: {part: [] for part in own} for name, own in works.items()}
    before, taken, began = _Moment.now(), 0, time.perf_counter()
    while taken < FEWEST or (taken < MOST and time.perf_counter() - began < SECONDS * len(works)):
        for name, own in works.items():
            for part, work in own.items():
                seconds[name][part].append(work_seconds(work, device))
        taken += 1
    others = _others(before, _Moment.now())
    return Turns({name: Timing(**parts) for name, parts in seconds.items()}, others)


def videos_together(config: RunConfig) -> int:
    """Return how many videos the frames of a turn are generated for."""
    return min(config.evaluation.episodes, config.evaluation.batch, VIDEOS)


def _works(experiment: Experiment, launch: LaunchConfig) -> dict[str, Work]:
    """Return what a turn does with a model: a training step, and the first and the last frames of a rollout."""
    run, device = experiment.config, experiment.device
    clips = training_clips(run, experiment.dataset, 0)
    # Without compilation, which takes minutes, and in one piece.
    trainer = make_trainer(experiment, launch.model_copy(update={"compile": False, "accumulate": 1}), Group())
    trunk, F = trainer.average.eval(), run.trunk.frames_per_step
    diffusion, videos = Diffusion(run.diffusion, experiment.codec.bound), videos_together(run)
    motion = torch.randn(videos, F, experiment.trunk.motion.in_features, device=device)
    noise = torch.randn(videos, *trunk.frame_shape, device=device)
    longest = max(generated_frames(name, run.evaluation, F) for name in run.evaluation.tasks)
    context = _read(trunk, trunk.start(videos), motion, run.evaluation.context)
    end = _read(trunk, context, motion, longest - F)

    def generating(cache: Cache) -> Work:
        return lambda: [rollout(trunk, diffusion, motion, cache, lambda _: noise).frames]

    return {
        "step": lambda: [trainer.step(clips, 0)],
        "first_frames": generating(context),
        "last_frames": generating(end),
    }


@torch.no_grad()
def _read(trunk: Trunk, cache: Cache, motion: torch.Tensor, frames: int) -> Cache:
    """Return the cache after so many more frames of noise."""
    videos, F = motion.shape[:2]
    for first in range(0, frames, max(PIECE // F, 1) * F):
        count = min(max(PIECE // F, 1) * F, frames - first)
        clean = torch.rand(videos, count, *trunk.frame_shape, device=motion.device) * 2 - 1
        cache = trunk.commit(clean, motion.repeat(1, count // F, 1), cache)
    return cache


@dataclass(frozen=True)
class _Moment:
    """Seconds on three clocks: the wall's, that of this process's work, and that of the work of all cores."""

    wall: float
    own: float
    all_cores: float | None

    @staticmethod
    def now() -> _Moment:
        return _Moment(time.perf_counter(), cpu_seconds(), _busy_seconds())


def _others(before: _Moment, after: _Moment) -> float | None:
    """Return how many cores worked for others between two moments; None if the system does not tell."""
    if before.all_cores is None or after.all_cores is None:
        return None
    work = after.all_cores - before.all_cores - (after.own - before.own)
    return max(work, 0.0) / (after.wall - before.wall)


def _busy_seconds() -> float | None:
    """Return the time that all cores have been busy since the machine started, in core seconds; None if not known."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, *interrupts = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
