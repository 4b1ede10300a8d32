"""Reuse of weights: a run that differs from a trained run only in its evaluation does not train again."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from rad_bench.config import RunConfig
from rad_bench.errors import UserError
from rad_bench.model.trunk import Trunk
from rad_bench.store.result import TrainingRecord, read_training
from rad_bench.store.run_folder import RunFolder
from rad_bench.training.checkpoint import Progress, save_weights


@dataclass(frozen=True)
class Training:
    """The outcome of a training."""

    average: Trunk
    progress: Progress
    peak_memory: int  # bytes
    by: str  # name of the run that trained


def keep_training(paths: RunFolder, trained: Training, key: str) -> None:
    """Write the weights of a training and then its record, by which this run and others find them.

    So an evaluation that fails, or is changed, costs no second training.
    """
    paths.fence()
    paths.training.unlink(missing_ok=True)  # it would be taken for the record of the new weights
    save_weights(paths, paths.weights, trained.average)
    record = json.dumps(training_record(trained, key).model_dump(), indent=1, sort_keys=True) + "\n"
    paths.replace(paths.training, lambda file: file.write(record.encode()))


def training_record(trained: Training, key: str) -> TrainingRecord:
    """Return the record of a training with this key."""
    progress = trained.progress
    return TrainingRecord(
        steps=progress.step,
        seconds=progress.seconds,
        seconds_per_step=progress.seconds / progress.step,
        share_waiting_for_data=progress.seconds_waiting / max(progress.seconds, 1e-9),
        loss_first=None if math.isnan(progress.loss_first) else progress.loss_first,
        loss_last=progress.loss_last,
        peak_memory_bytes=trained.peak_memory,
        by=trained.by,
        key=key,
    )


def find_trained(runs: Path, key: str, seed: int, at: Sequence[int] = ()) -> Path | None:
    """Return the folder of a run in `runs` whose training has this key and is finished; None if there is none.

    It has the final weights, and snapshots of the training steps `at`.
    """
    for path in sorted(runs.glob(f"*-seed{seed}-*")):
        folder = RunFolder(path)
        try:
            same = read_training(folder.training).key == key
        except UserError:  # not finished, or unreadable
            continue
        if same and all(weights.is_file() for weights in (folder.weights, *map(folder.snapshot, at))):
            return path
    return None


def reuse_training(paths: RunFolder, key: str, config: RunConfig, trunk: Trunk) -> Training | None:
    """Return a finished training with this key, its weights in a copy of `trunk`; None if there is none.

    It may be this run's own, from an attempt whose evaluation failed. The snapshots that the config asks for are copied
    to the folder `paths`, beside which the other run lies.
    """
    at = config.evaluation.at
    path = find_trained(paths.path.parent, key, config.seed, at)
    if path is None:
        return None
    folder, average = RunFolder(path), copy.deepcopy(trunk).requires_grad_(False)
    try:
        for weights in (*map(folder.snapshot, at), folder.weights):  # the last ones stay; the others are checked
            average.load_state_dict(load_file(weights))
        training = read_training(folder.training)
    except (OSError, SafetensorError, RuntimeError, UserError) as error:
        print(f"{path}: its weights cannot be read, so this run trains again: {error}", file=sys.stderr)
        return None
    for step in at:
        snapshot = folder.snapshot(step).read_bytes()
        paths.replace(paths.snapshot(step), lambda file, snapshot=snapshot: file.write(snapshot))  # type: ignore[misc]
    progress = Progress(
        step=training.steps,
        seconds=training.seconds,
        seconds_waiting=training.share_waiting_for_data * training.seconds,
        loss_first=math.nan if training.loss_first is None else training.loss_first,
        loss_last=training.loss_last,
    )
    return Training(average, progress, training.peak_memory_bytes, training.by or path.name)
