"""The verb `autoencoder train`: make the latents that a trunk can model instead of pixels."""

from __future__ import annotations

from pathlib import Path

import click

from rad_bench.cli.place import PLACE
from rad_bench.errors import one_line

TOLD = 20  # lines of progress where there is no terminal


@click.group()
def autoencoder() -> None:
    """Make autoencoders, whose latents a trunk can model instead of pixels."""


@autoencoder.command()
@click.argument("data", type=PLACE)
@click.option("--out", type=PLACE, required=True, help="Folder of the autoencoder.")
@click.option("--size", type=click.IntRange(8, 512), help="Side of the frames, pixels. Default: as recorded.")
@click.option("--channels", type=click.IntRange(1, 256), default=8, show_default=True, help="Numbers per token.")
@click.option("--width", type=click.IntRange(8, 1024), default=32, show_default=True, help="Channels of the layers.")
@click.option("--steps", type=click.IntRange(1), default=3000, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Frames a step.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=2e-3, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads.")
def train(
    data: Path, out: Path, size: int | None, channels: int, width: int, steps: int, batch: int,
    learning_rate: float, seed: int, device: str, threads: int,
) -> None:  # fmt: skip
    """Train an autoencoder on the recordings in the folder DATA. To resume, run it again.

    A token stands for 8 x 8 pixels. Held-out recordings are not trained on; how well they come back is the ceiling.
    """
    from rad_bench.data import open_folder
    from rad_bench.run.autoencoder import make_autoencoder
    from rad_bench.training.autoencoder import Settings
    from rad_bench.training.device import be_deterministic, choose_device
    from rad_bench.training.distributed import Group

    where = choose_device(device, Group())
    be_deterministic(threads, where)
    settings = Settings(size, channels, width, steps, batch, learning_rate, seed)

    def report(step: int, loss: float) -> None:
        if step % max(steps // TOLD, 1) == 0:
            click.echo(f"step {step}/{steps}, loss {loss:.5f}")

    ceiling = make_autoencoder(open_folder(data, size), settings, out, where, report)
    scores = ", ".join(f"{name} {value:.3f}" for name, value in ceiling.items())
    click.echo(one_line(f"{out}: held-out frames come back with {scores}"))
