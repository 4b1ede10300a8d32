"""Equal tuning: the scores of each block's trials, the value that they choose, and what another value would have cost.

A trial's score is that of the headline, on validation episodes: PSNR over revisit frames of its only task. Where no
frame is known to be a revisit, for data without poses, it is PSNR over all frames. These episodes are neither trained
on by the trials nor scored in any result, so the choice cannot have been made by what is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rad_bench.config import TrainingConfig
from rad_bench.errors import UserError
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.report.intervals import episode_means
from rad_bench.report.reading import Sweep, read_run
from rad_bench.report.table import Table, listing, number_text
from rad_bench.store.run_folder import Run, RunFolder
from rad_bench.store.sweep_folder import planned_trials


@dataclass(frozen=True)
class Tuned:
    """What the trials of one block showed."""

    block: str
    scores: dict[float, float]  # by value, dB, mean over the trials' seeds; NaN where a trial diverged
    unfinished: list[str]  # names of trials that have neither a score nor diverged
    trials: int
    setting: str  # what the scores are, and of which trials

    @property
    def choice(self) -> float | None:
        """Return the value with the best score, of equal ones the first; None if there is no score, or not yet."""
        finite = {value: score for value, score in self.scores.items() if np.isfinite(score)}
        if self.unfinished or not finite:
            return None
        return max(finite, key=lambda value: finite[value])

    @property
    def at_edge(self) -> bool:
        """True if the choice is the smallest or the largest value, so a better one may lie beyond."""
        return self.choice in (min(self.scores), max(self.scores))

    def loss(self, value: float) -> float:
        """Return the score lost by another value than the chosen one, dB; NaN where it has no score."""
        return np.nan if self.choice is None else self.scores[self.choice] - self.scores.get(value, np.nan)


def read_tuned(sweep_folder: Path, block: str, trials: Sequence[Run], axis: str) -> Tuned:
    """Read the scores of a block's trials, which set `axis` to different values."""
    scores: dict[float, list[float]] = {}
    unfinished, frames_scored = [], "revisits"
    for run in trials:
        folder = RunFolder(sweep_folder / "runs" / run.name)
        own = scores.setdefault(run.axes[axis], [])
        try:
            value, frames_scored = score(read_run(folder.path))
            own.append(value)
        except UserError:  # not finished, or unreadable
            own.append(np.nan)
            if folder.is_done or not folder.has_diverged:
                unfinished.append(run.name)
    config = trials[0].config
    seeds = listing([str(seed) for seed in dict.fromkeys(run.config.seed for run in trials)])
    setting = f"{config.evaluation.tasks[0]}, {frames_scored}, {config.training.steps} steps, seed {seeds}"
    means = {value: float(np.mean(own)) for value, own in scores.items()}
    return Tuned(block, means, unfinished, len(trials), setting)


def score(frames: pd.DataFrame) -> tuple[float, str]:
    """Return the PSNR of a trial, and over which frames: revisits or, where none is known to be one, all."""
    own = frames[~frames["block"].isin(CONTROLS)]
    revisits = own[own["kind"] == "revisit"]
    if not len(revisits):
        return float(episode_means(own).mean()), "all frames"
    return float(episode_means(revisits).mean()), "revisits"


def read_tuning(sweep: Sweep) -> list[Tuned]:
    """Return what the trials of each block showed, in the report's order of blocks; empty if there were none.

    Raises `UserError` if a trial does not set the axis of sweep.yaml.
    """
    if not sweep.plan.get("trials"):
        return []
    place = {block: number for number, block in enumerate(sweep.blocks)}
    axis, trials = axis_of(sweep), planned_trials(sweep.folder)
    for run in (run for own in trials.values() for run in own):
        if not isinstance(run.axes.get(axis), int | float):
            raise UserError(f"{sweep.folder / 'runs' / run.name}: is no trial of tune.axis {axis}.")
    labels = sorted(trials, key=lambda block: place.get(block, len(place)))
    return [read_tuned(sweep.folder, label, trials[label], axis) for label in labels]


def axis_of(sweep: Sweep) -> str:
    """Return the setting that the trials of a sweep choose, a path below `run`."""
    tune = sweep.plan.get("tune")
    return str(tune.get("axis")) if isinstance(tune, dict) else ""


def tuning_table(sweep: Sweep, tuning: list[Tuned]) -> Table:
    """Return each block's score at each value, its choice, and what other values lose."""
    values = list(dict.fromkeys(value for own in tuning for value in own.scores))
    shared = shared_value(sweep)
    cells: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for own in tuning:
        if own.choice is not None:
            bold.add((len(cells), 1 + values.index(own.choice)))
        shown = [_shown(own, value) for value in values]
        worst = max((own.loss(value) for value in own.scores), key=lambda loss: (np.isnan(loss), loss))
        cells.append(
            [own.block, *shown, "" if own.choice is None else f"{own.choice:g}", "yes" if own.at_edge else ""]
            + [number_text(own.loss(shared)), number_text(worst) or ("diverged" if own.choice is not None else "")]
        )
    header = ["block", *(f"{value:g}" for value in values), "chosen", "at the edge"]
    header += [f"lost with {shared:g} for all, dB", "lost with the worst, dB"]
    settings = "; ".join(dict.fromkeys(own.setting for own in tuning))
    caption = (
        f"Trials that choose {axis_of(sweep)}: score on validation episodes, dB ({settings}), by value; "
        "bold: chosen, for all seeds; at the edge: a better value may lie beyond those tried"
    )
    return Table("tuning", caption, header, cells, bold).without_empty_columns()


def _shown(own: Tuned, value: float) -> str:
    if value not in own.scores:
        return ""
    return number_text(own.scores[value]) or ("not done" if own.unfinished else "diverged")


def shared_value(sweep: Sweep) -> float:
    """Return the value that all blocks would have without trials; NaN if sweep.yaml does not tell."""
    leaf = axis_of(sweep).rpartition(".")[2]
    run = sweep.plan.get("run")
    training = run.get("training") if isinstance(run, dict) else None
    default = TrainingConfig.model_fields[leaf].default if leaf in TrainingConfig.model_fields else np.nan
    value = training.get(leaf, default) if isinstance(training, dict) else default
    return float(value) if isinstance(value, int | float) else np.nan


def tuned_note(sweep: Sweep, tuning: Sequence[Tuned]) -> str:
    """Say, for the caption of a table of results, whether its blocks were tuned."""
    if not tuning:
        return "not tuned: no training setting was chosen for each block"
    trials = " or ".join(dict.fromkeys(str(own.trials) for own in tuning))
    rest = [block for block in sweep.blocks if block not in {*CONTROLS, *(own.block for own in tuning)}]
    untuned = f", but not for {listing(rest)}" if rest else ""
    return f"tuned: {axis_of(sweep)} chosen for each block by {trials} trials{untuned}"


def tuning_sentences(sweep: Sweep, tuning: Sequence[Tuned]) -> list[str]:
    """Say how blocks were tuned, what another choice would have cost, and what limits the choice."""
    if not tuning:
        return ["No training setting was tuned for each block: another one may suit some blocks better."]
    axis, shared = axis_of(sweep), shared_value(sweep)
    sentences = [f"Equal tuning: {tuned_note(sweep, tuning).removeprefix('tuned: ')}, on validation episodes."]
    chosen = [own for own in tuning if own.choice is not None]
    if chosen:
        sentences[0] += f" Chosen: {listing([f'{own.block} {own.choice:g}' for own in chosen])}."
    losses = {own.block: own.loss(shared) for own in chosen if np.isfinite(own.loss(shared))}
    if losses:
        block = max(losses, key=lambda name: losses[name])
        most = f"at most {losses[block]:.1f} dB ({block})" if losses[block] else "nothing"
        sentences[0] += (
            f" With {shared:g} for all, {most} would have been lost there. {_order(chosen, shared)}".rstrip()
        )
    if edge := [own.block for own in chosen if own.at_edge]:
        sentences.append(
            f"The chosen {axis} of {listing(edge)} is the smallest or largest of the values tried: a better one may "
            "lie beyond them."
        )
    sentences += [
        f"{own.block} has no runs: {'its trials are not done' if own.unfinished else 'all its trials diverged'}."
        for own in tuning
        if own.choice is None
    ]
    return sentences


def _order(chosen: list[Tuned], shared: float) -> str:
    """Say whether the order of blocks on validation episodes depends on the tuning."""
    both = [own for own in chosen if np.isfinite(own.loss(shared))]
    tuned = sorted(both, key=lambda own: -(own.scores[shared] + own.loss(shared)))
    alike = sorted(both, key=lambda own: -own.scores[shared])
    if len(both) < 2:
        return ""
    if tuned == alike:
        return f"The order of blocks there is the same with {shared:g} for all."
    first, other = (", ".join(own.block for own in order) for order in (tuned, alike))
    return f"The order of blocks there, best first, is {first}; with {shared:g} for all it is {other}."
