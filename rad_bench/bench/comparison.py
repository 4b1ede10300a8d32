"""Two ways to compute one result, timed in turns in one process.

A busy machine slows both, so it hardly changes the ratio of their times. On the CPU, the CPU time of this process and
of those that it starts is measured; on a GPU, the time until the device has finished.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], Sequence[Tensor]]  # what is timed; returns its outputs

FEWEST, MOST = 5, 40  # turns


@dataclass(frozen=True)
class Comparison:
    """`ours` against `other`. Their outputs must agree to `tolerance`: largest difference over the largest value.

    With `tolerance` None the outputs are not compared, such as those of an early and a late step of a rollout.
    """

    name: str
    other_name: str
    ours: Work
    other: Work
    tolerance: float | None
    goal: str = ""  # for the ratio, in words
    notes: dict[str, Any] = field(default_factory=dict)  # further figures, such as bytes


@dataclass(frozen=True)
class Outcome:
    """The result of a comparison."""

    name: str
    other_name: str
    ours_ms: float  # medians
    other_ms: float
    ratio: float  # other / ours: above 1 ours is faster
    low: float  # quartiles of the ratio over turns
    high: float
    difference: float | None  # between the outputs, relative
    valid: bool  # the outputs agree
    goal: str
    notes: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return the outcome as it is stored."""
        return asdict(self)


def compare(comparison: Comparison, device: torch.device, seconds: float = 2.0) -> Outcome:
    """Time both ways in turns for about `seconds`, after one run of each that is not timed."""
    difference = _difference(comparison.ours(), comparison.other())
    times: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(times) < FEWEST or (time.perf_counter() - began < seconds and len(times) < MOST):
        pair = (work_seconds(comparison.ours, device), work_seconds(comparison.other, device))
        times.append(pair)
    ours, other = (statistics.median(part) for part in zip(*times, strict=True))
    low, _, high = statistics.quantiles([b / a for a, b in times], n=4)
    valid = comparison.tolerance is None or difference <= comparison.tolerance
    return Outcome(
        comparison.name, comparison.other_name, 1e3 * ours, 1e3 * other, other / ours, low, high,
        None if comparison.tolerance is None else difference, valid, comparison.goal, comparison.notes,
    )  # fmt: skip


def work_seconds(work: Work, device: torch.device) -> float:
    """Return what a piece of work takes: CPU time, or on a GPU the time until the device has finished."""
    if device.type != "cuda":
        began = cpu_seconds()
        work()
        return max(cpu_seconds() - began, 1e-9)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def cpu_seconds() -> float:
    """Return this process's CPU time and that of the children it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _difference(ours: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the largest difference over the largest value, part by part; infinite if the shapes differ."""
    worst = 0.0
    if len(ours) != len(other):
        return float("inf")
    for a, b in zip(ours, other, strict=True):
        if a.shape != b.shape:
            return float("inf")
        largest = float(b.detach().abs().max()) or 1.0
        worst = max(
            worst, float((a.detach().double() - b.detach().double()).abs().nan_to_num(torch.inf).max()) / largest
        )
    return worst
