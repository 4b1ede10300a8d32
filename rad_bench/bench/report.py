"""Run the races of a kind, print them, store them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from rad_bench.bench import blocks, metrics, rollout, seeds, startup, step
from rad_bench.bench.race import Outcome, Race, run
from rad_bench.bench.scaling import Prediction
from rad_bench.distributed import Group
from rad_bench.environment import be_deterministic, choose_device, environment, write_figures

KINDS: dict[str, Callable[[torch.device], Iterator[Race]]] = {
    "blocks": blocks.races, "rollout": rollout.races, "metrics": metrics.races, "seeds": seeds.races,
    "startup": startup.races, "step": step.races,
}  # fmt: skip


def bench(kind: str, device_name: str, seconds: float, report: Callable[[str], None]) -> list[Outcome]:
    """Run the races of a kind; `report(name)` is called before each."""
    device = choose_device(device_name, Group())
    be_deterministic(1, device)
    outcomes = []
    for race in KINDS[kind](device):
        report(race.name)
        outcomes.append(run(race, device, seconds))
    return outcomes


def table(kind: str, outcomes: list[Outcome]) -> Table:
    """Return the outcomes as a table; a race whose outputs differ has no ratio."""
    found = Table(title=f"bench {kind}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for heading in ("ours", "against"):
        found.add_column(heading, overflow="fold")
    for heading in ("ours, ms", "other, ms", "ratio (quartiles)", "outputs differ by", "goal", "also"):
        found.add_column(heading, justify="right")
    for o in outcomes:
        ratio = f"{o.ratio:.2f} ({o.low:.2f} to {o.high:.2f})" if o.valid else "void: outputs differ"
        also = ", ".join(f"{name.replace('_', ' ')} {value:,.4g}" for name, value in o.notes.items())
        difference = "" if o.difference is None else f"{o.difference:.1e}"
        found.add_row(o.name, o.other_name, f"{o.ours_ms:.2f}", f"{o.other_ms:.2f}", ratio, difference, o.goal, also)
    return found


def store(kind: str, outcomes: Sequence[Outcome | Prediction], device_name: str, folder: Path) -> Path:
    """Write the outcomes with all that they ran on. Raises `UserError` if that cannot be."""
    device = choose_device(device_name, Group())
    what = "predictions" if kind == "scaling" else "races"
    record: dict[str, Any] = {
        "kind": kind, "environment": environment(device, 1, 1), what: [outcome.record() for outcome in outcomes],
    }  # fmt: skip
    path = folder / f"{kind}-{device.type}.json"
    write_figures(path, record)
    return path
