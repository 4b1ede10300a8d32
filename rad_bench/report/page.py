"""The page: one offline HTML file, the answer first and the evidence below."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from rad_bench.report import evidence
from rad_bench.report.gallery import strip_groups
from rad_bench.report.plots import INK, PAPER, Plot
from rad_bench.report.reading import Sweep
from rad_bench.report.table import Table


def write_page(
    path: Path, sweep: Sweep, answer: list[tuple[str, list[str]]], tables: list[Table], plots: list[Plot],
    learning: list[str],
) -> None:  # fmt: skip
    """Write the report's page; `learning` says whether the order of blocks still changes, if it is known."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rad_bench.report", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script, style = (_file(f"page.{suffix}") for suffix in ("js", "css"))
    groups, left = strip_groups(sweep)
    html = environment.get_template("page.html.j2").render(
        name=sweep.plan.get("name", sweep.folder.name),
        answer=answer,
        tables={table.name: table for table in tables},
        plots=[(plot, Markup(inline(plot.svg))) for plot in plots],
        learning=learning,
        groups=groups,
        strips_left=left,
        evidence=evidence.evidence(sweep),
        failures=sweep.failures,
        command=evidence.reproduction(sweep),
        tasks=", ".join(sweep.tasks),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
    )
    path.write_text(html, encoding="utf-8", errors="replace")


def inline(svg: str) -> str:
    """Return a plot's SVG for the page: transparent background, and lines in the page's text colour (light or dark)."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<(\w+) id="[\w.]+_\d+"', r"<\1", svg)  # ids that repeat between plots and are not used
    svg = re.sub(r"<svg ", '<svg aria-hidden="true" ', svg, count=1)
    return svg.replace(f": {PAPER}", ": none").replace(f": {INK}", ": var(--ink)")


def _file(name: str) -> str:
    return (resources.files("rad_bench.report") / name).read_text(encoding="utf-8")
