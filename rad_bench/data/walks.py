"""The turns of the embedded world's agent: it looks around, then sweeps left and right, so that views return.

A walk is one turn a frame: -1, 0 or 1 headings, 0 for the first frame.
"""

from __future__ import annotations

import numpy as np

from rad_bench.data.raycast import IntArray

HALF_TURN_SHARE = 0.4  # of episodes, in which half of the room remains unseen


def training_turns(rng: np.random.Generator, frames: int, headings: int, linger: int) -> IntArray:
    """Return the turns of a training clip, which lingers up to `linger` frames between sweeps, [T]."""
    turns = [0, *_look_around(rng, headings)]
    while len(turns) < frames:
        if linger:
            turns += _linger(rng, int(rng.integers(linger + 1)))
        turns += _sweep(rng, 2, headings)
    return np.array(turns[:frames])


def held_out_turns(rng: np.random.Generator, frames: int, context: int, headings: int) -> IntArray:
    """Return turns whose context shows no more than the look around; after the context, the agent also lingers. [T]"""
    turns = [0, *_look_around(rng, headings)]
    shown = range(min(np.cumsum(turns)), max(np.cumsum(turns)) + 1)
    while len(turns) < context:
        sweep = _sweep(rng, 2, headings)
        if len(shown) > headings or sum(turns) + sum(sweep) in shown:
            turns += sweep
    del turns[context:]
    while len(turns) < frames:
        turns += _linger(rng, int(rng.integers(2, max(3, (frames - context) * 2 // 3))))
        turns += _sweep(rng, 2, headings)
    return np.array(turns[:frames])


def _look_around(rng: np.random.Generator, headings: int) -> list[int]:
    direction = int(rng.choice((-1, 1)))
    return [direction] * (headings // 2 if rng.random() < HALF_TURN_SHARE else headings)


def _sweep(rng: np.random.Generator, shortest: int, longest: int) -> list[int]:
    return [int(rng.choice((-1, 1)))] * int(rng.integers(shortest, longest + 1))


def _linger(rng: np.random.Generator, frames: int) -> list[int]:
    """Return turns back and forth over three neighbouring headings."""
    direction = int(rng.choice((-1, 1)))
    return [direction if t % 4 in (0, 1) else -direction for t in range(frames)]
