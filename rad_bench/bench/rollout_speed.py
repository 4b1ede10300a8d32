"""Rollouts: cached against recomputed, many videos at once, with and without memory, frame 1000 against frame 50."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rad_bench.bench.race import Race
from rad_bench.blocks.contract import perturb
from rad_bench.config import DiffusionConfig, TrunkConfig
from rad_bench.model.budget import count_flops
from rad_bench.model.cache import Cache
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.motion import motion_size
from rad_bench.model.registry import block_names, find_block
from rad_bench.model.rollout import rollout
from rad_bench.model.trunk import Trunk

FRAME_SHAPE, ACTIONS, VIDEOS = (3, 32, 32), 4, 32
EARLY, LATE = 50, 1000
WINDOW, GENERATED = 16, 4
PIECE = 50  # frames committed at a time
MANY, FEW = 64, 8  # videos


def races(device: torch.device) -> Iterator[Race]:
    """Yield the races of the cache and of many videos at once, then each block's, and early against late."""
    yield _cached(device)
    yield _batched(device)
    bare = functools.partial(_generating("none", device, EARLY).step, EARLY)
    for name in block_names():
        made = _generating(name, device, EARLY, LATE)
        if name != "none":
            yield Race("a frame without memory", f"with {name}", bare, functools.partial(made.step, EARLY), None)
        yield _early_and_late(name, made)


def perturbed_trunk(name: str, device: torch.device, **changes: int) -> Trunk:
    """A trunk at the default preset, its weights perturbed: zero-initialised ones would hide differences."""
    trunk = Trunk(TrunkConfig(**changes), find_block(name), FRAME_SHAPE, ACTIONS, 0).to(device)
    perturb(trunk, 0.05, torch.Generator().manual_seed(1))
    return trunk.eval()


@torch.no_grad()
def _cached(device: torch.device) -> Race:
    """Generate with cached keys and values, and by reading all frames that can matter at each step of denoising."""
    trunk = perturbed_trunk("none", device, window=WINDOW)
    diffusion = Diffusion(DiffusionConfig())
    matter = trunk.config.reach  # frames before a new one that attention reaches through all layers
    clean = torch.rand(VIDEOS, matter, *FRAME_SHAPE, device=device) * 2 - 1
    motion = torch.randn(VIDEOS, matter + GENERATED, motion_size(trunk.config.motion, ACTIONS), device=device)
    noise = torch.randn(GENERATED, VIDEOS, *FRAME_SHAPE, device=device)
    cache = trunk.commit(clean, motion[:, :matter], trunk.start(VIDEOS))

    def ours() -> Sequence[Tensor]:
        return [rollout(trunk, diffusion, motion[:, matter:], cache, lambda h: noise[h]).frames]

    @torch.no_grad()
    def recomputed() -> Sequence[Tensor]:
        frames = clean
        for h in range(GENERATED):
            known = torch.cat([frames[:, h:], torch.zeros_like(frames[:, :1])], 1)  # the new frame's place is not read
            moved = motion[:, h : h + matter + 1]

            def predict(x: Tensor, level: Tensor, known: Tensor = known, moved: Tensor = moved) -> Tensor:
                return trunk(known, x, level, moved)

            frames = torch.cat([frames, diffusion.sample(predict, noise[h][:, None])], 1)
        return [frames[:, matter:]]

    return Race(f"rollout with a cache, window {WINDOW}", "recomputed", ours, recomputed, 1e-3, "at least 8")


@torch.no_grad()
def _batched(device: torch.device) -> Race:
    """Generate a frame of many videos at once, and of a few at a time."""
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
        found = [
            rollout(trunk, diffusion, motion[group], few, lambda _, group=group: noise[group]).frames  # type: ignore[misc]
            for group, few in zip(groups, caches, strict=True)
        ]
        return [torch.cat(found)]

    return Race(f"mamba2: {MANY} videos at once", f"{FEW} at a time", together, apart, 1e-3, "at least 5 on a GPU")


@dataclass(frozen=True)
class Generating:
    """Generates a frame of some videos, after early or late ones."""

    caches: dict[int, Cache]
    step: Callable[[int], Sequence[Tensor]]  # of the number of frames before


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


def _early_and_late(name: str, made: Generating) -> Race:
    early, late = (_bytes(made.caches[at]) for at in (EARLY, LATE))
    flops = [count_flops(functools.partial(made.step, at)) for at in (EARLY, LATE)]
    return Race(
        f"{name}: frame {EARLY}",
        f"frame {LATE}",
        functools.partial(made.step, EARLY),
        functools.partial(made.step, LATE),
        None,
        "grows" if name == "attention" else "at most 1.05",
        {"times_the_flops": flops[1] / flops[0], "cache_growth": late / early, "cache_bytes_late": late},
    )


def _bytes(cache: Cache) -> int:
    windows = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.k_BNWHP, layer.v_BNWHP))
    return windows + cache.memory_bytes()
