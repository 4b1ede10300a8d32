"""Learning curves: the headline of weights on the way of training, and whether the order of blocks still changes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pandas as pd

from rad_bench.evaluation.controls import CONTROLS
from rad_bench.report.curves import Curve
from rad_bench.report.intervals import Estimate, difference, episode_means, estimate
from rad_bench.report.reading import Sweep
from rad_bench.report.table import Table, listing, number_text, show

MOST_COLUMNS = 6  # most steps in the table; the plot has all


@dataclass(frozen=True)
class LearningCurve:
    """A block's means over revisit frames under `keep` on a task, by training step; the last are the headline's."""

    block: str
    task: str
    revisits: dict[int, pd.Series]  # step -> means indexed as those of `Sweep.revisits`

    @property
    def points(self) -> dict[int, Estimate]:
        """Return the estimate at each step, computed as the headline is."""
        return {step: estimate(values) for step, values in self.revisits.items()}


def learning_curves(sweep: Sweep) -> list[LearningCurve]:
    """Return the learning curves of a sweep by task and block, in the report's order; none without `evaluation.at`."""
    curves = []
    revisits = sweep.curves[sweep.curves["kind"] == "revisit"]
    for task, block in itertools.product(sweep.tasks, sweep.blocks):
        own = revisits[(revisits["task"] == task) & (revisits["block"] == block)]
        if block not in CONTROLS and len(own):
            by_step = {int(step): episode_means(frames) for step, frames in own.groupby("step")}  # type: ignore[arg-type]
            curves.append(LearningCurve(block, task, by_step))
    return curves


def learning_lines(curves: list[LearningCurve]) -> list[Curve]:
    """Return learning curves as lines of a plot."""
    lines = []
    for curve in curves:
        values = list(curve.points.values())
        steps, means = [float(step) for step in curve.points], [value.mean for value in values]
        lines.append(Curve(curve.block, steps, means, [v.low for v in values], [v.high for v in values]))
    return lines


def order_sentences(curves: list[LearningCurve]) -> list[str]:
    """Say for each task whether the last two common steps have the same order of blocks, and the change of each."""
    return [
        _order_sentence(task, [curve for curve in curves if curve.task == task])
        for task in dict.fromkeys(curve.task for curve in curves)
    ]


def _order_sentence(task: str, curves: list[LearningCurve]) -> str:
    steps = sorted(set.intersection(*(set(curve.revisits) for curve in curves)))
    if len(steps) < 2:
        return f"On {task}, the blocks have no two steps of training in common, so their order is not compared."
    before, last = steps[-2:]
    points = {curve.block: curve.points for curve in curves}
    means = {block: (own[before].mean, own[last].mean) for block, own in points.items()}
    changes = listing([f"{block} {number_text(late - early, signed=True)}" for block, (early, late) in means.items()])
    change = f"Change between the two, in dB: {changes}."
    if len(means) < 2:
        return f"On {task}, there is only one block. {change}"
    swapped = []
    for first, second in itertools.combinations(means, 2):
        early, late = (means[first][at] - means[second][at] for at in (0, 1))
        if early * late < 0:
            by = f"{number_text(early, signed=True)} dB, then {number_text(late, signed=True)} dB"
            swapped.append(f"{first} and {second} ({first} less {second}: {by})")
    if not swapped:
        return f"On {task}, the order of the blocks is the same after {before} and after {last} steps. {change}"
    return (
        f"On {task}, the order of the blocks still changed between {before} and {last} steps of training: "
        f"{listing(swapped)} changed places. {change}"
    )


def learning_table(curves: list[LearningCurve]) -> Table:
    """Return the headline of each block at the last steps, and its change between its last two."""
    steps = sorted({step for curve in curves for step in curve.revisits})[-MOST_COLUMNS:]
    cells = []
    for curve in curves:
        ends = list(curve.revisits.values())[-2:]
        change = show(difference(ends[1], ends[0]), signed=True) if len(ends) == 2 else ""
        means = {step: number_text(value.mean) for step, value in curve.points.items()}
        cells.append([curve.block, curve.task, *(means.get(step, "") for step in steps), change])
    caption = (
        "Revisit PSNR of the averaged weights after so many steps of training, dB; the last is the headline; change: "
        "between a block's last two steps, paired by seed. The learning rate falls to zero at the last step, so a "
        "point on the way is not what a shorter training would give, and a flat end does not show that a longer "
        "training would gain nothing"
    )
    header = ["block", "task", *(f"step {step}" for step in steps), "change, dB"]
    return Table("learning", caption, header, cells).without_empty_columns()
