"""What does the memory hold? A linear probe from the recurrent state to properties of the world.

After a context, the states of all layers are concatenated to one vector a video. Ridge regression predicts the probe
targets of the data set from it: the colours of walls (embedded world), or the agent's position and the layout around it
(Memory Maze). It is fitted on training episodes. The score is R^2 on held-out episodes, over targets that the context
has shown: 1 is perfect, 0 is no better than the training mean. A state that grows has no fixed size and is not probed.

The regression needs only inner products of states. Where states are large, these are summed over pieces of the vectors,
and each piece reads the contexts again, so that the host never holds all states.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from rad_bench.blocks.memory import leaves
from rad_bench.data import Episodes
from rad_bench.evaluation.interventions import read_context
from rad_bench.model.experiment import Experiment
from rad_bench.model.motion import motion_features
from rad_bench.model.trunk import Trunk

Floats = NDArray[np.float64]
RIDGES = 10.0 ** np.arange(-3, 5)  # times the mean squared norm of a state; chosen on a part of the training episodes
VALIDATION_SHARE = 0.25  # that part
BATCH = 32  # contexts that are read at a time, or evaluation.batch, if that is less
PIECE = 1 << 21  # numbers of each state that the host holds at a time


def probe(experiment: Experiment) -> dict[str, float]:
    """Return R^2 of each probe target; empty without a memory of constant size, or without targets."""
    config, dataset = experiment.config.evaluation, experiment.dataset
    count = config.probe
    if not count or not has_constant_state(experiment.trunk):
        return {}
    training = dataset.probe_clips(True, count, config.context)
    if training.hidden is None:
        return {}
    held_out = dataset.probe_clips(False, max(count // 2, 2), config.context)
    assert held_out.hidden is not None
    clips = training, held_out
    pieces = (slice(first, first + PIECE) for first in range(0, _state_size(experiment.trunk), PIECE))
    products = _inner_products(tuple(_states(experiment, part, piece) for part in clips) for piece in pieces)
    scores = {
        name: _score(*products, training.hidden[name].values.numpy(), hidden.values.numpy(), hidden.known.numpy())
        for name, hidden in held_out.hidden.items()
    }
    return {name: score for name, score in scores.items() if np.isfinite(score)}


def has_constant_state(trunk: Trunk) -> bool:
    """Return whether the trunk has a memory whose size does not grow."""
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


def _inner_products(pieces: Iterable[tuple[Floats, ...]]) -> tuple[Floats, Floats]:
    """Return the inner products of training states with each other, and of test states with them.

    `pieces` are parts of the vectors of both, [B, E] each, and are changed. States are centred and scaled: training
    states have a mean of zero and a mean squared norm of one.
    """
    gram, cross, squares = np.zeros(1), np.zeros(1), np.zeros(1)
    for x, x_test in pieces:
        centre = x.mean(0)
        x -= centre
        x_test -= centre
        gram, cross, squares = gram + x @ x.T, cross + x_test @ x.T, squares + (x**2).sum(1)
    scale = float(squares.mean()) or 1.0
    return gram / scale, cross / scale


def _state_size(trunk: Trunk) -> int:
    """Return the numbers in the states of one video."""
    return sum(leaf.numel() for state in trunk.start(1).memory() for leaf in leaves(state))


@torch.no_grad()
def _states(experiment: Experiment, clips: Episodes, piece: slice) -> Floats:
    """Return a piece of the memory's state after each clip, as one vector a video, [B, E]."""
    motion = motion_features(experiment.trunk.config.motion, clips.actions, clips.egomotion)
    states = []
    for index in torch.arange(len(clips)).split(min(BATCH, experiment.config.evaluation.batch)):
        cache = read_context(experiment, clips.frames[index], motion[index])
        vectors, before = [], 0  # of the piece; the numbers before a tensor
        for leaf in (leaf for state in cache.memory() for leaf in leaves(state)):
            vector = leaf.reshape(len(index), -1)
            vectors.append(vector[:, max(piece.start - before, 0) : max(piece.stop - before, 0)])
            before += vector.shape[1]
        states.append(torch.cat(vectors, 1).cpu())
    return torch.cat(states).double().numpy()


def _score(
    gram: Floats, cross: Floats, y: Floats, y_test: Floats, known: NDArray[np.bool_],
) -> float:  # fmt: skip
    """Return R^2 of ridge regression on known test targets; NaN if these are constant.

    `gram` and `cross` are the inner products of training states, and of test states with them; targets y are [B, Q].
    """
    mean = y.mean(0)
    y = y - mean
    cut = int(len(y) * (1 - VALIDATION_SHARE))

    def predict(cross: Floats, gram: Floats, targets: Floats, ridge: float) -> Floats:
        predicted: Floats = cross @ np.linalg.solve(gram + ridge * np.eye(len(gram)), targets)
        return predicted

    errors = [((predict(gram[cut:, :cut], gram[:cut, :cut], y[:cut], r) - y[cut:]) ** 2).mean() for r in RIDGES]
    predicted = predict(cross, gram, y, float(RIDGES[int(np.argmin(errors))])) + mean
    residual, total = (predicted - y_test)[known], (y_test - mean)[known]
    spread = (total**2).sum()
    return float(1 - (residual**2).sum() / spread) if spread else float("nan")
