"""The report's plots, as SVG and PDF, as wide as a column of a paper. Equal numbers give equal bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rad_bench.drawing import Axes, Figure, settings
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.evaluation.metrics import METRICS
from rad_bench.report.curves import LEAST_EPISODES, Curve, gap_curves, horizon_curves, loss_curves
from rad_bench.report.learning import LearningCurve, learning_lines
from rad_bench.report.load import Load
from rad_bench.report.reading import Sweep, base_name, form_name
from rad_bench.report.style import Style, block_styles
from rad_bench.report.summary import Row

WIDTH = 3.3  # inches, a column of most journals
HEIGHT = 2.1  # inches, of the axes with labels, without the legend
PANEL_HEIGHT = 1.45
LEGEND_LINE = 0.145  # inches per line of a legend
LEGEND_CHARACTERS = 62  # per line of a legend
LONGEST_LABEL = 48  # characters
INK, PAPER = "#1c1c1c", "#ffffff"  # the page replaces them with its own
COSTS = {  # row.cost key -> name of the plot, label, scale
    "state_bytes_end": ("state", "state per video at the end, without window, bytes", 1.0),
    "last_frames_ratio": ("time", "time of a frame at the horizon's end, ratio", 1.0),
    "flops_ratio": ("flops", "FLOPs of a frame, ratio", 1.0),  # where no time was taken
}
STYLE: dict[Any, Any] = {
    "font.size": 7.5, "axes.labelsize": 8, "legend.fontsize": 7, "legend.title_fontsize": 7.5,
    "axes.linewidth": 0.6, "lines.linewidth": 1.1, "lines.markersize": 2.6, "grid.linewidth": 0.5,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.13,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "grid.color": INK, "figure.facecolor": PAPER, "axes.facecolor": PAPER, "legend.frameon": False,
    "text.usetex": False, "font.family": "DejaVu Sans", "svg.fonttype": "none", "pdf.fonttype": 42,
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A plot as SVG, with its file stem and its texts."""

    name: str
    part: str  # section of the page: curves, interventions, load, cost, learning, training
    caption: str
    text: str  # description for readers who cannot see the plot
    svg: str


def draw_plots(
    sweep: Sweep, rows: list[Row], folder: Path, learning: Sequence[LearningCurve] = (), held: Sequence[Load] = ()
) -> list[Plot]:
    """Draw all plots into `folder` as SVG and PDF."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.svg"), *folder.glob("*.pdf")):
        old.unlink()  # plots of tasks that the sweep no longer has
    styles = block_styles(sweep.blocks)
    plots: list[Plot] = []

    def add(part: str, name: str, caption: str, draw: Callable[..., tuple[Figure, str]], *arguments: Any) -> None:
        with settings({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            figure, text = draw(*arguments, styles)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
        (folder / f"{name}.svg").write_text(buffer.getvalue(), encoding="utf-8")
        plots.append(Plot(name, part, caption, text, buffer.getvalue()))

    kept = sweep.frames[sweep.frames["intervention"] == "keep"]
    frames = {task: kept[kept["task"] == task] for task in sweep.tasks}
    own = {task: [row for row in rows if row.task == task] for task in sweep.tasks}
    with_revisits = [task for task in sweep.tasks if (frames[task]["kind"] == "revisit").any()]
    for name, caption, *drawn in _curve_plots(frames, with_revisits, sweep.blocks):
        add("curves", name, caption, _draw_curves, *drawn, "linear")
    for task in with_revisits:
        caption = (
            f"{task}: revisit PSNR lost by a swap of memory (a loss shows use) or a reset; bars are 95 % intervals"
        )
        add("interventions", f"interventions-{task}", caption, _draw_drops, own[task])
    for task in dict.fromkeys(load.task for load in held):
        caption = f"{task}: bits recovered against surfaces asked for; dotted: all bits; bands are 95 % intervals"
        add("load", f"load-{task}", caption, _draw_loads, [load for load in held if load.task == task])
    timed = any("last_frames_ratio" in row.cost for row in rows)
    for key in ("state_bytes_end", "last_frames_ratio" if timed else "flops_ratio"):
        name, label, _ = COSTS[key]
        for task in (task for task in with_revisits if any(row.cost for row in own[task])):
            caption = f"{task}: revisit PSNR against {label}; dashed: Pareto front of the means"
            add("cost", f"{name}-{task}", caption, _draw_cost, own[task], key)
    for task in dict.fromkeys(curve.task for curve in learning):
        lines = learning_lines([curve for curve in learning if curve.task == task])
        caption = f"{task}: revisit PSNR of the averaged weights against training steps; bands are 95 % intervals"
        add("learning", f"learning-{task}", caption, _draw_curves, lines, "training step", "revisit PSNR, dB", "linear")
    if sweep.trained:
        caption = "training loss, one line per run (running mean of five records)"
        add("training", "loss", caption, _draw_curves, loss_curves(sweep), "training step", "loss", "log")
    return plots


def _curve_plots(
    frames: dict[str, pd.DataFrame], with_revisits: list[str], blocks: list[str]
) -> list[tuple[str, str, list[Curve], str, str]]:
    """Return name, caption, curves and axis labels of each plot over gaps or the horizon; empty plots are left out."""
    plots = []
    bands = f"bands are 95 % intervals; points of fewer than {LEAST_EPISODES} episodes are left out"
    y = "revisit PSNR, dB"
    for task in with_revisits:
        revisits = frames[task][frames[task]["kind"] == "revisit"]
        caption = f"{task}: revisit PSNR against the number of frames the view was out of sight; {bands}"
        plots.append((f"gap-{task}", caption, gap_curves(revisits, blocks), "frames out of sight (gap)", y))
        for name, metric in METRICS.items():
            if metric.reported and name in revisits:
                caption = f"{task}: revisit {metric.label} against the generated frame; {bands}"
                curves = horizon_curves(revisits, blocks, name)
                stem = "horizon" if name == "psnr" else f"horizon-{name}"
                plots.append((f"{stem}-{task}", caption, curves, "generated frame", f"revisit {metric.title}"))
    for task, every in frames.items():
        caption = f"{task}: PSNR of all frames, whose classes change along the horizon; {bands}"
        curves = horizon_curves(every, blocks)
        plots.append((f"horizon-all-{task}", caption, curves, "generated frame", "PSNR of all frames, dB"))
    return [plot for plot in plots if any(len(curve.x) > 1 for curve in plot[2])]  # single points are no curve


def _draw_curves(curves: list[Curve], x: str, y: str, scale: str, styles: dict[str, Style]) -> tuple[Figure, str]:
    """Draw all curves in one panel; if blocks have several forms, one panel per block, with common axes."""
    labels = list(dict.fromkeys(curve.label for curve in curves))
    trained = [label for label in labels if label not in CONTROLS]
    names = list(dict.fromkeys(map(base_name, trained)))
    text = "; ".join(curve.text for curve in curves)
    if not 1 < len(names) < len(trained):
        return _one_panel(curves, x, y, scale, styles)[0], text
    rows = -(-len(names) // 2)
    lines = max(sum(base_name(label) == name for label in trained) for name in names) + len(labels) - len(trained)
    height = rows * (PANEL_HEIGHT + LEGEND_LINE * (lines + 1)) + 0.2
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = list(figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        own = [curve for curve in curves if base_name(curve.label) in (name, *CONTROLS)]
        _fill(axes, own, styles, lambda label: form_name(label) or label)
        axes.set_yscale(scale)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), title=_text(name), alignment="left", borderaxespad=0.2,
            handlelength=2.2, labelspacing=0.25,
        )  # fmt: skip
    for axes in panels[len(names) :]:
        axes.set_visible(False)
        panels[len(names) - 2].tick_params(labelbottom=True)
    figure.supxlabel(x, fontsize=8)
    figure.supylabel(y, fontsize=8)
    return figure, text


def _one_panel(curves: list[Curve], x: str, y: str, scale: str, styles: dict[str, Style]) -> tuple[Figure, Axes]:
    figure, axes = _figure(list(dict.fromkeys(curve.label for curve in curves)))
    _fill(axes, curves, styles)
    axes.set(xlabel=x, ylabel=y, yscale=scale)
    _legend(figure, axes)
    return figure, axes


def _draw_loads(held: list[Load], styles: dict[str, Style]) -> tuple[Figure, str]:
    """Draw bits against surfaces, all blocks together, with a dotted line where all bits are."""
    curves = [load.curve for load in held if load.block not in CONTROLS]
    figure, axes = _one_panel(curves, "surfaces to remember", "bits recovered", "linear", styles)
    most = max((point for load in held for point in load.points), key=lambda point: point.items)
    axes.plot([0, most.items], [0, most.offered], color=INK, linewidth=0.6, linestyle=(0, (1, 2)))
    return figure, "; ".join(curve.text for curve in curves)


def _fill(axes: Axes, curves: list[Curve], styles: dict[str, Style], name: Callable[[str], str] = str) -> None:
    named: set[str] = set()
    for curve in curves:
        style = styles[curve.label]
        label = None if curve.label in named else _text(name(curve.label))
        named.add(curve.label)
        thin = curve.low is None and curve.label not in CONTROLS
        axes.plot(
            curve.x, curve.mean, color=style.colour, linestyle=style.line, marker="" if thin else style.marker,
            linewidth=0.7 if thin or curve.label in CONTROLS else None, label=label,
        )  # fmt: skip
        if curve.low is not None and curve.high is not None and curve.label not in CONTROLS:
            axes.fill_between(curve.x, curve.low, curve.high, color=style.colour, alpha=0.14, linewidth=0)


def _draw_drops(rows: list[Row], styles: dict[str, Style]) -> tuple[Figure, str]:
    shown = [row for row in rows if row.block not in CONTROLS and row.drops]
    figure = Figure(figsize=(WIDTH, 0.75 + 0.22 * max(len(shown), 2)), layout="constrained")
    axes = figure.subplots()
    values = []
    for offset, intervention, fill in ((-0.14, "swap", "full"), (0.14, "reset", "none")):
        for number, row in enumerate(shown):
            drop = row.drops.get(intervention)
            if drop is not None and np.isfinite(drop.mean):
                axes.errorbar(
                    drop.mean, number + offset, xerr=_error(drop.mean, drop.low, drop.high), capsize=1.5,
                    color=styles[row.block].colour, marker="o", markersize=3.5, fillstyle=fill, linewidth=0.9,
                )  # fmt: skip
                values.append(f"{row.block} loses {drop.mean:.1f} dB by {intervention}")
        axes.plot([], [], "o", color=INK, markersize=3.5, fillstyle=fill, label=intervention)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_yticks(range(len(shown)), [_text(row.block) for row in shown])
    axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    axes.set_xlabel("revisit PSNR lost, dB")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, handletextpad=0.2)
    return figure, "; ".join(values)


def _draw_cost(rows: list[Row], key: str, styles: dict[str, Style]) -> tuple[Figure, str]:
    _, label, scale = COSTS[key]
    known = [row for row in rows if np.isfinite(row.revisit["psnr"].mean)]
    costly, levels = [row for row in known if key in row.cost], [row for row in known if row.block in CONTROLS]
    points = [(row.cost[key] * scale, row.revisit["psnr"].mean) for row in costly]
    figure, axes = _figure([row.block for row in (*costly, *levels)])
    front = [p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)]
    axes.plot(*zip(*sorted(front), strict=True), color=INK, linewidth=0.6, linestyle=(0, (4, 3)), alpha=0.5)
    for row, (x, y) in zip(costly, points, strict=True):
        value, style = row.revisit["psnr"], styles[row.block]
        axes.errorbar(
            x, y, yerr=_error(y, value.low, value.high), linestyle="", color=style.colour, marker=style.marker,
            markersize=4, linewidth=0.9, label=_text(row.block),
        )  # fmt: skip
    if key == "state_bytes_end":  # from 0 to megabytes
        smallest = min([x for x, _ in points if x], default=1.0)
        lowest, highest = np.floor(np.log10(smallest)), np.log10(max([x for x, _ in points] + [10.0]))
        axes.set_xscale("symlog", linthresh=10**lowest, linscale=0.4)
        zero = [0.0] if any(x == 0 for x, _ in points) else []
        axes.set_xticks([*zero, *(10 ** np.arange(lowest, highest + 1))])
        axes.minorticks_off()
        axes.set_xlim((-0.15 if zero else 0.6) * 10**lowest, 2.2 * 10**highest)
    for row in levels:
        style = styles[row.block]
        y = row.revisit["psnr"].mean
        axes.axhline(y, color=style.colour, linestyle=style.line, linewidth=0.7, label=_text(row.block))
    axes.set(xlabel=label, ylabel="revisit PSNR, dB")
    _legend(figure, axes)
    values = [f"{row.block}: {y:.1f} dB at {x:,.3g}" for row, (x, y) in zip(costly, points, strict=True)]
    return figure, "; ".join([*values, *(f"{row.block}: {row.revisit['psnr'].mean:.1f} dB" for row in levels)])


def _error(mean: float, low: float, high: float) -> list[list[float]]:
    return [[mean - low], [high - mean]] if np.isfinite(low) else [[0.0], [0.0]]


def _columns(labels: list[str]) -> int:
    longest = max((min(len(label), LONGEST_LABEL) for label in labels), default=1)
    return max(1, min(4, len(labels), LEGEND_CHARACTERS // (longest + 7)))


def _figure(labels: list[str]) -> tuple[Figure, Axes]:
    """Return a figure of a column's width, with room for the legend below the axes."""
    lines = -(-len(labels) // _columns(labels))
    figure = Figure(figsize=(WIDTH, HEIGHT + LEGEND_LINE * lines), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=_columns(labels), columnspacing=1.2, handlelength=2.2,
        labelspacing=0.25, borderaxespad=0.1,
    )  # fmt: skip


def _text(label: str) -> str:
    """Escape a label for matplotlib (`$` starts mathematics, a first `_` hides a label), and cut it to fit."""
    label = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
    return label.replace("$", r"\$").replace("_", " _", 1 if label.startswith("_") else 0)
