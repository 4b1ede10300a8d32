"""Config and data in, trained trunk out. Stopped at any moment and called again, it ends the same.

A step is defined on its global batch. How many processes share that out, in how many micro-batches, and what is
compiled or computed twice does not change the step but for rounding.
"""

from __future__ import annotations

import contextlib
import copy
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
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rad_bench.config import LaunchConfig, RunConfig, TrainingConfig
from rad_bench.data import Dataset, Episodes
from rad_bench.model.codec import Codec
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.motion import motion_features
from rad_bench.model.trunk import Trunk
from rad_bench.store.run_folder import RunFolder
from rad_bench.training.distributed import Group, check_shares

LOG_EVERY = 10  # steps
SPOILT = (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError)  # raised by what is no checkpoint


@dataclass
class Progress:
    """How far a training has come; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0  # spent in steps, over all attempts
    seconds_waiting: float = 0.0  # of these, for data
    loss_first: float = math.nan  # mean of the first logged steps
    loss_last: float = math.nan
    pending: list[float] = field(default_factory=list)  # losses since the last log line


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


def train(
    run: RunConfig, trunk: Trunk, dataset: Dataset, codec: Codec, folder: RunFolder, device: torch.device,
    launch: LaunchConfig, group: Group, watch: Callable[[Progress, Trunk], None] = lambda progress, average: None,
) -> tuple[Trunk, Progress]:  # fmt: skip
    """Train `trunk` in place, together with the (connected) group, and return its averaged (EMA) copy.

    Resumes from the folder's checkpoint. All randomness of step s is a function of (seed, s), so nothing but
    weights, averages and optimiser state needs saving. Rank 0 writes checkpoints and log, and lets `watch` see the
    averaged copy after each step. Raises `DivergedError`, on every rank, if the loss is not finite.
    """
    config, leads = run.training, group.rank == 0
    check_shares(run, group.world, launch.accumulate)
    trainer = make_trainer(run, trunk, codec, device, launch, group)
    progress = _resume(folder, trainer)
    # Rank 0 replaces no checkpoint, and cuts no log, before all have come here: all have read the same one.
    if len(steps := set(group.gather(progress.step))) > 1:
        raise RuntimeError(f"{folder.checkpoint}: processes read it at different steps, {sorted(steps)}")
    if leads:
        _cut_log(folder, progress.step)
    losses = [torch.tensor(loss, device=device) for loss in progress.pending]
    with training_batches(run, dataset, progress.step, trainer.rows, launch.loaders) as batches:
        while progress.step < config.steps:
            began = time.perf_counter()
            episodes = next(batches)
            progress.seconds_waiting += time.perf_counter() - began
            losses.append(group.mean(trainer.step(episodes, progress.step)))
            progress.step += 1
            if progress.step % LOG_EVERY == 0 or progress.step == config.steps:
                mean = float(torch.stack(losses).mean())  # also waits for the device, so that time is honest
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
            if leads and (progress.step % config.checkpoint_every == 0 or progress.step == config.steps):
                progress.pending = [float(loss) for loss in losses]
                _save(folder, trainer, progress)
            if leads:
                watch(progress, trainer.average)
    return trainer.average, progress


@dataclass(frozen=True)
class Trainer:
    """What a step of training works with."""

    run: RunConfig
    trunk: Trunk
    network: nn.Module  # the trunk, or what makes its gradients the mean over processes
    average: Trunk
    optimiser: torch.optim.AdamW
    codec: Codec
    diffusion: Diffusion
    device: torch.device
    rows: slice  # of the global batch, that this process trains on
    accumulate: int  # micro-batches that these come in

    def step(self, episodes: Episodes, number: int) -> Tensor:
        """Take a step on this process's rows of the batch of that number; return their mean loss."""
        loss = self._backward(self._shares(episodes, number))
        config = self.run.training
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(config, number)
        nn.utils.clip_grad_norm_(self.trunk.parameters(), config.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(config.ema, (1 + number) / (10 + number))  # a young average forgets its random start
            torch._foreach_lerp_(list(self.average.parameters()), list(self.trunk.parameters()), 1 - decay)
            for kept, now in zip(self.average.buffers(), self.trunk.buffers(), strict=True):
                kept.copy_(now)  # a user's block may have some; a mean of counters means nothing
        return loss

    def _shares(self, episodes: Episodes, number: int) -> list[tuple[Tensor, ...]]:
        """Return the micro-batches of this process: frames (or latents), motion, noise levels and noise."""
        config = self.run.training
        motion = motion_features(self.run.trunk.motion, episodes.actions, episodes.egomotion)
        # Drawn for the whole global batch: whoever trains on a row, its noise is the same.
        generator = torch.Generator().manual_seed(self.run.seed * 1_000_003 + number)
        level, noise = self.diffusion.draw(self.trunk, config.batch, config.frames - config.loss_from, generator)
        frames = episodes.frames if episodes.latents is None else episodes.latents
        parts = (frames, motion, level[self.rows], noise[self.rows])
        return list(zip(*(part.chunk(self.accumulate) for part in parts), strict=True))

    def _backward(self, shares: list[tuple[Tensor, ...]]) -> Tensor:
        """Leave the gradient, mean over shares and processes, in the weights; return the mean loss of these shares."""
        losses, network = [], self.network
        mixed = self.run.training.precision == "bf16"
        for number, share in enumerate(shares, 1):
            frames, motion, level, noise = (part.to(self.device) for part in share)
            clean = frames if frames.is_floating_point() else self.codec.encode(frames)
            # More to come: gradients travel between processes with the last.
            waits = number < len(shares) and isinstance(network, DistributedDataParallel)
            with network.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
                    loss = self.diffusion.loss(network, clean, motion, level, noise)
                (loss / len(shares)).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()


def make_trainer(
    run: RunConfig, trunk: Trunk, codec: Codec, device: torch.device, launch: LaunchConfig, group: Group
) -> Trainer:
    """Return what trains `trunk`, which is on `device`, from its weights as they are."""
    average = copy.deepcopy(trunk).requires_grad_(False)
    trunk.recompute = launch.activation_checkpointing
    if launch.compile:
        for layer in trunk.layers:
            layer.compile(dynamic=False)
    return Trainer(
        run, trunk, group.wrap(trunk, device), average, make_optimiser(trunk, run.training), codec,
        Diffusion(run.diffusion, codec.bound), device, group.rows(run.training.batch), launch.accumulate,
    )  # fmt: skip


def make_optimiser(trunk: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone."""
    matrices = [p for p in trunk.parameters() if p.ndim >= 2]
    vectors = [p for p in trunk.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to zero at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


@contextlib.contextmanager
def training_batches(
    run: RunConfig, dataset: Dataset, first: int, rows: slice, loaders: int
) -> Iterator[Iterator[Episodes]]:
    """Give the rows of the batches from step `first` on. `loaders` threads prepare them ahead.

    A batch is a function of its step, so who prepares it does not matter.
    """
    config = run.training

    def batch(step: int) -> Episodes:
        return dataset.training_batch(run.seed, step, config.batch, config.frames, rows)

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


def _save(folder: RunFolder, trainer: Trainer, progress: Progress) -> None:
    state = {name: part.state_dict() for name, part in _saved(trainer).items()} | {"progress": vars(progress)}
    if folder.checkpoint.exists():
        folder.fence()
        os.replace(folder.checkpoint, folder.checkpoint_before)
    folder.replace(folder.checkpoint, lambda file: _write(state, file))


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    """Save to a file. What the disk says, such as that it is full, torch's writer keeps to itself."""
    refused: list[OSError] = []

    class Listening:
        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                refused.append(error)
                raise

        def flush(self) -> None:
            file.flush()

    try:
        torch.save(state, Listening())  # type: ignore[arg-type]
    except RuntimeError as error:
        raise (refused[0] if refused else error) from None


def _resume(folder: RunFolder, trainer: Trainer) -> Progress:
    """Take up the newest checkpoint that can be read whole. A spoilt one costs time, never the run."""
    for path in (folder.checkpoint, folder.checkpoint_before):
        try:
            state: dict[str, Any] = torch.load(path, map_location=trainer.device, weights_only=True)
        except FileNotFoundError:
            continue
        except SPOILT as error:
            print(f"{path}: cannot be read, and is passed over: {error}", file=sys.stderr)
            continue
        for name, part in _saved(trainer).items():
            part.load_state_dict(state[name])
        return Progress(**state["progress"])
    return Progress()


def saved_step(folder: RunFolder) -> int:
    """Return the step that training would go on from, at a look: no weights are read."""
    for path in (folder.checkpoint, folder.checkpoint_before):
        with contextlib.suppress(*SPOILT):
            return int(torch.load(path, map_location="cpu", mmap=True, weights_only=True)["progress"]["step"])
    return 0


def _saved(trainer: Trainer) -> dict[str, Any]:
    return {"trunk": trainer.trunk, "average": trainer.average, "optimiser": trainer.optimiser}


def _cut_log(folder: RunFolder, step: int) -> None:
    """Drop log lines that a killed attempt wrote after the checkpoint that training resumes from."""
    if not folder.log.exists():
        return
    kept = []
    for line in folder.log.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line, written when the process died
        if record.get("phase") == "training" and record["step"] <= step:
            kept.append(line)
    folder.replace(folder.log, lambda file: file.write("".join(line + "\n" for line in kept).encode()))
