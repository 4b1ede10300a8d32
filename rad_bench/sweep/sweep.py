"""A sweep from its plan to its report: launch what is missing, gather what is done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from rich.console import Console

from rad_bench.config import SweepConfig
from rad_bench.errors import UserError
from rad_bench.evaluation.evaluate import CONTROLS
from rad_bench.results_folder import check_links, read_plan
from rad_bench.run_folder import Run, RunFolder, save_run, write_atomically
from rad_bench.sweep.launch import choose_cluster, launch_runs
from rad_bench.sweep.progress import ProgressView, RunStatus, run_status


@dataclass(frozen=True)
class Outcome:
    """How a sweep stands after a command."""

    done: int
    unfinished: list[RunStatus]
    report: Path | None
    detached: bool = False  # jobs were submitted and go on by themselves


def run_folders(sweep_folder: Path, runs: list[Run]) -> list[Path]:
    """Return the folders of the given runs."""
    return [sweep_folder / "runs" / run.name for run in runs]


def run_sweep(
    sweep: SweepConfig, runs: list[Run], sweep_folder: Path, cluster: str, detach: bool, console: Console
) -> Outcome:
    """Execute what is missing, then aggregate and report. What is done is never touched."""
    cluster = choose_cluster(cluster, sweep.launch)
    if detach and cluster != "slurm":
        raise UserError(f"--detach: needs a cluster that goes on by itself, and --cluster is {cluster}.")
    folders = run_folders(sweep_folder, runs)
    missing = [(run, folder) for run, folder in zip(runs, folders, strict=True) if not RunFolder(folder).is_done]
    try:
        for run, folder in missing:
            save_run(run, folder)  # also over what is there: a folder from elsewhere must not choose what code is run
        tree = {**sweep.model_dump(mode="json"), "planned": [run.name for run in runs]}
        write_atomically(sweep_folder / "sweep.yaml", yaml.safe_dump(tree, sort_keys=False).encode())
    except OSError as error:
        raise UserError(f"{sweep_folder}: cannot be written: {error.strerror}.") from None
    console.print(
        f"{len(runs) - len(missing)} of {len(runs)} runs are done, {len(missing)} to go on {cluster}", highlight=False
    )
    with ProgressView([folder for _, folder in missing], console) as view:
        launch_runs([folder for _, folder in missing], sweep_folder, sweep.launch, cluster, view.update, detach)
    if detach:
        return Outcome(len(runs) - len(missing), [run_status(folder) for _, folder in missing], None, detached=True)
    return finish(sweep_folder, runs)


def finish(sweep_folder: Path, runs: list[Run]) -> Outcome:
    """Aggregate the runs that are done and write the report from them."""
    from rad_bench.report import write_report

    statuses = [run_status(folder) for folder in run_folders(sweep_folder, runs)]
    unfinished = [status for status in statuses if status.state != "done"]
    done = [status.name for status in statuses if status.state == "done"]
    if not done:
        return Outcome(0, unfinished, None)
    aggregate(sweep_folder, done)
    return Outcome(len(done), unfinished, write_report(sweep_folder))


def aggregate(sweep_folder: Path, names: list[str]) -> None:
    """Write the sweep's frames.parquet from the named runs'. Refuses runs whose metrics are defined differently."""
    from rad_bench.report.summary import read_frames

    tables = [read_frames(RunFolder(sweep_folder / "runs" / name).frames) for name in names]
    cards = {name: table["card"].iloc[0] for name, table in zip(names, tables, strict=True)}
    if len(set(cards.values())) > 1:
        listing = "; ".join(f"{name}: {card}" for name, card in cards.items())
        raise UserError(f"{sweep_folder}: runs were scored with different metric definitions ({listing}).")
    frames = pd.concat(tables, ignore_index=True)
    copies = frames["block"].isin(CONTROLS)  # every run holds the controls; once a seed is enough
    key = ["block", "seed", "task", "intervention", "episode", "frame"]
    frames = pd.concat([frames[~copies], frames[copies].drop_duplicates(key)], ignore_index=True)
    temporary = sweep_folder / ".frames.parquet.tmp"
    frames.to_parquet(temporary, index=False)
    os.replace(temporary, sweep_folder / "frames.parquet")


def planned_runs(sweep_folder: Path) -> list[Run]:
    """Return the runs that a sweep folder was last asked for."""
    from rad_bench.run_folder import load_run

    folders = [sweep_folder / "runs" / name for name in read_plan(sweep_folder)["planned"]]
    for folder in folders:
        check_links(folder, sweep_folder)
    return [load_run(folder) for folder in folders]
