"""Roll a task out under every intervention.

Interventions act on the recurrent state at the end of the context, the attention window stays:
keep leaves it, reset sets it to its initial value, swap takes it from an episode of another recording at the same time.
Where all episodes are clips of one recording there is no swap: another clip's memory may be of the very same place.
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


@dataclass(frozen=True)
class Generated:
    """What was generated for a task of B episodes and H frames."""

    frames: dict[str, Tensor]  # intervention -> uint8 [B, H, 3, height, width]; no swap where there is none to be had
    seconds: list[float]  # wall time of each step of the first batch, under `keep`
    videos: int  # in that batch: the same for every memory


@torch.no_grad()
def roll_out(
    experiment: Experiment, task: Task, report: Callable[[int], None] = lambda done: None,
    only: Mapping[str, Sequence[int]] | None = None,
) -> Generated:  # fmt: skip
    """Generate the task's frames under each of the run's interventions; `report(done)` counts these.

    Contexts are read once. `keep` is rolled out first and alone, so that all memories are timed on as many videos. The
    others are rolled out side by side where their states have the same shapes: a memory that grows is smaller after a
    reset.

    `only` names the episodes that are asked for, and returned in that order, under some of the interventions. Batches
    are left out whole or not at all: the last bits of a frame depend on its company.
    """
    run, trunk, codec, device = experiment.config, experiment.trunk, experiment.codec, experiment.device
    diffusion = Diffusion(run.diffusion, codec.bound)
    motion = motion_features(run.trunk.motion, task.actions, task.egomotion)
    count, C = len(motion), task.context
    wanted: Mapping[str, Sequence[int]] = only or {name: range(count) for name in run.evaluation.interventions}
    starts = _starts(experiment, task, motion)
    generated: dict[str, Tensor] = {}
    first: Rollout | None = None
    for names in _companies(starts):
        together = starts[names[0]].map(_joined, *(starts[name] for name in names[1:]))
        asked_for = [e in wanted.get(name, ()) for name in names for e in range(count)]
        videos: dict[int, Tensor] = {}  # by place in `asked_for`
        for pairs in torch.arange(len(names) * count, device=device).split(run.evaluation.batch):
            if not any(asked_for[pair] for pair in pairs.tolist()):
                continue
            episodes = pairs.cpu() % count

            def noise(h: int, episodes: Tensor = episodes) -> Tensor:
                frames = [frame_noise(run.evaluation.seed, task.name, int(e), h, trunk.frame_shape) for e in episodes]
                return torch.stack(frames).to(device)

            asked = motion[episodes, C:].to(device)
            batch = rollout(trunk, diffusion, asked, together.select(pairs), noise)
            first = first or batch
            videos |= {
                pair: codec.decode(video).cpu()
                for pair, video in zip(pairs.tolist(), batch.frames, strict=True)
                if asked_for[pair]
            }
        for first_pair, name in zip(range(0, len(asked_for), count), names, strict=True):
            if name in wanted:
                generated[name] = torch.stack([videos[first_pair + e] for e in wanted[name]])
        report(len(generated))
    assert first is not None
    return Generated(generated, first.seconds, len(first.frames))


def _starts(experiment: Experiment, task: Task, motion: Tensor) -> dict[str, Cache]:
    """Return the caches of all episodes at the end of the context, `keep` first.

    They lie in host memory: `evaluation.batch` says what the device has room for.
    """
    count, config = len(motion), experiment.config.evaluation
    read = [
        read_context(experiment, task, motion, index).map(Tensor.cpu)
        for index in torch.arange(count).split(config.batch)
    ]
    context = read[0].map(_joined, *read[1:])
    starts = {"keep": context}
    if "reset" in config.interventions:
        initial = (map_state(Tensor.cpu, state) for state in experiment.trunk.start(count).memory())
        starts["reset"] = context.with_memory(tuple(initial))
    partner = partners(task)
    if "swap" in config.interventions and partner is not None:
        starts["swap"] = context.with_memory(context.select(partner).memory())
    return starts


def partners(task: Task) -> Tensor | None:
    """Return whose memory each episode is given in a swap, [B]; None if all are clips of one recording.

    It is the episode halfway round the list or, if that is of the same recording, the next one that is not.
    """
    count = len(task.truth)
    recordings = task.recordings or range(count)
    if len(set(recordings)) < 2:
        return None
    halfway_on = [[(e + count // 2 + k) % count for k in range(count)] for e in range(count)]
    return torch.tensor(
        [next(p for p in others if recordings[p] != recordings[e]) for e, others in enumerate(halfway_on)]
    )


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _companies(starts: dict[str, Cache]) -> list[list[str]]:
    """Return what is rolled out together: `keep` alone, and of the others those whose states have the same shapes."""
    groups: dict[tuple[torch.Size, ...], list[str]] = {}
    for name, cache in starts.items():
        if name != "keep":
            groups.setdefault(tuple(leaf.shape for leaf in leaves(cache.memory())), []).append(name)
    return [["keep"], *groups.values()]


@torch.no_grad()
def read_context(experiment: Experiment, task: Task, motion: Tensor, index: Tensor) -> Cache:
    """Return the cache of these episodes at the end of the task's context."""
    trunk, codec, device = experiment.trunk, experiment.codec, experiment.device
    C, F = task.context, trunk.config.frames_per_step
    cache = trunk.start(len(index))
    # In pieces, so that a long context needs no more working memory than a short one.
    for piece in torch.arange(C).split(max(32 // F, 1) * F):
        inputs = torch.stack([codec.encode(task.truth[e, piece].to(device)) for e in index])
        cache = trunk.commit(inputs, motion[index][:, piece].to(device), cache)
    return cache
