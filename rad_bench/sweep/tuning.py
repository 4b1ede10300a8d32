"""Equal tuning: plan the trials that choose a training setting for each block, and give its runs the chosen value.

A block is here what the report compares: a point of the grid but the seed. Its trials are ordinary runs in the sweep's
folder, so they are launched, resumed and shown like all others. The value is chosen from their results whenever it is
needed and stored nowhere. A run gets it in its config, so it is the same run as one that was given the value by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rad_bench.config import RunConfig, SweepConfig, TrainingConfig, TuneConfig
from rad_bench.data import Dataset, open_dataset
from rad_bench.errors import UserError, did_you_mean
from rad_bench.report.tuning import Tuned, read_tuned
from rad_bench.store.run_folder import Run
from rad_bench.sweep.grid import named_run, sets
from rad_bench.sweep.load import validate
from rad_bench.sweep.status import RunStatus, run_status

SECTION = "training"
NOT_TUNED = ("steps", "checkpoint_every")  # the one is what trials have less of, the other decides no result

Trials = dict[str, list[Run]]  # by the label of the runs that they are for


def plan_trials(sweep: SweepConfig, runs: Sequence[Run], where: str = "sweep") -> Trials:
    """Return the trials for the runs of a sweep by block; none if the sweep does not tune. Raises `UserError`."""
    tune = sweep.tune
    if tune is None:
        return {}
    _check(sweep, tune, runs, where)
    datasets: dict[str, Dataset] = {}
    trials: Trials = {}
    science: dict[str, RunConfig] = {}
    for run in runs:
        model = run.config.model_copy(update={"seed": 0})
        if science.setdefault(run.label, model) != model:
            raise UserError(f"{where}: tune: the runs of '{run.label}' differ in more than the seed.")
        if run.label not in trials:
            trials[run.label] = [
                _trial(sweep, tune, run, value, seed, datasets, where) for value in tune.values for seed in tune.seeds
            ]
        if len({trial.name for trial in trials[run.label]}) < len(trials[run.label]):
            raise UserError(f"{sweep.origin(['tune', 'values'], where)}: tune.values: two of {tune.values} are equal.")
    return trials


@dataclass(frozen=True)
class Choice:
    """What the trials have chosen so far."""

    tuned: list[Tuned]  # by block
    runs: list[Run]  # with their values, of the blocks that have one
    undecided: list[Run]  # the others; their values, and so their names, are not known yet

    def unfinished(self, trials: Trials) -> list[Run]:
        """Return the trials that are still to be run: one that diverged would diverge again."""
        names = {name for tuned in self.tuned for name in tuned.unfinished}
        return [trial for own in trials.values() for trial in own if trial.name in names]


def choose(sweep: SweepConfig, runs: Sequence[Run], trials: Trials, sweep_folder: Path) -> Choice:
    """Return the runs of a sweep with the values that the finished trials choose; as they are if it does not tune."""
    tune = sweep.tune
    if tune is None:
        return Choice([], list(runs), [])
    tuned = {label: read_tuned(sweep_folder, label, own, tune.axis) for label, own in trials.items()}
    datasets: dict[str, Dataset] = {}
    chosen, undecided = [], []
    for run in runs:
        value = tuned[run.label].choice
        if value is None:
            undecided.append(replace(run, name=f"{run.name.rpartition('-')[0]}-undecided"))
        else:
            config = _with(run.config, tune, value, sweep.origin(["tune"], "sweep"))
            chosen.append(named_run(run.label, run.axes, config, _opened(config, datasets)))
    return Choice(list(tuned.values()), chosen, undecided)


def waiting(choice: Choice, sweep_folder: Path) -> list[RunStatus]:
    """Return the state of the trials that are not done, and of the runs that wait for them."""
    statuses = [run_status(sweep_folder / "runs" / name) for tuned in choice.tuned for name in tuned.unfinished]
    reasons = {
        tuned.block: "its setting is chosen when the trials of its block are done"
        if tuned.unfinished
        else f"all trials of its block diverged (tune.values {', '.join(f'{value:g}' for value in tuned.scores)})"
        for tuned in choice.tuned
    }
    return [*statuses, *(RunStatus(run.name, "missing", 0.0, reasons[run.label]) for run in choice.undecided)]


def _trial(
    sweep: SweepConfig, tune: TuneConfig, run: Run, value: float, seed: int, datasets: dict[str, Dataset], where: str
) -> Run:
    """Return a short run with a value and a seed, scored on validation episodes on the first task alone."""
    training, evaluation = run.config.training, run.config.evaluation
    changes = {
        "seed": seed,
        "data": {"split": "validation"},
        "training": {"steps": tune.trial_steps(training.steps)},
        "evaluation": {
            "tasks": evaluation.tasks[:1], "interventions": ["keep"], "at": [], "probe": 0, "strips": 0,
            "episodes": tune.episodes or evaluation.episodes,
        },
    }  # fmt: skip
    config = _with(run.config, tune, value, sweep.origin(["tune", "values"], where), changes)
    if config.training.steps <= config.training.warmup:
        raise UserError(
            f"{sweep.origin(['tune', 'steps'], where)}: tune.steps: a trial has {config.training.steps} steps of "
            f"training, and training.warmup {config.training.warmup} takes all of them, so no trial would train at "
            "its full learning rate. Set tune.steps higher, or training.warmup lower."
        )
    leaf = tune.axis.partition(".")[2]
    value = getattr(config.training, leaf)
    axes = {**run.axes, "seed": seed, tune.axis: value}
    try:
        dataset = _opened(config, datasets)
    except UserError as error:
        raise UserError(f"{sweep.origin(['tune'], where)}: tune: {error}") from None
    return named_run(f"{run.label} / {leaf}={value}", axes, config, dataset)


def _with(
    config: RunConfig, tune: TuneConfig, value: float, where: str, changes: dict[str, Any] | None = None
) -> RunConfig:
    """Return a config with the tuned value and further changes, by section. Raises `UserError` if it is not valid."""
    tree = config.model_dump(mode="json")
    leaf = tune.axis.partition(".")[2]
    for section, change in {**(changes or {}), SECTION: {**(changes or {}).get(SECTION, {}), leaf: value}}.items():
        tree[section] = {**tree[section], **change} if isinstance(change, dict) else change
    changed: RunConfig = validate(RunConfig, tree, lambda _: f"{where}: tune.values", "run")
    return changed


def _opened(config: RunConfig, datasets: dict[str, Dataset]) -> Dataset:
    key = config.data.model_dump_json()
    if key not in datasets:
        datasets[key] = open_dataset(config.data)
    return datasets[key]


def _check(sweep: SweepConfig, tune: TuneConfig, runs: Sequence[Run], where: str) -> None:
    """Raise `UserError` unless the axis is a setting of training that the grid leaves alone, and the seeds are new."""
    section, _, leaf = tune.axis.partition(".")
    numbers = [name for name, field in TrainingConfig.model_fields.items() if field.annotation in (int, float)]
    accepted = [f"{SECTION}.{name}" for name in numbers if name not in NOT_TUNED]
    place = sweep.origin(["tune", "axis"], where)
    if tune.axis not in accepted:
        raise UserError(
            f"{place}: tune.axis: '{tune.axis}' is no setting that trials can choose"
            f"{did_you_mean(tune.axis, accepted)} What a block is, its data and its scores are not tuned."
        )
    if axis := next((axis for axis in sweep.grid if sets(sweep, axis, [section, leaf])), None):
        raise UserError(
            f"{place}: tune.axis: {tune.axis} is set by the grid too (grid.{axis}), and cannot be both chosen and "
            "compared. Remove it from one of the two."
        )
    listed = sweep.grid.get("seed", [])
    used = {*(run.config.seed for run in runs), *(listed if isinstance(listed, list) else ())}
    if both := sorted(used.intersection(tune.seeds)):
        raise UserError(
            f"{sweep.origin(['tune', 'seeds'], where)}: tune.seeds: {both[0]} is a seed of the sweep itself; trials "
            "need seeds of their own, so that the choice is not made by what is reported."
        )
    if any(run.config.data.split == "validation" for run in runs):
        raise UserError(
            f"{sweep.origin(['run', 'data'], where)}: run.data.split: validation is what trials are scored on, so a "
            "sweep with tune cannot be scored on it."
        )
