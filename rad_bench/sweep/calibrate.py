"""Time the models of a sweep when its runs here are done, and keep the times in its folder, for the report.

They decide no result and no identity. A sweep whose models are timed already is not timed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from rad_bench.bench.calibration import take_turns, videos_together
from rad_bench.config import LaunchConfig, RunConfig, SweepConfig
from rad_bench.errors import UserError, one_line
from rad_bench.run.environment import commit
from rad_bench.run.identity import decisive
from rad_bench.store.atomic import write_atomically
from rad_bench.store.result import Calibration, read_calibration
from rad_bench.store.run_folder import Run, RunFolder
from rad_bench.store.sweep_folder import CALIBRATION
from rad_bench.training.device import be_deterministic, choose_device, device_name
from rad_bench.training.distributed import Group


def calibrate(sweep: SweepConfig, runs: Sequence[Run], sweep_folder: Path, cluster: str, console: Console) -> None:
    """Write the sweep's calibration, if its models have finished runs and were not timed before."""
    configs: dict[str, RunConfig] = {}
    for run in runs:
        if RunFolder(sweep_folder / "runs" / run.name).is_done:
            configs.setdefault(run.label, run.config)
    path = sweep_folder / CALIBRATION
    if not sweep.launch.calibrate or not configs:
        return
    if cluster == "slurm":
        if not path.exists():
            reason = "the runs were jobs of a cluster, and this command ran elsewhere"
            _write(path, Calibration(models={}, absent=reason))
        return
    device = choose_device(sweep.launch.device, Group())
    models = {label: _identity(config, sweep.launch, device) for label, config in configs.items()}
    if _timed(path, models):
        return
    be_deterministic(sweep.launch.threads, device)
    console.print(f"timing {len(models)} models in turns, for the report's costs", highlight=False)
    found = _measure(configs, models, sweep.launch, device)
    if found.absent:
        console.print(f"they could not be timed: {found.absent}", highlight=False, soft_wrap=True, markup=False)
    elif found.busy:
        console.print(
            f"other work kept {found.others:.1f} of {found.cores} cores busy meanwhile, so the ratios may be off. To "
            f"time them again on an idle machine, delete {path} and run the same command",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
    _write(path, found)


def _measure(
    configs: dict[str, RunConfig], models: dict[str, str], launch: LaunchConfig, device: torch.device
) -> Calibration:
    known = {"models": models, "device": device_name(device), "threads": launch.threads, "commit": commit()}
    try:
        turns = take_turns(configs, launch, device)
    except Exception as error:  # whatever a user's block raises: the results are there, and have a report
        return Calibration(**known, absent=one_line(f"{type(error).__name__}: {error}"))
    frames = {label: videos_together(config) * config.trunk.frames_per_step for label, config in configs.items()}
    return Calibration(**known, timings=turns.timings, frames=frames, others=turns.others, cores=os.cpu_count() or 1)


def _timed(path: Path, models: dict[str, str]) -> bool:
    """Return whether a file has the times of these models, or why they have none."""
    try:
        found = read_calibration(path)
    except UserError:  # damaged
        return False
    return found is not None and models.items() <= found.models.items()


def _identity(config: RunConfig, launch: LaunchConfig, device: torch.device) -> str:
    """Return the hash of what is timed: the config of a model without its seed, and where it is computed."""
    science = decisive(config.model_copy(update={"seed": 0}))
    text = json.dumps([science, device_name(device), launch.threads], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(path: Path, calibration: Calibration) -> None:
    write_atomically(path, (calibration.model_dump_json(indent=1) + "\n").encode())
