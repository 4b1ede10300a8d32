"""Roll a trained trunk out over every task under every intervention, and score each generated frame.

Interventions act on the recurrent state at the end of the context, the attention window stays:
keep leaves it, reset sets it to its initial value, swap takes it from another episode at the same time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rad_bench.config import RunConfig
from rad_bench.data import Dataset
from rad_bench.evaluation.consistency import self_similarity
from rad_bench.evaluation.metrics import SSIM_SMALLEST, metric_card, mse, psnr, ssim
from rad_bench.evaluation.perceptual import LPIPS_SMALLEST, lpips, lpips_unavailable
from rad_bench.evaluation.revisits import classify_task
from rad_bench.evaluation.tasks import Task, make_task
from rad_bench.model.codec import Codec
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.motion import motion_features
from rad_bench.model.rollout import Rollout, frame_noise, rollout
from rad_bench.model.trunk import Cache, Trunk

COPY_LAST = "copy-last"  # the control that repeats the last context frame
CEILING = "autoencoder"  # the control that is the truth, encoded and decoded
CONTROLS = (COPY_LAST, CEILING)  # rows that are no run, under these names as `block`


@dataclass
class Evaluation:
    """What an evaluation found."""

    frames: pd.DataFrame  # one row per task, intervention, episode and generated frame, without the run's own columns
    strips: dict[str, Tensor] = field(default_factory=dict)  # "<task>-<intervention or truth>-<episode>": [H, C, h, w]
    shown: dict[str, list[int]] = field(default_factory=dict)  # task -> episodes that `strips` shows
    horizons: dict[str, int] = field(default_factory=dict)  # task -> H
    seconds: dict[str, list[float]] = field(default_factory=dict)  # task -> wall seconds of each step under `keep`
    videos: int = 0  # rolled out together in those timings


def reach(run: RunConfig) -> int:
    """Return how many frames back attention alone can reach: stacked windows pass information on.

    `evaluation.reach`, where it is given, takes its place; the config sees to it that it is no shorter.
    """
    return run.evaluation.reach or run.trunk.reach


def evaluate(
    run: RunConfig, trunk: Trunk, dataset: Dataset, codec: Codec, device: torch.device,
    report: Callable[[int, int], None],
) -> Evaluation:  # fmt: skip
    """Evaluate `trunk` as the run's config says; `report(done, of)` is called as rollouts finish."""
    config = run.evaluation
    episodes = dataset.held_out(config.episodes, config.context + config.horizon, config.context)
    tasks = [make_task(name, episodes, config, run.trunk.frames_per_step) for name in config.tasks]
    result = Evaluation(pd.DataFrame(), videos=min(config.batch, config.episodes))
    tables, done, of = [], 0, len(tasks) * len(config.interventions)
    trunk.eval()
    for task in tasks:
        kinds, gaps = classify_task(task, reach(run), dataset.has_poses, dataset.same_view)
        truth = task.truth[:, task.context :]
        decoded = None if codec.lossless else through(codec, truth, device)
        score = functools.partial(_score, task, truth, decoded, kinds, gaps, device)
        tables.append(score("keep", task.truth[:, task.context - 1 : task.context]).assign(block=COPY_LAST))
        if decoded is not None:
            tables.append(score("keep", decoded).assign(block=CEILING))
        # The episodes with most revisits are worth looking at. The choice knows the truth alone, no model.
        result.shown[task.name] = np.argsort(-(kinds == "revisit").sum(1), kind="stable")[: config.strips].tolist()
        result.horizons[task.name] = task.horizon
        _keep_strips(result, task, "truth", truth)
        for intervention in config.interventions:
            frames, seconds = _roll_out(run, trunk, task, codec, intervention, device)
            tables.append(score(intervention, frames))
            if intervention == "keep" and min(frames.shape[-2:]) >= SSIM_SMALLEST:
                own = self_similarity(task, frames, reach(run), dataset.same_view)
                tables[-1] = tables[-1].assign(**{name: values.reshape(-1) for name, values in own.items()})
            _keep_strips(result, task, intervention, frames)
            if intervention == "keep":
                result.seconds[task.name] = seconds
            done += 1
            report(done, of)
    result.frames = pd.concat(tables, ignore_index=True)
    return result


@torch.no_grad()
def through(codec: Codec, videos: Tensor, device: torch.device) -> Tensor:
    """Encode and decode videos one by one, so that no result depends on its company."""
    return torch.stack([codec.decode(codec.encode(video.to(device))).cpu() for video in videos])


def _roll_out(
    run: RunConfig, trunk: Trunk, task: Task, codec: Codec, intervention: str, device: torch.device
) -> tuple[Tensor, list[float]]:
    """Generate the task's frames, uint8 [B, H, 3, h, w]; the seconds are those of the first batch's steps."""
    diffusion = Diffusion(run.diffusion, codec.bound)
    motion = motion_features(run.trunk.motion, task.actions, task.egomotion)
    count, C = len(motion), task.context
    # The partner in a swap is far away in the list: neighbours may be clips of one recording.
    partner = (torch.arange(count) + count // 2) % count
    batches: list[Rollout] = []
    for index in torch.arange(count).split(run.evaluation.batch):
        cache = read_context(trunk, task, codec, motion, index, device)
        if intervention == "reset":
            cache = cache.with_memory(trunk.start(len(index)).memory())
        elif intervention == "swap":
            cache = cache.with_memory(read_context(trunk, task, codec, motion, partner[index], device).memory())

        def noise(h: int, index: Tensor = index) -> Tensor:
            frames = [frame_noise(run.evaluation.seed, task.name, int(e), h, trunk.frame_shape) for e in index]
            return torch.stack(frames).to(device)

        batches.append(rollout(trunk, diffusion, motion[index, C:].to(device), cache, noise))
    frames = torch.stack([codec.decode(video).cpu() for batch in batches for video in batch.frames])
    return frames, batches[0].seconds


@torch.no_grad()
def read_context(trunk: Trunk, task: Task, codec: Codec, motion: Tensor, index: Tensor, device: torch.device) -> Cache:
    C, F = task.context, trunk.config.frames_per_step
    cache = trunk.start(len(index))
    # In pieces, so that a long context needs no more working memory than a short one.
    for piece in torch.arange(C).split(max(32 // F, 1) * F):
        inputs = torch.stack([codec.encode(task.truth[e, piece].to(device)) for e in index])
        cache = trunk.commit(inputs, motion[index][:, piece].to(device), cache)
    return cache


def _score(
    task: Task, truth: Tensor, decoded: Tensor | None, kinds: np.ndarray, gaps: np.ndarray, device: torch.device,
    intervention: str, frames: Tensor,
) -> pd.DataFrame:  # fmt: skip
    B, H = truth.shape[:2]
    columns: dict[str, Any] = {
        "task": task.name,
        "intervention": intervention,
        "episode": np.repeat(np.arange(B), H),
        "frame": np.tile(np.arange(H), B),
        "kind": kinds.reshape(-1),
        "gap": gaps.reshape(-1),
    }
    columns |= frame_metrics(frames.expand_as(truth), truth, device)
    if decoded is not None:  # what the autoencoder itself made of the truth: how far the trunk is from its target
        against = frame_metrics(frames.expand_as(truth), decoded, device)
        columns |= {f"{name}_decoded": values for name, values in against.items()}
    return pd.DataFrame({**columns, "card": metric_card()["card"]})


def frame_metrics(frames: Tensor, truth: Tensor, device: torch.device) -> dict[str, np.ndarray]:
    x, y = (part.to(device).flatten(0, 1).float() / 255 for part in (frames, truth))
    error = mse(x, y)
    found = {"psnr": psnr(error), "mse": error}
    if min(x.shape[-2:]) >= SSIM_SMALLEST:
        found["ssim"] = ssim(x, y)
    if lpips_unavailable() is None and min(x.shape[-2:]) >= LPIPS_SMALLEST:
        found["lpips"] = lpips(x, y)
    return {name: values.cpu().numpy() for name, values in found.items()}


def _keep_strips(result: Evaluation, task: Task, name: str, frames: Tensor) -> None:
    for episode in result.shown[task.name]:
        result.strips[f"{task.name}-{name}-{episode}"] = frames[episode]
