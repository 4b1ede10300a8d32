"""Run the measurements of a kind, as a table and as a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from rad_bench.bench import (
    block_speed,
    rollout_speed,
    scaling,
    scoring_speed,
    startup,
    step_parts,
    step_speed,
)
from rad_bench.bench.race import Outcome, Race, run
from rad_bench.bench.scaling import Prediction
from rad_bench.bench.step_parts import Profile
from rad_bench.model.registry import block_names
from rad_bench.run.environment import environment
from rad_bench.store.atomic import write_figures
from rad_bench.training.device import be_deterministic, choose_device
from rad_bench.training.distributed import Group

KINDS: dict[str, Callable[[torch.device], Iterator[Race]]] = {
    "blocks": block_speed.races, "rollout": rollout_speed.races, "metrics": scoring_speed.races,
    "startup": startup.races, "step": step_speed.races, "compile": step_speed.compiled_races,
}  # fmt: skip


Found = Sequence[Outcome | Profile | Prediction]


def bench(kind: str, device_name: str, seconds: float, report: Callable[[str], None]) -> tuple[Found, Table]:
    """Measure what there is of a kind; `report(name)` is called before each piece. Returns it and its table."""
    device = choose_device(device_name, Group())
    be_deterministic(1, device)
    if kind == "scaling":
        predictions = [scaling.predict(block) for block in _told(scaling.BLOCKS, report)]
        return predictions, scaling.table(predictions)
    if kind == "profile":
        profiles = [step_parts.profile(block, device, seconds) for block in _told(block_names(), report)]
        return profiles, step_parts.table(profiles)
    outcomes = []
    for race in KINDS[kind](device):
        report(race.name)
        outcomes.append(run(race, device, seconds))
    return outcomes, table(kind, outcomes)


def _told(names: Iterable[str], report: Callable[[str], None]) -> Iterator[str]:
    """Iterate over names, each reported when its turn comes."""
    for name in names:
        report(name)
        yield name


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


def store(kind: str, found: Found, device_name: str, folder: Path) -> Path:
    """Write what was found with all that it ran on. Raises `UserError` if that cannot be."""
    device = choose_device("cpu" if kind == "scaling" else device_name, Group())
    what = {"profile": "profiles", "scaling": "predictions"}.get(kind, "races")
    record: dict[str, Any] = {
        "kind": kind, "environment": environment(device, 1, 1), what: [each.record() for each in found],
    }  # fmt: skip
    path = folder / f"{kind}-{device.type}.json"
    write_figures(path, record)
    return path
