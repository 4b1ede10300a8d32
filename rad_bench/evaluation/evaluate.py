"""Roll a trained trunk out over every task under every intervention, and score each generated frame.

Interventions act on the recurrent state at the end of the context, the attention window stays:
keep leaves it, reset sets it to its initial value, swap takes it from another episode at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rad_bench.config import RunConfig
from rad_bench.data import Dataset
from rad_bench.evaluation.metrics import metric_card, mse, psnr, ssim
from rad_bench.evaluation.perceptual import lpips, lpips_unavailable
from rad_bench.evaluation.revisits import classify_task
from rad_bench.evaluation.tasks import Task, make_task
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.motion import motion_features
from rad_bench.model.rollout import Rollout, frame_noise, rollout
from rad_bench.model.trunk import Cache, Trunk

COPY_LAST = "copy-last"  # the control that repeats the last context frame


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
    """Return how many frames back attention alone can reach: stacked windows pass information on."""
    return run.trunk.depth * (run.trunk.window + run.trunk.frames_per_step - 1)


def evaluate(
    run: RunConfig, trunk: Trunk, dataset: Dataset, device: torch.device, report: Callable[[int, int], None]
) -> Evaluation:
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
        copied = task.truth[:, task.context - 1 : task.context].expand_as(truth)
        tables.append(_score(task, "keep", copied, kinds, gaps, device).assign(block=COPY_LAST))
        # The episodes with most revisits are worth looking at. The choice knows the truth alone, no model.
        result.shown[task.name] = np.argsort(-(kinds == "revisit").sum(1), kind="stable")[: config.strips].tolist()
        result.horizons[task.name] = task.horizon
        _keep_strips(result, task, "truth", truth)
        for intervention in config.interventions:
            frames, seconds = _roll_out(run, trunk, task, intervention, device)
            tables.append(_score(task, intervention, frames, kinds, gaps, device))
            _keep_strips(result, task, intervention, frames)
            if intervention == "keep":
                result.seconds[task.name] = seconds
            done += 1
            report(done, of)
    result.frames = pd.concat(tables, ignore_index=True)
    return result


def _roll_out(
    run: RunConfig, trunk: Trunk, task: Task, intervention: str, device: torch.device
) -> tuple[Tensor, list[float]]:
    """Generate the task's frames, uint8 [B, H, C, h, w]; the seconds are those of the first batch's steps."""
    diffusion = Diffusion(run.diffusion)
    motion = motion_features(run.trunk.motion, task.actions, task.egomotion)
    count, C = len(motion), task.context
    # The partner in a swap is far away in the list: neighbours may be clips of one recording.
    partner = (torch.arange(count) + count // 2) % count
    batches: list[Rollout] = []
    for index in torch.arange(count).split(run.evaluation.batch):
        cache = _read_context(trunk, task, motion, index, device)
        if intervention == "reset":
            cache = cache.with_memory(trunk.start(len(index)).memory())
        elif intervention == "swap":
            cache = cache.with_memory(_read_context(trunk, task, motion, partner[index], device).memory())

        def noise(h: int, index: Tensor = index) -> Tensor:
            frames = [frame_noise(run.evaluation.seed, task.name, int(e), h, trunk.frame_shape) for e in index]
            return torch.stack(frames).to(device)

        batches.append(rollout(trunk, diffusion, motion[index, C:].to(device), cache, noise))
    frames = torch.cat([batch.frames for batch in batches]).cpu()
    return ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), batches[0].seconds


@torch.no_grad()
def _read_context(trunk: Trunk, task: Task, motion: Tensor, index: Tensor, device: torch.device) -> Cache:
    C, F = task.context, trunk.config.frames_per_step
    pixels = task.truth[index, :C].float() / 127.5 - 1
    cache = trunk.start(len(index))
    # In pieces, so that a long context needs no more working memory than a short one.
    for piece in torch.arange(C).split(max(32 // F, 1) * F):
        cache = trunk.commit(pixels[:, piece].to(device), motion[index][:, piece].to(device), cache)
    return cache


def _score(
    task: Task, intervention: str, frames: Tensor, kinds: np.ndarray, gaps: np.ndarray, device: torch.device
) -> pd.DataFrame:
    B, H = frames.shape[:2]
    x = frames.to(device).flatten(0, 1).float() / 255
    y = task.truth[:, task.context :].to(device).flatten(0, 1).float() / 255
    columns: dict[str, Any] = {
        "task": task.name,
        "intervention": intervention,
        "episode": np.repeat(np.arange(B), H),
        "frame": np.tile(np.arange(H), B),
        "kind": kinds.reshape(-1),
        "gap": gaps.reshape(-1),
        "psnr": psnr(x, y).cpu().numpy(),
        "mse": mse(x, y).cpu().numpy(),
    }
    if min(x.shape[-2:]) >= 11:
        columns["ssim"] = ssim(x, y).cpu().numpy()
    if lpips_unavailable() is None and min(x.shape[-2:]) >= 31:
        columns["lpips"] = lpips(x, y).cpu().numpy()
    return pd.DataFrame({**columns, "card": metric_card()["card"]})


def _keep_strips(result: Evaluation, task: Task, name: str, frames: Tensor) -> None:
    for episode in result.shown[task.name]:
        result.strips[f"{task.name}-{name}-{episode}"] = frames[episode]
