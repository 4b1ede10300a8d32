"""The state of a sweep's runs, from their files and one call of squeue; and how to stop them."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from rad_bench.errors import UserError
from rad_bench.store.lease import ruling_claim
from rad_bench.store.run_folder import Run, RunFolder
from rad_bench.store.sweep_folder import LAUNCHERS, run_folders
from rad_bench.sweep import squeue
from rad_bench.sweep.journal import read_submissions

TAIL_BYTES = 4096  # at the end of a log, with its last line


@dataclass(frozen=True)
class RunStatus:
    """The state of one run."""

    name: str
    state: str  # done, failed, running, stopped (started, but no process executes it), missing
    share: float  # of its steps and rollouts, 0..1
    detail: str


def run_status(folder: Path) -> RunStatus:
    """Read a run's state from its files alone."""
    paths = RunFolder(folder)
    if paths.is_done:
        return RunStatus(folder.name, "done", 1.0, "")
    claim, last = ruling_claim(paths.attempts), _last_record(paths.log)
    running = claim is not None and claim.is_alive()
    if not running and (reason := paths.read_failure()) is not None:
        return RunStatus(folder.name, "failed", 0.0, reason)
    if last is None:
        return RunStatus(folder.name, "running" if running else "missing", 0.0, "starting" if running else "")
    state = "running" if running else "stopped"
    try:
        if last["phase"] == "training":
            rate = f", {last['step'] / last['seconds']:.1f} steps a second" if last["seconds"] else ""
            detail = f"step {last['step']}/{last['steps']}, loss {last['loss']:.4f}{rate}"
            return RunStatus(folder.name, state, 0.9 * last["step"] / last["steps"], detail)
        detail = f"rollouts {last['done']}/{last['of']}"
        return RunStatus(folder.name, state, 0.9 + 0.1 * last["done"] / last["of"], detail)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # a log that this program did not write
        return RunStatus(folder.name, state, 0.0, "")


def _last_record(path: Path) -> dict | None:  # type: ignore[type-arg]
    """Return the last whole line of a log; a line being written is not whole."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "phase" in record:
            return record
    return None


def read_runs(sweep_folder: Path, runs: list[Run]) -> tuple[list[RunStatus], dict[str, pd.DataFrame]]:
    """Return the state of every run from its files, and the frames of those that are done."""
    from rad_bench.report.reading import read_run

    statuses: list[RunStatus] = []
    tables: dict[str, pd.DataFrame] = {}
    for folder in run_folders(sweep_folder, runs):
        status = run_status(folder)
        if status.state == "done":
            try:
                tables[status.name] = read_run(folder)
            except UserError as error:
                detail = f"{error} To run it again, delete {folder}."
                status = RunStatus(status.name, "unreadable", 0.0, detail)
        statuses.append(status)
    return statuses, tables


def sweep_status(sweep_folder: Path, runs: list[Run]) -> tuple[list[RunStatus], str]:
    """Return the state of every run from its files and one call of squeue, and SLURM's error, if it gave no answer."""
    statuses, _ = read_runs(sweep_folder, runs)
    submissions = read_submissions(sweep_folder)
    if not submissions or all(status.state == "done" for status in statuses):
        return statuses, ""
    try:
        tasks = squeue.query(submissions)
    except squeue.SilentError as error:
        return statuses, str(error)
    updated = []
    for status in statuses:
        task = tasks.get(status.name)
        if status.state in ("missing", "stopped") and task is not None:
            state = "queued" if task.is_live else status.state
            status = replace(status, state=state, detail=f"{status.detail}; job {task.id}: {task}".removeprefix("; "))
        updated.append(status)
    return updated, ""


def cancel_sweep(sweep_folder: Path) -> list[str]:
    """Stop the launcher and the jobs of this sweep. Return what was done, a line each. Raises `UserError`."""
    done = []
    claim = ruling_claim(sweep_folder / LAUNCHERS)
    launcher = claim.holder if claim is not None and claim.is_alive() else None
    if launcher is not None and launcher.is_here:
        os.kill(launcher.process, signal.SIGINT)  # it ends its processes
        done.append(f"interrupted {launcher}")
    try:
        tasks = [task for task in squeue.query(read_submissions(sweep_folder)).values() if task.is_live]
        squeue.cancel(tasks)
    except squeue.SilentError as error:
        raise UserError(f"{sweep_folder}: {error}; its jobs are not cancelled.") from None
    if tasks:
        done.append(f"cancelled {len(tasks)} jobs")
    if launcher is not None and not launcher.is_here and not tasks:
        raise UserError(f"{sweep_folder}: {launcher} launches this sweep, and can only be stopped there.")
    return done
