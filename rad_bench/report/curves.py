"""The curves of the plots, from frames and training logs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rad_bench.report.intervals import episode_means, estimate
from rad_bench.report.reading import Sweep, read_losses, training_log
from rad_bench.report.usage import FRAMES_PER_POINT

GAP_EDGES = (0, 6, 9, 12, 16, 20, 25, 30, 40, 60, 100, 200, 400, 1000)
LEAST_EPISODES = 8  # fewest episodes for a point of a curve; with fewer, an interval means little
SMOOTHED = 5  # log records in the running mean of the loss


@dataclass(frozen=True)
class Curve:
    """A line, with bounds if there is an interval."""

    label: str  # of the block
    x: list[float]
    mean: list[float]
    low: list[float] | None = None
    high: list[float] | None = None

    @property
    def text(self) -> str:
        """Say where the line begins and ends, for readers who cannot see it."""
        return f"{self.label}: {self.mean[0]:.3g} at {self.x[0]:.3g}, {self.mean[-1]:.3g} at {self.x[-1]:.3g}"


def gap_bins(gaps: pd.Series) -> pd.Series:
    """Return the number of each gap's bin: bin n holds gaps from above `GAP_EDGES[n - 1]` up to `GAP_EDGES[n]`."""
    return pd.Series(np.digitize(gaps, GAP_EDGES, right=True), gaps.index)


def gap_curves(revisits: pd.DataFrame, blocks: list[str]) -> list[Curve]:
    """Return each block's PSNR on revisit frames against the gap (frames out of sight), in bins."""
    return _curves(revisits, "gap", gap_bins(revisits["gap"]), blocks)


def horizon_curves(frames: pd.DataFrame, blocks: list[str], score: str = "psnr") -> list[Curve]:
    """Return each block's score against the generated frame, a few frames per point."""
    return _curves(frames, "frame", frames["frame"] // FRAMES_PER_POINT, blocks, score)


def loss_curves(sweep: Sweep) -> list[Curve]:
    """Return each run's training loss, from the readable lines of its log."""
    curves = []
    for block in sweep.blocks:
        for result in sweep.trained_of(block):
            losses, _ = read_losses(training_log(sweep.folder, result))
            smooth = losses.rolling(SMOOTHED, min_periods=1).mean().dropna()
            if len(smooth):
                curves.append(Curve(block, smooth.index.tolist(), smooth.tolist()))
    return curves


def _curves(frames: pd.DataFrame, x: str, bins: pd.Series, blocks: list[str], score: str = "psnr") -> list[Curve]:
    """Return each block's score against column `x`, one point per bin. Bins with few episodes are left out."""
    centre = frames[x].groupby(bins).transform("mean")
    curves = []
    for block in blocks:
        own = frames[frames["block"] == block]
        points = [
            (float(at), estimate(episode_means(rows, score)))  # type: ignore[arg-type]
            for at, rows in own.groupby(centre[own.index])
            if rows["episode"].nunique() >= LEAST_EPISODES
        ]
        if points:
            values = [value for _, value in points]
            bounds = [v.low for v in values], [v.high for v in values]
            curves.append(Curve(block, [at for at, _ in points], [v.mean for v in values], *bounds))
    return curves
