"""Rollouts: cached against recomputed, many videos at once, with and without memory, frame 1000 against frame 50.

On a GPU also: recorded as a CUDA graph against called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rad_bench.bench.comparison import Comparison
from rad_bench.blocks.contract import perturb
from rad_bench.config import DiffusionConfig, TrunkConfig
from rad_bench.model.budget import count_flops
from rad_bench.model.cache import Cache
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.graphs import Record, record_on_cuda
from rad_bench.model.motion import motion_size
from rad_bench.model.registry import block_names, find_block
from rad_bench.model.rollout import rollout
from rad_bench.model.trunk import Trunk

FRAME_SHAPE, ACTIONS, VIDEOS = (3, 32, 32), 4, 32
EARLY, LATE = 50, 1000
WINDOW, GENERATED = 16, 4
PIECE = 50  # frames committed at a time
MANY, FEW = 64, 8  # videos
HORIZON = 64  # frames of a rollout that is recorded


def comparisons(device: torch.device) -> Iterator[Comparison]:
    """Compare the cache, then many videos at once, then each block with none, and an early with a late frame."""
    yield _cached(device)
    yield _batched(device)
    bare = functools.partial(_generating("none", device, EARLY).step, EARLY)
    for name in block_names():
        generating = _generating(name, device, EARLY, LATE)
        if name != "none":
            yield Comparison(
                "a frame without memory", f"with {name}", bare, functools.partial(generating.step, EARLY), None
            )
        yield _early_and_late(name, generating)
        if device.type == "cuda":
            yield recorded(name, device, record_on_cuda)


def perturbed_trunk(name: str, device: torch.device, **changes: int) -> Trunk:
    """Return a trunk of the default preset with perturbed weights, because zeros would hide differences."""
    trunk = Trunk(TrunkConfig(**changes), find_block(name), FRAME_SHAPE, ACTIONS, 0).to(device)
    perturb(trunk, 0.05, torch.Generator().manual_seed(1))
    return trunk.eval()


@torch.no_grad()
def _cached(device: torch.device) -> Comparison:
    """Compare cached keys and values with a new pass over all frames within reach at each step of denoising."""
    trunk = perturbed_trunk("none", device, window=WINDOW)
    diffusion = Diffusion(DiffusionConfig())
    reach = trunk.config.reach  # frames before a new one that attention reaches through all layers
    clean = torch.rand(VIDEOS, reach, *FRAME_SHAPE, device=device) * 2 - 1
    motion = torch.randn(VIDEOS, reach + GENERATED, motion_size(trunk.config.motion, ACTIONS), device=device)
    noise = torch.randn(GENERATED, VIDEOS, *FRAME_SHAPE, device=device)
    cache = trunk.commit(clean, motion[:, :reach], trunk.start(VIDEOS))

    def ours() -> Sequence[Tensor]:
        return [rollout(trunk, diffusion, motion[:, reach:], cache, lambda h: noise[h]).frames]

    @torch.no_grad()
    def recomputed() -> Sequence[Tensor]:
        frames = clean
        for h in range(GENERATED):
            known = torch.cat([frames[:, h:], torch.zeros_like(frames[:, :1])], 1)  # the new frame's place is not read
            moved = motion[:, h : h + reach + 1]

            def predict(x: Tensor, level: Tensor, known: Tensor = known, moved: Tensor = moved) -> Tensor:
                return trunk(known, x, level, moved)

            frames = torch.cat([frames, diffusion.sample(predict, noise[h][:, None])], 1)
        return [frames[:, reach:]]

    return Comparison(f"rollout with a cache, window {WINDOW}", "recomputed", ours, recomputed, 1e-3, "at least 8")


@torch.no_grad()
def _batched(device: torch.device) -> Comparison:
    """Compare generating a frame of many videos at once with a few videos at a time."""
    trunk, diffusion = perturbed_trunk("mamba2", device), Diffusion(DiffusionConfig())
    motion = torch.randn(MANY, 1, motion_size(trunk.config.motion, ACTIONS), device=device)
    clean = torch.rand(MANY, 1, *FRAME_SHAPE, device=device) * 2 - 1
    noise = torch.randn(MANY, *FRAME_SHAPE, device=device)
    cache = trunk.commit(clean, motion, trunk.start(MANY))
    groups = torch.arange(MANY, device=device).split(FEW)
    caches = [cache.select(group) for group in groups]

    def together() -> Sequence[Tensor]:
        return [rollout(trunk, diffusion, motion, cache, lambda _: noise).frames]

    def apart() -> Sequence[Tensor]:
        frames = [
            rollout(trunk, diffusion, motion[group], few, lambda _, group=group: noise[group]).frames  # type: ignore[misc]
            for group, few in zip(groups, caches, strict=True)
        ]
        return [torch.cat(frames)]

    return Comparison(
        f"mamba2: {MANY} videos at once", f"{FEW} at a time", together, apart, 1e-3, "at least 5 on a GPU"
    )


@torch.no_grad()
def recorded(name: str, device: torch.device, record: Record, horizon: int = HORIZON) -> Comparison:
    """Compare a rollout whose steps are recorded, which takes part of its time, with the same rollout without."""
    trunk, diffusion = perturbed_trunk(name, device), Diffusion(DiffusionConfig())
    motion = torch.randn(FEW, horizon + 1, motion_size(trunk.config.motion, ACTIONS), device=device)
    clean = torch.rand(FEW, 1, *FRAME_SHAPE, device=device) * 2 - 1
    noise = torch.randn(FEW, *FRAME_SHAPE, device=device)
    cache = trunk.commit(clean, motion[:, :1], trunk.start(FEW))

    def generate(how: Record | None) -> Sequence[Tensor]:
        return [rollout(trunk, diffusion, motion[:, 1:], cache, lambda _: noise, how).frames]

    ours, called = (functools.partial(generate, how) for how in (record, None))
    return Comparison(f"{name}: {horizon} frames of {FEW} videos, recorded", "called", ours, called, 1e-3)


@dataclass(frozen=True)
class Generating:
    """Generates a frame of some videos, early or late in a rollout."""

    caches: dict[int, Cache]
    step: Callable[[int], Sequence[Tensor]]  # takes the number of frames before


@torch.no_grad()
def _generating(name: str, device: torch.device, *after: int) -> Generating:
    trunk, diffusion = perturbed_trunk(name, device), Diffusion(DiffusionConfig())
    caches, cache = {}, trunk.start(VIDEOS)
    motion = torch.randn(VIDEOS, 1, motion_size(trunk.config.motion, ACTIONS), device=device)
    frames = torch.rand(VIDEOS, PIECE, *FRAME_SHAPE, device=device) * 2 - 1
    noise = torch.randn(VIDEOS, *FRAME_SHAPE, device=device)
    while cache.frames < max(after):
        cache = trunk.commit(frames, motion.expand(-1, PIECE, -1), cache)
        if cache.frames in after:
            caches[cache.frames] = cache

    def step(frames: int) -> Sequence[Tensor]:
        return [rollout(trunk, diffusion, motion, caches[frames], lambda _: noise).frames]

    return Generating(caches, step)


def _early_and_late(name: str, generating: Generating) -> Comparison:
    early, late = (_bytes(generating.caches[at]) for at in (EARLY, LATE))
    flops = [count_flops(functools.partial(generating.step, at)) for at in (EARLY, LATE)]
    return Comparison(
        f"{name}: frame {EARLY}",
        f"frame {LATE}",
        functools.partial(generating.step, EARLY),
        functools.partial(generating.step, LATE),
        None,
        "grows" if name == "attention" else "at most 1.05",
        {"times_the_flops": flops[1] / flops[0], "cache_growth": late / early, "cache_bytes_late": late},
    )


def _bytes(cache: Cache) -> int:
    windows = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.k_BNWHP, layer.v_BNWHP))
    return windows + cache.memory_bytes()
