"""FVD of a sweep's blocks: how far their videos are from true ones, as distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rad_bench.evaluation.controls import CONTROLS
from rad_bench.evaluation.fvd import GENERATED
from rad_bench.report.intervals import Estimate, by_seed
from rad_bench.report.reading import Sweep


@dataclass(frozen=True)
class Distance:
    """FVD of a block on a task."""

    fvd: Estimate  # over seeds; NaN if it is absent
    clips: int
    frames: int  # of a clip
    size: str  # of a frame, in pixels
    halves: float  # of half of the truth against the other half; NaN if absent
    absent: str  # why there is none


def distance(sweep: Sweep, task: str, block: str) -> Distance | None:
    """Return the FVD of a block, or of a control, on a task; None if no run was asked for it."""
    control = block in CONTROLS
    measured = {
        result.seed: result.fvd[task]
        for result in (sweep.results if control else sweep.results_of(block))
        if task in result.fvd
    }
    if not measured:
        return None
    name = block if control else GENERATED
    first, *_ = measured.values()
    fvd = by_seed({seed: own.scores.get(name, np.nan) for seed, own in measured.items()})
    absent = "; ".join(dict.fromkeys(own.absent for own in measured.values() if own.absent))
    halves = np.nan if first.halves is None else first.halves
    return Distance(fvd, first.clips, first.frames, f"{first.height} x {first.width}", halves, absent)
