"""A walk through the world of a trained run, by key presses, with memory resets and swaps.

A walk starts at the end of a held-out episode's context. Each step is generated as in the evaluation: frame h has the
noise of `continuation`. So the same keys give the same pictures, and the path of the episode gives the scored frames.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rad_bench.blocks.memory import leaves
from rad_bench.data.episodes import egomotion_from_poses, poses_from_egomotion
from rad_bench.errors import UserError
from rad_bench.evaluation.evaluate import held_out, reach
from rad_bench.evaluation.interventions import read_context
from rad_bench.evaluation.metrics import psnr
from rad_bench.evaluation.revisits import classify
from rad_bench.evaluation.tasks import Task, make_task
from rad_bench.look.load import Trained
from rad_bench.look.places import Floats, Place, Places, follow, open_places
from rad_bench.model.cache import Cache
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.motion import motion_features
from rad_bench.model.rollout import frame_noise, rollout

TASK = "continuation"
LONGEST = 2000  # most generated frames of a walk, because growing states and the page need more memory with each
CONTEXTS = 16  # number of contexts whose caches are kept


@dataclass(frozen=True)
class Shown:
    """One frame of a walk, with its truth and its scores."""

    number: int  # 0 = first of the context
    given: bool  # part of the context
    frame: Tensor  # uint8 [3, h, w]
    truth: Tensor | None  # the true view; None if it cannot be drawn
    other: Tensor | None  # the view at the same pose in the room of the swapped-in memory
    pose: tuple[float, ...]  # [P] integrated egomotion since frame 0: ahead, to the left, heading, ...
    kind: str  # context, or as in `evaluation.revisits`
    gap: float | None  # number of frames for which the view was out of sight
    psnr: float | None  # dB, against the truth
    psnr_other: float | None  # against `other`
    norm: float | None  # of the memory's state after this frame; None without memory


@dataclass(frozen=True)
class Press:
    """The result of a key press."""

    blocked: bool  # by a wall; nothing changed
    pending: tuple[str, ...]  # keys of an incomplete step of several frames
    frames: list[Shown]  # the generated frames, if this key completed a step


class World:
    """A finished run to walk in. Raises `UserError` if arrow keys cannot be mapped to motions of its data."""

    def __init__(self, trained: Trained) -> None:
        self.trained, config = trained, trained.run.config
        self.places: Places = open_places(config, trained.dataset)
        self.task: Task = make_task(
            TASK, held_out(config, trained.dataset), config.evaluation, config.trunk.frames_per_step
        )
        self.diffusion = Diffusion(config.diffusion, trained.codec.bound)
        self.motion = motion_features(config.trunk.motion, self.task.actions, self.task.egomotion)
        self.has_memory = trained.has_memory
        self.context_of = functools.lru_cache(CONTEXTS)(self._read)
        self.norms_of = functools.lru_cache(CONTEXTS)(self._norms)

    @property
    def episodes(self) -> int:
        return len(self.task.truth)

    def _read(self, episode: int) -> Cache:
        """Return the cache at the end of an episode's context, as the evaluation reads it."""
        return read_context(self.trained, self.task.given[[episode]], self.motion[[episode]])

    @torch.no_grad()
    def _norms(self, episode: int) -> list[float | None]:
        """Return the memory's norm after each frame of an episode's context, which is read again step by step."""
        trunk, device = self.trained.trunk, self.trained.device
        cache, norms = trunk.start(1), []
        for frames in torch.arange(self.task.context).split(trunk.config.frames_per_step):
            inputs = self.trained.codec.encode(self.task.truth[episode, frames].to(device))[None]
            cache = trunk.commit(inputs, self.motion[episode, frames][None].to(device), cache)
            norms += [memory_norm(cache)] * len(frames)
        return norms


class Session:
    """One walk. Not thread-safe."""

    def __init__(self, world: World, episode: int) -> None:
        self.world, self.episode = world, episode
        task, C = world.task, world.task.context
        self.place: Place = world.places.of[episode]
        self.cache = world.context_of(episode)
        self.memory_of: int | None = episode  # episode whose memory this is; None after a reset
        self.actions: list[Floats] = list(task.actions[episode, :C].numpy())
        self.poses: list[Floats] = list(task.poses[episode, :C].numpy())
        self.surfaces: list[NDArray[np.int64]] = list(task.surfaces[episode, :C].numpy())
        self.pending: list[str] = []

    @property
    def generated(self) -> int:
        """Return the number of generated frames."""
        return self.cache.frames - self.world.task.context

    def context(self) -> list[Shown]:
        """Return the frames of the context."""
        task, norms = self.world.task, self.world.norms_of(self.episode)
        poses, frames = self._walked(), task.truth[self.episode, : task.context]
        return [
            Shown(t, True, frame, frame, None, poses[t], "context", None, None, None, norms[t])
            for t, frame in enumerate(frames)
        ]

    def press(self, key: str) -> Press:
        """Take a step. A model of F frames a step generates them after F keys.

        Raises `UserError` after `LONGEST` frames.
        """
        if self.generated >= LONGEST:
            raise UserError(
                f"this walk has {self.generated} frames, and no walk can have more than {LONGEST}; start again"
            )
        step = self.place.step(self.poses[-1], key)
        if step is None:
            return Press(True, tuple(self.pending), [])
        action, pose = step
        self.actions.append(action)
        self.poses.append(pose)
        self.surfaces.append(self.place.surfaces(pose))
        self.pending.append(key)
        if len(self.pending) < self.world.trained.trunk.config.frames_per_step:
            return Press(False, tuple(self.pending), [])
        self.pending = []
        return Press(False, (), self._generate())

    def reset(self) -> None:
        """Set the memory to its initial state; the attention window stays."""
        self.cache = self.cache.with_memory(self.world.trained.trunk.start(1).memory())
        self.memory_of = None

    def swap(self, episode: int) -> None:
        """Replace the memory with that of an episode (another or this one) at the end of its context."""
        self.cache = self.cache.with_memory(self.world.context_of(episode).memory())
        self.memory_of = episode

    def _generate(self) -> list[Shown]:
        trained, config = self.world.trained, self.world.trained.run.config
        F, first = config.trunk.frames_per_step, self.generated
        actions, egomotion = torch.from_numpy(np.stack(self.actions))[None], self._egomotion()
        motion = motion_features(config.trunk.motion, actions, egomotion)[:, -F:].to(trained.device)

        def noise(h: int) -> Tensor:
            key = config.evaluation.seed, TASK, self.episode, first + h
            return frame_noise(*key, trained.trunk.frame_shape)[None].to(trained.device)

        result = rollout(trained.trunk, self.world.diffusion, motion, self.cache, noise)
        self.cache = result.cache
        frames = trained.codec.decode(result.frames[0]).cpu()
        return self._shown(frames)

    def _shown(self, frames: Tensor) -> list[Shown]:
        surfaces = torch.from_numpy(np.stack(self.surfaces))[None]
        kinds, gaps = classify(surfaces, self.world.task.context, reach(self.world.trained.run.config))
        walked, shown = self._walked(), []
        for number, frame in zip(range(self.cache.frames - len(frames), self.cache.frames), frames, strict=True):
            h, truth = number - self.world.task.context, self._look(self.place, self.poses[number])
            other = self._elsewhere(walked[number])
            gap = float(gaps[0, h])
            shown.append(Shown(
                number, False, frame, truth, other, walked[number], str(kinds[0, h]),
                gap if math.isfinite(gap) else None, _psnr(frame, truth), _psnr(frame, other), memory_norm(self.cache),
            ))  # fmt: skip
        return shown

    def _elsewhere(self, walked_P: Sequence[float]) -> Tensor | None:
        """Return the true view if the walk had started where the episode of the memory started."""
        if self.memory_of in (None, self.episode):
            return None
        assert self.memory_of is not None
        began = self.world.task.poses[self.memory_of, 0].numpy()
        return self._look(self.world.places.of[self.memory_of], follow(began, np.array(walked_P)))

    @staticmethod
    def _look(place: Place, pose_P: Floats) -> Tensor | None:
        frame = place.look(pose_P)
        return None if frame is None else torch.from_numpy(frame)

    def _egomotion(self) -> Tensor:
        return egomotion_from_poses(torch.from_numpy(np.stack(self.poses)))[None].float()

    def _walked(self) -> list[tuple[float, ...]]:
        return [tuple(pose) for pose in poses_from_egomotion(self._egomotion())[0].tolist()]


def memory_norm(cache: Cache) -> float | None:
    """Return the Euclidean norm of all numbers in the memory's states; None without memory."""
    squares = [leaf.double().square().sum() for state in cache.memory() for leaf in leaves(state)]
    return float(torch.stack(squares).sum().sqrt()) if squares else None


def _psnr(frame: Tensor, truth: Tensor | None) -> float | None:
    return None if truth is None else float(psnr(frame[None].float() / 255, truth[None].float() / 255)[0])
