"""A table of the report, written as Markdown, LaTeX or HTML."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from rad_bench.errors import one_line
from rad_bench.report.intervals import Estimate

MOST_NAMED = 6  # most names in a sentence


@dataclass(frozen=True)
class Table:
    """A table of text; `bold` holds the (row, column) of emphasised cells."""

    name: str
    caption: str
    header: list[str]
    cells: list[list[str]]
    bold: set[tuple[int, int]] = field(default_factory=set)

    @property
    def groups(self) -> list[list[int]]:
        """Return the row numbers of each task; all rows if there is no column `task`."""
        column = self.header.index("task") if "task" in self.header else None
        tasks = ["" if column is None else line[column] for line in self.cells]
        return [list(rows) for _, rows in groupby(range(len(tasks)), tasks.__getitem__)]

    def without_empty_columns(self) -> Table:
        """Return the table without its empty columns."""
        kept = [c for c in range(len(self.header)) if any(line[c] for line in self.cells)]
        bold = {(row, kept.index(column)) for row, column in self.bold if column in kept}
        cells = [[line[c] for c in kept] for line in self.cells]
        return replace(self, header=[self.header[c] for c in kept], cells=cells, bold=bold)

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rows = self._written(_markdown, "**{}**")
        lines = [[_markdown(cell) for cell in self.header], ["---"] + ["--:"] * (len(self.header) - 1), *rows]
        return f"{self.caption}\n\n" + "".join("| " + " | ".join(line) + " |\n" for line in lines)

    def latex(self) -> str:
        """Return the table in LaTeX, with booktabs."""
        rows = self._written(_latex, r"\textbf{{{}}}")
        parts = ["".join(" & ".join(rows[r]) + " \\\\\n" for r in group) for group in self.groups]
        columns = "@{}l" + "r" * (len(self.header) - 1) + "@{}"
        return (
            f"% {self.caption}\n% \\usepackage{{booktabs}}\n{{\\small\\setlength{{\\tabcolsep}}{{4pt}}%\n"
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
            + self._latex_header()
            + "\\midrule\n"
            + "\\midrule\n".join(parts)
            + "\\bottomrule\n\\end{tabular}}\n"
        )

    def _latex_header(self) -> str:
        """Return the header; columns of one task (`retrieval: a`, `retrieval: b`) get a common heading."""
        parts = [("", "", cell) if ": " not in cell else cell.partition(": ") for cell in self.header]
        line = " & ".join(_latex(below) for *_, below in parts) + " \\\\\n"
        if not any(above for above, *_ in parts):
            return line
        heads, rules, column = [], [], 1
        for above, group in groupby(parts, key=lambda part: part[0]):
            width = len(list(group))
            heads.append(f"\\multicolumn{{{width}}}{{c}}{{{_latex(above)}}}")
            rules += [f"\\cmidrule(lr){{{column}-{column + width - 1}}}"] if above else []
            column += width
        return " & ".join(heads) + " \\\\\n" + "".join(rules) + "\n" + line

    def _written(self, escape: Callable[[str], str], emphasis: str) -> list[list[str]]:
        return [
            [
                emphasis.format(escape(cell)) if cell and (row, column) in self.bold else escape(cell)
                for column, cell in enumerate(line)
            ]
            for row, line in enumerate(self.cells)
        ]


def show(value: Estimate | None, digits: int = 2, signed: bool = False) -> str:
    """Format an estimate as `mean [low, high]`."""
    if value is None or not np.isfinite(value.mean):
        return ""
    mean = number_text(value.mean, digits, signed)
    if not np.isfinite(value.low):
        return mean
    return f"{mean} [{number_text(value.low, digits)}, {number_text(value.high, digits)}]"


def bounds(value: Estimate | None, digits: int = 2) -> str:
    """Format an estimate's interval alone, `[low, high]`; an empty text if it has none."""
    if value is None or not np.isfinite(value.low):
        return ""
    return f"[{number_text(value.low, digits)}, {number_text(value.high, digits)}]"


def p_text(p: float) -> str:
    """Format a p-value; NaN means a single seed, which has none."""
    if not np.isfinite(p):
        return "one seed"
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def number_text(value: float, digits: int = 2, signed: bool = False) -> str:
    """Format a number; NaN gives an empty text, and zero gets no sign."""
    if not np.isfinite(value):
        return ""
    rounded = round(value, digits) + 0.0
    return f"{rounded:+.{digits}f}" if signed and rounded else f"{rounded:.{digits}f}"


def listing(names: list[str]) -> str:
    """Format names as `a, b and c`; of many names, the first few and the number of the rest."""
    if len(names) > MOST_NAMED:
        names = [*names[:MOST_NAMED], f"{len(names) - MOST_NAMED} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _markdown(text: str) -> str:
    """Escape Markdown markup, HTML and mathematics; brackets only where they could form a link."""
    return re.sub(r"([\\`*_<&$|~]|(?<=\])[(\[:])", r"\\\1", one_line(text))


_LATEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


def _latex(text: str) -> str:
    text = "".join(_LATEX.get(character, character) for character in one_line(text))
    text = re.sub(r"(?<![^\s\[])-(?=\d)", "$-$", text)  # a minus, not a hyphen
    return (
        "{}" + text if text.startswith(("[", "*")) else text
    )  # at the start of a line they would be arguments of `\\`
