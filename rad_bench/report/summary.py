"""From a sweep's folder to one table: everything that the page, the tables and the plots show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rad_bench.errors import UserError, one_line
from rad_bench.evaluation.evaluate import CONTROLS
from rad_bench.report.statistics import (
    Estimate,
    Pair,
    best_group,
    compare_pairs,
    difference,
    episode_means,
    estimate,
    memory_verdict,
)
from rad_bench.results_folder import check_links, check_name, read_plan

ORDER = ("none", "lstm", "mamba2", "ttt", "attention")  # others follow in alphabetical order, controls last


METRICS = ("psnr", "ssim", "lpips")


@dataclass(frozen=True)
class Sweep:
    """What a sweep's folder holds, read once."""

    folder: Path
    frames: pd.DataFrame
    results: list[dict[str, Any]]  # of the runs in `frames`
    plan: dict[str, Any]  # sweep.yaml
    failures: dict[str, str]  # planned runs without a result -> last line of their failure

    @property
    def tasks(self) -> list[str]:
        """Return the tasks, the headline's first."""
        return list(dict.fromkeys(self.frames["task"]))

    @property
    def blocks(self) -> list[str]:
        """Return the blocks in the report's order."""
        rank = {name: place for place, name in enumerate(ORDER)}
        names = self.frames["block"].unique()
        return sorted(names, key=lambda b: (b in CONTROLS, rank.get(base_name(b), len(ORDER)), b))

    def revisits(self, task: str, block: str, intervention: str = "keep", column: str = "psnr") -> pd.Series:
        """Return a block's mean over revisit frames, indexed by (seed, episode)."""
        frames = self.frames
        own = (frames["task"] == task) & (frames["block"] == block) & (frames["intervention"] == intervention)
        return episode_means(frames[own & (frames["kind"] == "revisit")], column)

    def results_of(self, block: str) -> list[dict[str, Any]]:
        """Return the results of a block's runs, one a seed."""
        return [result for result in self.results if result["block"] == block]


@dataclass(frozen=True)
class Row:
    """A block on a task."""

    block: str
    task: str
    seeds: int
    revisit: dict[str, Estimate]  # metric -> estimate over revisit frames under `keep`
    kinds: dict[str, float]  # recent, partial, novel, all -> mean PSNR
    pooled_psnr: float  # 10 log10(1 / mean MSE) over revisit frames
    drops: dict[str, Estimate]  # swap, reset -> loss of revisit PSNR
    over_none: Estimate | None
    verdict: str
    best: bool  # not distinguishable from the best
    cost: dict[str, float]


def base_name(block: str) -> str:
    """Return a block's name without options and other axes: `ttt(inner=mlp) / window=2` -> `ttt`."""
    return block.split(" / ")[0].split("(")[0]


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's folder. Raises `UserError` if what it holds is no sweep's, or names what lies elsewhere."""
    table = folder / "frames.parquet"
    frames = _plain_labels(read_frames(table))
    plan = read_plan(folder) if (folder / "sweep.yaml").exists() else {}
    for name in {*frames["run"], *frames["task"]}:
        check_name(name, table)
    runs = sorted(set(frames["run"]))
    for run in {*runs, *plan.get("planned", [])}:
        check_links(folder / "runs" / run, folder)
    results = [_read_result(folder / "runs" / run / "result.json") for run in runs]
    failures = {}
    for name in plan.get("planned", []):
        run = folder / "runs" / name
        if not (run / "result.json").exists():
            text = (
                (run / "failure.txt").read_text(errors="replace") if (run / "failure.txt").exists() else "not finished"
            )
            failures[name] = one_line(text.strip().splitlines()[-1]) if text.strip() else "not finished"
    return Sweep(folder, frames, results, plan, failures)


def read_frames(path: Path) -> pd.DataFrame:
    """Read a table of frames. Raises `UserError` if it is none."""
    try:
        frames = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}.") from None
    missing = {"run", "block", "seed", "task", "intervention", "episode", "frame", "kind", "psnr", "card"} - {*frames}
    if missing or not len(frames):
        raise UserError(f"{path}: is no table of frames: it has no {', '.join(sorted(missing)) or 'rows'}.")
    return frames


def _plain_labels(frames: pd.DataFrame) -> pd.DataFrame:
    """Bring labels that a sweep would not have given to one printable line."""
    labels = {label: one_line(str(label)) for label in frames["block"].unique()}
    if all(label == plain for label, plain in labels.items()):
        return frames
    return frames.assign(block=frames["block"].map(labels))


def _read_result(path: Path) -> dict[str, Any]:
    """Read a run's result. What it says of its own name is not believed: files are found by it."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return {**result, "run": path.parent.name, "block": one_line(str(result["block"]))}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is not the result of a run: {type(error).__name__}: {error}.") from None


def summarise(sweep: Sweep) -> tuple[list[Row], dict[str, list[Pair]]]:
    """Return a row per block and task, and per task the comparison of every pair of trained blocks."""
    rows, pairs = [], {}
    for task in sweep.tasks:
        kept = {block: sweep.revisits(task, block) for block in sweep.blocks}
        trained = {block: values for block, values in kept.items() if block not in CONTROLS and len(values)}
        pairs[task] = compare_pairs(trained)
        best = best_group(trained, pairs[task])
        for block in sweep.blocks:
            rows.append(_row(sweep, task, block, kept, block in best))
    return rows, pairs


def _row(sweep: Sweep, task: str, block: str, kept: dict[str, pd.Series], best: bool) -> Row:
    frames = sweep.frames
    own = frames[(frames["task"] == task) & (frames["block"] == block) & (frames["intervention"] == "keep")]
    drops = {}
    for intervention in ("swap", "reset"):
        other = sweep.revisits(task, block, intervention)
        if len(other):
            drops[intervention] = difference(kept[block], other)
    results = sweep.results_of(block)
    memoryless = not results or all(not any(r["state_bytes"].values()) for r in results)
    swap = drops.get("swap", Estimate(np.nan, np.nan, np.nan, 0))
    revisits = own[own["kind"] == "revisit"]
    return Row(
        block=block,
        task=task,
        seeds=own["seed"].nunique(),
        revisit={m: estimate(sweep.revisits(task, block, column=m)) for m in METRICS if m in frames},
        kinds={k: _mean(own[own["kind"] == k]) for k in ("recent", "partial", "novel")} | {"all": _mean(own)},
        pooled_psnr=float(-10 * np.log10(revisits["mse"].mean())) if len(revisits) else np.nan,
        drops=drops,
        over_none=difference(kept[block], kept["none"]) if "none" in kept and block != "none" else None,
        verdict=memory_verdict(swap, memoryless),
        best=best,
        cost=_cost(results),
    )


def _mean(frames: pd.DataFrame) -> float:
    return estimate(episode_means(frames)).mean if len(frames) else np.nan


def _cost(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return what a block costs; times and memory are means over its runs."""
    if not results:
        return {}
    state_bytes = {int(frames): count for frames, count in results[0]["state_bytes"].items()}

    def mean(*keys: str) -> float:
        values: list[Any] = list(results)
        for key in keys:
            values = [value[key] for value in values]
        return float(np.mean(values))

    return {
        "memory_parameters": results[0]["parameters"]["memory"],
        "trunk_parameters": results[0]["parameters"]["trunk"],
        "memory_flops_per_frame": results[0]["flops_per_frame"]["memory"],
        "trunk_flops_per_frame": results[0]["flops_per_frame"]["trunk"],
        "state_bytes_start": state_bytes[min(state_bytes)],
        "state_bytes_end": state_bytes[max(state_bytes)],
        "seconds_per_step": mean("training", "seconds_per_step"),
        "seconds_per_frame_start": mean("rollout", "seconds_per_frame_start"),
        "seconds_per_frame_end": mean("rollout", "seconds_per_frame_end"),
        "peak_memory_bytes": mean("peak_memory_bytes"),
    }


def summary_table(rows: list[Row]) -> pd.DataFrame:
    """Return the rows as the flat table that summary.csv holds."""
    flat = []
    for row in rows:
        line: dict[str, Any] = {"block": _no_formula(row.block), "task": row.task, "seeds": row.seeds}
        for metric, value in row.revisit.items():
            line |= _columns(f"revisit_{metric}", value)
        line |= {f"{kind}_psnr": value for kind, value in row.kinds.items()}
        line["revisit_pooled_psnr"] = row.pooled_psnr
        for intervention, value in row.drops.items():
            line |= _columns(f"{intervention}_drop", value)
        if row.over_none is not None:
            line |= _columns("over_none", row.over_none)
        flat.append(line | {"verdict": row.verdict, "not_distinguishable_from_best": row.best} | row.cost)
    return pd.DataFrame(flat)


def _no_formula(text: str) -> str:
    """Keep spreadsheets from computing a label: one that begins as a formula does gets an apostrophe."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _columns(name: str, value: Estimate) -> dict[str, float]:
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
