"""The command line: the group of all verbs, and how errors are shown. Heavy imports are inside the verbs."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from rad_bench import __version__
from rad_bench.cli.autoencoder import autoencoder
from rad_bench.cli.blocks import bench, blocks, check
from rad_bench.cli.data import data
from rad_bench.cli.exchange import export, score, tasks
from rad_bench.cli.look import play, rollout
from rad_bench.cli.start import settle
from rad_bench.cli.sweep import cancel, compare, merge, plan, report, status, sweep
from rad_bench.cli.sweeps import sweeps
from rad_bench.cli.weights import weights
from rad_bench.errors import UserError, did_you_mean

VERBS = (
    *(sweep, plan, sweeps, status, cancel, report, merge, compare),
    *(tasks, score, export, rollout, play, data, autoencoder, weights, check, blocks, bench),
)


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


for verb in VERBS:
    cli.add_command(verb)


def main() -> None:
    """Run the command line. A user error prints one paragraph, without a traceback, and exits with status 2."""
    # A shell starts what it runs in the background with SIGINT ignored, and `cancel` sends it. SIGTERM ends a sweep's
    # runs too: left alone, they would go on unseen.
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.default_int_handler)
    try:
        settle()
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
