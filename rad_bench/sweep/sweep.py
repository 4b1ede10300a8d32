"""A sweep from its plan to its report: launch what is missing, gather what is done."""

from __future__ import annotations

import math
import os
import signal
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from rad_bench.config import SweepConfig
from rad_bench.errors import UserError, unwritten
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.run.watch import check_tensorboard
from rad_bench.store import strict_yaml
from rad_bench.store.atomic import replace_atomically, write_atomically
from rad_bench.store.lease import BusyError, hold, ruling_claim
from rad_bench.store.run_folder import Run, RunFolder, save_run
from rad_bench.store.sweep_folder import check_links, read_plan
from rad_bench.sweep import squeue
from rad_bench.sweep.cluster import ClusterLaunch, Waiting
from rad_bench.sweep.grid import cut_to, launch_of
from rad_bench.sweep.journal import read_submissions
from rad_bench.sweep.launch import Missing, Notes, choose_cluster, launch_here, launch_in_process
from rad_bench.sweep.progress import ProgressView, RunStatus, run_status
from rad_bench.training.distributed import check_shares

LAUNCHERS = "launchers"  # claims on the launching of a sweep


@dataclass(frozen=True)
class Outcome:
    """How a sweep stands after a command."""

    done: int
    unfinished: list[RunStatus]
    report: Path | None
    unwritten: UserError | None = None  # why there is no report of what is done
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
    for run in runs:
        launch = launch_of(sweep, run)
        check_shares(run.config, math.prod(launch.tasks(cluster)), launch.accumulate)
    if any(launch_of(sweep, run).tensorboard for run in runs):
        check_tensorboard()
    try:
        with hold(sweep_folder / LAUNCHERS, sweep.launch.lease):
            notes, detached = _launch(sweep, runs, sweep_folder, cluster, detach, console)
    except BusyError as error:
        raise UserError(
            f"{sweep_folder}: another rad-bench is launching this sweep: {error}. Wait for it, end it by `rad-bench "
            f"cancel {sweep_folder}`, or, if it was killed on another machine, try again in {sweep.launch.lease:.0f} "
            "seconds."
        ) from None
    except OSError as error:
        raise unwritten(error, sweep_folder) from None
    if detached:
        statuses = [run_status(folder) for folder in run_folders(sweep_folder, runs)]
        open_runs = [status for status in statuses if status.state != "done"]
        return Outcome(len(runs) - len(open_runs), open_runs, None, detached=True)
    return finish(sweep_folder, runs, notes)


def _launch(
    sweep: SweepConfig, runs: list[Run], sweep_folder: Path, cluster: str, detach: bool, console: Console
) -> tuple[Notes, bool]:
    """Execute what is missing. Return what is to be said of runs that ended without a result; whether jobs go on."""
    missing: list[Missing] = []
    for run, folder in zip(runs, run_folders(sweep_folder, runs), strict=True):
        if not RunFolder(folder).is_done:
            save_run(run, folder)  # also over what is there: a folder from elsewhere must not choose what code is run
            missing.append(Missing(folder, launch_of(sweep, run)))
    # Seed by seed: what stands after a part of the time is every model with fewer seeds, not a few models with all.
    seeds = {folder: run.config.seed for run, folder in zip(runs, run_folders(sweep_folder, runs), strict=True)}
    missing.sort(key=lambda run: seeds[run.folder])
    tree = {**cut_to(sweep, runs).model_dump(mode="json"), "planned": [run.name for run in runs]}
    write_atomically(sweep_folder / "sweep.yaml", strict_yaml.dump(tree).encode())
    console.print(
        f"{len(runs) - len(missing)} of {len(runs)} runs are done, {len(missing)} to go on {cluster}", highlight=False
    )
    strangers = {path.parent.name for path in sweep_folder.glob("runs/*/result.json")} - {run.name for run in runs}
    if strangers:
        console.print(
            f"{sweep_folder} also holds {len(strangers)} finished runs of other settings: they stay, and are not "
            "reported here. `--set name=...` gives a sweep a folder of its own.", highlight=False, soft_wrap=True,
        )  # fmt: skip
    if not missing:
        return {}, False
    with ProgressView([run.folder for run in missing], console) as view:
        if cluster == "slurm":
            waiting = {run.folder.name: Waiting(run) for run in missing}
            on_slurm = ClusterLaunch(sweep_folder, waiting, view.update, sweep.launch.slurm.poll)
            on_slurm.start()
            if detach and on_slurm.refused:
                raise UserError(
                    f"sbatch took {len(missing) - len(on_slurm.to_submit)} of {len(missing)} runs, which go on, and no "
                    f"more: {on_slurm.refused}. The same command submits the others once there is room."
                )
            if detach:
                return {}, True
            on_slurm.follow()
            return on_slurm.notes, False
        if cluster == "debug":
            return launch_in_process(missing, view.update), False
        # A fresh folder a launch: a process id comes again, and submitit's files are named after it.
        logs = sweep_folder / "submitit" / uuid.uuid4().hex[:8]
        return launch_here(missing, logs, sweep.launch.parallel, view.update), False


def finish(sweep_folder: Path, runs: list[Run], notes: Notes | None = None) -> Outcome:
    """Aggregate the runs that are done and write the report from them. `notes` say what is known of the others."""
    from rad_bench.report import write_report

    statuses, tables = _read(sweep_folder, runs)
    unfinished = [_noted(status, notes or {}) for status in statuses if status.state != "done"]
    if not tables:
        return Outcome(0, unfinished, None)
    try:
        aggregate(sweep_folder, tables)
        return Outcome(len(tables), unfinished, write_report(sweep_folder))
    except OSError as error:
        return Outcome(len(tables), unfinished, None, unwritten(error, sweep_folder))


def _read(sweep_folder: Path, runs: list[Run]) -> tuple[list[RunStatus], dict[str, pd.DataFrame]]:
    """Return how every run stands by its files, and the frames of those that are done."""
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


def _noted(status: RunStatus, notes: Notes) -> RunStatus:
    if status.state == "failed" or status.name not in notes:
        return status
    return replace(status, detail=f"{status.detail}; {notes[status.name]}".removeprefix("; "))


def sweep_status(sweep_folder: Path, runs: list[Run]) -> tuple[list[RunStatus], str]:
    """Return how every run stands, by its files and one question to SLURM; and what SLURM did not answer."""
    statuses, _ = _read(sweep_folder, runs)
    submissions = read_submissions(sweep_folder)
    if not submissions or all(status.state == "done" for status in statuses):
        return statuses, ""
    try:
        tasks = squeue.ask(submissions)
    except squeue.SilentError as error:
        return statuses, str(error)
    told = []
    for status in statuses:
        task = tasks.get(status.name)
        if status.state in ("missing", "stopped") and task is not None:
            state = "queued" if task.is_live else status.state
            status = replace(status, state=state, detail=f"{status.detail}; job {task.id}: {task}".removeprefix("; "))
        told.append(status)
    return told, ""


def cancel_sweep(sweep_folder: Path) -> list[str]:
    """Stop whatever is launching or running this sweep. Return what was done, a line each. Raises `UserError`."""
    done = []
    claim = ruling_claim(sweep_folder / LAUNCHERS)
    launcher = claim.holder if claim is not None and claim.is_alive() else None
    if launcher is not None and launcher.is_here:
        os.kill(launcher.process, signal.SIGINT)  # it takes its processes with it
        done.append(f"told {launcher} to stop")
    try:
        tasks = [task for task in squeue.ask(read_submissions(sweep_folder)).values() if task.is_live]
        squeue.cancel(tasks)
    except squeue.SilentError as error:
        raise UserError(f"{sweep_folder}: {error}; its jobs are not cancelled.") from None
    if tasks:
        done.append(f"cancelled {len(tasks)} jobs")
    if launcher is not None and not launcher.is_here and not tasks:
        raise UserError(f"{sweep_folder}: {launcher} launches this sweep, and can only be stopped there.")
    return done


def aggregate(sweep_folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Write the sweep's frames.parquet from its runs'. Refuses runs whose metrics are defined differently."""
    cards = {name: table["card"].iloc[0] for name, table in tables.items()}
    if len(set(cards.values())) > 1:
        listing = "; ".join(f"{name}: {card}" for name, card in cards.items())
        raise UserError(f"{sweep_folder}: runs were scored with different metric definitions ({listing}).")
    frames = pd.concat(tables.values(), ignore_index=True)
    copies = frames["block"].isin(CONTROLS)  # every run holds the controls; once a seed is enough
    key = ["block", "seed", "task", "intervention", "episode", "frame"]
    frames = pd.concat([frames[~copies], frames[copies].drop_duplicates(key)], ignore_index=True)
    replace_atomically(sweep_folder / "frames.parquet", lambda file: frames.to_parquet(file, index=False))


def planned_runs(sweep_folder: Path) -> list[Run]:
    """Return the runs that a sweep folder was last asked for."""
    from rad_bench.store.run_folder import load_run

    folders = [sweep_folder / "runs" / name for name in read_plan(sweep_folder)["planned"]]
    for folder in folders:
        check_links(folder, sweep_folder)
    return [load_run(folder) for folder in folders]
