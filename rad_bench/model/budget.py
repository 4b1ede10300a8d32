"""Build the trunk of a run, with the memory block sized to the run's budget.

`match.by` names the unit of the budget. It is measured by running the block, not by a formula:

    parameters   of the memory blocks of all layers, trained or not, and their buffers
    state        bytes of memory state a video after context and horizon, counted from the state's tensors
    flops        a frame, of the memory's forward pass over one training clip (clean and noisy stream), as PyTorch
                 counts them: matrix products, no elementwise operations

Each is linear in the number of sequences and of layers, so one sequence in one layer is measured. The block's own code
runs; where a model is large, on tensors of PyTorch's meta device, which have shapes and no values: the counts are the
same, without the arithmetic.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rad_bench.blocks.memory import MemoryBlock, state_bytes
from rad_bench.blocks.none import NoMemory
from rad_bench.config import RunConfig, TrunkConfig
from rad_bench.errors import UserError
from rad_bench.model.registry import check_options, find_block
from rad_bench.model.scan import Scan
from rad_bench.model.trunk import Trunk, memory_layers, remember

LARGEST = 1 << 14  # largest value of a size option
TOLERANCE = 0.02  # relative, of a budget
LARGEST_HEAD = 128  # kernels are made for heads up to this size
HEAD_SIZES = (64, 56, 72, 48, 80)  # where a budget would make them larger: sizes in the order in which they are tried
SMALL = 1 << 26  # parameters x tokens a frame; below this, arithmetic is faster than a loop of meta-device calls
ABSURD = 1 << 34  # limit of numbers in one tensor, and of parameters in one block: both are allocated

Module = TypeVar("Module", bound=nn.Module)
Counted = TypeVar("Counted")


@dataclass(frozen=True)
class ModelPlan:
    """Options, sizes and costs of a run's model."""

    options: dict[str, Any]  # all options of the memory block, with the solved ones
    memory_parameters: int
    trunk_parameters: int
    state_bytes: dict[int, int]  # frames so far -> bytes of memory state a video
    window_bytes: int  # a video, of a full window of temporal attention
    memory_flops: int  # forward, a frame of a training clip
    trunk_flops: int  # the same, without the memory
    budget: int | None
    residual: float | None  # (measured - budget) / budget


def build_trunk(
    run: RunConfig, frame_shape: tuple[int, int, int], action_size: int, pose_size: int = 3
) -> tuple[Trunk, ModelPlan]:
    """Return the run's trunk with initial weights, and its plan. Raises `UserError` if the sizes do not fit."""
    _check_shapes(run, frame_shape)
    options = check_options(run.memory)
    block = find_block(run.memory.name)
    scan = Scan(
        run.trunk.scan, frame_shape[1] // run.trunk.patch, frame_shape[2] // run.trunk.patch,
        run.trunk.frames_per_step, run.trunk.scan_block,
    )  # fmt: skip
    budget, option = run.match.budget, block.size_option
    solvable = budget is not None and option is not None and option not in run.memory.options

    layers = len(memory_layers(run.trunk))

    def measure(options: dict[str, Any]) -> int:
        return layers * _MEASURES[run.match.by](block(run.trunk.width, **options), run, scan)

    try:
        _check_parameters(block, run.trunk.width, options)
        if solvable:
            assert budget is not None and option is not None
            options = _fit(measure, block, options, budget)
        trunk = make_trunk(run, options, frame_shape, action_size, pose_size)
        layer, T = trunk.memory_block(), run.training.frames
        state = {frames: layers * count for frames, count in _states(layer, run, scan).items()}
        reading = _clip_flops(layer, run, scan)
        memory = layers * (reading // T)
        # Noisy writes cost a pass more in training, which has always been counted as the trunk's.
        every = reading if run.trunk.memory_writes == "clean" else _clip_flops(layer, run, scan, noisy_writes=True)
        bare = _bare_flops(run.trunk, frame_shape, action_size, pose_size, T, T - run.training.loss_from)
    except UserError:
        raise
    except Exception as error:  # the user's code, on its first frames
        raise UserError(
            f"memory: block '{run.memory.name}' fails on its first frames: {type(error).__name__}: {error}. "
            f"For details run `rad-bench check {run.memory.name}`."
        ) from None
    plan = ModelPlan(
        options=options,
        memory_parameters=layers * _held(layer),
        trunk_parameters=sum(p.numel() for _, p in trunk.trunk_parameters()),
        state_bytes=state,
        window_bytes=_window_bytes(trunk, max(state)),
        memory_flops=memory,
        trunk_flops=(layers * every + bare) // T - memory,
        budget=budget if solvable else None,
        residual=(measure(options) - budget) / budget if solvable and budget else None,
    )
    return trunk, plan


def make_trunk(
    run: RunConfig, options: dict[str, Any], frame_shape: tuple[int, int, int], action_size: int, pose_size: int = 3
) -> Trunk:
    """Return the run's trunk with initial weights; the options of its memory are already solved."""
    block = find_block(run.memory.name)
    try:
        return Trunk(
            run.trunk, lambda dim: block(dim, **options), frame_shape, action_size, run.seed,
            run.diffusion.stabilisation, pose_size,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"memory: block '{run.memory.name}' with {options}: {error}.") from None


def plan_model(run: RunConfig, frame_shape: tuple[int, int, int], action_size: int) -> ModelPlan:
    """Return the plan of a run's model."""
    return build_trunk(run, frame_shape, action_size)[1]


def _parameters(layer: MemoryBlock, run: RunConfig, scan: Scan) -> int:
    return _held(layer)


def _held(layer: MemoryBlock) -> int:
    """Count the numbers that a layer's memory block holds, in parameters and in buffers."""
    return sum(tensor.numel() for tensor in (*layer.parameters(), *layer.buffers()))


def _state(layer: MemoryBlock, run: RunConfig, scan: Scan) -> int:
    return _states(layer, run, scan)[run.evaluation.context + run.evaluation.horizon]


def _states(layer: MemoryBlock, run: RunConfig, scan: Scan) -> dict[int, int]:
    """Count the bytes of a layer's state, a video, after one step, the context, and context plus horizon."""
    F, context = run.trunk.frames_per_step, run.evaluation.context

    @torch.no_grad()
    def count(layer: MemoryBlock, device: torch.device) -> dict[int, int]:
        state, seen, counts = layer.initial_state(1), 0, {}
        for mark in sorted({F, context, context + run.evaluation.horizon}):
            state = layer.prefetch(_tokens(layer, scan, (mark - seen) // F, device), state).state
            seen, counts[mark] = mark, scan.sequences(1) * state_bytes(state)
        return counts

    return _count(layer, scan.tokens_per_step, count)


def _flops(layer: MemoryBlock, run: RunConfig, scan: Scan) -> int:
    return _clip_flops(layer, run, scan) // run.training.frames


def _clip_flops(layer: MemoryBlock, run: RunConfig, scan: Scan, noisy_writes: bool = False) -> int:
    """Count the FLOPs of a layer's memory over one training clip."""
    F, training = run.trunk.frames_per_step, run.training

    @torch.no_grad()
    def count(layer: MemoryBlock, device: torch.device) -> int:
        clean = _tokens(layer, scan, training.frames // F, device)
        noisy = _tokens(layer, scan, (training.frames - training.loss_from) // F, device)
        return count_flops(lambda: remember(layer, clean, noisy, layer.initial_state(1), noisy_writes))

    return scan.sequences(1) * _count(layer, scan.tokens_per_step, count)


@functools.lru_cache
def _bare_flops(
    config: TrunkConfig, frame_shape: tuple[int, int, int], action_size: int, pose_size: int, clean: int, noisy: int
) -> int:
    """Count the FLOPs of a trunk without memory over a clip of so many clean frames, the last of them noisy as well."""

    @torch.no_grad()
    def count(trunk: Trunk, device: torch.device) -> int:
        frames = torch.zeros(1, clean, *frame_shape, device=device)
        motion = torch.zeros(1, clean, trunk.motion.in_features, device=device)
        level = torch.zeros(1, noisy, device=device)
        return count_flops(lambda: trunk(frames, frames[:, clean - noisy :], level, motion))

    def of(depth: int) -> int:
        layers = config.model_copy(update={"depth": depth})
        trunk = Trunk(layers, NoMemory, frame_shape, action_size, seed=0, pose_size=pose_size)
        return _count(trunk, trunk.rows * trunk.columns, count)

    first = of(1)
    return first if config.depth == 1 else first + (config.depth - 1) * (of(2) - first)


def _window_bytes(trunk: Trunk, frames: int) -> int:
    """Return the bytes a video of the keys and values that temporal attention sees after so many frames."""
    channels = trunk.position  # of each token of a frame, as keys and values have them
    return 2 * trunk.config.depth * min(trunk.config.window, frames) * channels.numel() * channels.element_size()


_MEASURES: dict[str, Callable[[MemoryBlock, RunConfig, Scan], int]] = {
    "parameters": _parameters, "state": _state, "flops": _flops,
}  # fmt: skip


def _tokens(layer: MemoryBlock, scan: Scan, steps: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(1, steps, scan.tokens_per_step, layer.dim, device=device)


def _count(module: Module, tokens: int, count: Callable[[Module, torch.device], Counted]) -> Counted:
    """Return `count(module, device)`, on the meta device if module and tokens a frame make it large."""
    if tokens * sum(p.numel() for p in module.parameters()) > SMALL:
        with contextlib.suppress(Exception):  # it reads values, or is faulty: real tensors give the count, or its error
            return count(copy.deepcopy(module).to("meta"), torch.device("meta"))
    try:
        return count(module, torch.device("cpu"))
    except Exception:
        for device in accelerators():  # it may need one
            with contextlib.suppress(Exception):
                return count(copy.deepcopy(module).to(device), device)
        raise


def accelerators() -> list[torch.device]:
    """Return the GPU, if there is one."""
    return [torch.device("cuda")] if torch.cuda.is_available() else []


def count_flops(work: Callable[[], object]) -> int:
    """Return the FLOPs of matrix products in `work`, including its backward passes."""
    # PyTorch's counter does not know every fused attention kernel, so attention runs as matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _fit(
    measure: Callable[[dict[str, Any]], int], block: type[MemoryBlock], options: dict[str, Any], budget: int
) -> dict[str, Any]:
    """Solve the block's size option. If that misses the budget by more than 2 %, change the fine option too.

    The fine option stays as close to its value as the tolerance allows. Heads that would be larger than what kernels
    are made for keep a usual size, and their number is solved instead.
    """
    option, fine, count = block.size_option, block.fine_option, block.count_option
    assert option is not None
    candidates = [options]
    if fine is not None:
        given = options[fine]
        values = sorted(range(max(1, given // 2), 2 * given + 1), key=lambda value: (abs(value - given), value))
        candidates = [{**options, fine: value} for value in values]
    solved = _closest(measure, option, candidates, budget)
    if count is None or solved[option] <= LARGEST_HEAD:
        return solved
    return _closest(measure, count, [{**options, option: size} for size in HEAD_SIZES], budget)


def _closest(
    measure: Callable[[dict[str, Any]], int], option: str, candidates: list[dict[str, Any]], budget: int
) -> dict[str, Any]:
    """Return the first candidate that meets the budget with the option solved for, or the one that comes closest."""
    best, smallest = candidates[0], float("inf")
    for candidate in candidates:
        size = _solve(lambda size, others=candidate: measure({**others, option: size}), budget)  # type: ignore[misc]
        solved = {**candidate, option: size}
        error = abs(measure(solved) - budget) / budget
        if error < smallest:
            best, smallest = solved, error
        if smallest <= TOLERANCE:
            break
    return best


def _solve(measure: Callable[[int], int], budget: int) -> int:
    """Return the size whose measure is closest to the budget; `measure` grows with the size."""
    low, high = 1, 2
    while measure(high) < budget and high < LARGEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle) < budget else (low, middle)
    return min((low, high), key=lambda size: abs(measure(size) - budget))


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
                f"a clip of {frames} frames of {tokens} tokens has {count:.0e} {what}, and {ABSURD:.0e} are the "
                "most; shorten training.frames and evaluation.context and horizon, or raise trunk.patch."
            )


def _check_parameters(block: type[MemoryBlock], dim: int, options: dict[str, Any]) -> None:
    """Raise `UserError`, before anything is allocated, if a block with these options cannot fit into memory."""
    try:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in block(dim, **options).parameters())
    except Exception as error:
        if "overflow" not in str(error):
            return  # the block cannot be built on the meta device
        parameters = sys.maxsize
    if parameters > ABSURD:
        raise UserError(f"memory: {block.__name__} with {options} has {parameters:.0e} parameters a layer, and "
                        f"{ABSURD:.0e} are the most.")  # fmt: skip
