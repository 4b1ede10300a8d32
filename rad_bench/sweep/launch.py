"""Run a sweep: launch the missing runs, here or on a cluster, then gather the finished ones."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from rich.console import Console

from rad_bench.config import LaunchConfig, SweepConfig
from rad_bench.errors import UserError, unwritten
from rad_bench.run.watch import check_tensorboard
from rad_bench.store import strict_yaml
from rad_bench.store.atomic import write_atomically
from rad_bench.store.lease import BusyError, hold
from rad_bench.store.run_folder import Run, RunFolder, save_run
from rad_bench.store.sweep_folder import LAUNCHERS, run_folders
from rad_bench.sweep.calibrate import calibrate
from rad_bench.sweep.cluster import ClusterLaunch, Waiting
from rad_bench.sweep.gather import Outcome, finish
from rad_bench.sweep.grid import cut_to, launch_of
from rad_bench.sweep.job import Missing, Notes
from rad_bench.sweep.local import launch_here, launch_in_process
from rad_bench.sweep.progress import ProgressView
from rad_bench.sweep.status import run_status
from rad_bench.training.distributed import check_shares


def choose_cluster(cluster: str, launch: LaunchConfig) -> str:
    """Resolve `auto`: SLURM where `sbatch` exists and the sweep names a partition, else this machine."""
    has_slurm = all(shutil.which(program) for program in ("sbatch", "srun"))
    if cluster == "auto":
        return "slurm" if has_slurm and launch.slurm.partition is not None else "local"
    if cluster == "slurm" and not has_slurm:
        raise UserError(
            "--cluster slurm: there is no sbatch or no srun here; use --cluster local, or log in where SLURM is."
        )
    return cluster


def run_sweep(
    sweep: SweepConfig, runs: list[Run], sweep_folder: Path, cluster: str, detach: bool, console: Console
) -> Outcome:
    """Execute the missing runs, then aggregate and report. Finished runs are not changed."""
    cluster = choose_cluster(cluster, sweep.launch)
    if detach and cluster != "slurm":
        raise UserError(f"--detach: needs --cluster slurm, and --cluster is {cluster}.")
    for run in runs:
        launch = launch_of(sweep, run)
        check_shares(run.config, math.prod(launch.tasks(cluster)), launch.accumulate)
    if any(launch_of(sweep, run).tensorboard for run in runs):
        check_tensorboard()
    try:
        with hold(sweep_folder / LAUNCHERS, sweep.launch.lease):
            notes, detached = _launch(sweep, runs, sweep_folder, cluster, detach, console)
            if not detached:
                calibrate(sweep, runs, sweep_folder, cluster, console)
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
    """Execute the missing runs. Return why runs have no result, and whether jobs keep running."""
    missing: list[Missing] = []
    for run, folder in zip(runs, run_folders(sweep_folder, runs), strict=True):
        if not RunFolder(folder).is_done:
            save_run(run, folder)  # overwrites: a copied folder must not choose what code is run
            missing.append(Missing(folder, launch_of(sweep, run)))
    # Seed by seed: a sweep that is stopped early has all models with fewer seeds, not a few models with all seeds.
    seeds = {folder: run.config.seed for run, folder in zip(runs, run_folders(sweep_folder, runs), strict=True)}
    missing.sort(key=lambda run: seeds[run.folder])
    tree = {**cut_to(sweep, runs).model_dump(mode="json"), "planned": [run.name for run in runs]}
    write_atomically(sweep_folder / "sweep.yaml", strict_yaml.dump(tree).encode())
    console.print(
        f"{len(runs) - len(missing)} of {len(runs)} runs are done, {len(missing)} left ({cluster})", highlight=False
    )
    others = {path.parent.name for path in sweep_folder.glob("runs/*/result.json")} - {run.name for run in runs}
    if others:
        console.print(
            f"{sweep_folder} also has {len(others)} finished runs with other settings. They are kept, but are not in "
            "this report. `--set name=...` gives a sweep a folder of its own.", highlight=False, soft_wrap=True,
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
                    f"sbatch accepted {len(missing) - len(on_slurm.to_submit)} of {len(missing)} runs, which continue. "
                    f"It refused the others: {on_slurm.refused}. Run the same command later to submit them."
                )
            if detach:
                return {}, True
            on_slurm.follow()
            return on_slurm.notes, False
        if cluster == "debug":
            return launch_in_process(missing, view.update), False
        return launch_here(missing, sweep.launch.parallel, view.update), False
