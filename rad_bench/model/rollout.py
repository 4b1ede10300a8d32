"""Generate frames step by step: denoise with the cache, then commit the finished frames once, as clean frames."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rad_bench.model.cache import Cache
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.graphs import Record, Repeats
from rad_bench.model.trunk import Trunk


@dataclass(frozen=True)
class Rollout:
    """Generated frames and their cost."""

    frames: Tensor  # [B, H, C, height, width] in [-1, 1]
    seconds: list[float]  # wall time of each step
    cache: Cache  # after the last step


@torch.no_grad()
def rollout(
    trunk: Trunk, diffusion: Diffusion, motion_BHM: Tensor, cache: Cache, noise: Callable[[int], Tensor],
    record: Record | None = None,
) -> Rollout:  # fmt: skip
    """Generate H frames with the given motion, from a cache that holds the context.

    `noise(h)` gives the starting noise [B, C, height, width] of generated frame h. With `record`, steps whose cache
    does not grow are recorded and repeated (`graphs.py`).
    """
    F = trunk.config.frames_per_step
    repeats = Repeats(record)
    generated, seconds = [], []
    for first in range(0, motion_BHM.shape[1], F):
        start = time.perf_counter()
        motion = motion_BHM[:, first : first + F]
        starting_noise = torch.stack([noise(h) for h in range(first, first + F)], 1)
        frames, cache = _step(trunk, diffusion, starting_noise, motion, cache, repeats)
        generated.append(frames)
        if frames.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Rollout(torch.cat(generated, 1), seconds, cache)


def _step(
    trunk: Trunk, diffusion: Diffusion, noise: Tensor, motion: Tensor, cache: Cache, repeats: Repeats
) -> tuple[Tensor, Cache]:
    """Generate the F frames of a step from noise [B, F, C, height, width], and write them."""
    F = noise.shape[1]
    reading, writing = (trunk.streams(*count, cache.frames, noise.device) for count in ((0, F), (F, 0)))

    written: list[Cache] = []  # by a call of `generate`; a repetition leaves as many tensors as it found

    # Of what depends on the number of frames before, only their indices change once the window is full.
    def generate(noise: Tensor, motion: Tensor, frame_F: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        read, write = (replace(streams, frame_Q=frame_F) for streams in (reading, writing))
        filled = cache.with_tensors(before)
        frames = diffusion.sample(lambda x, level: trunk.denoise(x, level, motion, filled, read), noise)
        written.append(trunk.commit(frames, motion, filled, write))
        return frames, *written[-1].tensors()

    frames, *tensors = repeats(generate, noise, motion, reading.frame_Q, *cache.tensors())
    after = (written or [cache])[-1]
    return frames, replace(after.with_tensors(tensors), frames=cache.frames + F)


def frame_noise(seed: int, task: str, episode: int, frame: int, shape: tuple[int, ...]) -> Tensor:
    """Return the starting noise of one generated frame, a function of the arguments only.

    It is drawn on the CPU, so it is the same for every block, intervention, batch size and device. DDIM with eta 0
    needs no further noise; a stochastic sampler would have to add its step to the key.
    """
    digest = hashlib.sha256(f"{seed}/{task}/{episode}/{frame}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator)
