"""Train a trunk from config and data. Training that is killed and restarted gives the same result."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

import torch

from rad_bench.config import LaunchConfig
from rad_bench.model.experiment import Experiment
from rad_bench.model.trunk import Trunk
from rad_bench.store.run_folder import RunFolder
from rad_bench.training.batches import training_batches
from rad_bench.training.checkpoint import Progress, cut_log, load_checkpoint, save_checkpoint, save_weights
from rad_bench.training.distributed import Group, check_shares
from rad_bench.training.trainer import make_trainer

LOG_EVERY = 10  # steps


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
    progress = load_checkpoint(folder, trainer)
    # `gather` is a barrier: rank 0 changes checkpoint and log only after all ranks have read the same checkpoint.
    if len(steps := set(group.gather(progress.step))) > 1:
        raise RuntimeError(f"{folder.checkpoint}: processes resumed from different steps, {sorted(steps)}")
    if leads:
        cut_log(folder, progress.step)
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
            if not leads:
                continue
            if not losses:
                seconds = round(progress.seconds, 3)
                line = {"step": progress.step, "steps": config.steps, "loss": progress.loss_last, "seconds": seconds}
                folder.append(folder.log, json.dumps({"phase": "training", **line}))
            if progress.step in experiment.config.evaluation.at:  # first: no checkpoint is ahead of a snapshot
                save_weights(folder, folder.snapshot(progress.step), trainer.average)
            if progress.step % config.checkpoint_every == 0 or progress.step == config.steps:
                progress.pending = [float(loss) for loss in losses]
                save_checkpoint(folder, trainer, progress)
            watch(progress, trainer.average)
    return trainer.average, progress
