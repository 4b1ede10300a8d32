"""Train a trunk from config and data. Training that is killed and restarted gives the same result.

A step is defined by its global batch. The number of processes and micro-batches, compilation and activation
checkpointing change it only by rounding.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, Protocol

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rad_bench.config import LaunchConfig, RunConfig, TrainingConfig
from rad_bench.data import Dataset, Episodes
from rad_bench.data.returns import turned_back, turning_frames
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.experiment import Experiment
from rad_bench.model.graphs import Repeats
from rad_bench.model.motion import motion_features
from rad_bench.model.trunk import Streams, Trunk
from rad_bench.store.run_folder import RunFolder
from rad_bench.training.distributed import Group, check_shares

LOG_EVERY = 10  # steps
UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError)  # raised for broken checkpoints


@dataclass
class Progress:
    """The progress of a training; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0  # time in steps, over all attempts
    seconds_waiting: float = 0.0  # of these, waiting for data
    loss_first: float = math.nan  # mean of the first logged steps
    loss_last: float = math.nan
    pending: list[float] = field(default_factory=list)  # losses since the last log line


class DivergedError(RuntimeError):
    """The loss is not finite."""


def train(
    experiment: Experiment, folder: RunFolder, launch: LaunchConfig, group: Group,
    watch: Callable[[Progress, Trunk], None] = lambda progress, average: None,
) -> tuple[Trunk, Progress]:  # fmt: skip
    """Train the experiment's trunk in place, together with the (connected) group, and return its averaged (EMA) copy.

    Resumes from the folder's checkpoint. All randomness of step s is a function of (seed, s), so a checkpoint holds
    only weights, averages, optimiser state and progress. Rank 0 writes checkpoints, log and snapshots (the averaged
    copy after the steps of `evaluation.at`), and calls `watch` with the averaged copy after each step. Raises
    `DivergedError`, on every rank, if the loss is not finite.
    """
    config, leads = experiment.config.training, group.rank == 0
    check_shares(experiment.config, group.world, launch.accumulate)
    trainer = make_trainer(experiment, launch, group)
    progress = _resume(folder, trainer)
    # `gather` is a barrier: rank 0 changes checkpoint and log only after all ranks have read the same checkpoint.
    if len(steps := set(group.gather(progress.step))) > 1:
        raise RuntimeError(f"{folder.checkpoint}: processes resumed from different steps, {sorted(steps)}")
    if leads:
        _cut_log(folder, progress.step)
    losses = [torch.tensor(loss, device=experiment.device) for loss in progress.pending]
    with training_batches(experiment, progress.step, trainer.rows, launch.loaders) as batches:
        while progress.step < config.steps:
            began = time.perf_counter()
            episodes = next(batches)
            progress.seconds_waiting += time.perf_counter() - began
            losses.append(group.mean(trainer.step(episodes, progress.step)))
            progress.step += 1
            if progress.step % LOG_EVERY == 0 or progress.step == config.steps:
                mean = float(torch.stack(losses).mean())  # waits for the device, so the time includes its work
                losses.clear()
                if not math.isfinite(mean):
                    raise DivergedError(f"loss is {mean} at step {progress.step}; lower training.learning_rate")
                progress.loss_last = mean
                if math.isnan(progress.loss_first):
                    progress.loss_first = mean
            progress.seconds += time.perf_counter() - began
            if not losses:
                line = {
                    "phase": "training",
                    "step": progress.step,
                    "steps": config.steps,
                    "loss": progress.loss_last,
                }
                if leads:
                    folder.append(folder.log, json.dumps({**line, "seconds": round(progress.seconds, 3)}))
            if (
                leads and progress.step in experiment.config.evaluation.at
            ):  # first: no checkpoint is ahead of a snapshot
                save_weights(folder, folder.snapshot(progress.step), trainer.average)
            if leads and (progress.step % config.checkpoint_every == 0 or progress.step == config.steps):
                progress.pending = [float(loss) for loss in losses]
                _save(folder, trainer, progress)
            if leads:
                watch(progress, trainer.average)
    return trainer.average, progress


@dataclass(frozen=True)
class Trainer:
    """Everything that a training step needs."""

    experiment: Experiment
    network: nn.Module  # the trunk, or its wrapper that averages gradients over processes
    average: Trunk
    optimiser: torch.optim.AdamW
    diffusion: Diffusion
    rows: slice  # this process's rows of the global batch
    accumulate: int  # micro-batches that these rows are divided into
    streams: Streams  # of a micro-batch
    repeats: Repeats  # of the passes over micro-batches, where the experiment records them
    reached: list[int]  # numbers of the parameters that such a pass has a gradient of

    @property
    def trunk(self) -> Trunk:
        return self.experiment.trunk

    @property
    def run(self) -> RunConfig:
        return self.experiment.config

    def step(self, episodes: Episodes, number: int) -> Tensor:
        """Take step `number` on this process's rows of its batch; return their mean loss."""
        loss = self._backward(self._micro_batches(episodes, number))
        config = self.run.training
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(config, number)
        nn.utils.clip_grad_norm_(self.trunk.parameters(), config.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(config.ema, (1 + number) / (10 + number))  # lower at first, to forget the initial weights
            torch._foreach_lerp_(list(self.average.parameters()), list(self.trunk.parameters()), 1 - decay)
            for averaged, buffer in zip(self.average.buffers(), self.trunk.buffers(), strict=True):
                averaged.copy_(buffer)  # not averaged: buffers of a user's block may be counters
        return loss

    def _micro_batches(self, episodes: Episodes, number: int) -> list[tuple[Tensor, ...]]:
        """Return the micro-batches of this process: frames (or latents), motion, noise levels and noise."""
        config = self.run.training
        motion = motion_features(self.run.trunk.motion, episodes.actions, episodes.egomotion)
        # Drawn for the whole global batch, so a row's noise does not depend on the process that trains on it.
        generator = torch.Generator().manual_seed(self.run.seed * 1_000_003 + number)
        level, noise = self.diffusion.draw(self.trunk, config.batch, config.frames - config.loss_from, generator)
        frames = episodes.frames if episodes.latents is None else episodes.latents
        batch = (frames, motion, level[self.rows], noise[self.rows])
        return list(zip(*(tensor.chunk(self.accumulate) for tensor in batch), strict=True))

    def _backward(self, micro_batches: list[tuple[Tensor, ...]]) -> Tensor:
        """Compute the gradient, averaged over micro-batches and processes; return this process's mean loss."""
        losses, network = [], self.network
        for number, micro_batch in enumerate(micro_batches, 1):
            frames, motion, level, noise = (tensor.to(self.experiment.device) for tensor in micro_batch)
            clean = frames if frames.is_floating_point() else self.experiment.codec.encode(frames)
            if self.experiment.record:
                losses.append(self._repeat(clean, motion, level, noise, 1 / len(micro_batches)))
                continue
            # Processes exchange gradients only after the last micro-batch.
            waits = number < len(micro_batches) and isinstance(network, DistributedDataParallel)
            with network.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                loss = self._loss(network, clean, motion, level, noise)
                (loss / len(micro_batches)).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _repeat(self, clean: Tensor, motion: Tensor, level: Tensor, noise: Tensor, share: float) -> Tensor:
        """Add a micro-batch's share of the gradient, by a recorded pass forward and back; return its loss."""
        parameters = [parameter for parameter in self.trunk.parameters() if parameter.requires_grad]

        def gradient(*batch: Tensor) -> tuple[Tensor, ...]:
            loss = self._loss(functools.partial(self.trunk, streams=self.streams), *batch)
            found = torch.autograd.grad(loss * share, parameters, allow_unused=True)
            # The optimiser leaves parameters without a gradient alone; those whose gradient is zero would decay.
            self.reached[:] = [number for number, part in enumerate(found) if part is not None]
            return loss.detach(), *(part for part in found if part is not None)

        loss, *gradients = self.repeats(gradient, clean, motion, level, noise)
        for number, added in zip(self.reached, gradients, strict=True):
            parameter = parameters[number]
            parameter.grad = added if parameter.grad is None else parameter.grad + added
        return loss

    def _loss(self, network: Callable[..., Tensor], *batch: Tensor) -> Tensor:
        mixed = self.run.training.precision == "bf16"
        with torch.autocast(self.experiment.device.type, torch.bfloat16) if mixed else contextlib.nullcontext():
            return self.diffusion.loss(network, *batch)


def make_trainer(experiment: Experiment, launch: LaunchConfig, group: Group) -> Trainer:
    """Return the trainer of the experiment's trunk, starting from its current weights."""
    run, trunk = experiment.config, experiment.trunk
    frames, noisy = run.training.frames, run.training.frames - run.training.loss_from
    average = copy.deepcopy(trunk).requires_grad_(False)
    trunk.recompute = launch.activation_checkpointing
    if launch.compile:
        for layer in trunk.layers:
            layer.compile(dynamic=False)
    return Trainer(
        experiment, group.wrap(trunk, experiment.device), average, make_optimiser(trunk, run.training),
        Diffusion(run.diffusion, experiment.codec.bound), group.rows(run.training.batch), launch.accumulate,
        trunk.streams(frames, noisy, 0, experiment.device), Repeats(experiment.record), [],
    )  # fmt: skip


def make_optimiser(trunk: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only."""
    matrices = [p for p in trunk.parameters() if p.ndim >= 2]
    vectors = [p for p in trunk.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


class Schedule(Protocol):
    """What decides the learning rate."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...


def learning_rate(config: Schedule, step: int) -> float:
    """Return the learning rate: linear warm-up, then a cosine to zero at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    fraction = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))


def training_clips(
    run: RunConfig, dataset: Dataset, step: int, rows: slice = slice(None), with_surfaces: bool = False
) -> Episodes:
    """Return rows of the clips of a training step, some of which turn back: a function of the config and the step."""
    config = run.training
    clips = dataset.training_batch(run.seed, step, config.batch, config.frames, rows, with_surfaces)
    if not config.return_share:
        return clips
    return turned_back(clips, turning_frames(config.return_share, run.seed, step, config.batch, config.frames)[rows])


@contextlib.contextmanager
def training_batches(experiment: Experiment, first: int, rows: slice, loaders: int) -> Iterator[Iterator[Episodes]]:
    """Yield an iterator over the given rows of the batches from step `first` on, prepared by `loaders` threads.

    A batch is a function of its step, so it does not depend on the thread.
    """
    run, config = experiment.config, experiment.config.training

    def batch(step: int) -> Episodes:
        return training_clips(run, experiment.dataset, step, rows)

    if not loaders:
        yield map(batch, itertools.count(first))
        return
    with ThreadPoolExecutor(loaders) as pool:
        ahead = deque(pool.submit(batch, step) for step in range(first, min(first + 2 * loaders, config.steps)))

        def prepared() -> Iterator[Episodes]:
            for step in itertools.count(first + len(ahead)):
                episodes = ahead.popleft().result()
                if step < config.steps:
                    ahead.append(pool.submit(batch, step))
                yield episodes

        try:
            yield prepared()
        finally:
            for future in ahead:
                future.cancel()


def save_weights(folder: RunFolder, target: Path, trunk: Trunk) -> None:
    """Write a trunk's weights to a file of the run's folder."""
    weights = save({name: tensor.contiguous() for name, tensor in trunk.state_dict().items()})
    folder.replace(target, lambda file: file.write(weights))


def _save(folder: RunFolder, trainer: Trainer, progress: Progress) -> None:
    state = {name: module.state_dict() for name, module in _stateful(trainer).items()} | {"progress": vars(progress)}
    if folder.checkpoint.exists():
        folder.fence()
        os.replace(folder.checkpoint, folder.checkpoint_before)
    folder.replace(folder.checkpoint, lambda file: write_state(state, file))


def write_state(state: dict[str, Any], file: BinaryIO) -> None:
    """Save to a file. torch hides the file's own error, such as a full disk; this raises it."""
    errors: list[OSError] = []

    class Recorder:
        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                errors.append(error)
                raise

        def flush(self) -> None:
            file.flush()

    try:
        torch.save(state, Recorder())  # type: ignore[arg-type]
    except RuntimeError as error:
        raise (errors[0] if errors else error) from None


def _resume(folder: RunFolder, trainer: Trainer) -> Progress:
    """Load the newest readable checkpoint. A broken one costs time, never the run."""
    for path in (folder.checkpoint, folder.checkpoint_before):
        try:
            state: dict[str, Any] = torch.load(path, map_location=trainer.experiment.device, weights_only=True)
        except FileNotFoundError:
            continue
        except UNREADABLE as error:
            print(f"{path}: cannot be read, so it is skipped: {error}", file=sys.stderr)
            continue
        for name, module in _stateful(trainer).items():
            module.load_state_dict(state[name])
        return Progress(**state["progress"])
    return Progress()


def saved_step(folder: RunFolder) -> int:
    """Return the step that training would resume from, without reading weights."""
    for path in (folder.checkpoint, folder.checkpoint_before):
        with contextlib.suppress(*UNREADABLE):
            return int(torch.load(path, map_location="cpu", mmap=True, weights_only=True)["progress"]["step"])
    return 0


def _stateful(trainer: Trainer) -> dict[str, Any]:
    return {"trunk": trainer.trunk, "average": trainer.average, "optimiser": trainer.optimiser}


def _cut_log(folder: RunFolder, step: int) -> None:
    """Remove log lines that a killed attempt wrote after the checkpoint that training resumes from."""
    if not folder.log.exists():
        return
    kept = []
    for line in folder.log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # a partly written line
        if record.get("phase") == "training" and record["step"] <= step:
            kept.append(line)
    folder.replace(folder.log, lambda file: file.write("".join(line + "\n" for line in kept).encode()))
