"""The verb `rad-bench sweeps`: the sweeps that come with rad-bench."""

from __future__ import annotations

from pathlib import Path

import click

from rad_bench.cli.place import PLACE


@click.group(invoke_without_command=True)
@click.pass_context
def sweeps(context: click.Context) -> None:
    """List the sweeps that come with rad-bench. `sweep` and `plan` take their names, or files of your own."""
    if context.invoked_subcommand is not None:
        return
    from rad_bench.sweep import shipped

    width = max(map(len, shipped.names()))
    for name in shipped.names():
        click.echo(f"{name:<{width}}  {shipped.summary(name)}")
    click.echo("`rad-bench sweep NAME` runs one; `rad-bench sweeps copy NAME` makes it a file that you can change.")


@sweeps.command()
@click.argument("name")
@click.option("--to", type=PLACE, help="The new file. Default: the sweep's name, in the current directory.")
def copy(name: str, to: Path | None) -> None:
    """Copy the sweep NAME into a file of your own, together with what it extends."""
    from rad_bench.sweep.own_copy import write_copy

    target = to or Path(f"{name.rpartition('/')[2]}.yaml")
    write_copy(name, target)
    click.echo(f"{target}: written. `rad-bench sweep {target}` runs it.")
