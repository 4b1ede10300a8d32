"""The verbs below `rad-bench data`: make, validate, look at and pack recorded episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from rad_bench.cli.place import PLACE
from rad_bench.errors import UserError, one_line

FOLDER = click.argument("folder", type=PLACE)
LAYOUT = click.option(
    "--layout", help="A layout file, or a preset. Default: layout.yaml in FOLDER, or what the files tell."
)


@click.group()
def data() -> None:
    """Make, validate and look at recorded episodes."""


@data.command()
@click.argument("world", type=click.Choice(["memory-maze", "voxels", "luanti"]))
@click.option("--size", help="Memory Maze: 9x9 (default), 11x11, 13x13 or 15x15. Others: pixels (default 64).")
@click.option("--episodes", type=click.IntRange(1), required=True, help="Number of episodes, including existing ones.")
@click.option("--steps", type=click.IntRange(1), default=500, show_default=True, help="Steps per episode.")
@click.option("--out", type=PLACE, required=True, help="Folder of the episodes.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Number of processes.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def collect(world: str, size: str | None, episodes: int, steps: int, out: Path, workers: int, seed: int) -> None:
    """Collect episodes of WORLD with a policy that explores and returns. To resume, run it again."""
    from rad_bench.data.collect.luanti.episodes import collect_luanti
    from rad_bench.data.collect.mazes import collect_memory_maze
    from rad_bench.data.collect.voxels import collect_voxels

    with progress("episodes") as report:
        if world == "memory-maze":
            outcome = collect_memory_maze(size or "9x9", episodes, steps, out, workers, seed, report)
        else:
            collector = {"voxels": collect_voxels, "luanti": collect_luanti}[world]
            outcome = collector(_pixels(size), episodes, steps, out, workers, seed, report)
    click.echo(one_line(f"{out}: {outcome.collected} episodes collected, {outcome.kept} already existed."))


def _pixels(size: str | None) -> int:
    try:
        return int(size or 64)
    except ValueError:
        raise UserError(f"--size {size}: should be a number of pixels, such as 64.") from None


@data.command()
@FOLDER
@LAYOUT
def check(folder: Path, layout: str | None) -> None:
    """Read all recordings in FOLDER, list each bad file, and summarise the good ones."""
    from rich.table import Table

    from rad_bench.cli.console import print_table
    from rad_bench.data import open_folder
    from rad_bench.look.survey import survey

    recordings = open_folder(folder, layout=layout)
    with progress("episodes read") as report:
        findings = survey(recordings, report)
    table = Table("what", "found", title=one_line(f"{folder}: {recordings.source.kind}"))
    for what, text in findings.lines():
        table.add_row(what, text)
    print_table(table, width=120)
    _list("left out", findings.left_out)
    _list("look at", findings.suspects)
    if not findings.clean:
        raise SystemExit(1)


@data.command()
@FOLDER
@LAYOUT
@click.option("--out", type=PLACE, default=Path("episodes.png"), show_default=True)
@click.option("--episodes", type=click.IntRange(1), default=6, show_default=True)
@click.option("--frames", type=click.IntRange(1), default=12, show_default=True)
def show(folder: Path, layout: str | None, out: Path, episodes: int, frames: int) -> None:
    """Draw frames of the recordings in FOLDER, and their paths seen from above, as a PNG."""
    from rad_bench.data import open_folder
    from rad_bench.look.survey import draw

    recordings = open_folder(folder, layout=layout)
    unread = draw(recordings, out, episodes, frames)
    _list("left out", [*recordings.left_out, *unread])
    click.echo(one_line(f"{out}: written."))


@data.command()
@FOLDER
@click.argument("out", type=PLACE)
@LAYOUT
@click.option("--size", type=click.IntRange(8, 512), help="Crop to a square of this side, pixels. Default: no crop.")
def pack(folder: Path, out: Path, layout: str | None, size: int | None) -> None:
    """Decode and resize the recordings in FOLDER once, into OUT. The packed data is read much faster."""
    from rad_bench.data import open_folder
    from rad_bench.data.packed import pack as write

    recordings = open_folder(folder, size, layout)
    _list("left out", recordings.left_out)
    with progress("episodes packed") as report:
        write(recordings, out, report)
    click.echo(one_line(f"{out}: written. Use it as data.path, with data.name: {recordings.source.kind}."))


def _list(what: str, lines: list[str]) -> None:
    for line in lines:
        click.echo(one_line(f"{what}: {line}"), err=True)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal; without a terminal, nothing."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task: Any = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
