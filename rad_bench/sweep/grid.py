"""From a sweep to its runs: the grid's points, their names and their identities."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rad_bench.config import LaunchConfig, RunConfig, SweepConfig
from rad_bench.data import Dataset, open_dataset
from rad_bench.errors import UserError, did_you_mean, one_line
from rad_bench.model.registry import block_identity, check_options
from rad_bench.run.identity import run_key
from rad_bench.store.run_folder import Run
from rad_bench.store.strict_yaml import DEEPEST
from rad_bench.sweep.load import absolute_paths, merge, set_at, split_assignment, validate

MOST_RUNS = 10_000
LONGEST_LABEL = 300  # characters


def plan_runs(sweep: SweepConfig, only: Iterable[str] = (), where: str = "sweep") -> list[Run]:
    """Return the runs of a sweep in the grid's order, the last axis fastest. Raises `UserError`.

    `only` keeps the points whose axis has the given value (`memory=lstm`), or one of several values.
    """
    _check_axes(sweep, where)
    axes = list(sweep.grid)
    count = math.prod(len(values) for values in sweep.grid.values())
    if count > MOST_RUNS:
        raise UserError(f"{where}: the grid has {count} points; more than {MOST_RUNS} are refused.")
    keep = _parse_only(sweep, only)
    datasets: dict[str, Dataset] = {}
    runs: dict[str, Run] = {}
    names: set[tuple[str, int]] = set()
    for point in itertools.product(*sweep.grid.values()):
        if any(axis in keep and value not in keep[axis] for axis, value in zip(axes, point, strict=True)):
            continue
        run = _make_run(sweep, dict(zip(axes, point, strict=True)), datasets, where)
        if run.key in runs:
            raise UserError(f"{where}: the grid has '{run.label}' with seed {run.config.seed} twice.")
        if (run.label, run.config.seed) in names:
            raise UserError(
                f"{where}: two different points of the grid would both be called '{run.label}', seed "
                f"{run.config.seed}, and a report could not tell them apart. Give one of them another name."
            )
        names.add((run.label, run.config.seed))
        runs[run.key] = run
    for run in runs.values():
        launch_of(sweep, run, where)  # raises for a mistake in launch.where before anything is launched
    return list(runs.values())


def cut_to(sweep: SweepConfig, runs: Sequence[Run]) -> SweepConfig:
    """Return the sweep restricted to these runs, which `--only` selected."""
    grid: dict[str, Any] = {}
    for axis, values in sweep.grid.items():
        used = [run.axes[axis] for run in runs]
        kept = [value for value in values if value in used]
        grid[axis] = {name: values[name] for name in kept} if isinstance(values, dict) else kept
    matching = {
        text: changes
        for text, changes in sweep.launch.where.items()
        if all(value in grid[axis] for axis, values in _parse_only(sweep, [text]).items() for value in values)
    }
    return sweep.model_copy(update={"grid": grid, "launch": sweep.launch.model_copy(update={"where": matching})})


def launch_of(sweep: SweepConfig, run: Run, where: str = "sweep") -> LaunchConfig:
    """Return how a run is launched: the sweep's `launch`, changed by the entries of `launch.where` that match it."""
    if not sweep.launch.where:
        return sweep.launch
    tree = sweep.launch.model_dump(mode="json", exclude={"where"})
    for text, changes in sweep.launch.where.items():
        if all(
            run.axes[axis] in values for axis, values in _parse_only(sweep, [text], f"{where}: launch.where").items()
        ):
            tree = merge(tree, changes)
    launch: LaunchConfig = validate(LaunchConfig, tree, lambda _: where, "launch.where")
    return launch


def _make_run(sweep: SweepConfig, axes: dict[str, Any], datasets: dict[str, Dataset], where: str) -> Run:
    tree = json.loads(json.dumps(sweep.run))
    for axis, value in axes.items():
        named = sweep.grid[axis]
        settings = named[value] if isinstance(named, dict) else {axis: value}
        for path, setting in settings.items():
            set_at(tree, path.split("."), setting, f"{where}: grid.{axis}")

    def origin(key: Sequence[str]) -> str:
        axis = next((axis for axis in axes if sets(sweep, axis, key[1:])), None)
        return sweep.origin(key if axis is None else ["grid", axis], where)

    config = absolute_paths(validate(RunConfig, tree, origin, "run"), sweep.folders)
    try:
        check_options(config.memory)
    except UserError as error:
        raise UserError(f"{origin(['run', 'memory'])}: run.{error}") from None
    identity = config.data.model_dump_json()
    if identity not in datasets:
        datasets[identity] = open_dataset(config.data)
    dataset = datasets[identity]
    _check_poses(config, dataset, where)
    return named_run(_label(sweep, config, axes, where), axes, config, dataset)


def named_run(label: str, axes: dict[str, Any], config: RunConfig, dataset: Dataset) -> Run:
    """Return a run with its identity, which is part of its name."""
    key = run_key(config, dataset)
    slug = re.sub(r"[^A-Za-z0-9.=]+", "-", label).strip("-.")[:80]
    name = f"{slug or 'run'}-seed{config.seed}-{key[:8]}"
    return Run(name, label, axes, config, key, block_identity(config.memory), dataset.identity)


def sets(sweep: SweepConfig, axis: str, key: Sequence[str]) -> bool:
    """Return whether an axis of the grid sets a key below `run`, or something in it or above it."""
    values = sweep.grid[axis]
    paths = [axis] if isinstance(values, list) else [path for point in values.values() for path in point]
    return any(all(a == b for a, b in zip(path.split("."), key, strict=False)) for path in paths if key)


def _check_poses(config: RunConfig, dataset: Dataset, where: str) -> None:
    """Raise `UserError` if the run needs poses that its data do not have."""
    if dataset.has_poses:
        return
    if config.trunk.motion != "action":
        raise UserError(
            f"{where}: run.trunk.motion: {config.trunk.motion} is derived from poses, and these {config.data.name} "
            "data have none; set trunk.motion: action and evaluation.tasks: [continuation]."
        )
    # With motion: action the config itself refuses retrieval.


def _label(sweep: SweepConfig, config: RunConfig, axes: dict[str, Any], where: str) -> str:
    """Return a run's label: its block with the given options, and the values of the other axes or names of points.

    Named points of the axis `memory` have their name instead of the block's.
    """
    label = config.memory.name.rpartition(":")[2]
    if config.memory.options:
        label += "(" + ", ".join(f"{k}={v}" for k, v in config.memory.options.items()) + ")"
    others = []
    for axis, value in axes.items():
        named = sweep.grid[axis]
        if axis == "memory" and isinstance(named, dict):
            label = str(value)
        elif axis not in ("memory", "seed"):
            others.append(str(value) if isinstance(named, dict) else f"{axis.rpartition('.')[2]}={value}")
    label = one_line(" / ".join([label, *others]), longest=10 * LONGEST_LABEL)
    if len(label) > LONGEST_LABEL:
        raise UserError(
            f"{where}: grid: a point's name has {len(label)} characters, more than {LONGEST_LABEL}: "
            f"'{label:.80}...'. Named points, `regime: {{short: {{...}}, ...}}`, keep names short."
        )
    return label


def _check_axes(sweep: SweepConfig, where: str) -> None:
    for axis, values in sweep.grid.items():
        if not values:
            raise UserError(f"{where}: grid.{axis}: has no values.")
        if isinstance(values, dict) and axis != "memory" and axis.split(".")[0] in RunConfig.model_fields:
            raise UserError(
                f"{where}: grid.{axis}: is a path below 'run' and takes a list of values; named points need a name of "
                "their own."
            )
        paths = [axis] if isinstance(values, list) else [path for point in values.values() for path in point]
        for path in paths:
            first, *rest = path.split(".")
            if len(rest) >= DEEPEST:
                raise UserError(f"{where}: grid.{axis}: there is no path of {len(rest) + 1} parts below 'run'.")
            if first not in RunConfig.model_fields:
                hint = did_you_mean(first, RunConfig.model_fields)
                raise UserError(f"{where}: grid.{axis}: '{path}' is no path below 'run': there is no '{first}'{hint}")


def _short(value: Any) -> str:
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)


def _parse_only(sweep: SweepConfig, only: Iterable[str], option: str = "--only") -> dict[str, list[Any]]:
    """Return the kept values of each restricted axis. A block with options also matches by its name."""
    keep: dict[str, list[Any]] = {}
    for text in only:
        axis, value = split_assignment(text, option)
        axis = axis.removeprefix("run.").removeprefix("grid.")
        if axis not in sweep.grid:
            raise UserError(f"{option} {text}: '{axis}' is no axis of this grid{did_you_mean(axis, sweep.grid)}")
        matches = [v for v in sweep.grid[axis] if v == value or _short(v) == str(value)]
        if not matches:
            hint = did_you_mean(str(value), map(_short, sweep.grid[axis]))
            raise UserError(f"{option} {text}: {axis} has no value '{value}'{hint}")
        keep.setdefault(axis, []).extend(matches)
    return keep
