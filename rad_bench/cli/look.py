"""The verbs that look at finished runs: `rad-bench rollout` and `play`."""

from __future__ import annotations

from pathlib import Path

import click

from rad_bench.cli.place import PLACE


@click.command()
@click.argument("runs", type=PLACE, nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--episode",
    "episodes",
    type=click.IntRange(0),
    multiple=True,
    help="Number of a held-out episode. Repeatable. Default: the one with most revisits.",
)
@click.option("--task", help="continuation or retrieval. Default: the first that the run was evaluated on.")
@click.option(
    "--intervention",
    "interventions",
    type=click.Choice(["keep", "reset", "swap"]),
    multiple=True,
    default=["keep"],
    show_default=True,
    help="What happens to the memory at the end of the context. Repeatable.",
)
@click.option("--out", type=PLACE, help="A .gif or .mp4. Default: a GIF in the (first) run's folder.")
@click.option("--fps", type=click.IntRange(1, 50), default=5, show_default=True, help="Frames per second.")
def rollout(
    runs: tuple[Path, ...], episodes: tuple[int, ...], task: str | None, interventions: tuple[str, ...],
    out: Path | None, fps: int,
) -> None:  # fmt: skip
    """Make a video of finished runs (folders results/SWEEP/runs/NAME), side by side with the truth."""
    from rad_bench.look.film import check_format, draw, film, write_video
    from rad_bench.look.load import load_trained

    if out is not None:
        check_format(out)
    clip = film([load_trained(run) for run in runs], task, list(dict.fromkeys(interventions)), episodes)
    numbers = "-".join(map(str, clip.episodes))
    out = out or runs[0] / f"rollout-{clip.task}-{'-'.join(dict.fromkeys(interventions))}-{numbers}.gif"
    write_video(draw(clip), out, fps)
    click.echo(f"{out}: {len(clip.kinds[0])} frames, of which the first {clip.context} are the context.")


@click.command()
@click.argument("run", type=PLACE)
@click.option("--port", type=click.IntRange(0, 65535), default=8420, show_default=True, help="0: any free port.")
def play(run: Path, port: int) -> None:
    """Walk with the arrow keys through the world that a finished RUN generates, in a browser on this machine."""
    from rad_bench.look.load import load_trained
    from rad_bench.look.server import serve
    from rad_bench.look.session import World

    serve(World(load_trained(run)), port, click.echo)
