"""Roll a trained trunk out over every task under every intervention, and score each generated frame."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rad_bench.config import EvaluationConfig, RunConfig
from rad_bench.data import Dataset, Episodes
from rad_bench.evaluation.consistency import self_similarity
from rad_bench.evaluation.controls import CEILING, COPY_LAST
from rad_bench.evaluation.fvd import GENERATED, score_fvd
from rad_bench.evaluation.interventions import roll_out
from rad_bench.evaluation.metrics import DECODED, METRICS, SSIM_SMALLEST, few_at_a_time, metric_card
from rad_bench.evaluation.recall import recall
from rad_bench.evaluation.revisits import classify_task
from rad_bench.evaluation.tasks import Task, make_task
from rad_bench.model.codec import Codec
from rad_bench.model.experiment import Experiment
from rad_bench.store.result import VideoDistance


@dataclass
class Evaluation:
    """The results of an evaluation."""

    frames: pd.DataFrame  # one row per task, intervention, episode and generated frame, without the run's own columns
    strips: dict[str, Tensor] = field(default_factory=dict)  # "<task>-<intervention or truth>-<episode>": [H, C, h, w]
    shown: dict[str, list[int]] = field(default_factory=dict)  # task -> episodes in `strips`
    horizons: dict[str, int] = field(default_factory=dict)  # task -> H
    fvd: dict[str, VideoDistance] = field(default_factory=dict)  # by task, if the config asks for it
    seconds: list[float] = field(default_factory=list)  # wall time of each step of the longest task's first batch
    videos: int = 0  # in that batch: evaluation.episodes, or evaluation.batch if that is less


def reach(run: RunConfig) -> int:
    """Return how many frames back attention alone can reach: stacked windows pass information on.

    `evaluation.reach` replaces it if given; the config checks that it is not smaller.
    """
    return run.evaluation.reach or run.trunk.reach


def held_out(run: RunConfig, dataset: Dataset) -> Episodes:
    """Return the episodes that a run is evaluated on."""
    config = run.evaluation
    return dataset.held_out(config.episodes, config.context + config.horizon, config.context)


def parts(config: EvaluationConfig) -> int:
    """Return the number of parts of an evaluation that are reported when they are done."""
    return len(config.tasks) * (len(config.interventions) + bool(config.fvd))


def evaluate(experiment: Experiment, report: Callable[[int, int], None]) -> Evaluation:
    """Evaluate the experiment's trunk by its config; `report(done, of)` is called when rollouts, or FVDs, finish."""
    run, dataset, codec, device = experiment.config, experiment.dataset, experiment.codec, experiment.device
    config = run.evaluation
    episodes = held_out(run, dataset)
    tasks = [make_task(name, episodes, config, run.trunk.frames_per_step) for name in config.tasks]
    result = Evaluation(pd.DataFrame())
    tables, done, of = [], 0, parts(config)
    card = metric_card(config.fvd)["card"]
    experiment.trunk.eval()
    for task in tasks:
        kinds, gaps = classify_task(task, reach(run), dataset.has_poses, dataset.same_view)
        truth = task.truth[:, task.context :]
        decoded = None if codec.lossless else encode_and_decode(codec, truth, device)
        score = functools.partial(_score, card, task, truth, decoded, kinds, gaps, reach(run), device)
        controls = {COPY_LAST: task.truth[:, task.context - 1 : task.context]}
        if decoded is not None:
            controls[CEILING] = decoded
        tables += [score("keep", frames).assign(block=name) for name, frames in controls.items()]
        # Show the episodes with most revisits. The choice depends only on the truth, not on a model.
        result.shown[task.name] = np.argsort(-(kinds == "revisit").sum(1), kind="stable")[: config.strips].tolist()
        result.horizons[task.name] = task.horizon
        _keep_strips(result, task, "truth", truth)

        def report_rollouts(rolled_out: int, done: int = done) -> None:
            report(done + rolled_out, of)

        generated = roll_out(experiment, task, report_rollouts)
        for intervention in (name for name in config.interventions if name in generated.frames):
            frames = generated.frames[intervention]
            tables.append(score(intervention, frames))
            if intervention == "keep" and min(frames.shape[-2:]) >= SSIM_SMALLEST:
                similarity = self_similarity(task, frames, reach(run), dataset.same_view)
                tables[-1] = tables[-1].assign(**{name: values.reshape(-1) for name, values in similarity.items()})
            _keep_strips(result, task, intervention, frames)
        if len(generated.seconds) > len(result.seconds):
            result.seconds, result.videos = generated.seconds, generated.videos
        done += len(config.interventions)
        if config.fvd:
            videos = {GENERATED: generated.frames["keep"], **controls}
            result.fvd[task.name] = score_fvd(videos, truth, config.fvd, device)
            done += 1
            report(done, of)
    result.frames = pd.concat(tables, ignore_index=True)
    return result


@torch.no_grad()
def encode_and_decode(codec: Codec, videos: Tensor, device: torch.device) -> Tensor:
    """Encode and decode videos one by one, so that a result does not depend on the other videos."""
    return torch.stack([codec.decode(codec.encode(video.to(device))).cpu() for video in videos])


def _score(
    card: str, task: Task, truth: Tensor, decoded: Tensor | None, kinds: np.ndarray, gaps: np.ndarray, reach: int,
    device: torch.device, intervention: str, frames: Tensor,
) -> pd.DataFrame:  # fmt: skip
    B, H = truth.shape[:2]
    columns: dict[str, Any] = {
        "task": task.name,
        "intervention": intervention,
        "episode": np.repeat(np.arange(B), H),
        "frame": np.tile(np.arange(H), B),
        "kind": kinds.reshape(-1),
        "gap": gaps.reshape(-1),
        "truth": [zlib.crc32(frame) for frame in truth.flatten(0, 1).numpy()],
    }
    columns |= frame_metrics(frames.expand_as(truth), truth, device)
    if decoded is not None:  # also score against the decoded truth, which is what the trunk learns to predict
        decoded_scores = frame_metrics(frames.expand_as(truth), decoded, device)
        columns |= {name + DECODED: values for name, values in decoded_scores.items()}
    recalled = recall(task, frames.expand_as(truth), reach)
    columns |= {name: values.reshape(-1) for name, values in recalled.items()}
    return pd.DataFrame({**columns, "card": card})


def frame_metrics(frames: Tensor, truth: Tensor, device: torch.device) -> dict[str, np.ndarray]:
    """Return each metric of each frame, [B * H], of uint8 videos [B, H, C, h, w], without unavailable ones."""
    smallest = min(frames.shape[-2:])
    usable = {name: m for name, m in METRICS.items() if smallest >= m.smallest and m.unavailable() is None}
    scores: dict[str, list[Tensor]] = {name: [] for name in usable}
    for x, y in few_at_a_time(frames.flatten(0, 1), truth.flatten(0, 1), device):
        for name, metric in usable.items():
            scores[name].append(metric.score(x, y))
    return {name: torch.cat(values).cpu().numpy() for name, values in scores.items()}


def _keep_strips(result: Evaluation, task: Task, name: str, frames: Tensor) -> None:
    for episode in result.shown[task.name]:
        result.strips[f"{task.name}-{name}-{episode}"] = frames[episode]
