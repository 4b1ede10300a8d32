"""The report's plots, as SVG and PDF, the same bytes for the same numbers."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from rad_bench.report.memory import FRAMES_PER_POINT
from rad_bench.report.statistics import Estimate, episode_means, estimate
from rad_bench.report.summary import CONTROLS, ORDER, Row, Sweep, base_name

# Okabe & Ito's colours, which colour-blind readers can tell apart; fixed for the built-in blocks.
FIXED = dict(zip(ORDER, ("#555555", "#E69F00", "#0072B2", "#009E73", "#D55E00"), strict=True)) | dict.fromkeys(
    CONTROLS, "#AAAAAA"
)
FURTHER = ("#CC79A7", "#56B4E9", "#B8A900", "#7F3C8D", "#3969AC", "#80BA5A")
GAP_EDGES = (0, 6, 9, 12, 16, 20, 25, 30, 40, 60, 100, 200, 400, 1000)
LONGEST_LABEL = 80  # characters
COSTS = {  # row.cost key -> name of the plot, label, scale
    "state_bytes_end": ("state", "bytes of memory state a video at the horizon's end", 1.0),
    "seconds_per_frame_end": ("time", "ms per generated frame of a video at the horizon's end", 1e3),
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "rad-bench",
}
STYLE |= {
    "text.usetex": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
}


@dataclass(frozen=True)
class Plot:
    """A drawn plot: its file's stem, what it shows, and its SVG."""

    name: str
    caption: str
    svg: str


def draw_plots(sweep: Sweep, rows: list[Row], folder: Path) -> list[Plot]:
    """Draw all plots into `folder` as SVG and PDF."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = block_colours(sweep.blocks)
    plots = []

    def add(name: str, caption: str, draw: Callable[..., None], *arguments: Any) -> None:
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            figure, axes = plt.subplots(figsize=(5.4, 3.3), layout="constrained")
            draw(axes, *arguments)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
            plt.close(figure)
        (folder / f"{name}.svg").write_text(buffer.getvalue(), encoding="utf-8")
        plots.append(Plot(name, caption, buffer.getvalue()))

    kept = sweep.frames[sweep.frames["intervention"] == "keep"]
    frames = {task: kept[kept["task"] == task] for task in sweep.tasks}
    own = {task: [row for row in rows if row.task == task] for task in sweep.tasks}
    with_revisits = [task for task in sweep.tasks if (frames[task]["kind"] == "revisit").any()]
    for task in with_revisits:
        caption = f"{task}: revisit PSNR against the frames a view was out of sight; bands are 95 % intervals"
        add(f"gap-{task}", caption, _draw_gap, frames[task], sweep.blocks, colours)
    for task in sweep.tasks:
        caption = f"{task}: PSNR of all frames against the generated frame; bands are 95 % intervals"
        add(f"horizon-{task}", caption, _draw_horizon, frames[task], sweep.blocks, colours)
    for task in with_revisits:
        caption = f"{task}: revisit PSNR lost when the memory is swapped or reset"
        add(f"interventions-{task}", caption, _draw_drops, own[task], colours)
    for key, (name, label, _) in COSTS.items():
        for task in with_revisits:
            add(f"{name}-{task}", f"{task}: revisit PSNR against {label}", _draw_cost, own[task], colours, key)
    add("loss", "training loss, mean over seeds", _draw_loss, sweep, colours)
    return plots


def block_colours(blocks: list[str]) -> dict[str, str]:
    """Give every block its colour: the built-in ones always the same, the others in order of their names."""
    colours = {block: FIXED[block] for block in blocks if block in FIXED}
    for block in blocks:
        if block not in colours:
            own = FIXED.get(base_name(block))
            taken = set(colours.values())
            free = [c for c in ((own,) if own else ()) + FURTHER if c not in taken]
            colours[block] = free[0] if free else FURTHER[len(colours) % len(FURTHER)]
    return colours


def _line(axes: Axes, points: list[tuple[float, Estimate]], colour: str, label: str) -> None:
    x = [place for place, _ in points]
    axes.plot(
        x, [e.mean for _, e in points], color=colour, marker="o", markersize=2.5, linewidth=1.5, label=_text(label)
    )
    axes.fill_between(x, [e.low for _, e in points], [e.high for _, e in points], color=colour, alpha=0.15, linewidth=0)


def _text(label: str) -> str:
    """Keep matplotlib from reading a label as mathematics, or hiding it for its underscore; cut what would not fit."""
    label = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
    return label.replace("$", r"\$").replace("_", " _", 1 if label.startswith("_") else 0)


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_gap(axes: Axes, frames: pd.DataFrame, blocks: list[str], colours: dict[str, str]) -> None:
    revisits = frames[frames["kind"] == "revisit"]
    place = np.digitize(revisits["gap"], GAP_EDGES, right=True)
    centre = revisits["gap"].groupby(place).transform("mean")
    for block in blocks:
        own = revisits["block"] == block
        groups = revisits[own].groupby(centre[own])
        points = [(float(gap), estimate(episode_means(part))) for gap, part in groups]  # type: ignore[arg-type]
        if points:
            _line(axes, points, colours[block], block)
    _finish(axes, "frames out of sight (gap)", "revisit PSNR, dB")


def _draw_horizon(axes: Axes, frames: pd.DataFrame, blocks: list[str], colours: dict[str, str]) -> None:
    for block in blocks:
        own = frames[frames["block"] == block]
        groups = own.groupby(own["frame"] // FRAMES_PER_POINT)
        points = [(float(part["frame"].mean()), estimate(episode_means(part))) for _, part in groups]
        _line(axes, points, colours[block], block)
    _finish(axes, "generated frame", "PSNR, dB")


def _draw_drops(axes: Axes, rows: list[Row], colours: dict[str, str]) -> None:
    shown = [row for row in rows if row.block not in CONTROLS]
    for offset, (intervention, marker) in zip((-0.12, 0.12), (("swap", "o"), ("reset", "x")), strict=True):
        for number, row in enumerate(shown):
            drop = row.drops.get(intervention)
            if drop is None:
                continue
            error = [[drop.mean - drop.low], [drop.high - drop.mean]]
            axes.errorbar(number + offset, drop.mean, yerr=error, fmt=marker, color=colours[row.block], capsize=2)
        axes.plot([], [], marker, color="#333333", label=intervention)
    axes.axhline(0, color="#333333", linewidth=0.8)
    axes.set_xticks(
        range(len(shown)), [_text(row.block) for row in shown], rotation=30, ha="right", rotation_mode="anchor"
    )
    _finish(axes, "", "revisit PSNR lost, dB")


def _draw_cost(axes: Axes, rows: list[Row], colours: dict[str, str], key: str) -> None:
    _, label, scale = COSTS[key]
    costly = [row for row in rows if row.cost]
    for row in costly:
        value = row.revisit["psnr"]
        error = [[value.mean - value.low], [value.high - value.mean]]
        axes.errorbar(
            row.cost[key] * scale, value.mean, yerr=error, fmt="o", color=colours[row.block], label=_text(row.block)
        )
    if key == "state_bytes_end":  # from nothing to megabytes
        smallest = min([row.cost[key] for row in costly if row.cost[key]], default=1.0)
        lowest, highest = np.floor(np.log10(smallest)), np.log10(max([row.cost[key] for row in costly] + [10.0]))
        axes.set_xscale("symlog", linthresh=10**lowest, linscale=0.4)
        axes.set_xticks([0.0, *(10 ** np.arange(lowest, highest + 0.3))])
    _finish(axes, label, "revisit PSNR, dB")


def _draw_loss(axes: Axes, sweep: Sweep, colours: dict[str, str]) -> None:
    for block in sweep.blocks:
        curves = []
        for result in sweep.results_of(block):
            lines = (sweep.folder / "runs" / result["run"] / "log.jsonl").read_text().splitlines()
            records = [r for r in map(json.loads, lines) if r["phase"] == "training"]
            curves.append(pd.Series([r["loss"] for r in records], [r["step"] for r in records]))
        if curves:
            mean = pd.concat(curves, axis=1).mean(axis=1).rolling(5, min_periods=1).mean()
            axes.plot(mean.index, mean.to_numpy(), color=colours[block], label=_text(block), linewidth=1.2)
    axes.set_yscale("log")
    _finish(axes, "training step", "loss (running mean)")
