"""Build the trunk of a run, with the memory block sized to the run's budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from blocks.memory import MemoryBlock
from rad_bench.config import RunConfig
from rad_bench.errors import UserError
from rad_bench.model.trunk import Trunk
from rad_bench.registry import check_options, find_block

LARGEST = 1 << 14  # of a size option


@dataclass(frozen=True)
class ModelPlan:
    """What a run's model will be."""

    options: dict[str, Any]  # of the memory block, all of them, solved
    memory_parameters: int
    trunk_parameters: int
    state_bytes: dict[int, int]  # frames seen -> bytes of memory state a video
    budget: int | None
    residual: float | None  # (memory parameters - budget) / budget


def build_trunk(run: RunConfig, frame_shape: tuple[int, int, int], action_size: int) -> tuple[Trunk, ModelPlan]:
    """Return the run's trunk at its starting weights, and its plan. Raises `UserError` if the parts do not fit."""
    _check_shapes(run, frame_shape)
    options = check_options(run.memory)
    block = find_block(run.memory.name)

    def make(options: dict[str, Any]) -> Trunk:
        try:
            return Trunk(
                run.trunk, lambda dim: block(dim, **options), frame_shape, action_size, run.seed,
                run.diffusion.stabilisation,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(f"memory: block '{run.memory.name}' with {options}: {error}.") from None

    budget = run.match.budget
    solvable = budget is not None and block.size_option is not None and block.size_option not in run.memory.options
    if solvable:
        option = block.size_option
        assert budget is not None and option is not None

        def parameters(size: int) -> int:
            with torch.device("meta"):
                layer = block(run.trunk.width, **{**options, option: size})
            return run.trunk.depth * _count(layer)

        options = {**options, option: _solve(parameters, budget)}
    trunk = make(options)
    try:
        state_bytes = _state_bytes(trunk, run)
    except Exception as error:  # the user's code, on its first frames
        raise UserError(
            f"memory: block '{run.memory.name}' fails on its first frames: {type(error).__name__}: {error}. "
            f"`rad-bench check {run.memory.name}` says more."
        ) from None
    memory = sum(p.numel() for _, p in trunk.memory_parameters())
    plan = ModelPlan(
        options=options,
        memory_parameters=memory,
        trunk_parameters=sum(p.numel() for _, p in trunk.trunk_parameters()),
        state_bytes=state_bytes,
        budget=budget if solvable else None,
        residual=(memory - budget) / budget if solvable and budget else None,
    )
    return trunk, plan


def plan_model(run: RunConfig, frame_shape: tuple[int, int, int], action_size: int) -> ModelPlan:
    """Return the plan of a run's model."""
    return build_trunk(run, frame_shape, action_size)[1]


def _count(module: MemoryBlock) -> int:
    return sum(p.numel() for p in module.parameters())


def _solve(parameters: Callable[[int], int], budget: int) -> int:
    """Return the size whose parameter count, which grows with the size, comes nearest to the budget."""
    low, high = 1, 2
    while parameters(high) < budget and high < LARGEST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) < budget else (low, middle)
    return min((low, high), key=lambda size: abs(parameters(size) - budget))


def _state_bytes(trunk: Trunk, run: RunConfig) -> dict[int, int]:
    """Count live state bytes a video after one step, the context, and context plus horizon."""
    step, context = run.trunk.frames_per_step, run.evaluation.context
    marks = sorted({step, context, context + run.evaluation.horizon})
    cache, counts = trunk.start(1), {}
    with torch.no_grad():
        for mark in marks:
            frames = torch.zeros(1, mark - cache.frames, *trunk.frame_shape)
            motion = torch.zeros(1, frames.shape[1], trunk.motion.in_features)
            cache = trunk.commit(frames, motion, cache)
            counts[mark] = cache.memory_bytes()
    return counts


def _check_shapes(run: RunConfig, frame_shape: tuple[int, int, int]) -> None:
    _, height, width = frame_shape
    patch, trunk = run.trunk.patch, run.trunk
    if height % patch or width % patch:
        raise UserError(f"trunk.patch {patch} does not divide frames of {height} x {width} pixels.")
    if trunk.scan == "block" and (height // patch % trunk.scan_block or width // patch % trunk.scan_block):
        grid = f"{height // patch} x {width // patch}"
        raise UserError(f"trunk.scan_block {trunk.scan_block} does not divide the token grid of {grid}.")
