"""The report's tables, once, in a form that becomes Markdown, LaTeX and HTML."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rad_bench.errors import one_line
from rad_bench.report.ablation import AblationRow
from rad_bench.report.memory import MemoryRow
from rad_bench.report.statistics import Estimate, Pair
from rad_bench.report.summary import CONTROLS, Row


@dataclass(frozen=True)
class Table:
    """A table of text; `bold` names the rows and columns to emphasise."""

    name: str
    caption: str
    header: list[str]
    cells: list[list[str]]
    bold: set[tuple[int, int]]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        table = self._escaped(_markdown)
        rows = [[table._emphasised(r, c, "**{}**") for c in range(len(line))] for r, line in enumerate(self.cells)]
        lines = [table.header, ["---"] + ["--:"] * (len(self.header) - 1), *rows]
        return f"{self.caption}\n\n" + "".join("| " + " | ".join(line) + " |\n" for line in lines)

    def latex(self) -> str:
        """Return the table in LaTeX, with booktabs."""
        table = self._escaped(_latex)
        rows = [
            [table._emphasised(r, c, r"\textbf{{{}}}") for c in range(len(line))] for r, line in enumerate(self.cells)
        ]
        body = "".join(" & ".join(line) + r" \\" + "\n" for line in rows)
        columns = "l" + "r" * (len(self.header) - 1)
        return (
            f"% {self.caption}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
            + " & ".join(table.header)
            + f" \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"
        )

    def _escaped(self, escape: Callable[[str], str]) -> Table:
        cells = [[escape(cell) for cell in line] for line in self.cells]
        return replace(self, header=[escape(cell) for cell in self.header], cells=cells)

    def _emphasised(self, row: int, column: int, form: str) -> str:
        text = self.cells[row][column]
        return form.format(text) if (row, column) in self.bold and text else text


def headline(rows: list[Row]) -> Table:
    """Quality on revisit frames: one line a block, PSNR, SSIM, LPIPS where there is one, and the other classes."""
    metrics = [metric for metric in ("ssim", "lpips") if any(metric in row.revisit for row in rows)]
    header = ["block", "task", "seeds", "revisit PSNR, dB", "over none, dB"]
    header += [f"revisit {metric.upper()}" for metric in metrics]
    header += ["pooled PSNR", "recent", "partial", "novel", "all"]
    cells, bold = [], set()
    for number, row in enumerate(rows):
        line = [row.block, row.task, str(row.seeds), show(row.revisit["psnr"])]
        line.append(show(row.over_none, signed=True) if row.over_none and row.block not in CONTROLS else "")
        line += [show(row.revisit[metric], 3) if metric in row.revisit else "" for metric in metrics]
        line += [number_text(row.pooled_psnr), *(number_text(value) for value in row.kinds.values())]
        cells.append(line)
        if row.best:
            bold |= {(number, 0), (number, 3)}
    caption = "PSNR by frame class; bold: not distinguishable from the best on its task (paired t, Holm, 5 %)"
    return Table("headline", caption, header, cells, bold)


def interventions(rows: list[Row]) -> Table:
    """What is lost when memory is swapped or reset."""
    cells = [
        [
            row.block,
            row.task,
            show(row.revisit["psnr"]),
            show(row.drops.get("swap")),
            show(row.drops.get("reset")),
            row.verdict,
        ]
        for row in rows
        if row.block not in CONTROLS
    ]
    header = ["block", "task", "revisit PSNR, dB", "lost by swap, dB", "lost by reset, dB", "verdict"]
    caption = (
        "Revisit PSNR lost with another episode's memory (swap: the verdict) and with an empty one (reset: may lie "
        "outside what training saw)"
    )
    return Table("interventions", caption, header, cells, set())


def memory(rows: list[MemoryRow]) -> Table:
    """Self-consistency of rollouts, and how long memory's gain lasts."""
    cells = [
        [row.block, row.task, show(row.nmr) or "undefined", str(row.pairs), _lives(row)]
        for row in rows
        if row.block not in CONTROLS
    ]
    header = ["block", "task", "NMR", "revisit pairs", "half-life of memory's gain, frames"]
    caption = (
        "NMR: revisits within the model's own rollout, 0: no memory, 1: as consistent as neighbouring frames, more "
        "where these turn far. Half-life: frames until half of what a swap would lose is lost, median (range)"
    )
    return Table("memory", caption, header, cells, set())


def probe(read: dict[str, dict[str, Estimate]]) -> Table:
    """What a linear probe reads from each block's state."""
    names = list(dict.fromkeys(name for found in read.values() for name in found))
    cells = [[block, *(show(found.get(name)) for name in names)] for block, found in read.items() if found]
    caption = (
        "R^2 of a linear probe from the memory's state after the context, over what the context has shown; 0: no "
        "better than the mean. A state that grows has no fixed places to read from"
    )
    return Table("probe", caption, ["block", *names], cells, set())


def _lives(row: MemoryRow) -> str:
    lives = [life for life in row.half_life if not np.isnan(life)]
    if not lives:
        return "no gain to lose"

    def text(life: float) -> str:
        return f"over {row.horizon}" if np.isinf(life) else f"{life:.0f}"

    median = float(np.median(lives))
    spread = f" ({text(min(lives))} to {text(max(lives))})" if min(lives) != max(lives) else ""
    return text(median) + spread


def matrix(pairs: dict[str, list[Pair]]) -> Table:
    """Block against block: the row's revisit PSNR less the column's."""
    blocks = list(
        dict.fromkeys(name for found in pairs.values() for pair in found for name in (pair.first, pair.second))
    )
    cells: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for task, found in pairs.items():
        known = {(pair.first, pair.second): (pair.difference.mean, pair.p_holm) for pair in found}
        known |= {(second, first): (-mean, p) for (first, second), (mean, p) in known.items()}
        for first in blocks:
            line = [first, task]
            for second in blocks:
                mean, p = known.get((first, second), (np.nan, np.nan))
                if p < 0.05:
                    bold.add((len(cells), len(line)))
                line.append(f"{mean:+.2f}" if np.isfinite(mean) else "")
            cells.append(line)
    caption = "Revisit PSNR of the row less that of the column, dB; bold: p below 0.05 after Holm's correction"
    return Table("matrix", caption, ["block", "task", *blocks], cells, bold)


def ablations(rows: list[AblationRow]) -> Table:
    """One axis at a time, all else equal."""
    cells: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for row in rows:
        if row.p_holm is not None and row.p_holm < 0.05:
            bold |= {(len(cells), 5), (len(cells), 6)}
        p = "" if row.p_holm is None else f"{row.p_holm:.2g}" if np.isfinite(row.p_holm) else "one seed"
        line = [row.axis, row.task, row.others, row.value, show(row.revisit), show(row.less_first, signed=True), p]
        cells.append(line)
    header = ["axis", "task", "with", "value", "revisit PSNR, dB", "less the axis's first, dB", "p (Holm)"]
    caption = "One axis at a time, paired by seed; bold: p below 0.05 after Holm's correction over the axis's values"
    return Table("ablations", caption, header, cells, bold)


def cost(rows: list[Row]) -> Table:
    """What each block costs, measured in its own runs."""
    header = [
        "block", "memory parameters", "trunk parameters", "memory MFLOPs per frame", "trunk MFLOPs per frame",
        "state bytes, 1 step", "state bytes, end", "ms per training step", "ms per frame, start", "ms per frame, end",
        "peak memory, MB",
    ]  # fmt: skip
    cells = []
    for row in {row.block: row for row in rows if row.cost}.values():
        c = row.cost
        parameters = [f"{int(c[f'{part}_parameters']):,}" for part in ("memory", "trunk")]
        flops = [f"{c[f'{part}_flops_per_frame'] / 1e6:.2f}" for part in ("memory", "trunk")]
        state = [f"{int(c[f'state_bytes_{when}']):,}" for when in ("start", "end")]
        times = [c["seconds_per_step"], c["seconds_per_frame_start"], c["seconds_per_frame_end"]]
        line = [row.block, *parameters, *flops, *state, *(f"{1000 * s:.2f}" for s in times)]
        cells.append([*line, f"{c['peak_memory_bytes'] / 1e6:.0f}"])
    caption = "Cost, measured in the runs; FLOPs: forward, per frame of a training clip; times: per video in a batch"
    return Table("cost", caption, header, cells, set())


def pairs_table(pairs: dict[str, list[Pair]]) -> Table:
    """Every block against every other."""
    cells: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for task, found in pairs.items():
        for pair in found:
            if pair.p_holm < 0.05:
                bold |= {(len(cells), 2), (len(cells), 4)}
            p = [f"{value:.2g}" if np.isfinite(value) else "one seed" for value in (pair.p, pair.p_holm)]
            cells.append([task, f"{pair.first} - {pair.second}", show(pair.difference, signed=True), *p])
    caption = (
        "Differences of revisit PSNR, paired by seed; bold: p below 0.05 after Holm's correction over the task's pairs"
    )
    return Table("pairs", caption, ["task", "pair", "difference, dB", "p", "p (Holm)"], cells, bold)


def show(value: Estimate | None, digits: int = 2, signed: bool = False) -> str:
    """Write an estimate as `mean [low, high]`."""
    if value is None or not np.isfinite(value.mean):
        return ""
    mean = f"{value.mean:+.{digits}f}" if signed else f"{value.mean:.{digits}f}"
    if not np.isfinite(value.low):
        return mean
    return f"{mean} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def byte_text(count: float) -> str:
    """Write a number of bytes with its nearest unit."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def number_text(value: float, digits: int = 2) -> str:
    """Write a number, nothing for NaN."""
    return f"{value:.{digits}f}" if np.isfinite(value) else ""


def _markdown(text: str) -> str:
    """Escape what Markdown would read as markup, HTML or mathematics; brackets only where they could be a link."""
    return re.sub(r"([\\`*_<&$|~]|(?<=\])[(\[:])", r"\\\1", one_line(text))


_LATEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


def _latex(text: str) -> str:
    text = "".join(_LATEX.get(character, character) for character in one_line(text))
    return "{}" + text if text.startswith(("[", "*")) else text  # at a line's start they would be `\\`'s
