"""Sweeps over several axes: each value of an axis is compared with the axis's first value, all else equal.

Each option of a block is an axis too (`ttt.head_dim`), so sizes of a block are compared with each other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rad_bench.report.intervals import Estimate, compare_pairs, estimate, holm
from rad_bench.report.reading import Sweep

DEFAULT = "default"  # value of an option that is not set


@dataclass(frozen=True)
class AblationRow:
    """One value of an axis, at fixed values of the other axes."""

    task: str
    axis: str
    others: str
    value: str
    revisit: Estimate
    less_first: Estimate | None  # None for the first value itself
    p_holm: float | None  # corrected over the values of this group


@dataclass(frozen=True)
class _Point:
    """The point of the grid that a block label stands for."""

    axes: dict[str, str]  # without the seed
    options: dict[str, str]  # of the block: `ttt.head_dim` -> 8


def ablation_rows(sweep: Sweep) -> list[AblationRow]:
    """Return rows for every axis with several values; none if a sweep varies only blocks and seeds."""
    points = _points(sweep)
    varied = _varied([point.axes for point in points.values()])
    axes = varied if varied != ["memory"] else []  # the main table compares blocks
    options = _varied([point.options for point in points.values()])
    rows = []
    for task in sweep.tasks:
        for axis in (*axes, *options):
            groups: dict[str, dict[str, str]] = {}  # other axes -> value -> block label
            # For an axis the block with its options is fixed; for an option the block's other options are fixed.
            fixed = [
                name for name in (*varied, *options) if name != axis and not (axis in options and name == "memory")
            ]
            for label, point in points.items():
                own = {**point.axes, **point.options} if axis in options else point.axes
                if axis in own:
                    others = ", ".join(_named(name, own[name]) for name in fixed if name in own)
                    groups.setdefault(others, {})[own[axis]] = label
            for others, labels in groups.items():
                if len(labels) > 1:
                    rows += _group(sweep, task, axis, others, labels)
    return rows


def _varied(points: list[dict[str, str]]) -> list[str]:
    """Return the axes that have several values."""
    names = dict.fromkeys(axis for point in points for axis in point)
    return [name for name in names if len({point[name] for point in points if name in point}) > 1]


def _group(sweep: Sweep, task: str, axis: str, others: str, labels: dict[str, str]) -> list[AblationRow]:
    values = {value: sweep.revisits(task, label) for value, label in labels.items()}
    (first, base), *rest = values.items()
    pairs = [compare_pairs({value: psnr, first: base})[0] for value, psnr in rest]
    corrected = holm([pair.p for pair in pairs])
    rows = [AblationRow(task, axis, others, first, estimate(base), None, None)]
    for (value, psnr), pair, p in zip(rest, pairs, corrected, strict=True):
        rows.append(AblationRow(task, axis, others, value, estimate(psnr), pair.difference, p))
    return rows


def _points(sweep: Sweep) -> dict[str, _Point]:
    """Return the grid point of each block label, in the order of the planned runs."""
    points: dict[str, _Point] = {}
    names: dict[str, str] = {}  # label -> its block's name
    for result in sweep.results:
        axes = {axis: value for axis, value in result.axes.items() if axis != "seed"}
        name, options = _block(axes.get("memory"))
        names[result.block] = name
        named = {f"{name}.{key}": _text(value) for key, value in options.items()}
        points.setdefault(result.block, _Point({axis: _text(value) for axis, value in axes.items()}, named))
    for label, point in points.items():
        for name in dict.fromkeys(name for other in points.values() for name in other.options):
            if name.startswith(f"{names[label]}."):
                point.options.setdefault(name, DEFAULT)
    return points


def _block(value: Any) -> tuple[str, dict[str, Any]]:
    """Return a block's name and options from a value of the axis `memory`."""
    if not isinstance(value, dict):
        return _text(value), {}
    options = value.get("options") or {key: option for key, option in value.items() if key != "name"}
    return _text(value.get("name")), options if isinstance(options, dict) else {}


def _named(axis: str, value: str) -> str:
    return value if axis == "memory" else f"{axis.rpartition('.')[2]}={value}"


def _text(value: Any) -> str:
    """Format a value of an axis; a block with options as in its label."""
    if isinstance(value, str):
        return value.rpartition(":")[2]
    if isinstance(value, dict) and "name" in value:
        name, options = _block(value)
        assignments = ", ".join(f"{key}={option}" for key, option in options.items())
        return f"{name}({assignments})" if assignments else name
    return json.dumps(value)
