"""The tasks: what is generated, and what it is compared with.

    retrieval      C true frames, then the same path backwards; the truth is the context, reversed
    continuation   C true frames, then H frames with the episode's own motion; the truth is the episode

Both have the same form: the true frames of context and horizon, in order, and the motion that leads to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rad_bench.config import EvaluationConfig
from rad_bench.data.episodes import Episodes, Palette, invert_egomotion


@dataclass(frozen=True)
class Task:
    """A task on B held-out episodes: the context, the motion to follow, and the true frames."""

    name: str
    context: int  # C
    truth: Tensor  # uint8 [B, C + H, channels, height, width]; the first C frames are given
    actions: Tensor  # [B, C + H, A]; zero on the way back, for which there are no actions
    egomotion: Tensor  # [B, C + H, P]; 3 or 5 columns, see `data.episodes`
    poses: Tensor  # [B, C + H, P]
    surfaces: Tensor  # [B, C + H, R]
    recordings: tuple[str, ...] | None = None  # [B] recording of each; None if each has its own world
    palette: Palette | None = None  # of the worlds' surfaces, where they have one of a few colours

    @property
    def horizon(self) -> int:
        """Return H, the number of generated frames."""
        return self.truth.shape[1] - self.context

    @property
    def given(self) -> Tensor:
        """Return the true frames of the context, uint8 [B, C, channels, height, width]."""
        return self.truth[:, : self.context]

    @property
    def origins(self) -> Sequence[object]:
        """Return what each episode is a clip of, [B]: its recording, or its own world."""
        return self.recordings or range(len(self.truth))


def generated_frames(name: str, config: EvaluationConfig, frames_per_step: int) -> int:
    """Return H, the number of frames that a task generates."""
    if name == "continuation":
        return config.horizon
    return (config.context - 1) // frames_per_step * frames_per_step  # the way back starts at the last context frame


def make_task(name: str, episodes: Episodes, config: EvaluationConfig, frames_per_step: int) -> Task:
    """Build a task from held-out episodes of at least C + H frames."""
    C = config.context
    if name == "continuation":
        end = C + config.horizon
        return Task(
            name, C, episodes.frames[:, :end], episodes.actions[:, :end], episodes.egomotion[:, :end],
            episodes.poses[:, :end], episodes.surfaces[:, :end], episodes.recordings, episodes.palette,
        )  # fmt: skip
    back = generated_frames(name, config, frames_per_step)
    order = torch.arange(C - 2, C - 2 - back, -1)
    undone = invert_egomotion(episodes.egomotion[:, order + 1])  # the motion that led from frame i to i + 1, undone

    def there_and_back(episode: Tensor, way_back: Tensor) -> Tensor:
        return torch.cat([episode[:, :C], way_back], 1)

    return Task(
        name,
        C,
        there_and_back(episodes.frames, episodes.frames[:, order]),
        there_and_back(episodes.actions, torch.zeros_like(episodes.actions[:, order])),
        there_and_back(episodes.egomotion, undone),
        there_and_back(episodes.poses, episodes.poses[:, order]),
        there_and_back(episodes.surfaces, episodes.surfaces[:, order]),
        episodes.recordings,
        episodes.palette,
    )
