"""Two more numbers on memory: does a rollout agree with itself, and how long is a swap felt?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rad_bench.report.intervals import Estimate, by_seed
from rad_bench.store.result import Result

LEAST_SPREAD = 0.05  # SSIM between neighbours and different views, below which NMR would be a quotient of noise
FRAMES_PER_POINT = 4  # of the horizon curve; single frames are noisy
LEAST_FRAMES = 20  # revisits that a point needs
LEAST_GAIN = 0.5  # dB that a swap must take at first for a half-life to mean anything


@dataclass(frozen=True)
class MemoryRow:
    """A block on a task."""

    block: str
    task: str
    pairs: int  # revisit pairs within the evaluation's rollouts, the same for every seed
    seeds: int  # trained models
    nmr: Estimate  # over the seeds whose ratio is defined, `nmr.seeds` of them; NaN where none is
    half_life: list[float]  # a seed each; inf if half of that is never lost
    horizon: int


def probes(results: list[Result]) -> dict[str, Estimate]:
    """Return what a linear probe read from a block's state (R^2), from the results of its runs."""
    names = dict.fromkeys(name for result in results for name in result.probe)
    return {name: by_seed({r.seed: r.probe.get(name, np.nan) for r in results}) for name in names}


def memory_rows(frames: pd.DataFrame, blocks: list[str], tasks: list[str]) -> list[MemoryRow]:
    """Return a row per block and task."""
    rows = []
    for task in tasks:
        for block in blocks:
            own = frames[(frames["task"] == task) & (frames["block"] == block)]
            kept = own[own["intervention"] == "keep"]
            ratios = {seed: normalised_revisit(part) for seed, part in kept.groupby("seed")}
            pairs = int(kept.groupby("seed")["self_revisit"].count().max()) if "self_revisit" in kept else 0
            lives = [half_life(part) for _, part in own.groupby("seed")]
            horizon = int(own["frame"].max()) + 1
            rows.append(MemoryRow(block, task, pairs, len(ratios), by_seed(ratios), lives, horizon))
    return rows


def normalised_revisit(kept: pd.DataFrame) -> float:
    """NMR of one trained model's rollouts (see evaluation/consistency.py); NaN where it is undefined."""
    if "self_revisit" not in kept:
        return np.nan
    pairs = kept[kept["self_revisit"].notna()]
    other = pairs["self_other"].mean()
    spread = kept["self_neighbour"].mean() - other
    if not len(pairs) or not spread > LEAST_SPREAD:
        return np.nan
    return float((pairs["self_revisit"].mean() - other) / spread)


def half_life(own: pd.DataFrame) -> float:
    """Generated frames, from the context's end, until revisits have lost half of what a swap takes from them at first.

    What a swap takes is PSNR over that with a swapped memory, the mean over the revisit frames of a few generated
    frames, wherever these are `LEAST_FRAMES` or more; "at first" is the earliest such point, and points are joined by
    lines. NaN without a swap, with fewer than two points, or where a swap takes next to nothing at first.
    """
    revisits = own[own["kind"] == "revisit"]
    points = revisits.groupby(["intervention", revisits["frame"] // FRAMES_PER_POINT])
    found = points.agg({"psnr": "mean", "frame": ["mean", "count"]})
    if not {"keep", "swap"} <= set(found.index.get_level_values(0)):
        return np.nan
    keep, swap = found.loc["keep"], found.loc["swap"]
    enough = keep["frame", "count"] >= LEAST_FRAMES
    gain = (keep["psnr", "mean"] - swap["psnr", "mean"])[enough].to_numpy()
    places = keep["frame", "mean"][enough].to_numpy()
    if len(gain) < 2 or gain[0] < LEAST_GAIN:
        return np.nan
    below = np.flatnonzero(gain <= gain[0] / 2)
    if not len(below):
        return np.inf
    at = int(below[0])
    share = (gain[at - 1] - gain[0] / 2) / (gain[at - 1] - gain[at])
    return float(places[at - 1] + share * (places[at] - places[at - 1]))
