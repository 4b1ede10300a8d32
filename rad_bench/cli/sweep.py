"""The verbs about sweeps: `rad-bench sweep`, `plan`, `status`, `cancel`, `report`, `merge` and `compare`."""

from __future__ import annotations

import collections
import textwrap
from pathlib import Path
from typing import Any

import click

from rad_bench.cli.console import print_table
from rad_bench.cli.place import PLACE
from rad_bench.errors import one_line

EXPLAINED = ("failed", "unreadable")  # states of runs whose detail is a paragraph


def _plan_options(command: Any) -> Any:
    """Add the arguments that choose the runs of a sweep file."""
    for option in (
        click.argument("file", type=PLACE),
        click.option("--out", type=PLACE, default=Path("results"), show_default=True,
                     help="Folder for the results of all sweeps."),
        click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE",
                     help="Change a value, such as run.training.steps=100. Repeatable."),
        click.option("--only", multiple=True, metavar="PATH=VALUE",
                     help="Run only the grid points with this value, such as memory=lstm. Repeatable."),
    )[::-1]:  # fmt: skip
        command = option(command)
    return command


@click.command()
@_plan_options
@click.option(
    "--cluster",
    type=click.Choice(["auto", "local", "slurm", "debug"]),
    default="auto",
    show_default=True,
    help="Where runs execute. auto: SLURM if sbatch exists and the sweep sets launch.slurm.partition.",
)
@click.option("--detach", is_flag=True, help="Return once the jobs are submitted (SLURM).")
@click.option("--dry-run", is_flag=True, help="Show the runs without launching them.")  # fmt: skip
def sweep(
    file: Path, out: Path, overrides: tuple[str, ...], only: tuple[str, ...], cluster: str, detach: bool, dry_run: bool
) -> None:
    """Run the missing runs of the sweep in FILE, then write its report. To resume, run the same command again."""
    from rich.console import Console

    from rad_bench.sweep.grid import plan_runs
    from rad_bench.sweep.launch import run_sweep
    from rad_bench.sweep.load import load_sweep
    from rad_bench.sweep.tuning import plan_trials

    config = load_sweep(file, overrides)
    runs = plan_runs(config, only, str(file))
    trials = plan_trials(config, runs, str(file))
    _print_models(runs, trials, config, out / config.name)
    if dry_run:
        return
    outcome = run_sweep(config, runs, trials, out / config.name, cluster, detach, Console())
    if outcome.detached:
        then = f"submit {outcome.undecided} more, which wait for trials" if outcome.undecided else "write the report"
        click.echo(
            f"{len(outcome.unfinished)} runs submitted. `rad-bench status {out / config.name}` shows their progress. "
            f"When they have finished, run the same command again to {then}."
        )
    else:
        print_outcome(outcome)


@click.command()
@_plan_options
@click.option("--no-probe", is_flag=True, help="Run nothing, and so do not estimate time.")
def plan(file: Path, out: Path, overrides: tuple[str, ...], only: tuple[str, ...], no_probe: bool) -> None:
    """Show the models of the sweep in FILE, which are done, and the cost: disk space, and time from a short probe."""
    from rad_bench.sweep.grid import plan_runs
    from rad_bench.sweep.load import load_sweep
    from rad_bench.sweep.tuning import plan_trials

    config = load_sweep(file, overrides)
    folder = out / config.name
    runs = plan_runs(config, only, str(file))
    models = _print_models(runs, plan_trials(config, runs, str(file)), config, folder)
    from rad_bench.sweep.memory import memory_lines

    for line in memory_lines(models, config):
        click.echo(line)
    if no_probe:
        return
    from rad_bench.sweep.estimate import start_seconds
    from rad_bench.sweep.plan import costs_table, estimate_costs, limit_line, time_lines

    costs, start = estimate_costs(models, config.launch, folder), start_seconds()
    print_table(costs_table(models, costs, start), 120)
    click.echo(time_lines(models, costs, start, config.launch))
    if limits := limit_line(models, costs, start, config):
        click.echo(limits)


@click.command()
@click.argument("folder", type=PLACE)
def status(folder: Path) -> None:
    """Show the progress of each run in a sweep's FOLDER."""
    from rich.table import Table

    from rad_bench.store.sweep_folder import planned_runs, planned_trials
    from rad_bench.sweep.status import sweep_status

    trials = [trial for own in planned_trials(folder).values() for trial in own]
    runs = planned_runs(folder)
    statuses, silence = sweep_status(folder, [*trials, *runs])
    table = Table("run", "state", "progress", "detail")
    for run in statuses:
        detail = "why: see below" if run.state in EXPLAINED else one_line(run.detail)
        table.add_row(run.name, run.state, f"{run.share:.0%}", detail)
    print_table(table)
    for run in statuses:
        if run.state in EXPLAINED:
            _print_reason(run)
    states = collections.Counter(run.state for run in statuses)
    click.echo(", ".join(f"{count} {state}" for state, count in states.items()))
    if silence:
        click.echo(f"SLURM did not answer, so queued jobs look stopped or missing: {silence}", err=True)


@click.command()
@click.argument("folder", type=PLACE)
def cancel(folder: Path) -> None:
    """Stop the launcher and the jobs of a sweep's FOLDER. Checkpoints stay, so the sweep command can resume."""
    from rad_bench.store.sweep_folder import planned_runs
    from rad_bench.sweep.status import cancel_sweep

    planned_runs(folder)  # raises if FOLDER is not a sweep
    for line in cancel_sweep(folder) or ["no process of this sweep is running"]:
        click.echo(line)


@click.command()
@click.argument("folder", type=PLACE)
def report(folder: Path) -> None:
    """Write the report of a sweep's FOLDER again, from its finished runs."""
    from rad_bench.store.sweep_folder import planned_runs
    from rad_bench.sweep.gather import finish

    print_outcome(finish(folder, planned_runs(folder)))


@click.command()
@click.argument("out", type=PLACE)
@click.argument("folders", type=PLACE, nargs=-1, required=True)
def merge(out: Path, folders: tuple[Path, ...]) -> None:
    """Join the finished runs of sweep FOLDERS into the new folder OUT, and report on all of them."""
    from rad_bench.sweep.merge import merge as join

    print_outcome(join(out, list(folders)))


@click.command()
@click.argument("first", type=PLACE)
@click.argument("second", type=PLACE)
def compare(first: Path, second: Path) -> None:
    """Compare the blocks of two sweep folders: revisit PSNR of FIRST minus that of SECOND."""
    from rich.table import Table

    from rad_bench.report.table import show
    from rad_bench.sweep.merge import compare as differences

    table = Table("task", "block", "seeds", "difference, dB (95 %)")
    for task, block, value in differences(first, second):
        table.add_row(task, block, str(value.seeds), show(value, signed=True))
    print_table(table)


def _print_models(runs: list[Any], trials: dict[str, list[Any]], sweep: Any, folder: Path) -> list[Any]:
    from rad_bench.report.peeking import peeking_sentences
    from rad_bench.store.history import updated
    from rad_bench.sweep.plan import disk_line, models_table, need_table, need_warnings, plan_sweep
    from rad_bench.sweep.tuning import choose
    from rad_bench.units import show_spans

    choice = choose(sweep, runs, trials, folder)
    models = plan_sweep([*choice.runs, *choice.undecided], folder, trials, sweep.launch.device)
    print_table(models_table(models), 120)
    click.echo(disk_line(models, sweep.launch.parallel, folder))
    print_table(need_table(models), 120)
    history = updated(sweep.model_dump(mode="json"), folder)
    named = ", named before any result was there" if not history[-1].results else ""
    click.echo(f"seeds: {show_spans(history[-1].seeds, ' to ')}{named}")
    for warning in [*peeking_sentences(history), *need_warnings(models)]:
        click.echo(textwrap.fill(f"note: {warning}", 120))
    return models


def _print_reason(run: Any, err: bool = False) -> None:
    click.echo(f"{one_line(run.name)}: {run.state} {one_line(run.detail)}".rstrip(), err=err)


def print_outcome(outcome: Any) -> None:
    if outcome.report is not None:
        click.echo(f"report: {outcome.report}")
    elif outcome.unwritten is None:
        click.echo("no run is done, so no report was written; one in the folder is older", err=True)
    if outcome.unfinished:
        for run in outcome.unfinished:
            _print_reason(run, err=True)
        total = outcome.done + len(outcome.unfinished)
        unreadable = sum(run.state == "unreadable" for run in outcome.unfinished)  # its detail says what to do
        exception = ", except the unreadable ones" if unreadable else ""
        retry = f"; the sweep command tries them again{exception}" if unreadable < len(outcome.unfinished) else ""
        click.echo(f"{len(outcome.unfinished)} of {total} runs are not done{retry}.", err=True)
    if outcome.unwritten is not None:
        raise outcome.unwritten
    if outcome.unfinished:
        raise SystemExit(1)
