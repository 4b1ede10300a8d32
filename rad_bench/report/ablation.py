"""Sweeps over several axes, read one axis at a time: each value against the axis's first, all else equal.

A block's options are axes of their own (`ttt.head_dim`), so a sweep over sizes of blocks is read size by size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rad_bench.report.intervals import Estimate, compare_pairs, estimate, holm
from rad_bench.report.reading import Sweep

DEFAULT = "default"  # value of an option that is not given


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


@dataclass(frozen=True)
class _Point:
    """Where a block's label stands in the grid."""

    axes: dict[str, str]  # but for the seed
    options: dict[str, str]  # of its block, `ttt.head_dim` -> 8


def ablation_rows(sweep: Sweep) -> list[AblationRow]:
    """Return rows for every axis of a sweep with several; none for a sweep over blocks and seeds alone."""
    points = _points(sweep)
    plain = _varied([point.axes for point in points.values()])
    axes = plain if plain != ["memory"] else []  # the headline's table compares blocks
    options = _varied([point.options for point in points.values()])
    rows = []
    for task in sweep.tasks:
        for axis in (*axes, *options):
            groups: dict[str, dict[str, str]] = {}  # other axes -> value -> block label
            # An axis is read with the whole block held, an option with the block's other options held.
            held = [name for name in (*plain, *options) if name != axis and not (axis in options and name == "memory")]
            for label, point in points.items():
                own = {**point.axes, **point.options} if axis in options else point.axes
                if axis in own:
                    others = ", ".join(_named(name, own[name]) for name in held if name in own)
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
    pairs = [compare_pairs({value: found, first: base})[0] for value, found in rest]
    corrected = holm([pair.p for pair in pairs])
    rows = [AblationRow(task, axis, others, first, estimate(base), None, None)]
    for (value, found), pair, p in zip(rest, pairs, corrected, strict=True):
        rows.append(AblationRow(task, axis, others, value, estimate(found), pair.difference, p))
    return rows


def _points(sweep: Sweep) -> dict[str, _Point]:
    """Return the place of each block label, in the order in which the runs were planned."""
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
    """Return a block's name and options, as an axis gives them."""
    if not isinstance(value, dict):
        return _text(value), {}
    options = value.get("options") or {key: option for key, option in value.items() if key != "name"}
    return _text(value.get("name")), options if isinstance(options, dict) else {}


def _named(axis: str, value: str) -> str:
    return value if axis == "memory" else f"{axis.rpartition('.')[2]}={value}"


def _text(value: Any) -> str:
    """Write an axis's value; a block with options as its label does."""
    if isinstance(value, str):
        return value.rpartition(":")[2]
    if isinstance(value, dict) and "name" in value:
        name, options = _block(value)
        given = ", ".join(f"{key}={option}" for key, option in options.items())
        return f"{name}({given})" if given else name
    return json.dumps(value)
