"""Merge sweeps that ran in several places, and compare two sweeps. Metric definitions must be the same."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from rad_bench.errors import UserError, unwritten
from rad_bench.report.intervals import Estimate, difference
from rad_bench.report.reading import CONTROLS, Sweep, read_sweep, shared_frames
from rad_bench.run.identity import decisive
from rad_bench.store import strict_yaml
from rad_bench.store.atomic import write_atomically
from rad_bench.store.history import joined, read_history, written
from rad_bench.store.result import read_calibration
from rad_bench.store.run_folder import RunFolder
from rad_bench.store.sweep_folder import CALIBRATION, planned_runs, planned_trials, read_plan
from rad_bench.sweep.gather import Outcome, finish


def merge(out: Path, folders: list[Path]) -> Outcome:
    """Copy the finished runs of several sweeps into a new one and report on all. Raises `UserError`.

    Runs are the same if their names are: a name ends in the hash of all that decides a result.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; merge into a new folder.")
    _same_models([_aggregated(folder) for folder in folders])
    _same_cards([read_sweep(folder) for folder in folders])
    tune = _same_tuning(folders)
    work = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(work, ignore_errors=True)
        names: dict[str, None] = {}
        trials: dict[str, list[str]] = {}
        for folder in folders:
            tried = planned_trials(folder)
            trials |= {label: [run.name for run in own] for label, own in tried.items()}
            planned = planned_runs(folder)
            names |= dict.fromkeys(run.name for run in planned)
            for run in (*itertools.chain(*tried.values()), *planned):
                source, target = folder / "runs" / run.name, work / "runs" / run.name
                if RunFolder(target).is_done:
                    continue
                if RunFolder(source).is_done or not target.exists():
                    shutil.copytree(source, target, dirs_exist_ok=True)
        plan = {
            **read_plan(folders[0]),
            "name": out.name,
            "merged": [str(folder) for folder in folders],
            "planned": list(names),
            "history": written(joined([read_history(read_plan(folder)) for folder in folders])),
            **({"trials": trials, "tune": tune} if trials else {}),
        }
        write_atomically(work / "sweep.yaml", strict_yaml.dump(plan).encode())
        if calibration := next(filter(None, (read_calibration(folder / CALIBRATION) for folder in folders)), None):
            # One machine's: times of several do not compare.
            write_atomically(work / CALIBRATION, calibration.model_dump_json(indent=1).encode())
        work.rename(out)
    except OSError as error:
        raise unwritten(error, out) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return finish(out, planned_runs(out))


def compare(first: Path, second: Path) -> list[tuple[str, str, Estimate]]:
    """Return (task, block, revisit PSNR of the first sweep minus the second's), paired by seed and episode.

    Raises `UserError` if the two were scored differently, on different data, or have no block in common.
    """
    sweeps = [read_sweep(_aggregated(folder)) for folder in (first, second)]
    _same_cards(sweeps)
    data = [{result.data.identity for result in sweep.results} for sweep in sweeps]
    if data[0] != data[1]:
        raise UserError(f"{first} and {second}: ran on different data ({data[0]} and {data[1]}) and cannot be paired.")
    common = [block for block in sweeps[0].blocks if block in sweeps[1].blocks and block not in CONTROLS]
    if not common:
        names = " and ".join(", ".join(sweep.blocks) for sweep in sweeps)
        raise UserError(f"{first} and {second}: have no block in common ({names}).")
    sweeps = _over_the_same_frames(sweeps, common)
    rows = []
    for task in sweeps[0].tasks:
        for block in common:
            if task in sweeps[1].tasks:
                rows.append((task, block, difference(*(sweep.revisits(task, block) for sweep in sweeps))))
    if not any(value.seeds for *_, value in rows):
        raise UserError(f"{first} and {second}: have no seed, or no revisit of the same true frames, in common.")
    return rows


def _over_the_same_frames(sweeps: list[Sweep], blocks: list[str]) -> list[Sweep]:
    """Return the sweeps with these blocks' frames that both have."""
    parts = [sweep.frames[sweep.frames["block"].isin(blocks)].assign(place=place) for place, sweep in enumerate(sweeps)]
    both = pd.concat(parts, ignore_index=True)
    names = both["block"]
    both, _ = shared_frames(both.assign(block=both["place"].astype(str) + names))
    both["block"] = names
    return [replace(sweep, frames=both[both["place"] == place]) for place, sweep in enumerate(sweeps)]


def _same_models(folders: list[Path]) -> None:
    """Raise `UserError` if runs with one label differ in their model, data or tasks."""
    known: dict[tuple[str, int], tuple[Path, str]] = {}
    models: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in folders:
        for run in planned_runs(folder):
            at = folder / "runs" / run.name
            other, name = known.setdefault((run.label, run.config.seed), (at, run.name))
            if name != run.name:
                raise UserError(f"{other} and {at}: are two runs of '{run.label}' with seed {run.config.seed}.")
            science = {**decisive(run.config), "seed": None}
            other, same = models.setdefault(run.label, (at, science))
            if science != same:
                section = next(key for key in science if science[key] != same[key])
                raise UserError(
                    f"{other} and {at}: both are called '{run.label}', and differ in {section}: {same[section]} and "
                    f"{science[section]}."
                )


def _same_tuning(folders: list[Path]) -> dict[str, Any] | None:
    """Return how the sweeps were tuned; None if none was. Raises `UserError` if they were tuned differently."""
    known: tuple[Path, dict[str, Any]] | None = None
    for folder in folders:
        tune = read_plan(folder).get("tune")
        if tune is None:
            continue
        other, same = known = known or (folder, tune)
        if tune != same:
            raise UserError(f"{other} and {folder}: were tuned differently: {same} and {tune}.")
    return None if known is None else known[1]


def _aggregated(folder: Path) -> Path:
    if not (folder / "frames.parquet").is_file():
        raise UserError(f"{folder}: has no frames.parquet; `rad-bench report {folder}` writes it from finished runs.")
    return folder


def _same_cards(sweeps: list[Sweep]) -> None:
    cards = {str(sweep.folder): ", ".join(sorted(set(sweep.frames["card"]))) for sweep in sweeps}
    if len(set(cards.values())) > 1:
        listing = "; ".join(f"{folder}: {card}" for folder, card in cards.items())
        raise UserError(f"these sweeps were scored by different metric definitions and cannot be combined ({listing}).")
    clips = {str(sweep.folder): _clips(sweep) for sweep in sweeps}
    if len({text for text in clips.values() if text}) > 1:
        listing = "; ".join(f"{folder}: {text}" for folder, text in clips.items())
        raise UserError(f"these sweeps have FVDs of different clips, which do not compare ({listing}).")


def _clips(sweep: Sweep) -> str:
    """Return over which clips the FVDs of a sweep are; an empty text without any."""
    sets = {
        f"{task}: {fvd.clips} of {fvd.frames} frames of {fvd.height} x {fvd.width} pixels"
        for result in sweep.results
        for task, fvd in result.fvd.items()
    }
    return ", ".join(sorted(sets))
