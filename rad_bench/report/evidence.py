"""The evidence behind the numbers: checks, budgets, definitions, machines, and the command that repeats the sweep."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pandas as pd

from rad_bench.errors import one_line
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.report.curves import GAP_EDGES, LEAST_EPISODES, gap_bins
from rad_bench.report.reading import Sweep, read_losses, training_log
from rad_bench.report.table import Table, listing
from rad_bench.store import strict_yaml
from rad_bench.store.result import Need

NOT_IN_A_SWEEP_FILE = ("planned", "trials", "history", "merged")  # keys that a results folder adds to sweep.yaml
SCORED = "scored"  # key of sweep.yaml in the folder of models from outside: the folder of the tasks


def evidence(sweep: Sweep) -> list[tuple[str, str]]:
    """Return the evidence as (name, value)."""
    if not sweep.results:
        return []
    items = [("identical trunk at the start", _trunk_check(sweep))] if sweep.trained else []
    items += _outside(sweep)
    cards = sweep.results[0].metrics
    items += [(f"metric card: {name}", text) for name, text in cards if name != "card"]
    items.append(("metric card", cards.card))
    items.append(
        ("reach of attention", ", ".join(_values(sweep, "reach")) + " frames; revisits were out of sight for longer")
    )
    data = dict.fromkeys(f"{r.data.name} {r.data.identity}" for r in sweep.results)
    items.append(("data", ", ".join(data)))
    items.append(("held-out episodes", ", ".join(_values(sweep, "episodes"))))
    items += [
        (key.replace("_", " "), ", ".join(_values(sweep, key))) for key in ("device", "commit", "science_version")
    ]
    items += _environment(sweep)
    items.append(("runs", f"{len(sweep.results)} done, {len(sweep.failures)} missing"))
    reused = [(result.run, result.trained_by) for result in sweep.trained if result.trained_by != result.run]
    if reused:
        sources = "; ".join(f"{run} from {by}" for run, by in reused)
        items.append(("reused weights", f"{len(reused)} of {len(sweep.results)} runs did not train: {sources}"))
    logs = dict.fromkeys(read_losses(training_log(sweep.folder, result))[1] for result in sweep.trained)
    if any(logs):
        items.append(("logs with unreadable lines", "; ".join(log for log in logs if log)))
    return items


def _trunk_check(sweep: Sweep) -> str:
    """Compare the hashes of the trunks before training. They must agree for each seed and trunk size."""
    hashes: dict[tuple[int, int], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for result in sweep.trained:
        hashes[result.seed, result.parameters.trunk][result.trunk_hash].append(result.block)
    sizes = {size for _, size in hashes}

    def place(key: tuple[int, int]) -> str:
        return f"seed {key[0]}" + (f", {key[1]:,} parameters" if len(sizes) > 1 else "")

    unequal = [f"{place(key)}: {dict(blocks)}" for key, blocks in sorted(hashes.items()) if len(blocks) > 1]
    if unequal:
        return "NO: trunks differ between blocks of one seed: " + "; ".join(unequal)
    equal = [f"{place(key)}: {next(iter(blocks))}" for key, blocks in sorted(hashes.items())]
    return f"yes, one hash for all blocks of a seed ({'; '.join(equal)})"


def _outside(sweep: Sweep) -> list[tuple[str, str]]:
    """Say where the frames of models from outside came from, and what was done to them."""
    items = []
    for result in sweep.results:
        if result.generated is not None:
            swapped = f", with swapped memory {result.generated.swapped}" if result.generated.swapped else ""
            texts = [f"{result.generated.rollouts}{swapped}", *result.generated.notes, *result.generated.suspects]
            items.append((f"scored frames: {result.block}, seed {result.seed}", "; ".join(texts)))
    return items


def _values(sweep: Sweep, key: str) -> list[str]:
    return list(dict.fromkeys(str(getattr(result, key)) for result in sweep.results))


def _environment(sweep: Sweep) -> list[tuple[str, str]]:
    """Return Python, platform and packages of the runs; several values if runs differ."""
    values: dict[str, dict[str, None]] = defaultdict(dict)
    for result in sweep.results:
        try:
            text = (sweep.folder / "runs" / result.run / "environment.json").read_text(encoding="utf-8")
            stored = json.loads(text)
            packages = dict(stored["packages"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            values["environment"][f"not stored by {result.run}"] = None
            continue
        for key in ("rad_bench", "python", "platform", "threads", "processes"):
            if key in stored:
                values[key][str(stored[key])] = None
        values["packages"][", ".join(f"{name} {version}" for name, version in packages.items())] = None
    return [(key, "; ".join(texts)) for key, texts in values.items()]


def budgets(sweep: Sweep) -> Table:
    """Return each block's size, the budget it was matched to, and the solved options."""
    cells: dict[str, list[str]] = {}
    for block in sweep.blocks:
        for result in sweep.trained_of(block)[:1]:
            match = result.match
            size = ", ".join(f"{key}={value}" for key, value in result.memory.options.items())
            budget = f"{match.budget:,} ({match.by})" if match.residual is not None and match.budget else "not sized"
            residual = f"{100 * match.residual:+.2f} %" if match.residual is not None else ""
            cells[block] = [block, f"{result.parameters.memory:,}", budget, residual, size]
    header = ["block", "memory parameters", "budget", "residual", "options"]
    return Table(
        "budgets", "Matched budgets; residual: (size - budget) / budget", header, list(cells.values())
    ).without_empty_columns()


def gaps(sweep: Sweep) -> Table:
    """Return the number of revisit frames and episodes in each bin of a run's curve over gaps."""
    frames = sweep.frames
    kept = (frames["kind"] == "revisit") & (frames["intervention"] == "keep") & ~frames["block"].isin(CONTROLS)
    revisits = frames[kept].assign(bin=gap_bins(frames.loc[kept, "gap"]))
    cells = []
    for task in sweep.tasks:
        runs = revisits[revisits["task"] == task].groupby(["bin", "block", "seed"])["episode"].agg(["size", "nunique"])
        for number, counts in runs.groupby("bin"):
            bounds = " to ".join(map(str, GAP_EDGES[number - 1 : number + 1]))  # type: ignore[operator, index]
            cells.append([task, f"over {bounds}", *(_range(counts[column]) for column in ("size", "nunique"))])
    caption = (
        f"Data behind a run's curve over gaps; bins of fewer than {LEAST_EPISODES} episodes are not drawn, but count "
        "in the mean over revisits"
    )
    return Table("gaps", caption, ["task", "frames out of sight (gap)", "revisit frames", "episodes"], cells)


def need(sweep: Sweep) -> Table:
    """Return which share of the trained and of the scored frames needs a memory."""
    rows: dict[tuple[str, ...], list[str]] = {}
    blocks = [block for block in sweep.blocks if block not in CONTROLS]
    for block in blocks:
        for name, seeds in _by_name(result.need for result in sweep.results_of(block)).items():
            share = _range(pd.Series([100 * frames.share for frames in seeds]), ".1f")
            gaps: list[tuple[float, ...]] = [frames.gaps for frames in seeds if frames.gaps]
            quartiles = np.mean(gaps or [()], axis=0)
            clips = _range(pd.Series([frames.episodes for frames in seeds]))
            cells = name, f"{share} %", " ".join(f"{gap:.0f}" for gap in quartiles), f"{clips} of {seeds[0].of}"
            rows.setdefault(cells, []).append(block)
    lines = [["all" if len(alike) == len(blocks) else listing(alike), *cells] for cells, alike in rows.items()]
    caption = (
        "Frames that need a memory. Trained: a tenth of what they show was seen before, and last seen longer ago than "
        "attention reaches; over the seeds. Scored: revisits. Gaps: quartiles of the frames that it was out of sight"
    )
    return Table("need", caption, ["block", "frames", "share", "gaps", "clips with such frames"], lines)


def _by_name(needs: Iterable[dict[str, Need]]) -> dict[str, list[Need]]:
    names: dict[str, list[Need]] = {}
    for need_of in needs:
        for name, frames in need_of.items():
            names.setdefault(name, []).append(frames)
    return names


def _range(counts: pd.Series, form: str = ",") -> str:
    low, high = counts.min(), counts.max()
    return f"{low:{form}}" if low == high else f"{low:{form}} to {high:{form}}"


def parity(sweep: Sweep) -> Table:
    """Return for each block the path that computed it, and its largest error against the reference."""
    errors: dict[tuple[str, ...], list[float]] = {}
    for block in sweep.blocks:
        for result in sweep.trained_of(block):
            measured = result.parity
            path = ("not stored", "", "") if measured is None else (measured.path, measured.device, measured.why)
            errors.setdefault((block, *path), []).extend([] if measured is None else [measured.max_error])
    cells = [
        [block, path, f"{max(own):.2g}" if own else "", device, why]
        for (block, path, device, why), own in errors.items()
    ]
    caption = (
        "The path that computed each block, and its largest error against the loop over `step`, on the runs' device"
    )
    header = ["block", "path", "largest error", "device", "reason"]
    return Table("parity", caption, header, cells).without_empty_columns()


def reproduction(sweep: Sweep) -> str:
    """Return shell commands that write the sweep file and run it, or that score again, to copy and paste."""
    if SCORED in sweep.plan:
        return _scoring(sweep)
    tree = {key: value for key, value in sweep.plan.items() if key not in NOT_IN_A_SWEEP_FILE}
    name = str(tree.get("name", ""))
    file = f"{name}.yaml" if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name) else "sweep.yaml"
    lines = []
    commits = [commit for commit in _values(sweep, "commit") if commit != "None"]
    clean = [commit for commit in commits if re.fullmatch(r"[0-9a-f]{7,40}", commit)]
    if len(commits) == 1 and clean:
        lines.append(f"git checkout {commits[0]}")
    elif commits:
        names = one_line(", ".join(commits))  # a second line would be a command
        lines.append(f"# the runs were made at {names}; no single clean commit reproduces them all")
    lines.append(f"cat > {file} <<'END'")
    lines.append(strict_yaml.dump(tree).rstrip("\n"))
    lines += ["END", f"rad-bench sweep {file}"]
    if "merged" in sweep.plan:
        lines.append("# merged from several sweeps; this file is the first one's")
    return "\n".join(lines)


def _scoring(sweep: Sweep) -> str:
    """Return the command that scored models from outside."""
    parts = [f"rad-bench score {shlex.quote(str(sweep.plan[SCORED]))}"]
    for result in sweep.results:
        if result.generated is not None:
            name = f"{result.block}:{result.seed}"
            parts.append(f"--rollouts {shlex.quote(f'{name}={result.generated.rollouts}')}")
            if result.generated.swapped:
                parts.append(f"--swapped {shlex.quote(f'{name}={result.generated.swapped}')}")
    return " \\\n    ".join(parts)
