"""How much of what is trained, and of what is scored, needs a memory: known before a run is paid for.

A scored frame needs a memory if it is a revisit (`revisits.py`): in a rollout, all that it shows must come from the
context. In training the true frames up to the one before are given, so attention knows whatever they show. What is
left to a memory is what comes back into view: a trained frame needs one if a tenth of its rays meet surfaces that were
seen before, and last seen longer ago than attention reaches. Where no trained frame does, nothing teaches a memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rad_bench.config import RunConfig
from rad_bench.data import Dataset
from rad_bench.data.encoded import Encoded
from rad_bench.data.recordings import Recordings
from rad_bench.evaluation.evaluate import held_out, reach
from rad_bench.evaluation.fvd import fvd_absent
from rad_bench.evaluation.interventions import partners
from rad_bench.evaluation.revisits import classify_task, stretches_out_of_sight
from rad_bench.evaluation.tasks import generated_frames, make_task
from rad_bench.store.result import Need
from rad_bench.training.batches import training_clips

CLIPS = 128  # training clips that are looked at: the first ones, as a run trains on them
RAYS = 0.1  # share of a trained frame's rays that makes it need a memory


def training_need(run: RunConfig, dataset: Dataset) -> Need:
    """Return what the first training clips need, over the frames whose loss counts."""
    steps = range(min(-(-CLIPS // run.training.batch), run.training.steps))
    clips = [training_clips(run, dataset, step, with_surfaces=True) for step in steps]
    stretch_BTR = np.concatenate([stretches_out_of_sight(part, dataset.same_view) for part in clips])
    stretch_BTR = stretch_BTR[:, run.training.loss_from :]
    beyond = np.isfinite(stretch_BTR) & (stretch_BTR > run.trunk.reach)
    needs = beyond.sum(-1) >= RAYS * np.maximum((~np.isnan(stretch_BTR)).sum(-1), 1)
    return _need(needs, stretch_BTR[beyond & needs[..., None]])


def evaluation_need(run: RunConfig, dataset: Dataset) -> dict[str, Need]:
    """Return what each task's generated frames need."""
    episodes = held_out(run, dataset)
    tasks = [make_task(name, episodes, run.evaluation, run.trunk.frames_per_step) for name in run.evaluation.tasks]
    needs = {}
    for task in tasks:
        needs[task.name] = scored_need(*classify_task(task, reach(run), dataset.has_poses, dataset.same_view))
    return needs


def scored_need(kinds: NDArray[np.str_], gaps: NDArray[np.float64]) -> Need:
    """Return what a task's generated frames need, from their kinds and gaps, both [B, H]."""
    return _need(kinds == "revisit", gaps[kinds == "revisit"])


def needs_of(run: RunConfig, dataset: Dataset) -> dict[str, Need]:
    """Return both, the training's under `training`; empty where the data do not tell what was seen before."""
    if not dataset.has_poses:
        return {}
    dataset = _unencoded(dataset)
    return {"training": training_need(run, dataset), **evaluation_need(run, dataset)}


def shortfalls(run: RunConfig, dataset: Dataset) -> list[str]:
    """Return what the data can serve in part only. Raises `UserError` where they cannot serve a run at all.

    Reads no frames.
    """
    config, data = run.evaluation, _unencoded(dataset)
    origins: list[object] = list(range(config.episodes))
    notes = []
    if isinstance(data, Recordings):
        data.draw(run.seed, 0, run.training.batch, run.training.frames)  # raises if no recording is long enough
        origins = [item.name for item, _ in data.held_out_places(config.episodes, config.context + config.horizon)]
        lengths = [item.length for item in data.training]
        if short := sum(length < run.training.frames for length in lengths):
            notes.append(
                f"{short} of {len(lengths)} training recordings are shorter than training.frames "
                f"{run.training.frames}, and are not trained on"
            )
        if config.probe and max(lengths) < config.context:
            notes.append(
                f"no training recording has evaluation.context {config.context} frames, so memories are not probed"
            )
    if "swap" in config.interventions and partners(origins) is None:
        notes.append(
            "no memory can be swapped, because all evaluated episodes come from one recording, so it is not known "
            "whether a model uses its memory; evaluate more recordings (evaluation.episodes, data.held_out)"
        )
    if config.fvd:
        for name in config.tasks:
            clips = config.episodes * (generated_frames(name, config, run.trunk.frames_per_step) // config.fvd)
            if absent := fvd_absent(clips):
                notes.append(f"no FVD of {name}: {absent}")
    return notes


def _unencoded(dataset: Dataset) -> Dataset:
    """Return a data set without its latents, which nothing here needs and which take long to make."""
    return dataset.data if isinstance(dataset, Encoded) else dataset


def _need(needs: NDArray[np.bool_], gaps: NDArray[np.float64]) -> Need:
    quartiles = None
    if len(gaps):
        low, median, high = map(float, np.quantile(gaps, (0.25, 0.5, 0.75)))
        quartiles = low, median, high
    return Need(
        frames=needs.size, share=float(needs.mean()), gaps=quartiles, episodes=int(needs.any(1).sum()), of=len(needs)
    )
