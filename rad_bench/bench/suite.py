"""Run the measurements of a kind, as a table and as a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich import box
from rich.table import Table

from rad_bench.bench import (
    block_speed,
    launches,
    rollout_speed,
    scaling,
    scoring_speed,
    startup,
    step_memory,
    step_parts,
    step_speed,
)
from rad_bench.bench.comparison import Comparison, Outcome, compare
from rad_bench.model.registry import block_names
from rad_bench.run.environment import environment
from rad_bench.store.atomic import write_figures
from rad_bench.training.device import be_deterministic, choose_device
from rad_bench.training.distributed import Group


class Measurement(Protocol):
    """What is measured, as far as it is stored."""

    def record(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class BlockKind:
    """A kind that measures blocks one by one, and compares nothing."""

    name: str  # of the measurements in the file
    measure: Callable[[str, torch.device, float], Measurement]  # of a block, on a device, for so many seconds
    table: Callable[[Any], Table]
    blocks: Callable[[], Iterable[str]] = block_names
    counts: bool = False  # needs no device: its figures are the same on all


KINDS: dict[str, Callable[[torch.device], Iterator[Comparison]]] = {
    "blocks": block_speed.comparisons, "rollout": rollout_speed.comparisons, "metrics": scoring_speed.comparisons,
    "startup": startup.comparisons, "step": step_speed.comparisons, "compile": step_speed.compiled_comparisons,
}  # fmt: skip
BLOCK_KINDS = {
    "profile": BlockKind("profiles", step_parts.profile, step_parts.table),
    "memory": BlockKind("peaks", lambda block, device, _: step_memory.step_memory(block, device), step_memory.table),
    "launches": BlockKind("launches", lambda block, *_: launches.count_launches(block), launches.table, counts=True),
    "scaling": BlockKind(
        "predictions", lambda block, *_: scaling.predict(block), scaling.table, lambda: scaling.BLOCKS, counts=True
    ),
}


def bench(
    kind: str, device_name: str, seconds: float, report: Callable[[str], None]
) -> tuple[Sequence[Measurement], Table]:
    """Make all measurements of a kind, with `report(name)` before each. Returns them and their table."""
    device = choose_device(device_name, Group())
    be_deterministic(1, device)
    if kind in BLOCK_KINDS:
        own, measurements = BLOCK_KINDS[kind], []
        for block in own.blocks():
            report(block)
            measurements.append(own.measure(block, device, seconds))
        return measurements, own.table(measurements)
    outcomes = []
    for comparison in KINDS[kind](device):
        report(comparison.name)
        outcomes.append(compare(comparison, device, seconds))
    return outcomes, table(kind, outcomes)


def table(kind: str, outcomes: list[Outcome]) -> Table:
    """Return the outcomes as a table. A comparison whose outputs differ has no ratio."""
    rich_table = Table(title=f"bench {kind}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for heading in ("ours", "against"):
        rich_table.add_column(heading, overflow="fold")
    for heading in ("ours, ms", "other, ms", "ratio (quartiles)", "outputs differ by", "goal", "also"):
        rich_table.add_column(heading, justify="right")
    for o in outcomes:
        ratio = f"{o.ratio:.2f} ({o.low:.2f} to {o.high:.2f})" if o.valid else "void: outputs differ"
        also = ", ".join(f"{name.replace('_', ' ')} {value:,.4g}" for name, value in o.notes.items())
        difference = "" if o.difference is None else f"{o.difference:.1e}"
        rich_table.add_row(
            o.name, o.other_name, f"{o.ours_ms:.2f}", f"{o.other_ms:.2f}", ratio, difference, o.goal, also
        )
    return rich_table


def store(kind: str, measurements: Sequence[Measurement], device_name: str, folder: Path) -> Path:
    """Write measurements with their environment. Raises `UserError` if they cannot be written."""
    own = BLOCK_KINDS.get(kind)
    device = choose_device("cpu" if own and own.counts else device_name, Group())
    name = own.name if own else "comparisons"
    record: dict[str, Any] = {
        "kind": kind, "environment": environment(device, 1, 1), name: [each.record() for each in measurements],
    }  # fmt: skip
    path = folder / f"{kind}-{device.type}.json"
    write_figures(path, record)
    return path
