"""One training step: micro-batches forward and back, the optimiser, the averaged weights.

The number of processes and micro-batches, compilation, activation checkpointing and CUDA graphs change a step only by
rounding.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rad_bench.config import LaunchConfig, RunConfig, TrainingConfig
from rad_bench.data import Episodes
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.experiment import Experiment
from rad_bench.model.motion import motion_features
from rad_bench.model.trunk import Trunk
from rad_bench.training.distributed import Group
from rad_bench.training.recorded import RecordedPass


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
    recorded: RecordedPass | None  # where the experiment records its steps

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
            if self.recorded:
                losses.append(self.recorded(self._loss, 1 / len(micro_batches), clean, motion, level, noise))
                continue
            # Processes exchange gradients only after the last micro-batch.
            waits = number < len(micro_batches) and isinstance(network, DistributedDataParallel)
            with network.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                loss = self._loss(network, clean, motion, level, noise)
                (loss / len(micro_batches)).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

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
    streams = trunk.streams(frames, noisy, 0, experiment.device)
    return Trainer(
        experiment, group.wrap(trunk, experiment.device), average, make_optimiser(trunk, run.training),
        Diffusion(run.diffusion, experiment.codec.bound), group.rows(run.training.batch), launch.accumulate,
        RecordedPass(trunk, streams, experiment.record) if experiment.record else None,
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
