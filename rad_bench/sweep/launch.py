"""Run a sweep: launch the missing runs, here or on a cluster, then gather the finished ones."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path

from rich.console import Console

from rad_bench.config import LaunchConfig, SweepConfig
from rad_bench.errors import UserError, unwritten
from rad_bench.run.tracking import check_wandb
from rad_bench.run.watch import check_tensorboard
from rad_bench.store import history, strict_yaml
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
from rad_bench.sweep.tuning import Choice, Trials, choose, waiting
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
    sweep: SweepConfig, runs: list[Run], trials: Trials, sweep_folder: Path, cluster: str, detach: bool,
    console: Console,
) -> Outcome:  # fmt: skip
    """Execute the missing runs, then aggregate and report. Finished runs are not changed.

    With trials, the missing ones are executed first, together with the runs of blocks whose trials are all finished;
    then the runs of the other blocks.
    """
    cluster = choose_cluster(cluster, sweep.launch)
    if detach and cluster != "slurm":
        raise UserError(f"--detach: needs --cluster slurm, and --cluster is {cluster}.")
    everything = [*itertools.chain(*trials.values()), *runs]
    for run in everything:
        launch = launch_of(sweep, run)
        check_shares(run.config, math.prod(launch.tasks(cluster)), launch.accumulate)
    if any(launch_of(sweep, run).tensorboard for run in everything):
        check_tensorboard()
    if any(launch_of(sweep, run).wandb for run in runs):
        check_wandb()
    try:
        with hold(sweep_folder / LAUNCHERS, sweep.launch.lease):
            choice = choose(sweep, runs, trials, sweep_folder)
            _write_plan(sweep, runs, trials, choice, sweep_folder)
            _say_progress(runs, trials, choice, sweep_folder, cluster, console)
            todo = [*choice.unfinished(trials), *choice.runs]
            notes, detached = _launch(sweep, todo, sweep_folder, cluster, detach, console)
            if choice.undecided and not detached:
                choice = choose(sweep, runs, trials, sweep_folder)
                _write_plan(sweep, runs, trials, choice, sweep_folder)
                _say_progress(runs, trials, choice, sweep_folder, cluster, console)
                decided = [run for run in choice.runs if run not in todo]  # what failed just now is not tried again
                notes |= _launch(sweep, decided, sweep_folder, cluster, False, console)[0]
            if not detached:
                calibrate(sweep, choice.runs, sweep_folder, cluster, console)
    except BusyError as error:
        raise UserError(
            f"{sweep_folder}: another rad-bench is launching this sweep: {error}. Wait for it, end it by `rad-bench "
            f"cancel {sweep_folder}`, or, if it was killed on another machine, try again in {sweep.launch.lease:.0f} "
            "seconds."
        ) from None
    except OSError as error:
        raise unwritten(error, sweep_folder) from None
    if detached:
        statuses = [run_status(folder) for folder in run_folders(sweep_folder, todo)]
        open_runs = [status for status in statuses if status.state != "done"]
        return Outcome(len(todo) - len(open_runs), open_runs, None, detached=True, undecided=len(choice.undecided))
    return finish(sweep_folder, choice.runs, notes, waiting(choice, sweep_folder))


def _write_plan(sweep: SweepConfig, runs: list[Run], trials: Trials, choice: Choice, sweep_folder: Path) -> None:
    """Write sweep.yaml: what was asked for, and the runs that are known so far."""
    tree = {**cut_to(sweep, runs).model_dump(mode="json"), "planned": [run.name for run in choice.runs]}
    tree["history"] = history.written(history.updated(sweep.model_dump(mode="json"), sweep_folder))
    if trials:
        tree["trials"] = {label: [trial.name for trial in own] for label, own in trials.items()}
    for run in itertools.chain(*trials.values(), choice.runs):
        folder = RunFolder(sweep_folder / "runs" / run.name)
        if not folder.is_done:
            save_run(run, folder.path)  # overwrites: a copied folder must not choose what code is run
    write_atomically(sweep_folder / "sweep.yaml", strict_yaml.dump(tree).encode())


def _say_progress(
    runs: list[Run], trials: Trials, choice: Choice, sweep_folder: Path, cluster: str, console: Console
) -> None:
    """Print how many trials and runs are done, and which other runs the folder has."""
    count = sum(map(len, trials.values()))
    unfinished = len(choice.unfinished(trials))
    if unfinished:
        console.print(
            f"{count - unfinished} of {count} trials are done, {unfinished} left ({cluster})", highlight=False
        )
    done = sum(RunFolder(folder).is_done for folder in run_folders(sweep_folder, choice.runs))
    console.print(f"{done} of {len(runs)} runs are done, {len(runs) - done} left ({cluster})", highlight=False)
    known = {run.name for run in itertools.chain(*trials.values(), choice.runs)}
    others = {path.parent.name for path in sweep_folder.glob("runs/*/result.json")} - known
    if others and not unfinished:
        console.print(
            f"{sweep_folder} also has {len(others)} finished runs with other settings. They are kept, but are not in "
            "this report. `--set name=...` gives a sweep a folder of its own.", highlight=False, soft_wrap=True,
        )  # fmt: skip


def _launch(
    sweep: SweepConfig, runs: list[Run], sweep_folder: Path, cluster: str, detach: bool, console: Console
) -> tuple[Notes, bool]:
    """Execute the missing runs. Return why runs have no result, and whether jobs keep running."""
    missing = [
        Missing(folder, launch_of(sweep, run))
        for run, folder in zip(runs, run_folders(sweep_folder, runs), strict=True)
        if not RunFolder(folder).is_done
    ]
    # Seed by seed: a sweep that is stopped early has all models with fewer seeds, not a few models with all seeds.
    # Trials come before all seeds, because no run of their block can begin before they are done.
    trial_seeds = sweep.tune.seeds if sweep.tune else []
    order = {
        folder: (run.config.seed not in trial_seeds, run.config.seed)
        for run, folder in zip(runs, run_folders(sweep_folder, runs), strict=True)
    }
    missing.sort(key=lambda run: order[run.folder])
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
