"""How many surfaces can a memory hold? Bits recovered against what was to be remembered, and where half is lost.

Episodes whose worlds have different numbers of surfaces give a curve. A block's curve follows the line of all bits as
long as the memory holds everything, then bends away from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rad_bench.report.capacity import channel_bits
from rad_bench.report.curves import LEAST_EPISODES, Curve
from rad_bench.report.intervals import Estimate, by_seed
from rad_bench.report.reading import Sweep

LEAST_SPAN = 4.0  # the largest load over the smallest; with less there is no curve


@dataclass(frozen=True)
class Point:
    """Episodes of a similar load."""

    items: float  # surfaces asked for in an episode, mean
    offered: float  # bits in their colours
    bits: Estimate  # recovered


@dataclass(frozen=True)
class Load:
    """A block on a task, from the smallest load to the largest."""

    task: str
    block: str
    points: list[Point]
    half: Estimate  # surfaces at which half of the bits are lost; its mean is NaN if that is outside the loads
    outside: str  # "more than" the largest load or "fewer than" the smallest; "" if `half` is within

    @property
    def most(self) -> Point:
        """Return the point with the most bits."""
        return max(self.points, key=lambda point: point.bits.mean)

    @property
    def curve(self) -> Curve:
        """Return bits against surfaces."""
        bits = [point.bits for point in self.points]
        bounds = [value.low for value in bits], [value.high for value in bits]
        return Curve(self.block, [point.items for point in self.points], [value.mean for value in bits], *bounds)

    @property
    def half_text(self) -> str:
        """Return "more than 54" or "fewer than 4" where half is lost outside the loads, else ""."""
        end = self.points[-1] if self.outside == "more than" else self.points[0]
        return f"{self.outside} {end.items:.0f}" if self.outside else ""


def loads(sweep: Sweep) -> list[Load]:
    """Return the loads of all tasks and blocks; none if the episodes' loads hardly differ."""
    if "recall" not in sweep.frames or "items" not in sweep.frames:
        return []
    found = [_load(sweep, task, block) for task in sweep.tasks for block in sweep.blocks]
    return [load for load in found if load]


def _load(sweep: Sweep, task: str, block: str) -> Load | None:
    columns = {name: sweep.revisits(task, block, column=name) for name in ("recall", "items", "choices")}
    episodes = pd.DataFrame(columns).dropna()
    episodes = episodes[episodes["items"] > 0]
    if episodes.empty:
        return None
    bins = np.floor(np.log2(episodes["items"])).astype(int)  # from each power of two to the next
    kept = [rows for _, rows in episodes.groupby(bins) if len(rows.groupby("episode")) >= LEAST_EPISODES]
    items = [float(rows["items"].mean()) for rows in kept]
    if not items or items[-1] < LEAST_SPAN * items[0]:
        return None
    choices = int(episodes["choices"].max())
    by_point = [
        {
            seed: at * channel_bits(float(share), choices)
            for seed, share in rows["recall"].groupby("seed").mean().items()
        }
        for at, rows in zip(items, kept, strict=True)
    ]
    offered = [at * float(np.log2(choices)) for at in items]
    points = [Point(at, all_bits, by_seed(bits)) for at, all_bits, bits in zip(items, offered, by_point, strict=True)]
    halves = {
        seed: half_lost(
            items, [bits.get(seed, np.nan) / all_bits for bits, all_bits in zip(by_point, offered, strict=True)]
        )
        for seed in by_point[0]
    }
    inside = all(map(np.isfinite, halves.values()))
    outside = "" if inside else "more than" if np.inf in halves.values() else "fewer than"
    return Load(task, block, points, by_seed(halves if inside else {}), outside)


def half_lost(items: list[float], shares: list[float]) -> float:
    """Return the load at which the recovered share falls below a half for good, between the loads by their logarithm.

    It is infinite if the share of the largest load is a half or more, and minus infinity if no share is.
    """
    above = [number for number, share in enumerate(shares) if share >= 0.5]
    if not above:
        return -np.inf
    last = above[-1]
    if last == len(items) - 1:
        return np.inf
    part = (shares[last] - 0.5) / (shares[last] - shares[last + 1])
    return float(items[last] * (items[last + 1] / items[last]) ** part)
