"""The checks that every memory block must pass, built-in or the user's.

Each check runs the block on small random sequences, in float64 by default. All parameters are perturbed first,
because a zero initialisation would hide errors. `FRAMES` is far longer than the trunk's default attention window.

The checks find mistakes, and the ways in which a block has come to remember more than its state holds. They are no
proof: a block may still behave otherwise at a size, a date or a number of calls that no check tries.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rad_bench.blocks.contract.checks import AT_LENGTH, CHECKS
from rad_bench.blocks.contract.hidden import HIDDEN
from rad_bench.blocks.contract.probe import TOLERANCE, Case, Probe, perturb
from rad_bench.blocks.contract.trace import Trace, differences, trace
from rad_bench.blocks.memory import MemoryBlock

__all__ = [
    "ALL", "CHECKS", "TOLERANCE", "Check", "Trace", "check_block", "contract_precision", "differences", "perturb",
    "trace",
]  # fmt: skip

SEQUENCES, FRAMES, DIM = 3, 37, 16
LENGTH = 160  # frames of a long clip, where no sweep says how long its clips are
CPU = torch.device("cpu")
ALL = [*CHECKS, *AT_LENGTH, *HIDDEN]


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    passed: bool
    detail: str


def contract_precision(device: torch.device) -> torch.dtype:
    """Return the precision in which blocks are checked on a device: fast paths for GPUs are written for fp32."""
    return torch.float64 if device.type == "cpu" else torch.float32


def check_block(
    block_class: type[MemoryBlock], options: Mapping[str, Any] | None = None, device: torch.device = CPU,
    dtype: torch.dtype = torch.float64, dim: int = DIM, length: int = LENGTH, thorough: bool = True,
) -> list[Check]:  # fmt: skip
    """Run all checks on a block with `dim` channels, with one and with three tokens a frame.

    Clips of `length` frames are checked too, and that the block keeps nothing outside its state, which takes seconds;
    neither, if not `thorough`. A faulty block fails checks; it never raises.
    """
    short = Case(block_class, options or {}, device, dtype, dim, SEQUENCES, FRAMES, tokens=1)
    try:
        with _own_generator(device):
            short.probe()
    except Exception as error:  # every check would fail the same way
        return [Check("built", False, _describe(error))]
    cases = [short, replace(short, tokens=3)]
    outcomes = [_outcome(name, check, cases) for name, check in CHECKS.items()]
    if thorough:
        long = [replace(short, sequences=1, frames=max(length, FRAMES))]
        outcomes += [_outcome(name, check, long) for name, check in AT_LENGTH.items()]
        outcomes += [_outcome(name, check, [short]) for name, check in HIDDEN.items()]
    return outcomes


def _own_generator(device: torch.device) -> Any:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _outcome(name: str, check: Callable[[Probe], str], cases: Sequence[Case]) -> Check:
    details = []
    passed = True
    for case in cases:
        try:
            with _own_generator(case.device):
                details.append(check(case.probe()))
        except AssertionError as broken:
            passed = False
            details.append(str(broken))
        except Exception as error:
            passed = False
            details.append(_describe(error))
    return Check(name, passed, "; ".join(dict.fromkeys(details)))


def _describe(error: Exception) -> str:
    """Return the error and where it was raised: the last line outside of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((frame for frame in reversed(frames) if "site-packages" not in frame.filename), frames[-1])
    return f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
