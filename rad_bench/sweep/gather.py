"""Gather the finished runs of a sweep: one table of frames, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from rad_bench.errors import UserError, unwritten
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.store.atomic import write_atomically
from rad_bench.store.run_folder import Run, RunFolder
from rad_bench.sweep.job import Notes
from rad_bench.sweep.status import RunStatus, read_runs


@dataclass(frozen=True)
class Outcome:
    """The state of a sweep after a command."""

    done: int
    unfinished: list[RunStatus]
    report: Path | None
    unwritten: UserError | None = None  # why the report could not be written
    detached: bool = False  # jobs were submitted, and the command did not wait for them
    undecided: int = 0  # runs whose tuned setting is not chosen yet


def finish(
    sweep_folder: Path, runs: list[Run], notes: Notes | None = None, waiting: Sequence[RunStatus] = ()
) -> Outcome:
    """Aggregate the finished runs and write the report.

    `notes` say why other runs have no result; `waiting` are trials and runs that could not be planned.
    """
    from rad_bench.report import write_report

    statuses, tables = read_runs(sweep_folder, runs)
    statuses += waiting
    unfinished = [_noted(status, notes or {}) for status in statuses if status.state != "done"]
    if not tables:
        return Outcome(0, unfinished, None)
    try:
        aggregate(sweep_folder, tables)
        _aggregate_curves(sweep_folder, list(tables))
        return Outcome(len(tables), unfinished, write_report(sweep_folder))
    except OSError as error:
        return Outcome(len(tables), unfinished, None, unwritten(error, sweep_folder))


def _noted(status: RunStatus, notes: Notes) -> RunStatus:
    if status.state == "failed" or status.name not in notes:
        return status
    return replace(status, detail=f"{status.detail}; {notes[status.name]}".removeprefix("; "))


def aggregate(sweep_folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Write the sweep's frames.parquet from its runs'. Raises `UserError` if their metric definitions differ."""
    cards = {name: table["card"].iloc[0] for name, table in tables.items()}
    if len(set(cards.values())) > 1:
        listing = "; ".join(f"{name}: {card}" for name, card in cards.items())
        raise UserError(f"{sweep_folder}: runs were scored with different metric definitions ({listing}).")
    frames = pd.concat(tables.values(), ignore_index=True)
    controls = frames["block"].isin(CONTROLS)  # every run has them; one copy for each seed is kept
    key = ["block", "seed", "task", "intervention", "episode", "frame"]
    frames = pd.concat([frames[~controls], frames[controls].drop_duplicates(key)], ignore_index=True)
    write_atomically(sweep_folder / "frames.parquet", lambda file: frames.to_parquet(file, index=False))


def _aggregate_curves(sweep_folder: Path, runs: list[str]) -> None:
    """Write the sweep's curves.parquet from its runs'; no such file remains if none of them has a learning curve."""
    from rad_bench.report.reading import read_curve

    paths = [RunFolder(sweep_folder / "runs" / run).curve for run in runs]
    tables = [read_curve(path) for path in paths if path.exists()]
    target = sweep_folder / "curves.parquet"
    if tables:
        curves = pd.concat(tables, ignore_index=True)
        write_atomically(target, lambda file: curves.to_parquet(file, index=False))
    else:
        target.unlink(missing_ok=True)
