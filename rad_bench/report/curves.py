"""From frames and logs to the curves that are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rad_bench.report.memory import FRAMES_PER_POINT
from rad_bench.report.reading import Sweep, read_losses
from rad_bench.report.statistics import Estimate, episode_means, estimate

GAP_EDGES = (0, 6, 9, 12, 16, 20, 25, 30, 40, 60, 100, 200, 400, 1000)
SMOOTHED = 5  # records of the log in a running mean of the loss


@dataclass(frozen=True)
class Curve:
    """A line; bounds where there is an interval."""

    label: str  # of the block
    x: list[float]
    mean: list[float]
    low: list[float] | None = None
    high: list[float] | None = None

    @property
    def text(self) -> str:
        """Say in words where the line begins and ends."""
        return f"{self.label}: {self.mean[0]:.3g} at {self.x[0]:.3g}, {self.mean[-1]:.3g} at {self.x[-1]:.3g}"


def gap_curves(frames: pd.DataFrame, blocks: list[str]) -> list[Curve]:
    """Return each block's revisit PSNR against the frames a view was out of sight, in bins."""
    revisits = frames[frames["kind"] == "revisit"]
    place = np.digitize(revisits["gap"], GAP_EDGES, right=True)
    centre = revisits["gap"].groupby(place).transform("mean")
    return _curves(
        {block: (own := revisits[revisits["block"] == block]).groupby(centre[own.index]) for block in blocks}
    )


def horizon_curves(frames: pd.DataFrame, blocks: list[str]) -> list[Curve]:
    """Return each block's PSNR against the generated frame, a few frames a point."""
    place = frames["frame"] // FRAMES_PER_POINT
    centre = frames["frame"].groupby(place).transform("mean")
    return _curves({block: (own := frames[frames["block"] == block]).groupby(centre[own.index]) for block in blocks})


def loss_curves(sweep: Sweep) -> list[Curve]:
    """Return each run's training loss, as far as its log can be read."""
    curves = []
    for block in sweep.blocks:
        for result in sweep.results_of(block):
            losses, _ = read_losses(sweep.folder / "runs" / result["run"] / "log.jsonl")
            smooth = losses.rolling(SMOOTHED, min_periods=1).mean().dropna()
            if len(smooth):
                curves.append(Curve(block, smooth.index.tolist(), smooth.tolist()))
    return curves


def _curves(groups: dict[str, pd.api.typing.DataFrameGroupBy]) -> list[Curve]:  # type: ignore[type-arg]
    curves = []
    for block, parts in groups.items():
        points: list[tuple[float, Estimate]] = [(float(x), estimate(episode_means(part))) for x, part in parts]  # type: ignore[arg-type]
        points = [(x, value) for x, value in points if np.isfinite(value.mean)]
        if points:
            values = [value for _, value in points]
            curves.append(
                Curve(
                    block,
                    [x for x, _ in points],
                    [v.mean for v in values],
                    [v.low for v in values],
                    [v.high for v in values],
                )
            )
    return curves
