"""The page: one offline HTML file for a reader with two minutes, and the evidence behind it for the one with more."""

from __future__ import annotations

import base64
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from markupsafe import Markup

from rad_bench.report.plots import Plot
from rad_bench.report.statistics import Pair, best_group, seeds_note
from rad_bench.report.summary import CONTROLS, Row, Sweep
from rad_bench.report.tables import Table, byte_text
from rad_bench.results_folder import check_name


@dataclass(frozen=True)
class Strip:
    """One row of frames."""

    label: str
    image: str  # data URI


@dataclass(frozen=True)
class StripGroup:
    """The same episode as truth and as every block generated it."""

    title: str
    kinds: list[tuple[int, str]]  # generated frame and its class, of the frames shown
    strips: list[Strip]
    swapped: list[Strip]


def write_page(
    path: Path, sweep: Sweep, rows: list[Row], pairs: dict[str, list[Pair]], tables: list[Table], plots: list[Plot]
) -> None:
    """Write the report's page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rad_bench.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("page.html.j2").render(
        name=sweep.plan.get("name", sweep.folder.name),
        answer=answer(sweep, rows, pairs),
        seeds=seeds_note(max((row.seeds for row in rows), default=0)),
        tables={table.name: table for table in tables},
        plots=[(plot, Markup(plot.svg[plot.svg.index("<svg") :])) for plot in plots],
        strips=_strips(sweep),
        evidence=evidence(sweep),
        failures=sweep.failures,
        plan=yaml.safe_dump(sweep.plan, sort_keys=False),
        tasks=", ".join(sweep.tasks),
    )
    path.write_text(html, encoding="utf-8", errors="replace")


def answer(sweep: Sweep, rows: list[Row], pairs: dict[str, list[Pair]]) -> list[str]:
    """Return the answer in a few sentences a task: which is best, which of constant size, which are used at all."""
    paragraphs = []
    for task in sweep.tasks:
        every = [row for row in rows if row.task == task and row.block not in CONTROLS]
        found = [row for row in every if np.isfinite(row.revisit["psnr"].mean)]
        found.sort(key=lambda row: -row.revisit["psnr"].mean)
        if not found:
            text = f"On {task}, no generated frame is known to be a revisit, so nothing can be said about memory. "
            every.sort(key=lambda row: -row.kinds["all"])
            text += (
                "PSNR over all frames, dB: " + ", ".join(f"{row.block} {row.kinds['all']:.1f}" for row in every) + "."
            )
            paragraphs.append(text)
            continue
        text = _leader(f"On {task}", [row for row in found if row.best], found)
        none = next((row for row in found if row.block == "none"), None)
        if none is not None and none is not found[0]:
            text += f" Without memory it is {_decibels(none)}."
        constant = [row for row in found if 0 < row.cost["state_bytes_start"] == row.cost["state_bytes_end"]]
        if constant and constant != found:
            by_block = {row.block: sweep.revisits(task, row.block) for row in constant}
            best = best_group(by_block, pairs[task])
            top = _listing([row.block for row in constant if row.block in best])
            told = "is alone at" if len(best) == 1 else "cannot be told apart at"
            text += f" Of the memories of constant size, {top} {told} the top."
        paragraphs.append(f"{text} {_usage(found)}")
    return paragraphs


def _leader(where: str, best: list[Row], found: list[Row]) -> str:
    """Say who leads, with quality and state, and how far the others get."""
    if len(found) == 1:
        text = f"{where}, {found[0].block} reaches {_decibels(found[0])} on revisits"
    elif found[0].seeds == 1:
        text = f"{where}, {found[0].block} is highest with {_decibels(found[0])} on revisits, on one seed"
    elif len(best) == 1:
        text = f"{where}, {best[0].block} is best with {_decibels(best[0])} on revisits"
    else:
        text = f"{where}, {_listing([row.block for row in best])} cannot be told apart at the top: "
        text += _listing([_decibels(row) for row in best]) + " on revisits"
    rest = [row for row in found if row not in best and row.block != "none"]
    return text + (f"; {_listing([f'{row.block} reaches {_decibels(row)}' for row in rest])}." if rest else ".")


def _usage(found: list[Row]) -> str:
    using = [row for row in found if row.verdict.startswith("uses")]
    idle = [row.block for row in found if row.verdict.startswith("not shown")]
    text = ""
    if using:
        losses = [f"{row.block} {row.drops['swap'].mean:.1f}" for row in using]
        text = f"With another episode's memory, dB lost: {', '.join(losses)}; so these use theirs."
    return text + (f" Not shown to use their memory: {', '.join(idle)}." if idle else "")


def _decibels(row: Row) -> str:
    text = f"{row.revisit['psnr'].mean:.1f} dB"
    size = row.cost["state_bytes_end"]
    if not size:
        return text
    grows = "growing to " if row.cost["state_bytes_start"] != size else ""
    return f"{text} ({grows}{byte_text(size)} of state)"


def _listing(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


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
    folders = {
        block: sweep.folder / "runs" / sweep.results_of(block)[0]["run"] / "strips"
        for block in sweep.blocks
        if sweep.results_of(block)
    }
    groups = []
    for task, shown in sweep.results[0]["strips"].items() if sweep.results else ():
        check_name(task, sweep.folder)  # it becomes part of the names of files
        for episode in map(int, shown["episodes"]):

            def gather(what: str, task: str = task, episode: int = episode) -> list[Strip]:
                paths = {block: folder / f"{task}-{what}-{episode}.png" for block, folder in folders.items()}
                return [Strip(block, _uri(path)) for block, path in paths.items() if path.exists()]

            truth = [Strip("truth", strip.image) for strip in gather("truth")[:1]]
            kinds = _kinds(sweep, task, episode, shown["frames"])
            title = f"{task}, episode {episode}"
            groups.append(StripGroup(title, kinds, truth + gather("keep"), gather("swap")))
    return groups


def _kinds(sweep: Sweep, task: str, episode: int, shown: list[int]) -> list[tuple[int, str]]:
    frames = sweep.frames[(sweep.frames["task"] == task) & (sweep.frames["episode"] == episode)]
    kinds = frames.drop_duplicates("frame").set_index("frame")["kind"]
    return [(frame, str(kinds[frame])) for frame in shown]


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
