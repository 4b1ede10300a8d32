"""What a sweep was asked for, time after time, and which results were there by then.

Statistics hold for seeds and rules that were named before results were seen. sweep.yaml therefore keeps a list
`history`. A command that names other seeds, or other rules of evaluation, than the last one adds an entry. `--only`
names nothing anew: the seeds of a sweep are those of its file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rad_bench.config import EvaluationConfig
from rad_bench.errors import UserError
from rad_bench.store.run_folder import RunFolder
from rad_bench.store.sweep_folder import read_plan

RULES = ("tasks", "episodes", "context", "horizon", "seed", "reach")  # in `evaluation`; they decide the headline
_SEED = re.compile(r"-seed(\d+)-[0-9a-f]{8}$")  # at the end of a run's name


@dataclass(frozen=True)
class Request:
    """What a command asked for."""

    seeds: list[int]
    rules: dict[str, list[Any]]  # setting of `evaluation` -> its values over the grid
    results: list[int] | None  # seeds of which results were there; None: another sweep's, which is not known


def updated(sweep: Mapping[str, Any], sweep_folder: Path) -> list[Request]:
    """Return the history of a sweep's folder with what is asked for now; `sweep` has the keys of a sweep file."""
    history = read_history(read_plan(sweep_folder)) if (sweep_folder / "sweep.yaml").exists() else []
    defaults = EvaluationConfig().model_dump(mode="json")
    seeds = sorted({int(seed) for seed in _values(sweep, "seed", 0)})
    rules = {name: _values(sweep, f"evaluation.{name}", defaults[name]) for name in RULES}
    if history and (history[-1].seeds, history[-1].rules) == (seeds, rules):
        return history
    named = {*seeds, *(seed for request in history for seed in request.seeds)}
    return [*history, Request(seeds, rules, sorted(named & _finished(sweep_folder)))]


def read_history(plan: Mapping[str, Any]) -> list[Request]:
    """Return the history in a sweep.yaml, empty in an older one. Raises `UserError` if it is something else."""
    try:
        return TypeAdapter(list[Request]).validate_python(plan.get("history") or [])
    except ValidationError as error:
        raise UserError(f"sweep.yaml: history: {error.errors(include_url=False)[0]['msg']}.") from None


def written(history: list[Request]) -> list[dict[str, Any]]:
    """Return a history as sweep.yaml holds it."""
    return [asdict(request) for request in history]


def joined(histories: list[list[Request]]) -> list[Request]:
    """Return the history of a merged sweep: which of two was seen before the other was asked for is not known."""
    first, *others = histories
    return first + [Request(h[-1].seeds, h[-1].rules, None) for h in others if h and h != first]


def _finished(sweep_folder: Path) -> set[int]:
    """Return the seeds of the finished runs in a sweep's folder, whatever their other settings."""
    runs = [path for path in sweep_folder.glob("runs/*") if RunFolder(path).is_done]
    return {int(match[1]) for path in runs if (match := _SEED.search(path.name))}


def _values(sweep: Mapping[str, Any], path: str, default: Any) -> list[Any]:
    """Return the values that a path below `run` has over the grid."""
    found: list[Any] = []
    for axis, values in sweep["grid"].items():
        named = [point[path] for point in values.values() if path in point] if isinstance(values, dict) else []
        found += values if axis == path and isinstance(values, list) else named
    tree: Any = sweep["run"]
    for part in path.split("."):
        tree = tree.get(part, None) if isinstance(tree, dict) else None
    return found or [default if tree is None else tree]
