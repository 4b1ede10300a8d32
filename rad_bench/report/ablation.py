"""Sweeps over several axes, read one axis at a time: each value against the axis's first, all else equal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rad_bench.report.statistics import Estimate, compare_pairs, estimate, holm
from rad_bench.report.summary import Sweep


@dataclass(frozen=True)
class AblationRow:
    """One value of an axis, at given values of the others."""

    task: str
    axis: str
    others: str
    value: str
    revisit: Estimate
    less_first: Estimate | None  # None for the first value itself
    p_holm: float | None  # over the values compared here


def ablation_rows(sweep: Sweep) -> list[AblationRow]:
    """Return rows for every axis of a sweep with several; none for a sweep over blocks and seeds alone."""
    points = _points(sweep)
    names = [axis for axis in next(iter(points.values()), {}) if len({p.get(axis) for p in points.values()}) > 1]
    if len(names) < 2:
        return []
    rows = []
    for task in sweep.tasks:
        for axis in names:
            groups: dict[str, dict[str, str]] = {}  # other axes -> value -> block label
            for label, point in points.items():
                others = ", ".join(value for name, value in point.items() if name != axis and name in names)
                groups.setdefault(others, {})[point[axis]] = label
            for others, labels in groups.items():
                rows += _group(sweep, task, axis, others, labels)
    return rows


def _group(sweep: Sweep, task: str, axis: str, others: str, labels: dict[str, str]) -> list[AblationRow]:
    values = {value: sweep.revisits(task, label) for value, label in labels.items()}
    (first, base), *rest = values.items()
    pairs = [compare_pairs({value: found, first: base})[0] for value, found in rest]
    corrected = holm([pair.p for pair in pairs])
    rows = [AblationRow(task, axis, others, first, estimate(base), None, None)]
    for (value, found), pair, p in zip(rest, pairs, corrected, strict=True):
        rows.append(AblationRow(task, axis, others, value, estimate(found), pair.difference, p))
    return rows


def _points(sweep: Sweep) -> dict[str, dict[str, str]]:
    """Return the axes of each block label but the seed, in the order in which the runs were planned."""
    order = {name: place for place, name in enumerate(sweep.plan.get("planned", []))}
    points: dict[str, dict[str, str]] = {}
    for result in sorted(sweep.results, key=lambda result: order.get(result["run"], len(order))):
        axes = {axis: _text(value) for axis, value in result.get("axes", {}).items() if axis != "seed"}
        points.setdefault(result["block"], axes)
    return points


def _text(value: Any) -> str:
    """Write an axis's value; a block with options as its label does."""
    if isinstance(value, str):
        return value.rpartition(":")[2]
    if isinstance(value, dict) and "name" in value:
        options = value.get("options") or {key: option for key, option in value.items() if key != "name"}
        return f"{value['name']}({', '.join(f'{key}={option}' for key, option in options.items())})"
    return json.dumps(value)
