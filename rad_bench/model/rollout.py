"""Generate frames step by step: denoise with the cache, then commit the finished frames once, as clean frames."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rad_bench.model.cache import Cache
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.trunk import Trunk


@dataclass(frozen=True)
class Rollout:
    """Generated frames and their cost."""

    frames: Tensor  # [B, H, C, height, width] in [-1, 1]
    seconds: list[float]  # wall time of each step
    cache: Cache  # after the last step


@torch.no_grad()
def rollout(
    trunk: Trunk, diffusion: Diffusion, motion_BHM: Tensor, cache: Cache, noise: Callable[[int], Tensor]
) -> Rollout:
    """Generate H frames with the given motion, from a cache that holds the context.

    `noise(h)` gives the starting noise [B, C, height, width] of generated frame h.
    """
    F = trunk.config.frames_per_step
    generated, seconds = [], []
    for first in range(0, motion_BHM.shape[1], F):
        start = time.perf_counter()
        motion = motion_BHM[:, first : first + F]
        starting_noise = torch.stack([noise(h) for h in range(first, first + F)], 1)
        frames = diffusion.sample(lambda x, level, m=motion, c=cache: trunk.denoise(x, level, m, c), starting_noise)  # type: ignore[misc]
        cache = trunk.commit(frames, motion, cache)
        generated.append(frames)
        if frames.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Rollout(torch.cat(generated, 1), seconds, cache)


def frame_noise(seed: int, task: str, episode: int, frame: int, shape: tuple[int, ...]) -> Tensor:
    """Return the starting noise of one generated frame, a function of the arguments only.

    It is drawn on the CPU, so it is the same for every block, intervention, batch size and device. DDIM with eta 0
    needs no further noise; a stochastic sampler would have to add its step to the key.
    """
    digest = hashlib.sha256(f"{seed}/{task}/{episode}/{frame}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator)
