"""A training's checkpoint: written so that a kill at any moment loses only the steps since, and read back."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from safetensors.torch import save

from rad_bench.model.trunk import Trunk
from rad_bench.store.run_folder import RunFolder
from rad_bench.training.trainer import Trainer

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


def save_checkpoint(folder: RunFolder, trainer: Trainer, progress: Progress) -> None:
    """Write a checkpoint, and keep the one before it."""
    state = {name: module.state_dict() for name, module in _stateful(trainer).items()} | {"progress": vars(progress)}
    if folder.checkpoint.exists():
        folder.fence()
        os.replace(folder.checkpoint, folder.checkpoint_before)
    folder.replace(folder.checkpoint, lambda file: write_state(state, file))


def load_checkpoint(folder: RunFolder, trainer: Trainer) -> Progress:
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


def save_weights(folder: RunFolder, target: Path, trunk: Trunk) -> None:
    """Write a trunk's weights to a file of the run's folder."""
    weights = save({name: tensor.contiguous() for name, tensor in trunk.state_dict().items()})
    folder.replace(target, lambda file: file.write(weights))


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


def cut_log(folder: RunFolder, step: int) -> None:
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
