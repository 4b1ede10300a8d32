"""Two measures of memory use: does a rollout agree with itself (NMR), and how long does a swap have an effect?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rad_bench.report.intervals import Estimate, by_seed
from rad_bench.store.result import Result

LEAST_SPREAD = 0.05  # least SSIM of neighbours over that of different views; below it NMR is mostly noise
FRAMES_PER_POINT = 4  # of the horizon curve; single frames are noisy
LEAST_FRAMES = 20  # fewest revisits for a point
LEAST_GAIN = 0.5  # dB, least first loss by a swap for a half-life


@dataclass(frozen=True)
class MemoryRow:
    """A block on a task."""

    block: str
    task: str
    pairs: int  # revisit pairs in the rollouts of one seed
    seeds: int  # trained models
    nmr: Estimate  # over the `nmr.seeds` seeds with a defined ratio; NaN without any
    half_life: list[float]  # per seed; inf if the loss never falls to half
    horizon: int


def probes(results: list[Result]) -> dict[str, Estimate]:
    """Return the scores (R^2) of a linear probe of a block's state, from the results of its runs."""
    names = dict.fromkeys(name for result in results for name in result.probe)
    return {name: by_seed({r.seed: r.probe.get(name, np.nan) for r in results}) for name in names}


def memory_rows(frames: pd.DataFrame, blocks: list[str], tasks: list[str]) -> list[MemoryRow]:
    """Return a row per block and task."""
    rows = []
    for task in tasks:
        for block in blocks:
            own = frames[(frames["task"] == task) & (frames["block"] == block)]
            kept = own[own["intervention"] == "keep"]
            ratios = {seed: normalised_revisit(frames_of_seed) for seed, frames_of_seed in kept.groupby("seed")}
            pairs = int(kept.groupby("seed")["self_revisit"].count().max()) if "self_revisit" in kept else 0
            lives = [half_life(frames_of_seed) for _, frames_of_seed in own.groupby("seed")]
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
    """Return the number of generated frames after which the loss by a swap has fallen to half of its first value.

    The loss is PSNR minus PSNR with a swapped memory, averaged over the revisit frames of `FRAMES_PER_POINT` generated
    frames. Points with fewer than `LEAST_FRAMES` revisits are left out. Between points the loss is interpolated. inf if
    it never falls to half. NaN without a swap, with fewer than two points, or if the first loss is below `LEAST_GAIN`.
    """
    revisits = own[own["kind"] == "revisit"]
    points = revisits.groupby(["intervention", revisits["frame"] // FRAMES_PER_POINT])
    means = points.agg({"psnr": "mean", "frame": ["mean", "count"]})
    if not {"keep", "swap"} <= set(means.index.get_level_values(0)):
        return np.nan
    keep, swap = means.loc["keep"], means.loc["swap"]
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
