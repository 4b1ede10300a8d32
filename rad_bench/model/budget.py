"""Build the trunk of a run, with the memory block sized to the run's budget.

What a budget is spent on, `match.by`, is measured on the block itself, never taken from a formula:

    parameters   of the memory blocks of all layers
    state        bytes of memory a video holds at the end of context and horizon, counted from the state's tensors
    flops        a frame in the memory's forward pass over one training clip (clean stream and noisy stream), as
                 PyTorch counts them: matrix products, no elementwise work

Each is linear in the number of sequences, so one sequence is measured. The block's own code runs; where a model is
large, on tensors of PyTorch's meta device, which have shapes and no values: the counts are the same, without the
arithmetic.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rad_bench.blocks.memory import MemoryBlock, state_bytes
from rad_bench.config import RunConfig
from rad_bench.errors import UserError
from rad_bench.model.registry import check_options, find_block
from rad_bench.model.scan import Scan
from rad_bench.model.trunk import Trunk, memory_layers

LARGEST = 1 << 14  # of a size option
TOLERANCE = 0.02  # of a budget
SMALL = 1 << 24  # parameters x tokens a frame, up to which arithmetic takes less time than the meta device's own work
ABSURD = 1 << 34  # numbers in one tensor, or parameters in one block: what is measured here is held in memory

Module = TypeVar("Module", bound=nn.Module)
Counted = TypeVar("Counted")


@dataclass(frozen=True)
class ModelPlan:
    """What a run's model will be."""

    options: dict[str, Any]  # of the memory block, all of them, solved
    memory_parameters: int
    trunk_parameters: int
    state_bytes: dict[int, int]  # frames seen -> bytes of memory state a video
    window_bytes: int  # a video, of the frames that temporal attention sees, once there are as many
    memory_flops: int  # a frame of a training clip, of a video, forward
    trunk_flops: int  # the same, of all that is not memory
    budget: int | None
    residual: float | None  # (what `match.by` measures - budget) / budget


def build_trunk(run: RunConfig, frame_shape: tuple[int, int, int], action_size: int) -> tuple[Trunk, ModelPlan]:
    """Return the run's trunk at its starting weights, and its plan. Raises `UserError` if the parts do not fit."""
    _check_shapes(run, frame_shape)
    options = check_options(run.memory)
    block = find_block(run.memory.name)
    scan = Scan(
        run.trunk.scan, frame_shape[1] // run.trunk.patch, frame_shape[2] // run.trunk.patch,
        run.trunk.frames_per_step, run.trunk.scan_block,
    )  # fmt: skip
    budget, option = run.match.budget, block.size_option
    solvable = budget is not None and option is not None and option not in run.memory.options

    def spent(options: dict[str, Any]) -> int:
        layer = block(run.trunk.width, **options)
        return len(memory_layers(run.trunk)) * _MEASURES[run.match.by](layer, run, scan)

    try:
        _refuse_giants(block, run.trunk.width, options)
        if solvable:
            assert budget is not None and option is not None
            options = _fit(spent, block, options, budget)
        trunk = make_trunk(run, options, frame_shape, action_size)
        state, window = _counting(trunk, trunk.rows * trunk.columns, lambda trunk, device: _bytes(trunk, run, device))
        every = _counting(trunk, trunk.rows * trunk.columns, lambda trunk, device: _trunk_flops(trunk, run, device))
        memory = len(memory_layers(run.trunk)) * _flops(block(run.trunk.width, **options), run, scan)
    except UserError:
        raise
    except Exception as error:  # the user's code, on its first frames
        raise UserError(
            f"memory: block '{run.memory.name}' fails on its first frames: {type(error).__name__}: {error}. "
            f"`rad-bench check {run.memory.name}` says more."
        ) from None
    plan = ModelPlan(
        options=options,
        memory_parameters=sum(p.numel() for _, p in trunk.memory_parameters()),
        trunk_parameters=sum(p.numel() for _, p in trunk.trunk_parameters()),
        state_bytes=state,
        window_bytes=window,
        memory_flops=memory,
        trunk_flops=every - memory,
        budget=budget if solvable else None,
        residual=(spent(options) - budget) / budget if solvable and budget else None,
    )
    return trunk, plan


def make_trunk(run: RunConfig, options: dict[str, Any], frame_shape: tuple[int, int, int], action_size: int) -> Trunk:
    """Return the run's trunk at its starting weights, its memory with the given options, solved ones."""
    block = find_block(run.memory.name)
    try:
        return Trunk(
            run.trunk, lambda dim: block(dim, **options), frame_shape, action_size, run.seed,
            run.diffusion.stabilisation,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"memory: block '{run.memory.name}' with {options}: {error}.") from None


def plan_model(run: RunConfig, frame_shape: tuple[int, int, int], action_size: int) -> ModelPlan:
    """Return the plan of a run's model."""
    return build_trunk(run, frame_shape, action_size)[1]


def _parameters(layer: MemoryBlock, run: RunConfig, scan: Scan) -> int:
    return sum(p.numel() for p in layer.parameters())


def _state(layer: MemoryBlock, run: RunConfig, scan: Scan) -> int:
    steps = (run.evaluation.context + run.evaluation.horizon) // run.trunk.frames_per_step

    def final(layer: MemoryBlock, device: torch.device) -> int:
        with torch.no_grad():
            return state_bytes(layer.prefetch(_tokens(layer, scan, steps, device), layer.initial_state(1)).state)

    return scan.sequences(1) * _counting(layer, scan.tokens_per_step, final)


@torch.no_grad()
def _flops(layer: MemoryBlock, run: RunConfig, scan: Scan) -> int:
    F, training = run.trunk.frames_per_step, run.training

    def clip(layer: MemoryBlock, device: torch.device) -> int:
        clean = _tokens(layer, scan, training.frames // F, device)
        noisy = _tokens(layer, scan, (training.frames - training.loss_from) // F, device)
        return count_flops(lambda: layer.retrieve(noisy, layer.prefetch(clean, layer.initial_state(1))))

    return scan.sequences(1) * _counting(layer, scan.tokens_per_step, clip) // training.frames


_MEASURES: dict[str, Callable[[MemoryBlock, RunConfig, Scan], int]] = {
    "parameters": _parameters, "state": _state, "flops": _flops,
}  # fmt: skip


def _tokens(layer: MemoryBlock, scan: Scan, steps: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(1, steps, scan.tokens_per_step, layer.dim, device=device)


def _counting(module: Module, tokens: int, count: Callable[[Module, torch.device], Counted]) -> Counted:
    """Return what `count` finds on a module that sees that many tokens a frame; on shapes alone if it is large."""
    if tokens * sum(p.numel() for p in module.parameters()) > SMALL:
        meta = torch.device("meta")
        try:
            return count(copy.deepcopy(module).to(meta), meta)
        except (
            Exception
        ):  # a block that looks at values gets real ones, and one that fails does so with its own message
            pass
    return count(module, torch.device("cpu"))


def count_flops(work: Callable[[], object]) -> int:
    """Return the FLOPs of the products that `work` computes, its backward passes included."""
    # PyTorch's counter knows attention by its products, not by a fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@torch.no_grad()
def _trunk_flops(trunk: Trunk, run: RunConfig, device: torch.device) -> int:
    """Return the FLOPs a frame of the whole trunk, memory included, over one training clip."""
    frames, start = run.training.frames, run.training.loss_from
    clean = torch.zeros(1, frames, *trunk.frame_shape, device=device)
    motion = torch.zeros(1, frames, trunk.motion.in_features, device=device)
    level = torch.zeros(1, frames - start, device=device)
    return count_flops(lambda: trunk(clean, clean[:, start:], level, motion)) // frames


def _fit(
    spent: Callable[[dict[str, Any]], int], block: type[MemoryBlock], options: dict[str, Any], budget: int
) -> dict[str, Any]:
    """Solve the block's size option; where that misses the budget by more than 2 %, move its fine option too.

    The fine option stays as near to what it was as the tolerance allows.
    """
    option, fine = block.size_option, block.fine_option
    assert option is not None
    tries = [options]
    if fine is not None:
        was = options[fine]
        moved = sorted(range(max(1, was // 2), 2 * was + 1), key=lambda value: (abs(value - was), value))
        tries = [{**options, fine: value} for value in moved]
    best, least = options, float("inf")
    for tried in tries:
        solved = {**tried, option: _solve(lambda size, tried=tried: spent({**tried, option: size}), budget)}  # type: ignore[misc]
        missed = abs(spent(solved) - budget) / budget
        if missed < least:
            best, least = solved, missed
        if least <= TOLERANCE:
            break
    return best


def _solve(measure: Callable[[int], int], budget: int) -> int:
    """Return the size whose measure, which grows with the size, comes nearest to the budget."""
    low, high = 1, 2
    while measure(high) < budget and high < LARGEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle) < budget else (low, middle)
    return min((low, high), key=lambda size: abs(measure(size) - budget))


def _bytes(trunk: Trunk, run: RunConfig, device: torch.device) -> tuple[dict[int, int], int]:
    """Count state bytes a video after one step, the context, and context plus horizon; and its window's at the end."""
    step, context = run.trunk.frames_per_step, run.evaluation.context
    marks = sorted({step, context, context + run.evaluation.horizon})
    cache, counts = trunk.start(1), {}
    with torch.no_grad():
        for mark in marks:
            frames = torch.zeros(1, mark - cache.frames, *trunk.frame_shape, device=device)
            motion = torch.zeros(1, frames.shape[1], trunk.motion.in_features, device=device)
            cache = trunk.commit(frames, motion, cache)
            counts[mark] = cache.memory_bytes()
    return counts, cache.window_bytes()


def _check_shapes(run: RunConfig, frame_shape: tuple[int, int, int]) -> None:
    channels, height, width = frame_shape
    patch, trunk = run.trunk.patch, run.trunk
    if height % patch or width % patch:
        raise UserError(f"trunk.patch {patch} does not divide frames of {height} x {width} pixels.")
    if trunk.scan == "block" and (height // patch % trunk.scan_block or width // patch % trunk.scan_block):
        grid = f"{height // patch} x {width // patch}"
        raise UserError(f"trunk.scan_block {trunk.scan_block} does not divide the token grid of {grid}.")
    tokens = (height // patch) * (width // patch)
    frames = max(run.training.frames, run.evaluation.context + run.evaluation.horizon)
    largest = {
        "pixels": frames * channels * height * width,
        "channels of tokens": frames * tokens * trunk.width,
        "weights of spatial attention": frames * tokens**2 * trunk.heads,
    }
    for what, count in largest.items():
        if count > ABSURD:
            raise UserError(
                f"a clip of {frames} frames in {tokens} tokens each has {count:.0e} {what}, and {ABSURD:.0e} are the "
                "most; shorten training.frames and evaluation.context and horizon, or raise trunk.patch."
            )


def _refuse_giants(block: type[MemoryBlock], dim: int, options: dict[str, Any]) -> None:
    """Raise `UserError` if a block of these options is beyond any memory, before it is given any."""
    try:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in block(dim, **options).parameters())
    except Exception as error:
        if "overflow" not in str(error):
            return  # a block that needs real tensors as it is built is built for real
        parameters = sys.maxsize
    if parameters > ABSURD:
        raise UserError(f"memory: {block.__name__} with {options} has {parameters:.0e} parameters a layer, and "
                        f"{ABSURD:.0e} are the most.")  # fmt: skip
