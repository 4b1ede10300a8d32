"""The verbs about blocks and speed: `rad-bench check`, `blocks` and `bench`."""

from __future__ import annotations

from pathlib import Path

import click

from rad_bench.cli.console import print_table
from rad_bench.cli.place import PLACE
from rad_bench.errors import UserError


@click.command()
@click.argument("block", required=False)
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the block. Repeatable.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu or cuda. auto checks a BLOCK on the CPU, in fp64.",
)
@click.option("--out", type=PLACE, default=Path("results/check"), show_default=True,
              help="Folder of the figures, if no BLOCK is given.")  # fmt: skip
def check(block: str | None, options: tuple[str, ...], device: str, out: Path) -> None:
    """Check that BLOCK (a name, file.py:Class or module:Class) keeps the contract of memory blocks.

    Without BLOCK: check all built-in blocks on this machine's device, in fp32, and compare their fast paths with the
    reference, in fp32 and bf16.
    """
    if block is None:
        if options:
            raise UserError("--option: needs a BLOCK that has this option.")
        return _check_on_device(device, out)
    from rich.table import Table

    from rad_bench.blocks.contract import check_block, contract_precision
    from rad_bench.config import MemoryConfig
    from rad_bench.model.registry import check_options, find_block
    from rad_bench.paths import block_path
    from rad_bench.sweep.load import split_assignment
    from rad_bench.training.device import choose_device
    from rad_bench.training.distributed import Group

    name = block_path(block, ())
    assignments = dict(split_assignment(text, "--option") for text in options)
    place = choose_device("cpu" if device == "auto" else device, Group())
    options_of_block = check_options(MemoryConfig(name=name, options=assignments))
    outcomes = check_block(find_block(name), options_of_block, place, contract_precision(place))
    table = Table("check", "", "detail")
    for outcome in outcomes:
        table.add_row(outcome.name, "pass" if outcome.passed else "FAIL", outcome.detail)
    print_table(table)
    failed = sum(not outcome.passed for outcome in outcomes)
    if failed:
        raise SystemExit(
            f"{block}: {failed} of {len(outcomes)} checks failed; the block must not be compared with others."
        )
    click.echo(f"{block}: all {len(outcomes)} checks passed.")


def _check_on_device(device: str, out: Path) -> None:
    from rad_bench.model.registry import block_names
    from rad_bench.run.parity import check_on_device, check_table

    checks = check_on_device(block_names(), device, out, lambda name: click.echo(f"  {name}", err=True))
    click.echo(f"figures: {out}")
    print_table(check_table(checks))
    if failed := sorted({check.block for check in checks if not check.passed}):
        raise SystemExit(f"{', '.join(failed)}: the fast path on this device does not compute the same as `step`.")


@click.command()
@click.option("--device", default="auto", show_default=True, help="Show the paths on this device: auto, cpu or cuda.")
def blocks(device: str) -> None:
    """List the built-in blocks, their options, and the path that computes each on this machine."""
    import torch
    from rich.table import Table

    from rad_bench.model.registry import block_names, block_options, find_block
    from rad_bench.training.device import choose_device, device_name
    from rad_bench.training.distributed import Group

    place = choose_device(device, Group())
    table, paths = Table("block", "what it is", "options (default)", "sized by"), []
    for name in block_names():
        block = find_block(name)
        fields = block_options(block).model_fields.items()
        options = ", ".join(f"{key} ({field.default})" for key, field in fields)
        summary = (block.__doc__ or "").strip().splitlines()[0]
        table.add_row(name, summary, options or "none", block.size_option or "-")
        path = block(8).path(place, torch.float32)
        paths.append(f"  {name}: {path.name}; {path.why}" if path.why else f"  {name}: {path.name}")
    print_table(table)
    click.echo(f"Paths on {device_name(place)}, in fp32:")
    click.echo("\n".join(paths))
    click.echo("`rad-bench check` compares each path with the reference, the loop over `step`.")


@click.command()
@click.argument(
    "kinds",
    nargs=-1,
    type=click.Choice(
        ["blocks", "rollout", "metrics", "startup", "step", "compile", "profile", "memory", "launches", "scaling"]
    ),
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--seconds", type=click.FloatRange(0.01, 600), default=2.0, show_default=True, help="Time per comparison."
)
@click.option("--out", type=PLACE, default=Path("results/bench"), show_default=True,
              help="Folder of the figures.")  # fmt: skip
def bench(kinds: tuple[str, ...], device: str, seconds: float, out: Path) -> None:
    """Compare speeds, as ratios of two versions timed in one process. Without KINDS: run all that compare.

    These compare nothing: `profile` shows where the time of a training step goes. `memory` predicts the memory that a
    step needs and measures it, on a GPU at the size of `sweeps/gpu`. `launches` counts the kernels that each memory
    launches in a step of that size; it needs no GPU. `scaling` predicts what a model of RAD's size would need, from
    counts and from measurements on this machine.
    """
    from rad_bench.bench import suite

    for kind in kinds or tuple(suite.KINDS):
        measurements, table = suite.bench(kind, device, seconds, lambda name: click.echo(f"  {name}", err=True))
        print_table(table)
        click.echo(f"figures: {suite.store(kind, measurements, device, out)}")
