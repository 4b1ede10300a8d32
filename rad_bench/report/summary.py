"""The summary of a sweep: one row per block and task, from which the tables, plots and page are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rad_bench.evaluation.controls import CONTROLS
from rad_bench.evaluation.metrics import SMALLEST_MSE, Score, score_columns
from rad_bench.report.capacity import Capacity, capacity
from rad_bench.report.cost import cost_of
from rad_bench.report.distances import Distance, distance
from rad_bench.report.intervals import (
    Estimate,
    Pair,
    best_group,
    compare_pairs,
    difference,
    episode_means,
    estimate,
    memory_verdict,
    over_episodes,
    share_closed,
)
from rad_bench.report.reading import Sweep, base_name, matching


@dataclass(frozen=True)
class Row:
    """A block on a task."""

    block: str
    task: str
    seeds: int
    revisit: dict[str, Estimate]  # metric -> estimate over revisit frames under `keep`
    kinds: dict[str, float]  # recent, partial, novel, all -> mean PSNR
    pooled_psnr: float  # 10 log10(1 / mean MSE) over revisit frames
    drops: dict[str, Estimate]  # swap, reset -> loss of revisit PSNR, dB
    over_none: Estimate | None
    over_none_elsewhere: Estimate | None  # the same, with an interval that holds for other episodes too
    gap_closed: Estimate | None  # share of the gap from none to attention
    capacity: Capacity | None  # in a world whose colours can be asked for
    distance: Distance | None  # FVD, if it was asked for
    verdict: str
    best: dict[str, bool | None]  # metric -> not distinguishable from the best; None: unknown, on a single seed
    cost: dict[str, float]  # empty for controls

    @property
    def carries_state(self) -> bool:
        """True if the memory has a state at the end of the horizon."""
        return bool(self.cost and self.cost["state_bytes_end"])

    @property
    def state_grows(self) -> bool:
        """True if the state grows with the rollout."""
        return bool(self.cost and self.cost["state_bytes_start"] != self.cost["state_bytes_end"])


def summarise(sweep: Sweep) -> tuple[list[Row], dict[str, list[Pair]]]:
    """Return a row per block and task, and for each task the comparison of every pair of trained blocks."""
    rows: list[Row] = []
    pairs: dict[str, list[Pair]] = {}
    for task in sweep.tasks:
        kept = {block: sweep.revisits(task, block) for block in sweep.blocks}
        trained = [block for block, values in kept.items() if block not in CONTROLS and len(values)]
        best: dict[str, set[str] | None] = {}
        for name, metric in reported_metrics(sweep).items():
            sign = 1 if metric.higher_is_better else -1
            values = {block: sign * sweep.revisits(task, block, column=name) for block in trained}
            comparisons = compare_pairs(values)
            several_seeds = any(np.isfinite(pair.p) for pair in comparisons)
            best[name] = best_group(values, comparisons) if several_seeds else None
            if name == "psnr":
                pairs[task] = comparisons
        for block in sweep.blocks:
            own = {metric: None if group is None else block in group for metric, group in best.items()}
            rows.append(_row(sweep, task, block, kept, own))
    return rows, pairs


def reported_metrics(sweep: Sweep) -> dict[str, Score]:
    """Return the metrics that the report shows, by their column in the frames."""
    return {name: m for name, m in score_columns().items() if m.reported and name in sweep.frames}


def _row(sweep: Sweep, task: str, block: str, kept: dict[str, pd.Series], best: dict[str, bool | None]) -> Row:
    frames = sweep.frames
    own = frames[(frames["task"] == task) & (frames["block"] == block) & (frames["intervention"] == "keep")]
    drops = {}
    for intervention in ("swap", "reset"):
        other = sweep.revisits(task, block, intervention)
        if len(other):
            drops[intervention] = difference(kept[block], other)
    results = sweep.trained_of(block)
    memoryless = block in CONTROLS or bool(results and all(not any(r.state_bytes.values()) for r in results))
    none, ceiling = matching("none", block, kept), matching("attention", block, kept)
    over_none = over_none_elsewhere = gap_closed = None
    if none and base_name(block) != "none":
        over_none = difference(kept[block], kept[none])
        over_none_elsewhere = over_episodes(kept[block] - kept[none])
        if ceiling and block not in (ceiling, *CONTROLS):
            gap_closed = share_closed(kept[block], kept[none], kept[ceiling])
    swap = drops.get("swap", Estimate(np.nan, np.nan, np.nan, 0))
    revisits = own[own["kind"] == "revisit"]
    return Row(
        block=block,
        task=task,
        seeds=own["seed"].nunique(),
        revisit={m: estimate(sweep.revisits(task, block, column=m)) for m in reported_metrics(sweep)},
        kinds={k: _mean(own[own["kind"] == k]) for k in ("recent", "partial", "novel")} | {"all": _mean(own)},
        pooled_psnr=float(-10 * np.log10(max(revisits["mse"].mean(), SMALLEST_MSE))) if len(revisits) else np.nan,
        drops=drops,
        over_none=over_none,
        over_none_elsewhere=over_none_elsewhere,
        gap_closed=gap_closed,
        capacity=capacity(sweep, task, block),
        distance=distance(sweep, task, block),
        verdict=memory_verdict(swap, memoryless),
        best=best,
        cost=cost_of(sweep, block),
    )


def _mean(frames: pd.DataFrame) -> float:
    return estimate(episode_means(frames)).mean if len(frames) else np.nan


def summary_table(rows: list[Row]) -> pd.DataFrame:
    """Return the rows as the flat table of summary.parquet and summary.csv."""
    flat = []
    for row in rows:
        control = row.block in CONTROLS  # its seeds are copies
        line: dict[str, Any] = {"block": row.block, "task": row.task, "seeds": None if control else row.seeds}
        for metric, value in row.revisit.items():
            line |= _columns(f"revisit_{metric}", Estimate(value.mean, np.nan, np.nan, 0) if control else value)
        line |= {f"{kind}_psnr": value for kind, value in row.kinds.items()}
        line["revisit_pooled_psnr"] = row.pooled_psnr
        for intervention, value in row.drops.items():
            line |= _columns(f"{intervention}_drop", value)
        if row.over_none is not None and not control:
            line |= _columns("over_none", row.over_none)
            assert row.over_none_elsewhere is not None
            low, high = row.over_none_elsewhere.low, row.over_none_elsewhere.high
            line |= {"over_none_low_other_episodes": low, "over_none_high_other_episodes": high}
        if row.gap_closed is not None:
            line |= _columns("gap_closed", row.gap_closed)
        if row.capacity is not None:
            line |= {"items": row.capacity.items, "bits_offered": row.capacity.offered}
            line |= _columns("bits", row.capacity.bits)
        if row.distance is not None:
            line |= _columns("fvd", row.distance.fvd) | {"fvd_clips": row.distance.clips}
        flat.append(line | {"verdict": row.verdict, "not_distinguishable_from_best": row.best["psnr"]} | row.cost)
    return pd.DataFrame(flat).astype({"seeds": "Int64"})


def write_summary(rows: list[Row], folder: Path) -> None:
    """Write summary.parquet and summary.csv into a sweep's folder."""
    table = summary_table(rows)
    table.to_parquet(folder / "summary.parquet", index=False)
    table.assign(block=table["block"].map(_escape_formula)).to_csv(
        folder / "summary.csv", index=False, encoding="utf-8"
    )


def _escape_formula(text: str) -> str:
    """Prefix a label that a spreadsheet would read as a formula with an apostrophe."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _columns(name: str, value: Estimate) -> dict[str, float]:
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
