"""The path that computes a block on some device, set against the loop over `step`, which is the reference.

Every run does so for its own block before it trains, and stores what it found: a fast path that computes something
else would be compared as another memory. `rad-bench check` does so for all blocks, in bf16 too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.table import Table

from rad_bench.blocks.contract import TOLERANCE, Trace, check_block, differences, perturb, trace
from rad_bench.blocks.memory import MemoryBlock
from rad_bench.errors import one_line
from rad_bench.model.registry import find_block
from rad_bench.run.environment import environment
from rad_bench.store.atomic import write_figures
from rad_bench.store.result import Parity
from rad_bench.training.device import be_deterministic, choose_device, device_name
from rad_bench.training.distributed import Group

PERTURBATION = 0.02  # of weights: what starts at zero would hide differences
RUN_SHAPE = (2, 24, 8)  # of a run's check: sequences, tokens of each, the most tokens a frame
CHECK_SHAPE, CHECK_DIM = (4, 72, 4), 128  # of `rad-bench check`, which crosses chunks of 64 tokens
BF16_MARGIN, BF16_FLOOR = 3.0, 0.02  # bf16 may err that many times as much as the loop does in bf16, or that much


class ParityError(RuntimeError):
    """A block's fast path does not compute what its steps do."""


def badge(name: str, block: MemoryBlock, tokens: int, device: torch.device) -> Parity:
    """Return which path computes a block on a device, why that one, and its largest error against the reference.

    In fp32, on a copy at the block's own width and options, with `tokens` tokens a frame or a few. Global generators
    stay as they are. Raises `ParityError` if the error is beyond the contract's tolerance.
    """
    path, limit = block.path(device, torch.float32), TOLERANCE[torch.float32]
    case = _case(block, RUN_SHAPE, min(tokens, RUN_SHAPE[2]), device)
    apart = differences(_trace(case, type(block)), _trace(case, MemoryBlock))  # type: ignore[type-abstract]
    worst = max(apart, key=lambda part: apart[part])
    if apart[worst] > limit:
        raise ParityError(
            f"memory: on {device_name(device)}, block '{name}' computes by its fast path ({path.name}) something else "
            f"than by a loop over its `step`: the {worst} differ by {apart[worst]:.2g} in fp32, where {limit:g} is the "
            f"most. What it would score is another memory's, so it is not trained. `rad-bench check {name}` says more."
        )
    return Parity(path=path.name, why=path.why, max_error=apart[worst], device=device_name(device))


@dataclass(frozen=True)
class Case:
    """A block, and frames to try it on."""

    layer: MemoryBlock
    clean: torch.Tensor
    noisy: torch.Tensor


def _case(block: MemoryBlock, shape: tuple[int, int, int], tokens: int, device: torch.device) -> Case:
    """Return a perturbed copy of a block in fp32 and frames of random tokens."""
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
        torch.manual_seed(0)  # for a block that draws: both forms draw the same
        return trace(case.layer, case.clean, case.noisy, form)


@dataclass
class Found:
    """What `rad-bench check` found of a block at some number of tokens a frame."""

    block: str
    tokens: int  # a frame
    path: str = ""
    why: str = ""
    broken: list[str] = field(default_factory=list)  # checks of the contract, in fp32
    fp32: dict[str, float] = field(default_factory=dict)  # errors of outputs, state, gradients, step
    bf16: dict[str, float] = field(default_factory=dict)  # the same under autocast, still against the loop in fp32
    loop_bf16: dict[str, float] = field(default_factory=dict)  # the loop's own under autocast: what bf16 costs
    error: str = ""  # what it raised

    @property
    def passed(self) -> bool:
        """Return whether the path may be used: it errs no more than the number format does."""
        limits = {part: max(BF16_MARGIN * self.loop_bf16[part], BF16_FLOOR) for part in self.bf16}
        return (
            not self.broken and not self.error
            and all(error <= TOLERANCE[torch.float32] for error in self.fp32.values())
            and all(self.bf16[part] <= limit for part, limit in limits.items())
        )  # fmt: skip


def check_on_device(names: Sequence[str], device_name: str, out: Path, report: Callable[[str], None]) -> list[Found]:
    """Check blocks on a device, at one and at several tokens a frame; never raises for a faulty block.

    All that was found stands in `out`/check-<device>.json after each block, so that a killed command leaves something.
    """
    device = choose_device(device_name, Group())
    be_deterministic(torch.get_num_threads(), device)
    path, found = out / f"check-{device.type}.json", []
    for name in names:
        block = find_block(name)
        for tokens in (1, CHECK_SHAPE[2]):
            report(f"{name}, {tokens} token{'s' if tokens > 1 else ''} a frame")
            found.append(_check(name, block, tokens, device))
        record = {
            "environment": environment(device, torch.get_num_threads(), 1),
            "found": [{**asdict(each), "passed": each.passed} for each in found],
        }
        write_figures(path, record)
    return found


def _check(name: str, block: type[MemoryBlock], tokens: int, device: torch.device) -> Found:
    found = Found(name, tokens)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            case = _case(block(CHECK_DIM), CHECK_SHAPE, tokens, device)
        path = case.layer.path(device, torch.float32)
        found.path, found.why = path.name, path.why
        if tokens == 1:  # the contract itself tries several
            outcomes = check_block(block, device=device, dtype=torch.float32)
            found.broken = [f"{outcome.name}: {outcome.detail}" for outcome in outcomes if not outcome.passed]
        reference = _trace(case, MemoryBlock)  # type: ignore[type-abstract]
        found.fp32 = differences(_trace(case, block), reference)
        found.loop_bf16 = differences(_trace(case, MemoryBlock, bf16=True), reference)  # type: ignore[type-abstract]
        found.bf16 = differences(_trace(case, block, bf16=True), reference)
    except Exception as error:
        found.error = one_line(f"{type(error).__name__}: {error}")
    return found


def check_table(found: Sequence[Found]) -> Table:
    """Return what was found as a table, a row a block and number of tokens."""
    table = Table("block", "tokens", "path", "why", "error, fp32", "error, bf16 (loop's own)", "")
    for each in found:
        fp32, bf16, loop = (max(part.values(), default=float("nan")) for part in (each.fp32, each.bf16, each.loop_bf16))
        verdict = "pass" if each.passed else "FAIL " + (each.error or "; ".join(each.broken))
        table.add_row(
            each.block, str(each.tokens), each.path, each.why, f"{fp32:.1e}", f"{bf16:.1e} ({loop:.1e})", verdict
        )
    return table
