"""Roll a task out under every intervention.

An intervention changes the recurrent state at the end of the context, but not the attention window: keep leaves the
state as it is, reset sets it to its initial value, swap replaces it with the state of an episode of another recording.
If all episodes are clips of one recording there is no swap, because both clips may show the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rad_bench.blocks.memory import leaves, map_state
from rad_bench.evaluation.tasks import Task
from rad_bench.model.cache import Cache
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.experiment import Experiment
from rad_bench.model.motion import motion_features
from rad_bench.model.rollout import Rollout, frame_noise, rollout

CONTEXT_FRAMES = 32  # frames of a context that are read at a time


@dataclass(frozen=True)
class Generated:
    """What was generated for a task of B episodes and H frames."""

    frames: dict[str, Tensor]  # intervention -> uint8 [B, H, 3, height, width]; without swap if there is none
    seconds: list[float]  # wall time of each step of the first batch, under `keep`
    videos: int  # videos in that batch: the same for every memory


@torch.no_grad()
def roll_out(
    experiment: Experiment, task: Task, report: Callable[[int], None] = lambda done: None,
    only: Mapping[str, Sequence[int]] | None = None,
) -> Generated:  # fmt: skip
    """Generate the task's frames under each of the run's interventions; `report(done)` counts these.

    Contexts are read once. `keep` is rolled out first and alone, so that all memories are timed on the same number of
    videos. Other interventions share batches if their states have the same shapes; a memory that grows is smaller after
    a reset.

    `only` maps interventions to the episodes to generate, which are returned in that order. A batch is skipped only if
    none of its videos is needed, because the last bits of a frame depend on the other videos in its batch.
    """
    run, trunk, codec, device = experiment.config, experiment.trunk, experiment.codec, experiment.device
    diffusion = Diffusion(run.diffusion, codec.bound)
    motion = motion_features(run.trunk.motion, task.actions, task.egomotion)
    count, C = len(motion), task.context
    requested: Mapping[str, Sequence[int]] = only or {name: range(count) for name in run.evaluation.interventions}
    starts = _starts(experiment, task, motion)
    generated: dict[str, Tensor] = {}
    first: Rollout | None = None
    for names in _batch_groups(starts):
        cache = starts[names[0]].map(_concatenate, *(starts[name] for name in names[1:]))
        needed = [e in requested.get(name, ()) for name in names for e in range(count)]
        videos: dict[int, Tensor] = {}  # by index in `needed`
        for pairs in torch.arange(len(names) * count).split(run.evaluation.batch):
            if not any(needed[pair] for pair in pairs.tolist()):
                continue
            episodes, start = pairs % count, cache.select(pairs).map(lambda tensor: tensor.to(device))

            def noise(h: int, episodes: Tensor = episodes) -> Tensor:
                frames = [frame_noise(run.evaluation.seed, task.name, int(e), h, trunk.frame_shape) for e in episodes]
                return torch.stack(frames).to(device)

            batch = rollout(trunk, diffusion, motion[episodes, C:].to(device), start, noise, experiment.record)
            first = first or batch
            videos |= {
                pair: codec.decode(video).cpu()
                for pair, video in zip(pairs.tolist(), batch.frames, strict=True)
                if needed[pair]
            }
        for first_pair, name in zip(range(0, len(needed), count), names, strict=True):
            if name in requested:
                generated[name] = torch.stack([videos[first_pair + e] for e in requested[name]])
        report(len(generated))
    assert first is not None
    return Generated(generated, first.seconds, len(first.frames))


def _starts(experiment: Experiment, task: Task, motion: Tensor) -> dict[str, Cache]:
    """Return the caches of all episodes at the end of the context, `keep` first.

    They are in host memory, because the device has room only for `evaluation.batch` videos.
    """
    count, config = len(motion), experiment.config.evaluation
    caches = [
        read_context(experiment, task.given[index], motion[index]).map(Tensor.cpu)
        for index in torch.arange(count).split(config.batch)
    ]
    context = caches[0].map(_concatenate, *caches[1:])
    starts = {"keep": context}
    if "reset" in config.interventions:
        initial = (map_state(Tensor.cpu, state) for state in experiment.trunk.start(count).memory())
        starts["reset"] = context.with_memory(tuple(initial))
    partner = partners(task.origins)
    if "swap" in config.interventions and partner is not None:
        starts["swap"] = context.with_memory(context.select(partner).memory())
    return starts


def partners(origins: Sequence[object]) -> Tensor | None:
    """Return the episode whose memory each episode gets in a swap, [B]; None if all are clips of one recording.

    It is the episode half the list further on or, if that has the same recording, the next one that has not.
    `origins` holds what each is a clip of.
    """
    count = len(origins)
    if len(set(origins)) < 2:
        return None
    candidates = [[(e + count // 2 + k) % count for k in range(count)] for e in range(count)]
    return torch.tensor([next(p for p in others if origins[p] != origins[e]) for e, others in enumerate(candidates)])


def _concatenate(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors)


def _batch_groups(starts: dict[str, Cache]) -> list[list[str]]:
    """Return groups of interventions that share batches: `keep` alone, and the others by the shapes of their states."""
    groups: dict[tuple[torch.Size, ...], list[str]] = {}
    for name, cache in starts.items():
        if name != "keep":
            groups.setdefault(tuple(leaf.shape for leaf in leaves(cache.memory())), []).append(name)
    return [["keep"], *groups.values()]


@torch.no_grad()
def read_context(experiment: Experiment, frames: Tensor, motion_BTM: Tensor) -> Cache:
    """Return the cache after true frames, uint8 [B, C, channels, height, width], and the motion that leads to each."""
    trunk, codec, device = experiment.trunk, experiment.codec, experiment.device
    F = trunk.config.frames_per_step
    cache = trunk.start(len(frames))
    # In chunks, so that a long context needs no more working memory than a short one.
    for chunk in torch.arange(frames.shape[1]).split(max(CONTEXT_FRAMES // F, 1) * F):
        inputs = torch.stack([codec.encode(video[chunk].to(device)) for video in frames])
        cache = trunk.commit(inputs, motion_BTM[:, chunk].to(device), cache)
    return cache
