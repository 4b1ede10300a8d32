"""The verbs: parse, call, print. Nothing heavy is imported before `--help` answers."""

from __future__ import annotations

import collections
import sys
from pathlib import Path
from typing import Any

import click

from rad_bench import __version__
from rad_bench.cli.blocks import bench, blocks, check
from rad_bench.cli.console import print_table
from rad_bench.cli.data import data
from rad_bench.errors import UserError, did_you_mean, one_line


class _Verbs(click.Group):
    """A group that suggests the nearest verb."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            raise UserError(f"there is no verb '{args[0]}'{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Which memory should a video world model carry, and what does it cost?"""


def _plan_options(command: Any) -> Any:
    """Options that choose the runs of a sweep file."""
    for option in (
        click.argument("file", type=click.Path(path_type=Path)),
        click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
                     help="Folder of all sweeps' results."),
        click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE",
                     help="Change the sweep, such as run.training.steps=100. Repeatable."),
        click.option("--only", multiple=True, metavar="PATH=VALUE",
                     help="Keep the grid's points with this value, such as memory=lstm. Repeatable."),
    )[::-1]:  # fmt: skip
        command = option(command)
    return command


@cli.command()
@_plan_options
@click.option(
    "--cluster",
    type=click.Choice(["auto", "local", "slurm", "debug"]),
    default="auto",
    show_default=True,
    help="Where runs execute. auto: SLURM where sbatch exists and the sweep names launch.slurm.partition.",
)
@click.option("--detach", is_flag=True, help="Return once the jobs are submitted (SLURM).")
@click.option("--dry-run", is_flag=True, help="Show the runs and launch nothing.")  # fmt: skip
def sweep(
    file: Path, out: Path, overrides: tuple[str, ...], only: tuple[str, ...], cluster: str, detach: bool, dry_run: bool
) -> None:
    """Run what is missing of the sweep in FILE, then write its report. Run it again after any interruption."""
    from rich.console import Console

    from rad_bench.sweep.grid import plan_runs
    from rad_bench.sweep.launch import run_sweep
    from rad_bench.sweep.load import load_sweep

    config = load_sweep(file, overrides)
    runs = plan_runs(config, only, str(file))
    _print_models(runs, config, out / config.name)
    if dry_run:
        return
    outcome = run_sweep(config, runs, out / config.name, cluster, detach, Console())
    if outcome.detached:
        click.echo(
            f"{len(outcome.unfinished)} runs submitted; `rad-bench status {out / config.name}` shows how far they are, "
            "and the same command, once they have ended, writes the report."
        )
    else:
        _print_outcome(outcome)


@cli.command()
@_plan_options
@click.option("--no-probe", is_flag=True, help="Estimate no time: nothing is run.")
def plan(file: Path, out: Path, overrides: tuple[str, ...], only: tuple[str, ...], no_probe: bool) -> None:
    """Show the models of the sweep in FILE, what is done, and what it will cost: disk, and time from a short probe."""
    from rad_bench.sweep.grid import plan_runs
    from rad_bench.sweep.load import load_sweep

    config = load_sweep(file, overrides)
    folder = out / config.name
    models = _print_models(plan_runs(config, only, str(file)), config, folder)
    if no_probe:
        return
    from rad_bench.sweep.estimate import start_seconds
    from rad_bench.sweep.plan import costs_table, estimate_costs, limit_line, time_lines

    costs, start = estimate_costs(models, config.launch, folder), start_seconds()
    print_table(costs_table(models, costs, start), 120)
    click.echo(time_lines(models, costs, start, config.launch))
    if limits := limit_line(models, costs, start, config):
        click.echo(limits)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def status(folder: Path) -> None:
    """Show how far each run of a sweep's FOLDER is."""
    from rich.table import Table

    from rad_bench.store.sweep_folder import planned_runs
    from rad_bench.sweep.status import sweep_status

    statuses, silence = sweep_status(folder, planned_runs(folder))
    table = Table("run", "state", "progress", "detail")
    for found in statuses:
        table.add_row(found.name, found.state, f"{found.share:.0%}", one_line(found.detail))
    print_table(table)
    states = collections.Counter(found.state for found in statuses)
    click.echo(", ".join(f"{count} {state}" for state, count in states.items()))
    if silence:
        click.echo(f"SLURM did not answer, so queued jobs look stopped or missing: {silence}", err=True)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def cancel(folder: Path) -> None:
    """Stop the launcher and the jobs of a sweep's FOLDER. Checkpoints stay, and the sweep command goes on from them."""
    from rad_bench.store.sweep_folder import planned_runs
    from rad_bench.sweep.status import cancel_sweep

    planned_runs(folder)  # raises if this is no sweep
    for line in cancel_sweep(folder) or ["nothing of this sweep is running"]:
        click.echo(line)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write the report of a sweep's FOLDER again, from the runs that are done."""
    from rad_bench.store.sweep_folder import planned_runs
    from rad_bench.sweep.gather import finish

    _print_outcome(finish(folder, planned_runs(folder)))


@cli.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
def merge(out: Path, folders: tuple[Path, ...]) -> None:
    """Join the finished runs of sweep FOLDERS into the new folder OUT, and report on all of them."""
    from rad_bench.sweep.merge import merge as join

    _print_outcome(join(out, list(folders)))


@cli.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
def compare(first: Path, second: Path) -> None:
    """Compare blocks that two sweep folders have in common: revisit PSNR of FIRST less that of SECOND."""
    from rich.table import Table

    from rad_bench.report.table import show
    from rad_bench.sweep.merge import compare as differences

    table = Table("task", "block", "seeds", "difference, dB (95 %)")
    for task, block, value in differences(first, second):
        table.add_row(task, block, str(value.seeds), show(value, signed=True))
    print_table(table)


@cli.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--episode",
    "episodes",
    type=click.IntRange(0),
    multiple=True,
    help="A held-out episode. Repeatable. Default: the one with most revisits.",
)
@click.option("--task", help="continuation or retrieval. Default: the first that the run was evaluated on.")
@click.option(
    "--intervention",
    type=click.Choice(["keep", "reset", "swap"]),
    default="keep",
    show_default=True,
    help="What becomes of the memory at the end of the context.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="A .gif or .mp4. Default: a GIF in the (first) run's folder."
)
@click.option("--fps", type=click.IntRange(1, 50), default=5, show_default=True, help="Frames a second.")
def rollout(
    runs: tuple[Path, ...], episodes: tuple[int, ...], task: str | None, intervention: str, out: Path | None, fps: int
) -> None:  # fmt: skip
    """Make a video of finished runs (folders results/SWEEP/runs/NAME) beside the truth, frame by frame."""
    from rad_bench.look.film import check_format, draw, film, write_video
    from rad_bench.look.load import load_trained

    if out is not None:
        check_format(out)
    made = film([load_trained(run) for run in runs], task, intervention, episodes)
    shown = "-".join(map(str, made.episodes))
    out = out or runs[0] / f"rollout-{made.task}-{intervention}-{shown}.gif"
    write_video(draw(made), out, fps)
    click.echo(f"{out}: {len(made.kinds[0])} frames, the first {made.context} of them given.")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8420, show_default=True, help="0: any that is free.")
def play(run: Path, port: int) -> None:
    """Walk with the arrow keys in the world that a finished RUN generates, in a browser on this machine."""
    from rad_bench.look.load import load_trained
    from rad_bench.look.server import serve
    from rad_bench.look.session import World

    serve(World(load_trained(run)), port, click.echo)


for verb in (data, check, blocks, bench):
    cli.add_command(verb)


def _print_models(runs: list[Any], sweep: Any, folder: Path) -> list[Any]:
    from rad_bench.sweep.plan import disk_line, models_table, need_table, need_warnings, plan_sweep

    models = plan_sweep(runs, folder)
    print_table(models_table(models), 120)
    click.echo(disk_line(models, sweep.launch.parallel, folder))
    print_table(need_table(models), 120)
    for warning in need_warnings(models):
        click.echo(f"note: {warning}")
    return models


def _print_outcome(outcome: Any) -> None:
    if outcome.report is not None:
        click.echo(f"report: {outcome.report}")
    elif outcome.unwritten is None:
        click.echo("no run is done, so there is no report; one that lies there is an earlier command's", err=True)
    if outcome.unfinished:
        for found in outcome.unfinished:
            click.echo(one_line(f"{found.name}: {found.state} {found.detail}"), err=True)
        total = outcome.done + len(outcome.unfinished)
        spoilt = sum(found.state == "unreadable" for found in outcome.unfinished)  # what to do is said of each
        but = " but for those that are unreadable" if spoilt else ""
        again = f"; the sweep's command tries them again{but}" if spoilt < len(outcome.unfinished) else ""
        click.echo(f"{len(outcome.unfinished)} of {total} runs are not done{again}.", err=True)
    if outcome.unwritten is not None:
        raise outcome.unwritten
    if outcome.unfinished:
        raise SystemExit(1)


def main() -> None:
    """Entry point: user errors are one paragraph and exit status 2, never a traceback."""
    try:
        cli(standalone_mode=False)
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(130)
