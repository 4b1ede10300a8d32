"""The verbs that exchange models: `rad-bench tasks` and `score` for those from outside, `export` for ours."""

from __future__ import annotations

from pathlib import Path

import click

from rad_bench.cli.data import progress
from rad_bench.cli.place import PLACE
from rad_bench.errors import one_line
from rad_bench.paths import user_path


@click.command()
@click.argument("data", type=PLACE)
@click.option("--out", type=PLACE, required=True, help="Folder of the tasks, which must not exist.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change a value, such as run.evaluation.horizon=100. Repeatable.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATH=VALUE",
    help="Keep the grid points with this value, where points are asked different things. Repeatable.",
)
def tasks(data: Path, out: Path, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Write the evaluation of DATA, a sweep file or a folder of recordings, as files that any model can take."""
    from rad_bench.exchange.tasks import write_tasks

    with progress("questions") as report:
        index = write_tasks(data, out, overrides, only, report)
    for task in index.tasks:
        click.echo(
            f"{task.name}: {len(task.episodes)} episodes, {task.context} frames given, {task.horizon} to generate"
        )
    click.echo(one_line(f"{out}: written. {out / 'index.json'} says what to generate and where to put it."))


@click.command()
@click.argument("folder", type=PLACE)
@click.option(
    "--rollouts",
    multiple=True,
    required=True,
    metavar="NAME[:SEED]=FOLDER",
    help="The frames that a model generated. Repeatable: other models, and other seeds of one.",
)
@click.option(
    "--swapped",
    multiple=True,
    metavar="NAME[:SEED]=FOLDER",
    help="Its frames with the memory of the swap partner. Repeatable.",
)
@click.option("--out", type=PLACE, help="Folder of the results. Default: results/TASKS_scored.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda: computes the metrics.")
def score(folder: Path, rollouts: tuple[str, ...], swapped: tuple[str, ...], out: Path | None, device: str) -> None:
    """Score frames that models generated for the tasks in FOLDER, and write the report of a sweep over them."""
    from rad_bench.cli.sweep import print_outcome
    from rad_bench.exchange.score import parse_models
    from rad_bench.exchange.score import score as score_models

    models = parse_models(rollouts, swapped, lambda text: user_path(text, "--rollouts"))
    with progress("models scored") as report:
        remarks, outcome = score_models(folder, models, out, device, report)
    for line in remarks:
        click.echo(one_line(line), err=True)
    print_outcome(outcome)


@click.command()
@click.argument("run", type=PLACE)
@click.option("--out", type=PLACE, required=True, help="The new folder.")
def export(run: Path, out: Path) -> None:
    """Export a finished RUN to a folder that loads without rad-bench: weights, config, sources and a model card."""
    from rad_bench.exchange.export import export as write

    for text in write(run, out):
        click.echo(one_line(f"note: not exported: {text}"), err=True)
    click.echo(one_line(f"{out}: written. `python {out / 'load.py'}` loads it."))
