"""Parity: a block's fast path on a device must compute the same as the reference, the loop over `step`.

Every run checks its own block before it trains, and stores the largest error. `rad-bench check` checks all blocks, also
in bf16.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from rad_bench.blocks.contract import TOLERANCE, Trace, check_block, differences, perturb, trace
from rad_bench.blocks.memory import MemoryBlock
from rad_bench.errors import one_line
from rad_bench.model.registry import block_forms, find_block
from rad_bench.run.environment import environment
from rad_bench.store.atomic import write_figures
from rad_bench.store.result import Parity
from rad_bench.training.device import be_deterministic, choose_device, device_name
from rad_bench.training.distributed import Group

PERTURBATION = 0.02  # noise added to weights; weights that start at zero would hide differences
RUN_SHAPE = (2, 24, 8)  # in a run: sequences, tokens per sequence, most tokens per frame
CHECK_SHAPE, CHECK_DIM = (4, 72, 4), 128  # in `rad-bench check`: 72 tokens exceed a chunk of 64
BF16_MARGIN, BF16_FLOOR = 3.0, 0.02  # allowed error in bf16: so many times the error of the loop in bf16, at least this


class ParityError(RuntimeError):
    """A block's fast path does not compute the same as its `step`."""


def measure_parity(name: str, block: MemoryBlock, tokens: int, device: torch.device) -> Parity:
    """Return the path that computes a block on a device, why it was chosen, and its largest error to the reference.

    Computed in fp32, on a copy with the block's width and options, and at most `RUN_SHAPE[2]` of `tokens` tokens per
    frame. Global generators do not change. Raises `ParityError` if the error exceeds the contract's tolerance.
    """
    path, limit = block.path(device, torch.float32), TOLERANCE[torch.float32]
    case = _case(block, RUN_SHAPE, min(tokens, RUN_SHAPE[2]), device)
    errors = differences(_trace(case, type(block)), _trace(case, MemoryBlock))  # type: ignore[type-abstract]
    worst = max(errors, key=lambda quantity: errors[quantity])
    if errors[worst] > limit:
        raise ParityError(
            f"memory: on {device_name(device)}, the fast path ({path.name}) of block '{name}' does not compute the "
            f"same as a loop over its `step`: the {worst} differ by {errors[worst]:.2g} in fp32, and {limit:g} is the "
            f"most allowed. So the block is not trained. `rad-bench check {name}` shows more."
        )
    return Parity(path=path.name, why=path.why, max_error=errors[worst], device=device_name(device))


@dataclass(frozen=True)
class Case:
    """A block, and frames to compute."""

    layer: MemoryBlock
    clean: torch.Tensor
    noisy: torch.Tensor


def _case(block: MemoryBlock, shape: tuple[int, int, int], tokens: int, device: torch.device) -> Case:
    """Return a perturbed copy of a block in fp32, and frames of random tokens."""
    sequences, length, _ = shape
    layer = copy.deepcopy(block).to(device, torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    perturb(layer, PERTURBATION, generator)
    frames = torch.randn(2, sequences, max(length // tokens, 1), tokens, block.dim, generator=generator)
    return Case(layer, *frames.to(device))


def _trace(case: Case, form: type[MemoryBlock], bf16: bool = False) -> Trace:
    device = case.clean.device
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
    ):
        torch.manual_seed(0)  # both paths of a random block draw the same numbers
        return trace(case.layer, case.clean, case.noisy, form)


@dataclass
class BlockCheck:
    """What `rad-bench check` found about a form of a block at one number of tokens per frame."""

    block: str  # with the options of its form
    tokens: int  # per frame
    path: str = ""
    why: str = ""
    broken: list[str] = field(default_factory=list)  # failed checks of the contract, in fp32
    fp32: dict[str, float] = field(default_factory=dict)  # errors of outputs, state, gradients, step
    bf16: dict[str, float] = field(default_factory=dict)  # of the path in bf16, against the loop in fp32
    loop_bf16: dict[str, float] = field(default_factory=dict)  # of the loop in bf16, against the loop in fp32
    error: str = ""  # exception that the block raised

    @property
    def passed(self) -> bool:
        """Return whether the path may be used: its errors are within the limits of each precision."""
        limits = {quantity: max(BF16_MARGIN * self.loop_bf16[quantity], BF16_FLOOR) for quantity in self.bf16}
        return (
            not self.broken and not self.error
            and all(error <= TOLERANCE[torch.float32] for error in self.fp32.values())
            and all(self.bf16[quantity] <= limit for quantity, limit in limits.items())
        )  # fmt: skip


def check_on_device(
    names: Sequence[str], device_name: str, out: Path, report: Callable[[str], None]
) -> list[BlockCheck]:
    """Check each form of blocks on a device, with one and several tokens per frame. Never raises for a faulty block.

    Writes `out`/check-<device>.json after each block, so a killed command keeps the blocks that it has checked.
    """
    device = choose_device(device_name, Group())
    be_deterministic(torch.get_num_threads(), device)
    path, checks = out / f"check-{device.type}.json", []
    for name in names:
        block = find_block(name)
        for options, tokens in itertools.product(block_forms(block), (1, CHECK_SHAPE[2])):
            label = name + "".join(f"({key}={value})" for key, value in options.items())
            report(f"{label}, {tokens} token{'s' if tokens > 1 else ''} a frame")
            checks.append(_check(label, block, options, tokens, device))
        record = {
            "environment": environment(device, torch.get_num_threads(), 1),
            "found": [{**asdict(check), "passed": check.passed} for check in checks],
        }
        write_figures(path, record)
    return checks


def _check(
    label: str, block: type[MemoryBlock], options: dict[str, Any], tokens: int, device: torch.device
) -> BlockCheck:
    check = BlockCheck(label, tokens)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            case = _case(block(CHECK_DIM, **options), CHECK_SHAPE, tokens, device)
        path = case.layer.path(device, torch.float32)
        check.path, check.why = path.name, path.why
        if tokens == 1:  # the contract tries several by itself
            outcomes = check_block(block, options, device=device, dtype=torch.float32, thorough=False)
            check.broken = [f"{outcome.name}: {outcome.detail}" for outcome in outcomes if not outcome.passed]
        reference = _trace(case, MemoryBlock)  # type: ignore[type-abstract]
        check.fp32 = differences(_trace(case, block), reference)
        check.loop_bf16 = differences(_trace(case, MemoryBlock, bf16=True), reference)  # type: ignore[type-abstract]
        check.bf16 = differences(_trace(case, block, bf16=True), reference)
    except Exception as error:
        check.error = one_line(f"{type(error).__name__}: {error}")
    return check


def check_table(checks: Sequence[BlockCheck]) -> Table:
    """Return the checks as a table."""
    table = Table("block", "tokens", "path", "why", "error, fp32", "error, bf16 (loop's own)", "")
    for check in checks:
        fp32, bf16, loop = (max(e.values(), default=float("nan")) for e in (check.fp32, check.bf16, check.loop_bf16))
        verdict = "pass" if check.passed else "FAIL " + (check.error or "; ".join(check.broken))
        table.add_row(
            check.block, str(check.tokens), check.path, check.why, f"{fp32:.1e}", f"{bf16:.1e} ({loop:.1e})", verdict
        )
    return table
