"""Training clips that turn back, so that training needs a memory.

In a recorded clip, a view hardly ever returns after longer than attention reaches, so memory is not trained. A clip
that turns back repeats its frames and poses in reverse order, with the egomotion of the way back. The share of such
clips (`training.return_share`) is the same for every block. No recorded action leads backwards, so the actions of the
way back are zero.
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

    A pure function of its arguments. Turning frames are uniform from the clip's middle to its second-to-last frame.
    """
    rng = np.random.default_rng([RETURNS, seed, step, batch, frames])
    turns_back, turning = rng.random(batch) < share, rng.integers(frames // 2, max(frames - 1, frames // 2 + 1), batch)
    return np.where(turns_back, turning, frames - 1)


def turned_back(clips: Episodes, turning_B: NDArray[np.int64]) -> Episodes:
    """Return clips of the same length that go to their turning frame, then the same path backwards."""
    B, T = clips.frames.shape[:2]
    turn = torch.from_numpy(turning_B)[:, None]
    frame = torch.arange(T)[None]
    order_BT, backwards = torch.where(frame <= turn, frame, 2 * turn - frame), frame > turn
    rows = torch.arange(B)[:, None]
    poses = clips.poses[rows, order_BT]
    actions = clips.actions[rows, order_BT]
    actions[backwards] = 0
    return replace(
        clips,
        frames=clips.frames[rows, order_BT],
        actions=actions,
        egomotion=egomotion_from_poses(poses).float(),
        poses=poses,
        surfaces=clips.surfaces[rows, order_BT],
        latents=None if clips.latents is None else clips.latents[rows, order_BT],
    )
