"""The models of a sweep and their estimated cost, as tables. A model has one row for all its seeds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from rad_bench.blocks.contract import check_block, contract_precision
from rad_bench.config import LaunchConfig, RunConfig, SweepConfig
from rad_bench.data import open_dataset
from rad_bench.errors import UserError
from rad_bench.evaluation.need import needs_of, shortfalls
from rad_bench.model.budget import ModelPlan
from rad_bench.model.experiment import open_experiment
from rad_bench.model.registry import check_options, find_block, is_built_in
from rad_bench.run.footprint import Model
from rad_bench.run.identity import Machine, training_key
from rad_bench.run.reuse import find_trained
from rad_bench.store.result import Need
from rad_bench.store.run_folder import Run, RunFolder
from rad_bench.sweep.estimate import Cost, Disk, disk, measured, wall_seconds
from rad_bench.sweep.grid import launch_of
from rad_bench.sweep.timing import probe_cost
from rad_bench.training.device import be_deterministic, choose_device, device_name
from rad_bench.training.distributed import Group
from rad_bench.units import show_bytes, show_seconds, show_spans, two_digits

CHECKED_WIDTH = 64  # channels
NO_GPU = " It was checked on the CPU, as PyTorch sees no GPU here; plan a block that needs one where there is one."
NEEDLESS: dict[str, Any] = {  # what does not change which frames are trained and scored
    **dict.fromkeys(("memory", "match", "seed", "diffusion"), True),
    "training": {"learning_rate", "betas", "weight_decay", "warmup", "clip", "ema", "precision", "checkpoint_every"},
}
FEWEST_EPISODES = 8  # with revisits; means over fewer say little about a task


@dataclass(frozen=True)
class PlannedModel:
    """One model of a sweep, with a run for every seed."""

    label: str
    runs: tuple[Run, ...]
    done: tuple[bool, ...]  # of each run
    plan: ModelPlan
    shapes: Model
    disk: Disk
    need: dict[str, Need]  # of training, and of each task; empty if the data have no poses
    shortfalls: list[str]  # what the data can serve in part only

    @property
    def missing(self) -> int:
        return self.done.count(False)


def plan_sweep(
    runs: Sequence[Run], sweep_folder: Path, trials: Mapping[str, Sequence[Run]] | None = None, device: str = "auto"
) -> list[PlannedModel]:
    """Return the models of a sweep in the grid's order, after its trials, which are one model for each block.

    Users' blocks are checked on the device that `launch.device` names, if it is here.

    Raises `UserError` if one cannot be built, or its data cannot serve its training or evaluation.
    """
    groups: dict[str, tuple[str, list[Run]]] = {}
    for run in runs:
        key = run.label + run.config.model_copy(update={"seed": 0}).model_dump_json()
        groups.setdefault(key, (run.label, []))[1].append(run)
    for _, group in groups.values():
        if not is_built_in(group[0].config.memory):
            _check_contract(group[0].config, device)
    models = []
    needs: dict[str, tuple[dict[str, Need], list[str]]] = {}  # shared by models with the same clips and tasks
    tried = [(f"{block}: trials", list(own)) for block, own in (trials or {}).items()]
    for number, (label, group) in enumerate([*tried, *groups.values()]):
        config = group[0].config
        experiment = open_experiment(config, torch.device("cpu"))
        folders = [RunFolder(sweep_folder / "runs" / run.name) for run in group]
        done = tuple(folder.is_done or (number < len(tried) and folder.has_diverged) for folder in folders)
        shared = config.model_dump_json(exclude=NEEDLESS)
        if shared not in needs:
            try:
                short = shortfalls(config, experiment.dataset)  # first, because it fails without reading frames
            except UserError as error:
                episodes = "tune: each trial is scored on tune.episodes validation episodes: "
                raise UserError(f"{episodes if number < len(tried) else ''}{error}") from None
            needs[shared] = needs_of(config, experiment.dataset), short
        data, frame_shape = experiment.dataset, experiment.codec.frame_shape
        shapes = Model(config, experiment.plan.options, frame_shape, data.action_size, data.pose_size)
        models.append(
            PlannedModel(label, tuple(group), done, experiment.plan, shapes, disk(experiment), *needs[shared])
        )
    return models


def _check_contract(config: RunConfig, device_name: str) -> None:
    """Raise `UserError` if a user's block breaks the contract: its scores would not be due to a memory.

    The check takes seconds, because it uses a small width and not the size that the budget gives the block. It covers
    clips as long as the longest of training and evaluation.
    """
    name, width = config.memory.name, min(config.trunk.width, CHECKED_WIDTH)
    frames = max(config.training.frames, config.evaluation.context + config.evaluation.horizon)
    device = choose_device(device_name if torch.cuda.is_available() else "cpu", Group())
    outcomes = check_block(
        find_block(name), check_options(config.memory), device, contract_precision(device), width,
        length=frames // config.trunk.frames_per_step,
    )  # fmt: skip
    broken = [check for check in outcomes if not check.passed]
    if broken:
        details = "; ".join(f"{check.name}: {check.detail}" for check in broken[:3])
        more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise UserError(
            f"memory: block '{name}' breaks the contract of memory blocks and cannot be compared with others: {details}"
            f"{more}. `rad-bench check {name}` shows all checks."
            + (NO_GPU if device.type == "cpu" != device_name else "")
        )


def models_table(models: Sequence[PlannedModel]) -> Table:
    """Return the sizes of each model, and how many of its runs are done."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for heading in (
        "seeds", "done", "memory\nparameters", "trunk\nparameters", "memory, MFLOPs\na frame", "trunk, MFLOPs\na frame",
        "state, bytes\na video", "off\nbudget", "disk\na run",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for model in models:
        plan, bytes_ = model.plan, list(model.plan.state_bytes.values())
        table.add_row(
            model.label,
            show_spans(list(dict.fromkeys(run.config.seed for run in model.runs)), "-"),
            f"{model.done.count(True)} of {len(model.runs)}",
            f"{plan.memory_parameters:,}",
            f"{plan.trunk_parameters:,}",
            f"{plan.memory_flops / 1e6:.2f}",
            f"{plan.trunk_flops / 1e6:.2f}",
            f"{bytes_[0]:,}" if len(set(bytes_)) == 1 else f"{bytes_[0]:,} to\n{bytes_[-1]:,}",
            _off_budget(model),
            show_bytes(model.disk.total),
        )
    return table


def _off_budget(model: PlannedModel) -> str:
    """Return how far a model is from its budget. A block without a size to solve for keeps its size."""
    if model.plan.residual is not None:
        return f"{model.plan.residual:+.1%}"
    has_budget = model.runs[0].config.match.budget is not None
    return "not sized" if has_budget and model.plan.memory_parameters else ""


def need_table(models: Sequence[PlannedModel]) -> Table:
    """Return the share of trained frames, and of scored frames, that need a memory."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("frames that need a memory", overflow="fold")
    for heading in ("share", "frames out of sight:\nquartiles", "clips with\nsuch frames"):
        table.add_column(heading, justify="right")
    for labels, need, _ in _distinct_needs(models):
        for name, of_frames in need.items():
            gaps = " ".join(f"{gap:.0f}" for gap in of_frames.gaps or ())
            counts = f"{of_frames.episodes} of {of_frames.of}"
            table.add_row(f"{name}{labels}", f"{of_frames.share:.1%}", gaps, counts)
    return table


def need_warnings(models: Sequence[PlannedModel]) -> list[str]:
    """Return a warning for each place where the data teach or score a memory in part only."""
    warnings = []
    for labels, need, short in _distinct_needs(models):
        warnings += [f"{note}{labels}" for note in short]
        if not need:
            warnings.append(
                f"data without poses{labels}: no frame is known to be a revisit, so the report scores all frames "
                "and cannot tell what a memory adds"
            )
        elif not need["training"].share:
            warnings.append(
                f"no trained frame needs a memory{labels}, so none is learned. Use longer clips (training.frames), "
                "clips that come back (training.return_share), data.stride or a smaller trunk.window"
            )
        warnings += [
            f"{task}{labels}: only {scored.episodes} of {scored.of} episodes have revisits, fewer than "
            f"{FEWEST_EPISODES}; use a longer context or horizon, or more episodes"
            for task, scored in need.items()
            if task != "training" and scored.episodes < FEWEST_EPISODES
        ]
    return warnings


def _distinct_needs(models: Sequence[PlannedModel]) -> list[tuple[str, dict[str, Need], list[str]]]:
    """Return each different need, with a note that names its models (empty if all models share one) and shortfalls."""
    groups: list[list[PlannedModel]] = []
    for model in models:
        same = (group for group in groups if (group[0].need, group[0].shortfalls) == (model.need, model.shortfalls))
        if group := next(same, None):
            group.append(model)
        else:
            groups.append([model])
    if len(groups) == 1:
        return [("", groups[0][0].need, groups[0][0].shortfalls)]
    return [
        (f" ({first.label}{' and others' if others else ''})", first.need, first.shortfalls)
        for first, *others in groups
    ]


def disk_line(models: Sequence[PlannedModel], parallel: int, sweep_folder: Path) -> str:
    """Return a line on the disk space that the missing runs need, and on what is free."""
    missing = sum(model.missing for model in models)
    if not missing:
        return "all runs are done"
    needed = sum(model.missing * model.disk.total for model in models)
    checkpoints = 2 * max(model.disk.checkpoint for model in models if model.missing) * min(parallel, missing)
    existing = next(path for path in (sweep_folder.absolute(), *sweep_folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    warning = "" if needed + checkpoints < free else ": NOT ENOUGH"
    return (
        f"disk, about: {show_bytes(needed)} for the {_count(missing)}, and {show_bytes(checkpoints)} of checkpoints "
        "while they run;\n"
        f"{show_bytes(free)} are free on that file system (quotas are not checked){warning}"
    )


def estimate_costs(models: Sequence[PlannedModel], launch: LaunchConfig, sweep_folder: Path) -> list[Cost | Exception]:
    """Return each model's cost on the device of `launch`, from finished runs or timed now, or the error that came."""
    device = choose_device(launch.device, Group())
    be_deterministic(launch.threads, device)
    costs: list[Cost | Exception] = []
    for model in models:
        config, folders = model.runs[0].config, [sweep_folder / "runs" / run.name for run in model.runs]
        known = measured(folders, config.training.steps, device_name(device), launch.threads)
        try:
            costs.append(
                replace(known or _probed(model, device, launch), trained=_trained(model, folders, device, launch))
            )
        except Exception as error:  # also from a user's block; one model that fails must not hide the others
            costs.append(error)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return costs


def _trained(model: PlannedModel, folders: Sequence[Path], device: torch.device, launch: LaunchConfig) -> int:
    """Return how many of the model's missing runs can reuse the weights of a finished run."""
    dataset = open_dataset(model.runs[0].config.data)
    machine = Machine(device, launch, launch.processes)
    missing = [(run, folder) for run, folder, done in zip(model.runs, folders, model.done, strict=True) if not done]
    keys = [training_key(run.config, dataset, model.plan.options, machine) for run, _ in missing]
    reused = [
        find_trained(folder.parent, key, run.config.seed, run.config.evaluation.at)
        for (run, folder), key in zip(missing, keys, strict=True)
    ]
    return len(reused) - reused.count(None)


def _probed(model: PlannedModel, device: torch.device, launch: LaunchConfig) -> Cost:
    config = model.runs[0].config
    solved = config.memory.model_copy(update={"options": model.plan.options})
    return probe_cost(open_experiment(config.model_copy(update={"memory": solved}), device), launch)


def costs_table(models: Sequence[PlannedModel], costs: Sequence[Cost | Exception], start: float) -> Table:
    """Return the estimated time of each model's runs; a process needs `start` seconds to start."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for heading in ("a training step", "training", "evaluation", "a run", "missing runs"):
        table.add_column(heading, justify="right")
    table.add_column("from", overflow="fold")
    for model, cost in zip(models, costs, strict=True):
        if isinstance(cost, Exception):
            table.add_row(model.label, "", "", "", "", str(model.missing), _reason(cost))
            continue
        times = (cost.step, cost.training, cost.evaluation, cost.run + start)
        missing = cost.runs(model.missing, start)
        together = f"{len(missing)} x, {show_seconds(sum(missing))}" if missing else "none"
        if cost.trained:
            together += f";\n{cost.trained} trained already"
        table.add_row(model.label, *map(show_seconds, times), together, cost.source)
    return table


def time_lines(
    models: Sequence[PlannedModel], costs: Sequence[Cost | Exception], start: float, launch: LaunchConfig
) -> str:
    """Return the total time of the missing runs, and what the estimate assumes."""
    device = choose_device(launch.device, Group())
    seconds = [
        seconds
        for model, cost in zip(models, costs, strict=True)
        if not isinstance(cost, Exception)
        for seconds in cost.runs(model.missing, start)
    ]
    unknown = sum(model.missing for model, cost in zip(models, costs, strict=True) if isinstance(cost, Exception))
    unit = "GPU-hours" if device.type == "cuda" else "machine-hours"
    without = f" (not counting {unknown} that fail)" if unknown else ""
    return (
        f"an estimate, on {device_name(device)} with {launch.threads} thread{'s'[: launch.threads > 1]} a run; its "
        f"process takes {show_seconds(start)} to start\n"
        f"time, about: {two_digits(sum(seconds) / 3600)} {unit} for the {_count(len(seconds))}{without}; "
        f"{show_seconds(wall_seconds(seconds, launch.parallel))} at {launch.parallel} at a time, if they do not slow "
        "each other down" + _busy()
    )


def limit_line(
    models: Sequence[PlannedModel], costs: Sequence[Cost | Exception], start: float, sweep: SweepConfig
) -> str:
    """Return how the times compare with the time limits of SLURM jobs; an empty text if there is no SLURM."""
    partition = sweep.launch.slurm.partition
    if partition is None and not shutil.which("sbatch"):
        return ""
    late, evaluation_too_long = [], False
    for model, cost in zip(models, costs, strict=True):
        slurm = min((launch_of(sweep, run).slurm for run in model.runs), key=lambda slurm: slurm.minutes)
        if isinstance(cost, Exception) or cost.run + start <= slurm.minutes * 60:
            continue
        late.append(f"{model.label} ({show_seconds(cost.run + start)} of {slurm.timeout})")
        evaluation_too_long |= cost.evaluation + start > slurm.minutes * 60
    lines = []
    if late:
        models_text = ", ".join(late[:3]) + (f" and {len(late) - 3} more" if len(late) > 3 else "")
        then = "runs resume in another job"
        if evaluation_too_long:
            then = "an evaluation cannot be resumed in another job, so raise the limit"
        lines.append(f"longer than launch.slurm.timeout: {models_text}; {then}")
    if partition is not None:
        lines.append(f"times were measured on this machine, not on the nodes of partition {partition}")
    return "\n".join(lines)


def _reason(error: Exception) -> str:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "does not fit into memory"
    lines = str(error).strip().splitlines() or [""]
    return f"fails: {type(error).__name__}: {lines[0][:200]}"


def _busy() -> str:
    """Return a note if this machine is busy, because the probe took longer then."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return (
        f"\nthis machine is busy (load {load:.1f} on {cores} cores): less when it is idle" if load > 1.5 * cores else ""
    )


def _count(missing: int) -> str:
    return f"{missing} missing run{'s'[: missing != 1]}"
