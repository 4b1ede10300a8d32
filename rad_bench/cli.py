"""The verbs: parse, call, print. Nothing heavy is imported before `--help` answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rad_bench import __version__
from rad_bench.cli_data import data
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
    from rad_bench.sweep.load import load_sweep
    from rad_bench.sweep.sweep import run_sweep

    config = load_sweep(file, overrides)
    runs = plan_runs(config, only, str(file))
    _print_plan(runs, out / config.name)
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
def plan(file: Path, out: Path, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Show the runs of the sweep in FILE: what is done, sizes, parameters, state."""
    from rad_bench.sweep.grid import plan_runs
    from rad_bench.sweep.load import load_sweep

    config = load_sweep(file, overrides)
    _print_plan(plan_runs(config, only, str(file)), out / config.name)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def status(folder: Path) -> None:
    """Show how far each run of a sweep's FOLDER is."""
    from rich.table import Table

    from rad_bench.sweep.progress import run_status
    from rad_bench.sweep.sweep import planned_runs, run_folders

    table = Table("run", "state", "progress", "detail")
    for run_folder in run_folders(folder, planned_runs(folder)):
        found = run_status(run_folder)
        table.add_row(found.name, found.state, f"{found.share:.0%}", one_line(found.detail))
    _print(table)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write the report of a sweep's FOLDER again, from the runs that are done."""
    from rad_bench.sweep.sweep import finish, planned_runs

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

    from rad_bench.report.tables import show
    from rad_bench.sweep.merge import compare as differences

    table = Table("task", "block", "seeds", "difference, dB (95 %)")
    for task, block, value in differences(first, second):
        table.add_row(task, block, str(value.seeds), show(value, signed=True))
    _print(table)


@cli.command()
@click.argument("block")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the block. Repeatable.")
def check(block: str, options: tuple[str, ...]) -> None:
    """Hold BLOCK (a name, file.py:Class or module:Class) to the contract of memory blocks."""
    from rich.table import Table

    from blocks.contract import check_block
    from rad_bench.config import MemoryConfig
    from rad_bench.registry import check_options, find_block
    from rad_bench.sweep.load import split_assignment

    given = dict(split_assignment(text, "--option") for text in options)
    outcomes = check_block(find_block(block), check_options(MemoryConfig(name=block, options=given)))
    table = Table("check", "", "detail")
    for outcome in outcomes:
        table.add_row(outcome.name, "pass" if outcome.passed else "FAIL", outcome.detail)
    _print(table)
    failed = sum(not outcome.passed for outcome in outcomes)
    if failed:
        raise SystemExit(
            f"{block}: {failed} of {len(outcomes)} checks failed; the block must not be compared with others."
        )
    click.echo(f"{block}: all {len(outcomes)} checks passed.")


@cli.command()
def blocks() -> None:
    """List the built-in blocks and their options."""
    from rich.table import Table

    from rad_bench.registry import block_names, block_options, find_block

    table = Table("block", "what it is", "options (default)", "sized by")
    for name in block_names():
        block = find_block(name)
        fields = block_options(block).model_fields.items()
        options = ", ".join(f"{key} ({field.default})" for key, field in fields)
        summary = (block.__doc__ or "").strip().splitlines()[0]
        table.add_row(name, summary, options or "none", block.size_option or "-")
    _print(table)
    click.echo("All blocks run their plain PyTorch form here; `rad-bench check NAME` holds it to the reference.")


cli.add_command(data)


def _print(table: Any) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    Console(width=width, markup=False, emoji=False).print(table)  # `[x]` and `:x:` in cells mean themselves


def _print_plan(runs: list[Any], sweep_folder: Path) -> None:
    from rich.table import Table

    from rad_bench.data import open_dataset
    from rad_bench.model.budget import plan_model
    from rad_bench.model.codec import open_codec
    from rad_bench.run_folder import RunFolder

    counts = ("memory parameters", "trunk parameters", "memory MFLOPs a frame", "trunk MFLOPs a frame")
    table = Table("run", "state", *counts, "state bytes a video", "off budget")
    plans: dict[str, Any] = {}
    for run in runs:
        config = run.config
        key = config.model_copy(update={"seed": 0}).model_dump_json()
        if key not in plans:
            dataset = open_dataset(config.data)
            codec = open_codec(config.autoencoder, dataset.frame_shape)
            plans[key] = plan_model(config, codec.frame_shape, dataset.action_size)
        model = plans[key]
        bytes_ = list(model.state_bytes.values())
        state = f"{bytes_[0]:,}" if len(set(bytes_)) == 1 else f"{bytes_[0]:,} to {bytes_[-1]:,}"
        off = "" if model.residual is None else f"{model.residual:+.1%}"
        done = "done" if RunFolder(sweep_folder / "runs" / run.name).is_done else "missing"
        parameters = f"{model.memory_parameters:,}", f"{model.trunk_parameters:,}"
        flops = f"{model.memory_flops / 1e6:.2f}", f"{model.trunk_flops / 1e6:.2f}"
        table.add_row(run.name, done, *parameters, *flops, state, off)
    _print(table)


def _print_outcome(outcome: Any) -> None:
    if outcome.report is not None:
        click.echo(f"report: {outcome.report}")
    if outcome.unfinished:
        for found in outcome.unfinished:
            click.echo(one_line(f"{found.name}: {found.state} {found.detail}"), err=True)
        total = outcome.done + len(outcome.unfinished)
        click.echo(
            f"{len(outcome.unfinished)} of {total} runs are not done; the same command tries them again.", err=True
        )
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


if __name__ == "__main__":
    main()
