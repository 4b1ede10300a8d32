"""What each block costs: sizes and FLOPs, which are counted, and times, which are ratios.

Runs are timed beside other runs, so their times stay off the page. The page's times are those of the calibration: all
blocks in turns, after the runs. A ratio is that of two times of one turn; it is the median over turns, with quartiles.
"""

from __future__ import annotations

import numpy as np

from rad_bench.errors import one_line
from rad_bench.report.reading import Sweep, matching
from rad_bench.store.result import Result, Timing
from rad_bench.units import show_seconds

PARTS = {  # part of a turn -> its name in a table
    "step": "training step, ratio",
    "first_frames": "frame at the start, ratio",
    "last_frames": "frame at the end, ratio",
}


def cost_of(sweep: Sweep, block: str) -> dict[str, float]:
    """Return the costs of a block; empty for what rad-bench did not train.

    Times in its own runs, and peak memory, are means over runs.
    Ratios are `<part>_ratio`, with `_low` and `_high`, for the FLOPs and, if the block was timed, for each of `PARTS`.
    """
    results = sweep.trained_of(block)
    if not results:
        return {}
    first, base = results[0], sweep.trained_of(baseline(sweep, block))[0]
    state_bytes, window = first.state_bytes, first.window_bytes
    return {
        "memory_parameters": first.parameters.memory,
        "trunk_parameters": first.parameters.trunk,
        "memory_flops_per_frame": first.flops_per_frame.memory,
        "trunk_flops_per_frame": first.flops_per_frame.trunk,
        "flops_ratio": _flops(first) / _flops(base),
        "state_bytes_start": state_bytes[min(state_bytes)],
        "state_bytes_end": state_bytes[max(state_bytes)],
        **({} if window is None else {"window_bytes": window}),
        **_ratios(sweep, block),
        "seconds_per_step": float(np.mean([r.training.seconds_per_step for r in results])),
        "seconds_per_frame_start": float(np.mean([r.rollout.seconds_per_frame_start for r in results])),
        "seconds_per_frame_end": float(np.mean([r.rollout.seconds_per_frame_end for r in results])),
        "videos_rolled_out": first.rollout.videos,
        "peak_memory_bytes": float(np.mean([r.peak_memory_bytes for r in results])),
    }


def baseline(sweep: Sweep, block: str) -> str:
    """Return the block that another's cost is compared with: `none`, or the sweep's first where it has no such."""
    trained = _trained(sweep)
    return matching("none", block, trained) or trained[0]


def machine(sweep: Sweep) -> str:
    """Say where and how times were taken, or why there are none."""
    found = sweep.calibration
    if found is None:
        return "No times: the sweep was not calibrated (launch.calibrate)."
    if not found.timings:
        return f"No times: {one_line(found.absent or 'not stored')}."
    turns = len(next(iter(found.timings.values())).step)
    clock = "time" if found.device.startswith("cuda") else "CPU time"
    text = (
        f"Times: after the runs, all blocks in turns in one process, {clock} on {one_line(found.device)}, "
        f"{found.threads} thread{'s'[: found.threads != 1]}; medians of {turns} turns [quartiles]."
    )
    if found.others is None:
        return text + " Other work on the machine was not measured."
    if found.busy:
        return text + (
            f" The machine was NOT idle: other work kept {found.others:.1f} of {found.cores} cores busy, so these "
            "ratios may be off."
        )
    return text + " The machine was idle otherwise."


def base_times(sweep: Sweep) -> str:
    """Say what the first block that others are compared with takes; an empty text if it was not timed."""
    for block in _trained(sweep):
        base = baseline(sweep, block)
        timing = _timing(sweep, base)
        if timing is None:
            continue
        assert sweep.calibration is not None
        step, last = (float(np.median(part)) for part in (timing.step, timing.last_frames))
        a_frame = last / max(sweep.calibration.frames.get(base, 1), 1)
        return f"{base} takes {show_seconds(step)} a training step and {show_seconds(a_frame)} a frame at the end."
    return ""


def _trained(sweep: Sweep) -> list[str]:
    return [block for block in sweep.blocks if sweep.trained_of(block)]


def _flops(result: Result) -> float:
    return max(result.flops_per_frame.memory + result.flops_per_frame.trunk, 1)


def _timing(sweep: Sweep, block: str) -> Timing | None:
    return None if sweep.calibration is None else sweep.calibration.timings.get(block)


def _ratios(sweep: Sweep, block: str) -> dict[str, float]:
    own, base = _timing(sweep, block), _timing(sweep, baseline(sweep, block))
    ratios: dict[str, float] = {}
    if own is None or base is None:
        return ratios
    for part in PARTS:
        pairs = zip(getattr(own, part), getattr(base, part), strict=False)
        low, middle, high = np.quantile([a / max(b, 1e-9) for a, b in pairs], (0.25, 0.5, 0.75))
        ratios |= {f"{part}_ratio": float(middle), f"{part}_ratio_low": float(low), f"{part}_ratio_high": float(high)}
    return ratios
