"""What a model of RAD's size would need, predicted from counts and measurements of this code on this machine.

No model of that size is run. Parameters, FLOPs and state bytes are counted at the true shapes, on tensors without
values; they are exact. The activations that are kept for the backward pass are measured on layers of the true width
with few tokens, and scaled by frames, tokens and layers. Time is computed from FLOPs and a published rate of a GPU.

Letters: T frames, N tokens a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor

from rad_bench.config import RunConfig
from rad_bench.model.budget import build_trunk, count_flops, make_trunk
from rad_bench.model.cache import Cache
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.motion import motion_size
from rad_bench.model.trunk import Trunk
from rad_bench.training.trainer import make_optimiser

LATENTS = (16, 18, 32)  # of a Minecraft frame encoded by Open-Oasis: 144 tokens of patch 2
FRAMES = 1200  # of a clip and of a rollout
EARLY = 50
COUNTED = 64  # frames; a multiple of the blocks' chunks
ACTIONS = 25
WIDTH, DEPTH, HEADS, WINDOW = 1536, 14, 24, 16
MEMORY_PARAMETERS = 7_000_000  # a layer
BLOCKS: dict[str, dict[str, int]] = {  # as many heads as the trunk; their size follows from the parameters
    "none": {}, "lstm": {}, "mamba2": {"heads": HEADS}, "ttt": {"heads": HEADS}, "attention": {"heads": HEADS},
}  # fmt: skip
SIDES = (2, 3)  # tokens along each side of the frames that are computed
PEAK_FLOPS = 989e12  # per second, dense bf16, from the data sheet of the H200
REACHED = 0.229  # of the peak: a 22M-parameter ViT, compiled, on one H100 (nvSubquadratic's benchmark pages)


@dataclass(frozen=True)
class Prediction:
    """The needs of one block at that size. Bytes are for fp32."""

    block: str
    options: dict[str, Any]
    parameters: int
    memory_parameters: int
    training_flops: int  # forward and backward over one clip of T frames
    kept_bytes: int  # activations kept for the backward pass, a clip
    recomputed_bytes: int  # the same with activation checkpointing, with the recomputed activations of one layer
    resident_bytes: int  # weights, gradients, optimiser, averaged weights
    state_bytes: int  # memory state of a video at frame T
    frame_flops_early: int  # to generate frame EARLY of a video
    frame_flops_late: int  # and frame T

    @property
    def seconds_a_clip(self) -> float:
        """Training time per clip at the assumed rate."""
        return self.training_flops / (PEAK_FLOPS * REACHED)

    def record(self) -> dict[str, Any]:
        """Return the prediction as it is stored."""
        return asdict(self) | {"seconds_a_clip": self.seconds_a_clip}


def predict(block: str, frames: int = FRAMES, width: int = WIDTH, depth: int = DEPTH) -> Prediction:
    """Predict what `block` needs in a trunk of that width and depth over clips of T frames."""
    run = RunConfig.model_validate({
        "data": {"name": "minecraft", "path": "."},
        "memory": {"name": block, **BLOCKS.get(block, {})},
        "match": {"by": "parameters", "budget": 2 * MEMORY_PARAMETERS * width**2 // WIDTH**2},
        "trunk": {"width": width, "depth": 2, "heads": HEADS, "patch": 2, "window": WINDOW, "mlp_ratio": 4.0},
        "training": {"batch": 1, "frames": 4, "loss_from": 0},
        "evaluation": {"context": 2, "horizon": 2},
    })  # fmt: skip
    few, plan = build_trunk(run, (LATENTS[0], 4, 4), ACTIONS)
    resident = _resident_bytes(few, run)
    fixed = {**run.memory.options, **plan.options}
    run = run.model_copy(update={"memory": run.memory.model_copy(update={"options": fixed})})
    diffusion = Diffusion(run.diffusion, None)

    def deep(one: float, two: float) -> int:
        """Extrapolate from one and two layers: each further layer adds what the second adds."""
        return round(one + (depth - 1) * (two - one))

    shapes = [_trunk(run, layers, *LATENTS[1:]).to("meta") for layers in (1, 2)]

    def counted(count: Callable[[Trunk], int]) -> int:
        return deep(*map(count, shapes))

    kept, recomputed = zip(*(_clip_keeps(run, layers, diffusion, frames) for layers in (1, 2)), strict=True)
    parameters = counted(lambda trunk: sum(p.numel() for p in trunk.parameters()))
    return Prediction(
        block=block,
        options=plan.options,
        parameters=parameters,
        memory_parameters=counted(lambda trunk: sum(p.numel() for _, p in trunk.memory_parameters())),
        training_flops=counted(lambda trunk: _training_flops(trunk, diffusion, frames)),
        kept_bytes=deep(*kept),
        recomputed_bytes=deep(*recomputed) + round(kept[1] - kept[0]),
        resident_bytes=round(resident * parameters),
        state_bytes=counted(lambda trunk: _filled(trunk, frames).memory_bytes()),
        frame_flops_early=counted(lambda trunk: _generating_flops(trunk, diffusion, min(EARLY, frames))),
        frame_flops_late=counted(lambda trunk: _generating_flops(trunk, diffusion, frames)),
    )


def _trunk(run: RunConfig, layers: int, height: int, width: int) -> Trunk:
    config = run.model_copy(update={"trunk": run.trunk.model_copy(update={"depth": layers})})
    return make_trunk(config, run.memory.options, (LATENTS[0], height, width), ACTIONS)


def _clip(trunk: Trunk, frames: int) -> tuple[Tensor, Tensor]:
    """Return frames and motion of one clip."""
    like = trunk.position
    return like.new_zeros(1, frames, *trunk.frame_shape), like.new_zeros(
        1, frames, motion_size(trunk.config.motion, ACTIONS)
    )


def _loss(trunk: Trunk, diffusion: Diffusion, frames: int) -> Tensor:
    clean, motion = _clip(trunk, frames)
    return diffusion.loss(trunk, clean, motion, clean.new_zeros(1, frames), clean)


def _training_flops(trunk: Trunk, diffusion: Diffusion, frames: int) -> int:
    """Return the FLOPs of a clip, forward and backward: with attention, a polynomial of degree two in its frames.

    For long clips the polynomial is fitted to three short clips of whole chunks, because a loop over a thousand frames
    takes minutes even without values.
    """
    if frames <= 3 * COUNTED:
        return count_flops(lambda: _loss(trunk, diffusion, frames).backward())
    at = [COUNTED, 2 * COUNTED, 3 * COUNTED]
    flops = [_training_flops(trunk, diffusion, few) for few in at]
    return round(float(np.polyval(np.polyfit(at, flops, 2), frames)))


@torch.no_grad()
def _filled(trunk: Trunk, frames: int) -> Cache:
    """Return the cache after that many frames, committed a hundred at a time."""
    cache = trunk.start(1)
    while cache.frames < frames:
        cache = trunk.commit(*_clip(trunk, min(100, frames - cache.frames)), cache)
    return cache


@torch.no_grad()
def _generating_flops(trunk: Trunk, diffusion: Diffusion, at: int) -> int:
    """Return the FLOPs of generating frame number `at`: all denoising steps, and the commit."""
    cache = _filled(trunk, at - 1)
    clean, motion = _clip(trunk, 1)

    def step() -> None:
        trunk.denoise(clean, clean.new_zeros(1, 1), motion, cache)

    return diffusion.config.sampler_steps * count_flops(step) + count_flops(lambda: trunk.commit(clean, motion, cache))


def _clip_keeps(run: RunConfig, layers: int, diffusion: Diffusion, frames: int) -> list[float]:
    """Return the bytes of activations that a clip keeps at the true size, without and with activation checkpointing.

    They are measured with few tokens and frames. Two numbers of tokens separate the bytes of a token from those of a
    frame, such as its modulation.
    """
    trunks = [_trunk(run, layers, 2 * side, 2 * side) for side in SIDES]
    tokens = LATENTS[1] * LATENTS[2] / run.trunk.patch**2
    kept = []
    for recompute in (False, True):
        grown = []
        for trunk in trunks:
            trunk.recompute = recompute
            grown.append((_kept_bytes(trunk, 16, diffusion) - _kept_bytes(trunk, 8, diffusion)) / 8)
        a_token = (grown[1] - grown[0]) / (SIDES[1] ** 2 - SIDES[0] ** 2)
        kept.append(frames * (grown[0] + (tokens - SIDES[0] ** 2) * a_token))
    return kept


def _kept_bytes(trunk: Trunk, frames: int, diffusion: Diffusion) -> int:
    """Return the bytes, without weights, that a forward pass on real tensors keeps for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in trunk.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # referenced, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(trunk, diffusion, frames)
    del loss
    return sum(storage.nbytes() for storage in kept.values())


def _resident_bytes(trunk: Trunk, run: RunConfig) -> float:
    """Return the bytes per parameter of weights, gradients, averaged weights and the optimiser's state."""
    optimiser = make_optimiser(trunk, run.training)
    for parameter in trunk.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    state = sum(t.nbytes for s in optimiser.state.values() for t in s.values())
    weights = sum(p.nbytes for p in trunk.parameters())
    return (3 * weights + state) / sum(p.numel() for p in trunk.parameters())


def table(predictions: list[Prediction]) -> Table:
    """Return the predictions as a table, a row a block."""
    rich_table = Table(title="bench scaling", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    columns = (
        "memory", "parameters", "training, PFLOP a clip", "s a clip, assumed rate", "resident, GB", "kept, GB a clip",
        "recomputed, GB a clip", f"state at frame {FRAMES}, MB", f"TFLOP, frame {EARLY}", f"frame {FRAMES}",
    )  # fmt: skip
    for heading in columns:
        rich_table.add_column(heading, justify="left" if heading == "memory" else "right")
    for p in predictions:
        rich_table.add_row(
            p.block, f"{p.parameters / 1e6:,.0f} M", f"{p.training_flops / 1e15:.2f}", f"{p.seconds_a_clip:.1f}",
            *(f"{value / 1e9:,.0f}" for value in (p.resident_bytes, p.kept_bytes, p.recomputed_bytes)),
            f"{p.state_bytes / 1e6:,.1f}", f"{p.frame_flops_early / 1e12:.2f}", f"{p.frame_flops_late / 1e12:.2f}",
        )  # fmt: skip
    return rich_table
