"""The page: one offline HTML file for a reader with two minutes, and the evidence behind it for the one with more."""

from __future__ import annotations

import base64
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from rad_bench.report.plots import Plot
from rad_bench.report.statistics import seeds_note
from rad_bench.report.summary import CONTROL, Row, Sweep
from rad_bench.report.tables import Table, show


@dataclass(frozen=True)
class Strip:
    """One row of frames."""

    label: str
    image: str  # data URI


@dataclass(frozen=True)
class StripGroup:
    """The same episode as truth and as every block generated it."""

    title: str
    strips: list[Strip]
    swapped: list[Strip]


def write_page(path: Path, sweep: Sweep, rows: list[Row], tables: list[Table], plots: list[Plot]) -> None:
    """Write the report's page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rad_bench.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("page.html.j2").render(
        name=sweep.plan.get("name", sweep.folder.name),
        answer=answer(sweep, rows),
        seeds=seeds_note(max((row.seeds for row in rows), default=0)),
        tables=tables,
        plots=[(plot, Markup(plot.svg[plot.svg.index("<svg") :])) for plot in plots],
        strips=_strips(sweep),
        evidence=evidence(sweep),
        failures=sweep.failures,
        plan=yaml.safe_dump(sweep.plan, sort_keys=False),
        tasks=", ".join(sweep.tasks),
    )
    path.write_text(html)


def answer(sweep: Sweep, rows: list[Row]) -> list[str]:
    """Return the answer in sentences, one a task."""
    sentences = []
    for task in sweep.tasks:
        of_task = [row for row in rows if row.task == task and row.block != CONTROL]
        best = [row for row in of_task if row.best]
        if not best:
            continue
        top = max(best, key=lambda row: row.revisit["psnr"].mean)
        names = " and ".join(row.block for row in sorted(best, key=lambda r: -r.revisit["psnr"].mean))
        text = f"On {task}, {names} {'cannot be told apart at the top' if len(best) > 1 else 'is best'}: "
        text += f"{top.block} reaches {show(top.revisit['psnr'])} dB on revisits"
        if top.over_none is not None:
            text += f", {show(top.over_none, signed=True)} dB over no memory"
        if "swap" in top.drops:
            text += f", and loses {show(top.drops['swap'])} dB with another episode's memory"
        text += f", with {int(top.cost['state_bytes_end']):,} bytes of state a video at the end."
        using = [row.block for row in of_task if row.verdict.startswith("uses")]
        idle = [row.block for row in of_task if row.verdict.startswith("not shown")]
        text += f" Shown to use their memory: {', '.join(using) or 'none'}."
        text += f" Not shown to: {', '.join(idle)}." if idle else ""
        sentences.append(text)
    return sentences


def evidence(sweep: Sweep) -> list[tuple[str, str]]:
    """Return what the numbers rest on, as (what, how it stands)."""
    if not sweep.results:
        return []
    first, found = sweep.results[0], []
    hashes: dict[int, set[str]] = defaultdict(set)
    for result in sweep.results:
        hashes[result["seed"]].add(result["trunk_hash"])
    if all(len(found_hashes) == 1 for found_hashes in hashes.values()):
        proof = "; ".join(f"seed {seed}: {next(iter(h))}" for seed, h in sorted(hashes.items()))
        found.append(("identical trunk at the start", f"yes, one hash for all blocks of a seed ({proof})"))
    else:
        found.append(("identical trunk at the start", f"NO: trunks differ between blocks of one seed: {dict(hashes)}"))
    for metric in ("psnr", "ssim", "lpips"):
        found.append((f"metric card: {metric}", first["metrics"][metric]))
    found.append(("metric card", first["metrics"]["card"]))
    found.append(("matched budgets", "; ".join(dict.fromkeys(map(_budget, sweep.results)))))
    found.append(("attention's reach", ", ".join(_values(sweep, "reach")) + " frames; revisits lie beyond"))
    found.append(
        ("data", ", ".join(dict.fromkeys(f"{r['data']['name']} {r['data']['identity']}" for r in sweep.results)))
    )
    found.append(("held-out episodes", ", ".join(_values(sweep, "episodes"))))
    for key in ("device", "threads", "commit", "science_version"):
        found.append((key.replace("_", " "), ", ".join(_values(sweep, key))))
    found.append(("runs", f"{len(sweep.results)} done, {len(sweep.failures)} missing"))
    return found


def _values(sweep: Sweep, key: str) -> list[str]:
    return list(dict.fromkeys(str(result[key]) for result in sweep.results))


def _budget(result: dict[str, Any]) -> str:
    match, count = result["match"], result["parameters"]["memory"]
    if match["residual"] is None:
        return f"{result['block']}: {count:,} parameters, not sized"
    return f"{result['block']}: {count:,} of {match['budget']:,} parameters ({match['residual']:+.1%})"


def _strips(sweep: Sweep) -> list[StripGroup]:
    """Gather the strips of each block's first seed, episode by episode."""
    runs = {block: sweep.results_of(block)[0]["run"] for block in sweep.blocks if sweep.results_of(block)}
    groups = []
    for task in sweep.tasks:
        for episode in range(100):
            name = f"{task}-{{}}-{episode}.png"
            files = {block: sweep.folder / "runs" / run / "strips" for block, run in runs.items()}
            truth = next(
                (f / name.format("truth") for f in files.values() if (f / name.format("truth")).exists()), None
            )
            if truth is None:
                break
            kept, swapped = (
                [Strip(b, _uri(f / name.format(i))) for b, f in files.items() if (f / name.format(i)).exists()]
                for i in ("keep", "swap")
            )
            groups.append(StripGroup(f"{task}, episode {episode}", [Strip("truth", _uri(truth)), *kept], swapped))
    return groups


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
