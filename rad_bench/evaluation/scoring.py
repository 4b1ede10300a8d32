"""Score the generated frames of a task, whichever model made them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from rad_bench.evaluation.consistency import self_similarity
from rad_bench.evaluation.controls import CEILING, COPY_LAST
from rad_bench.evaluation.fvd import GENERATED, score_fvd
from rad_bench.evaluation.metrics import DECODED, METRICS, SSIM_SMALLEST, few_at_a_time, metric_card
from rad_bench.evaluation.recall import recall
from rad_bench.evaluation.revisits import classify_task
from rad_bench.evaluation.tasks import Task
from rad_bench.store.result import VideoDistance


@dataclass(frozen=True)
class Key:
    """All that decides the scores of a task's generated frames, but these frames."""

    task: Task
    reach: int  # a revisit was out of sight for more than this many frames
    has_poses: bool
    same_view: tuple[float, float] | None  # without a map: poses this close show the same view; radians
    decoded: Tensor | None  # uint8 [B, H, 3, h, w]: the truth, encoded and decoded, if an autoencoder is between
    kinds: NDArray[np.str_]  # [B, H]
    gaps: NDArray[np.float64]  # [B, H]

    @classmethod
    def of(
        cls, task: Task, reach: int, has_poses: bool, same_view: tuple[float, float] | None, decoded: Tensor | None
    ) -> Key:
        """Return the key of a task: which of its frames are revisits, and after which gap."""
        return cls(task, reach, has_poses, same_view, decoded, *classify_task(task, reach, has_poses, same_view))

    @property
    def truth(self) -> Tensor:
        """Return the true frames of the horizon, uint8 [B, H, 3, h, w]."""
        return self.task.truth[:, self.task.context :]

    @property
    def controls(self) -> dict[str, Tensor]:
        """Return the frames of the controls, which no model makes: [B, H or 1, 3, h, w]."""
        task = self.task
        last = {COPY_LAST: task.truth[:, task.context - 1 : task.context]}
        return last if self.decoded is None else {**last, CEILING: self.decoded}


@dataclass
class Scores:
    """The scores of one model's frames, task by task, and some of its frames as pictures."""

    device: torch.device
    most_shown: int  # episodes a task whose frames are kept
    fvd_frames: int = 0  # of the clips of FVD; 0: there is none
    tables: list[pd.DataFrame] = field(default_factory=list)
    strips: dict[str, Tensor] = field(default_factory=dict)  # "<task>-<intervention or truth>-<episode>": [H, C, h, w]
    shown: dict[str, list[int]] = field(default_factory=dict)  # task -> episodes in `strips`
    horizons: dict[str, int] = field(default_factory=dict)  # task -> H
    fvd: dict[str, VideoDistance] = field(default_factory=dict)  # by task, if it was asked for

    @property
    def frames(self) -> pd.DataFrame:
        """Return one row per task, intervention, episode and generated frame, without the run's own columns."""
        return pd.concat(self.tables, ignore_index=True)

    def begin(self, key: Key) -> None:
        """Score a task's controls, and choose the episodes that are shown."""
        task = key.task
        for name, frames in key.controls.items():
            self.tables.append(self._score(key, "keep", frames).assign(block=name))
        # Show the episodes with most revisits. The choice depends only on the truth, not on a model.
        revisits = (key.kinds == "revisit").sum(1)
        self.shown[task.name] = np.argsort(-revisits, kind="stable")[: self.most_shown].tolist()
        self.horizons[task.name] = task.horizon
        self._keep_strips(task, "truth", key.truth)

    def add(self, key: Key, intervention: str, frames: Tensor) -> None:
        """Score what a model generated under an intervention, uint8 [B, H, 3, h, w]."""
        table = self._score(key, intervention, frames)
        if intervention == "keep" and min(frames.shape[-2:]) >= SSIM_SMALLEST:
            similarity = self_similarity(key.task, frames, key.reach, key.same_view)
            table = table.assign(**{name: values.reshape(-1) for name, values in similarity.items()})
        self.tables.append(table)
        self._keep_strips(key.task, intervention, frames)

    def compare_videos(self, key: Key, frames: Tensor) -> None:
        """Compute the FVD of what a model generated under `keep`, and of the controls."""
        videos = {GENERATED: frames, **key.controls}
        self.fvd[key.task.name] = score_fvd(videos, key.truth, self.fvd_frames, self.device)

    def _keep_strips(self, task: Task, name: str, frames: Tensor) -> None:
        for episode in self.shown[task.name]:
            self.strips[f"{task.name}-{name}-{episode}"] = frames[episode]

    def _score(self, key: Key, intervention: str, frames: Tensor) -> pd.DataFrame:
        truth = key.truth
        B, H = truth.shape[:2]
        columns: dict[str, Any] = {
            "task": key.task.name,
            "intervention": intervention,
            "episode": np.repeat(np.arange(B), H),
            "frame": np.tile(np.arange(H), B),
            "kind": key.kinds.reshape(-1),
            "gap": key.gaps.reshape(-1),
            "truth": [zlib.crc32(frame) for frame in truth.flatten(0, 1).numpy()],
        }
        columns |= frame_metrics(frames.expand_as(truth), truth, self.device)
        if key.decoded is not None:  # also against the decoded truth, which is what the trunk learns to predict
            decoded_scores = frame_metrics(frames.expand_as(truth), key.decoded, self.device)
            columns |= {name + DECODED: values for name, values in decoded_scores.items()}
        recalled = recall(key.task, frames.expand_as(truth), key.reach)
        columns |= {name: values.reshape(-1) for name, values in recalled.items()}
        return pd.DataFrame({**columns, "card": metric_card(self.fvd_frames)["card"]})


def frame_metrics(frames: Tensor, truth: Tensor, device: torch.device) -> dict[str, np.ndarray]:
    """Return each metric of each frame, [B * H], of uint8 videos [B, H, C, h, w], without unavailable ones."""
    smallest = min(frames.shape[-2:])
    usable = {name: m for name, m in METRICS.items() if smallest >= m.smallest and m.unavailable() is None}
    scores: dict[str, list[Tensor]] = {name: [] for name in usable}
    for x, y in few_at_a_time(frames.flatten(0, 1), truth.flatten(0, 1), device):
        for name, metric in usable.items():
            scores[name].append(metric.score(x, y))
    return {name: torch.cat(values).cpu().numpy() for name, values in scores.items()}
