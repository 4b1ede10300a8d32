"""What does the memory hold? A linear probe from the recurrent state to what the world is like.

After a context, the state of all layers is laid out as one vector a video, and ridge regression reads from it what the
data set says is hidden there: the colours of walls (embedded world), the layout around the agent and where it stands
(Memory Maze). It is fitted on training episodes and scored on held-out ones, by R^2 over what the context has shown:
1 is perfect, 0 no better than the training mean. A state that grows has no fixed places to read from and is not probed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rad_bench.blocks.memory import leaves
from rad_bench.data import Episodes
from rad_bench.model.experiment import Experiment
from rad_bench.model.motion import motion_features
from rad_bench.model.trunk import Trunk

Floats = NDArray[np.float64]
RIDGES = 10.0 ** np.arange(-3, 5)  # of the mean squared length of a state, tried on a part of the training episodes
HELD_BACK = 0.25  # that part
BATCH = 32


def probe(experiment: Experiment) -> dict[str, float]:
    """Return R^2 by what is read; empty without a memory of constant size, or where the data hide nothing known."""
    config, dataset = experiment.config.evaluation, experiment.dataset
    count = config.probe
    if not count or not _has_constant_state(experiment.trunk):
        return {}
    training = dataset.probe_clips(True, count, config.context)
    if training.hidden is None:
        return {}
    held_out = dataset.probe_clips(False, max(count // 2, 2), config.context)
    assert held_out.hidden is not None
    x, x_test = (_states(experiment, clips) for clips in (training, held_out))
    scores = {
        name: _score(x, training.hidden[name].values.numpy(), x_test, hidden.values.numpy(), hidden.known.numpy())
        for name, hidden in held_out.hidden.items()
    }
    return {name: score for name, score in scores.items() if np.isfinite(score)}


def _has_constant_state(trunk: Trunk) -> bool:
    sizes = []
    cache = trunk.start(1)
    for _ in range(2):
        with torch.no_grad():
            F = trunk.config.frames_per_step
            like = next(trunk.parameters())
            frames = like.new_zeros(1, F, *trunk.frame_shape)
            cache = trunk.commit(frames, like.new_zeros(1, F, trunk.motion.in_features), cache)
        sizes.append(cache.memory_bytes())
    return sizes[0] == sizes[1] > 0


@torch.no_grad()
def _states(experiment: Experiment, clips: Episodes) -> Floats:
    """The memory after each clip as one vector a video, [B, E]."""
    trunk, codec, device = experiment.trunk, experiment.codec, experiment.device
    motion = motion_features(trunk.config.motion, clips.actions, clips.egomotion)
    found = []
    for index in torch.arange(len(clips)).split(BATCH):
        inputs = torch.stack([codec.encode(clips.frames[e].to(device)) for e in index])
        cache = trunk.commit(inputs, motion[index].to(device), trunk.start(len(index)))
        parts = [leaf.reshape(len(index), -1) for state in cache.memory() for leaf in leaves(state)]
        found.append(torch.cat(parts, 1).double().cpu())
    return torch.cat(found).numpy()


def _score(
    x: Floats, y: Floats, x_test: Floats, y_test: Floats,
    known: NDArray[np.bool_],
) -> float:  # fmt: skip
    """R^2 of ridge regression from x [B, E] to y [B, Q] on test rows, over what is known; NaN without spread."""
    centre, mean = x.mean(0), y.mean(0)
    x, x_test, y = x - centre, x_test - centre, y - mean
    scale = float((x**2).sum(1).mean()) or 1.0
    cut = int(len(x) * (1 - HELD_BACK))
    gram, cross = x @ x.T / scale, x_test @ x.T / scale

    def predict(rows: Floats, among: Floats, targets: Floats, ridge: float) -> Floats:
        predicted: Floats = rows @ np.linalg.solve(among + ridge * np.eye(len(among)), targets)
        return predicted

    errors = [((predict(gram[cut:, :cut], gram[:cut, :cut], y[:cut], r) - y[cut:]) ** 2).mean() for r in RIDGES]
    found = predict(cross, gram, y, float(RIDGES[int(np.argmin(errors))])) + mean
    residual, total = (found - y_test)[known], (y_test - mean)[known]
    spread = (total**2).sum()
    return float(1 - (residual**2).sum() / spread) if spread else float("nan")
