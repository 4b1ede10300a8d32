"""How much a memory holds: the colours of surfaces that a rollout gets right, in bits, and per kilobyte of state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rad_bench.report.intervals import Estimate, by_seed
from rad_bench.report.reading import Sweep


@dataclass(frozen=True)
class Capacity:
    """What a block recovers on a task."""

    items: float  # surfaces asked for in an episode, mean
    offered: float  # bits in their colours
    bits: Estimate  # recovered


def channel_bits(share: float, choices: int) -> float:
    """Return the bits that an answer carries, if `share` of answers are right and errors hit all colours alike.

    This is the mutual information of a symmetric channel with `choices` symbols: log2(choices) if all are right, 0 at
    chance; below chance its negative, so that guessing has mean 0.
    """
    chance = 1 / choices
    if not np.isfinite(share):
        return np.nan
    right = share * np.log2(share) if share > 0 else 0.0
    wrong = (1 - share) * np.log2((1 - share) / (choices - 1)) if share < 1 else 0.0
    bits = float(np.log2(choices) + right + wrong)
    return bits if share >= chance else -bits


def capacity(sweep: Sweep, task: str, block: str) -> Capacity | None:
    """Return what a block recovers on a task, over revisit frames; None where no colour was asked for."""
    if "recall" not in sweep.frames or "items" not in sweep.frames:
        return None
    shares, items = (sweep.revisits(task, block, column=column) for column in ("recall", "items"))
    if not shares.notna().any():
        return None
    choices = int(sweep.frames.loc[sweep.frames["task"] == task, "choices"].max())
    asked = float(items[items > 0].mean())
    by = shares.dropna().groupby("seed").mean()
    bits = {seed: asked * channel_bits(float(share), choices) for seed, share in by.items()}
    return Capacity(asked, asked * float(np.log2(choices)), by_seed(bits))
