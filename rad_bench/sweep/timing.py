"""A short timed probe of what a run will take: the project's own code, on the device and threads that runs will have.

Training steps, the reading of a context, rollout steps and metrics are timed. Where a whole piece takes too long, time
is taken to be in proportion to clips, videos and frames; a step's cost, to grow evenly along the horizon. Not seen:
what checkpoints cost to write, and how much runs beside each other slow each other down. Nothing is written to disk.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from rad_bench.config import EvaluationConfig, LaunchConfig, RunConfig
from rad_bench.data import Dataset, Episodes
from rad_bench.data.recordings import Recordings
from rad_bench.evaluation import evaluate
from rad_bench.evaluation.consistency import self_similarity
from rad_bench.evaluation.interventions import read_context
from rad_bench.evaluation.metrics import SSIM_SMALLEST
from rad_bench.evaluation.revisits import classify_task
from rad_bench.evaluation.tasks import Task, make_task
from rad_bench.model.budget import ModelPlan
from rad_bench.model.codec import Codec
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.motion import motion_features
from rad_bench.model.rollout import frame_noise, rollout
from rad_bench.model.trunk import Trunk
from rad_bench.sweep.estimate import Cost
from rad_bench.training.distributed import Group
from rad_bench.training.loop import make_trainer, training_batches

ENOUGH = 0.5  # seconds, after which a piece of work is not timed again
TOO_LONG = 2.0  # seconds; a piece that would take longer is timed in part
MOST_TIMES = 10  # a piece is timed
EPISODES = 2  # held out, that the probe draws
FRAMES_SCORED = 1024  # at most, by the probe


def probe_cost(
    run: RunConfig, plan: ModelPlan, trunk: Trunk, dataset: Dataset, codec: Codec, device: torch.device,
    launch: LaunchConfig,
) -> Cost:  # fmt: skip
    """Time a few steps of the run's training and evaluation on `device`, and return what they come to.

    `trunk` is moved there and trained. Raises what the run would raise, such as `torch.OutOfMemoryError`.
    """
    trunk = trunk.to(device)
    clock = _Clock(device)
    step = _training_step(run, trunk, dataset, codec, device, launch, clock)
    with torch.no_grad():
        evaluation = _evaluation(run, plan, trunk.eval(), dataset, codec, device, clock)
    source = f"timed; in part: {', '.join(clock.cut)}" if clock.cut else "timed"
    return Cost(step, run.training.steps, evaluation, source)


class _Clock:
    """Times work on a device; `cut` says what was timed in part."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cut = device, dict[str, None]()

    def once(self, work: Callable[[], Any]) -> float:
        """Return the seconds that `work` takes."""
        began = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def often(self, work: Callable[[], Any], enough: float = ENOUGH) -> float:
        """Return the mean seconds of `work`, after a first time that only counts if one is all there is time for."""
        first = self.once(work)
        if first > 5 * TOO_LONG:  # below that it may be the device that warms up
            return first
        took: list[float] = []
        while not took or (sum(took) < enough and len(took) < MOST_TIMES):
            took.append(self.once(work))
        return mean(took)

    def growing(self, name: str, amounts: Sequence[int], seconds: Callable[[int, float], float]) -> float:
        """Return the seconds of the last of `amounts`, the whole, from the largest whose time is not too long.

        What is left out is taken to cost in proportion. `seconds(amount, enough)` times an amount as `often` does;
        those on the way are there to be careful, and are timed once.
        """
        took, whole = 0.0, amounts[-1]
        for amount, more in zip(amounts, [*amounts[1:], None], strict=True):
            took = seconds(amount, ENOUGH if more is None else 0.0)
            if more is not None and took / amount * more > TOO_LONG:
                self.cut[name] = None
                break
        return took / amount * whole


def _amounts(whole: int) -> list[int]:
    """Return 1, 4, 16, ... and the whole: what is small and slow to call says little of what is large."""
    return [4**k for k in range(whole.bit_length()) if 4**k < whole] + [whole]


def _training_step(
    run: RunConfig, trunk: Trunk, dataset: Dataset, codec: Codec, device: torch.device, launch: LaunchConfig,
    clock: _Clock,
) -> float:  # fmt: skip
    """Return the seconds of a training step, waiting for data included, by one process and without compilation."""
    training, F = run.training, run.trunk.frames_per_step
    launch = launch.model_copy(update={"compile": False, "accumulate": 1})
    if not codec.lossless and isinstance(dataset, Recordings):  # which `execute` then reads as latents
        dataset = _WithLatents(dataset, codec)

    def seconds(frames: int, enough: float) -> float:
        clips, length = max(frames // training.frames, 1), min(frames, training.frames)
        start = training.loss_from * length // training.frames // F * F
        shape = {"batch": clips, "frames": length, "loss_from": start, "steps": 10 * MOST_TIMES}
        part = run.model_copy(update={"training": training.model_copy(update=shape)})
        trainer = make_trainer(part, trunk, codec, device, launch, Group())
        with training_batches(part, dataset, 0, trainer.rows, launch.loaders) as batches:
            return clock.often(lambda: trainer.step(next(batches), 0), enough)

    short = max(training.frames // 6 // F, 2) * F
    amounts = [clips * training.frames for clips in _amounts(training.batch)]
    return clock.growing("training", [short, *amounts] if short < training.frames else amounts, seconds)


class _WithLatents:
    """A data set whose training clips carry empty latents: runs read theirs from disk, where the first put them."""

    def __init__(self, data: Dataset, codec: Codec) -> None:
        self.data, self.codec = data, codec

    def training_batch(self, seed: int, step: int, batch: int, frames: int, rows: slice = slice(None)) -> Episodes:
        clips = self.data.training_batch(seed, step, batch, frames, rows)
        return replace(clips, latents=torch.zeros(len(clips.frames), frames, *self.codec.frame_shape))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)


def _evaluation(
    run: RunConfig, plan: ModelPlan, trunk: Trunk, dataset: Dataset, codec: Codec, device: torch.device, clock: _Clock
) -> float:
    """Return the seconds of evaluation: what `evaluate` and `probe` do, counted, times what each piece takes."""
    config = run.evaluation
    drawn: list[Episodes] = []
    length = config.context + config.horizon
    drawing = clock.once(lambda: drawn.append(dataset.held_out(EPISODES, length, config.context)))
    tasks = [make_task(name, drawn[0], config, run.trunk.frames_per_step) for name in config.tasks]
    videos = min(config.batch, config.episodes)  # at a time in reading contexts and in the first rollout
    rollouts = len(config.interventions) * config.episodes

    def reads(task: Task) -> Callable[[int, float], float]:
        motion = motion_features(run.trunk.motion, task.actions, task.egomotion)

        def seconds(videos: int, enough: float) -> float:
            index = torch.arange(videos) % len(task.truth)
            read = functools.partial(read_context, trunk, task, codec, motion, index, device)
            return clock.often(read, enough)

        return seconds

    reading = clock.growing("evaluation", _amounts(videos), reads(tasks[0])) / videos
    longest = max(tasks, key=lambda task: task.horizon)
    first, growth = _rollout_step(run, plan, trunk, longest, codec, videos, clock)
    frame = _metrics_a_frame(config, longest, device, clock)

    seconds = drawing * config.episodes / EPISODES
    for task in tasks:
        steps = task.horizon // run.trunk.frames_per_step
        rolled = steps * (first + growth * (steps - 1) / 2)
        scored = 1 + len(config.interventions)  # the control that copies the last frame is scored as well
        if not codec.lossless:  # so is the ceiling, and everything against raw and decoded truth
            scored = 2 * (scored + 1)
            seconds += clock.often(lambda task=task: evaluate.through(codec, task.truth[:1, :4], device)) * (  # type: ignore[misc]
                config.episodes * task.horizon / 4
            )
        seconds += config.episodes * reading + rollouts / videos * rolled
        seconds += scored * config.episodes * task.horizon * frame
        seconds += clock.once(lambda task=task: _views(run, task, dataset)) * config.episodes / EPISODES  # type: ignore[misc]
    return seconds + _memory_probe(config, plan, dataset, reading, clock)


def _rollout_step(
    run: RunConfig, plan: ModelPlan, trunk: Trunk, task: Task, codec: Codec, videos: int, clock: _Clock
) -> tuple[float, float]:
    """Return the seconds of the first step of a rollout, and how many more each step takes than the one before.

    Only a memory that grows makes later steps slower; its state at the horizon's end is made for one video, and copied.
    """
    C, F = task.context, run.trunk.frames_per_step
    motion = motion_features(run.trunk.motion, task.actions, task.egomotion)
    diffusion = Diffusion(run.diffusion, codec.bound)

    def at(frames: int) -> float:
        known = replace(task, context=frames)
        one = read_context(trunk, known, codec, motion, torch.zeros(1, dtype=torch.long), clock.device)

        def seconds(videos: int, enough: float) -> float:
            cache, asked = (
                one.select(torch.zeros(videos, dtype=torch.long, device=clock.device)),
                motion[:1, frames : frames + F].expand(videos, -1, -1).to(clock.device),
            )

            def step() -> None:
                frames = rollout(trunk, diffusion, asked, cache, noise).frames
                torch.stack([codec.decode(video).cpu() for video in frames])

            def noise(h: int) -> Tensor:
                starts = [frame_noise(0, task.name, e, h, trunk.frame_shape) for e in range(videos)]
                return torch.stack(starts).to(clock.device)

            return clock.often(step, enough)

        return clock.growing("evaluation", _amounts(videos), seconds)

    first, steps = at(C), task.horizon // F
    if len(set(plan.state_bytes.values())) == 1 or steps == 1:
        return first, 0.0
    if clock.cut:  # a device that slow would take minutes to fill the memory
        clock.cut["a growing memory, at its smallest"] = None
        return first, 0.0
    return first, (at(C + task.horizon - F) - first) / (steps - 1)


def _metrics_a_frame(config: EvaluationConfig, task: Task, device: torch.device, clock: _Clock) -> float:
    count = min(config.episodes * task.horizon, FRAMES_SCORED)
    frames = task.truth[:, task.context :].flatten(0, 1)
    frames = frames.repeat(-(-count // len(frames)), 1, 1, 1)[None]

    def seconds(n: int, enough: float) -> float:
        return clock.often(lambda: evaluate.frame_metrics(frames[:, :n], frames[:, :n].flip(1), device), enough)

    return clock.growing("evaluation", _amounts(count), seconds) / count


def _views(run: RunConfig, task: Task, dataset: Dataset) -> None:
    """Tell revisits from novel views, and compare revisits within a rollout."""
    reach = evaluate.reach(run)
    classify_task(task, reach, dataset.has_poses, dataset.same_view)
    if min(task.truth.shape[-2:]) >= SSIM_SMALLEST:
        self_similarity(task, task.truth[:, task.context :], reach, dataset.same_view)


def _memory_probe(config: EvaluationConfig, plan: ModelPlan, dataset: Dataset, reading: float, clock: _Clock) -> float:
    """Return the seconds of drawing the clips of the linear probe and reading them; ridge regression is nothing."""
    sizes = set(plan.state_bytes.values())
    if not config.probe or len(sizes) > 1 or sizes == {0}:
        return 0.0
    few, drawn = min(4, config.probe), list[Episodes]()
    seconds = clock.once(lambda: drawn.append(dataset.probe_clips(True, few, config.context)))
    if drawn[0].hidden is None:
        return 0.0
    clips = config.probe + max(config.probe // 2, 2)
    return clips * (seconds / few + reading)
