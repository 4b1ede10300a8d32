"""Clips that go some way and come back the same way, which makes training need a memory.

A recorded clip hardly ever returns to a view after longer than attention reaches, so nothing in it teaches a memory.
A clip that turns back does: its frames and poses in reverse order, with the egomotion of the way back. That is a
choice of training data (`training.return_share`), the same for every block. Actions cannot say the way back and are
zero there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from rad_bench.data.episodes import Episodes, egomotion_from_poses

RETURNS = 4  # first word of the random key; the embedded world's keys begin with 1 to 3


def turning_frames(share: float, seed: int, step: int, batch: int, frames: int) -> NDArray[np.int64]:
    """Return the frame after which each of a step's clips turns back, [batch]; `frames - 1` for one that does not.

    A function of its arguments. Turning frames are uniform between the clip's middle and its last frame but one.
    """
    rng = np.random.default_rng([RETURNS, seed, step, batch, frames])
    returns, turning = rng.random(batch) < share, rng.integers(frames // 2, max(frames - 1, frames // 2 + 1), batch)
    return np.where(returns, turning, frames - 1)


def turned_back(clips: Episodes, turning_B: NDArray[np.int64]) -> Episodes:
    """Return clips that go on to their turning frame and from there the same way back, as long as they were."""
    B, T = clips.frames.shape[:2]
    turn = torch.from_numpy(turning_B)[:, None]
    frame = torch.arange(T)[None]
    order_BT, back = torch.where(frame <= turn, frame, 2 * turn - frame), frame > turn
    rows = torch.arange(B)[:, None]
    poses = clips.poses[rows, order_BT]
    actions = clips.actions[rows, order_BT]
    actions[back] = 0
    return replace(
        clips,
        frames=clips.frames[rows, order_BT],
        actions=actions,
        egomotion=egomotion_from_poses(poses).float(),
        poses=poses,
        surfaces=clips.surfaces[rows, order_BT],
        latents=None if clips.latents is None else clips.latents[rows, order_BT],
    )
