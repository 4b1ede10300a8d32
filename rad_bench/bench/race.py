"""Two ways to one result, timed in turns in one process.

A ratio of two such times survives a busy machine, which takes from both alike; a time alone does not. On the CPU one
thread's own CPU time is measured, and that of processes it starts, on a GPU the time until the device has finished.
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

Work = Callable[[], Sequence[Tensor]]  # what is timed; returns what it found

SHORTEST = 5  # turns
LONGEST = 40


@dataclass(frozen=True)
class Race:
    """`ours` against `other`, which must find the same to `tolerance` (largest difference over the largest value).

    `tolerance` None: they are not meant to find the same, such as one step early and one late in a rollout.
    """

    name: str
    other_name: str
    ours: Work
    other: Work
    tolerance: float | None
    goal: str = ""  # what the ratio is hoped to be, in words
    notes: dict[str, Any] = field(default_factory=dict)  # further figures, such as bytes


@dataclass(frozen=True)
class Outcome:
    """What a race found."""

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
        """Return what is stored."""
        return asdict(self)


def run(race: Race, device: torch.device, seconds: float = 2.0) -> Outcome:
    """Run both ways in turns, for about `seconds`, after a first time of each that does not count."""
    difference = _difference(race.ours(), race.other())
    times: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(times) < SHORTEST or (time.perf_counter() - began < seconds and len(times) < LONGEST):
        pair = (_seconds(race.ours, device), _seconds(race.other, device))
        times.append(pair)
    ours, other = (statistics.median(part) for part in zip(*times, strict=True))
    low, _, high = statistics.quantiles([b / a for a, b in times], n=4)
    valid = race.tolerance is None or difference <= race.tolerance
    return Outcome(
        race.name, race.other_name, 1e3 * ours, 1e3 * other, other / ours, low, high,
        None if race.tolerance is None else difference, valid, race.goal, race.notes,
    )  # fmt: skip


def _seconds(work: Work, device: torch.device) -> float:
    if device.type != "cuda":
        began = _cpu_seconds()
        work()
        return max(_cpu_seconds() - began, 1e-9)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _cpu_seconds() -> float:
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
