"""Reading a sweep's folder. It may come from another person, so names and links must not lead out of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rad_bench.errors import UserError
from rad_bench.store import strict_yaml
from rad_bench.store.run_folder import Run, load_run

CALIBRATION = "calibration.json"  # times of the sweep's models, taken in turns
LAUNCHERS = "launchers"  # folder of the claims of processes that launch the sweep
_NAME = re.compile(r"[A-Za-z0-9=_-][A-Za-z0-9.=_-]{0,199}")


def read_plan(sweep_folder: Path) -> dict[str, Any]:
    """Return the content of sweep.yaml. Raises `UserError` if it is missing or has no list `planned` of run names."""
    path = sweep_folder / "sweep.yaml"
    try:
        plan = strict_yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        plan = None
    if not (isinstance(plan, dict) and isinstance(plan.get("planned"), list)):
        raise UserError(f"{sweep_folder}: is not the folder of a sweep (no readable sweep.yaml).")
    trials = plan.get("trials") or {}
    if not (isinstance(trials, dict) and all(isinstance(names, list) for names in trials.values())):
        raise UserError(f"{path}: trials must be lists of names of runs, by block.")
    for name in (*plan["planned"], *(name for names in trials.values() for name in names)):
        check_name(name, path)
    return plan


def check_name(name: Any, where: Path) -> None:
    """Raise `UserError` unless a name, read from the file `where`, is a valid name of a run or task and not a path."""
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise UserError(f"{where}: '{name!s:.80}' is not a valid name of a run: use letters, digits and . = _ -.")


def check_links(folder: Path, sweep_folder: Path) -> None:
    """Raise `UserError` if a run's folder, or anything in it, is a link that leads out of the sweep's folder."""
    root = sweep_folder.resolve()
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink() and not _target(path).is_relative_to(root):
            raise UserError(f"{path}: is a link that leads out of {sweep_folder}; such links are not followed.")


def _target(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # circular links
        return Path("/")


def run_folders(sweep_folder: Path, runs: list[Run]) -> list[Path]:
    """Return the folders of the given runs."""
    return [sweep_folder / "runs" / run.name for run in runs]


def planned_runs(sweep_folder: Path) -> list[Run]:
    """Return the runs that a sweep last planned, without trials."""
    return _load(sweep_folder, read_plan(sweep_folder)["planned"])


def planned_trials(sweep_folder: Path) -> dict[str, list[Run]]:
    """Return the trials by which a sweep chooses a setting for each block, by the label of the block's runs."""
    trials = read_plan(sweep_folder).get("trials") or {}
    return {str(label): _load(sweep_folder, names) for label, names in trials.items()}


def _load(sweep_folder: Path, names: list[str]) -> list[Run]:
    folders = [sweep_folder / "runs" / name for name in names]
    for folder in folders:
        check_links(folder, sweep_folder)
    return [load_run(folder) for folder in folders]
