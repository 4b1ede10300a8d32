"""Clips that turn back: what they show, how they move, and that they are a function of their key."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rad_bench.config import RoomsData
from rad_bench.data.episodes import egomotion_from_poses, invert_egomotion, poses_from_egomotion
from rad_bench.data.returns import turned_back, turning_frames
from rad_bench.data.rooms import Rooms


def clips(size: int = 3, batch: int = 3, frames: int = 12):
    """Clips of rooms; with five columns of poses, the camera rises and tilts on its way."""
    rooms = Rooms(RoomsData(size=8, preset="walking", headings=24))
    there = rooms.training_batch(0, 0, batch, frames, slice(None), True)
    if size == 3:
        return there
    above = torch.rand(batch, frames, 2, generator=torch.Generator().manual_seed(0)).double()
    poses = torch.cat([there.poses, above], -1)
    return replace(there, poses=poses, egomotion=egomotion_from_poses(poses).float())


def test_after_the_turning_frame_frames_poses_and_surfaces_come_in_reverse() -> None:
    there = clips()
    back = turned_back(there, np.array([6, 10, 11]))
    order = [[0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1], [*range(11), 9], [*range(12)]]
    for b, frames in enumerate(order):
        for name in ("frames", "poses", "surfaces"):
            assert torch.equal(getattr(back, name)[b], getattr(there, name)[b, frames]), name


@pytest.mark.parametrize("size", [3, 5])
def test_the_way_back_undoes_the_way_there(size: int) -> None:
    there = clips(size)
    back = turned_back(there, np.array([6, 6, 6]))
    undone = invert_egomotion(there.egomotion[:, 2:7].flip(1))
    torch.testing.assert_close(back.egomotion[:, 7:], undone, atol=1e-6, rtol=0)
    poses = poses_from_egomotion(back.egomotion)
    place = [0, 1, 3, 4][: size - 1]
    torch.testing.assert_close(poses[:, 7:, place], poses[:, 1:6, place].flip(1), atol=1e-6, rtol=0)
    assert (back.actions[:, 7:] == 0).all() and torch.equal(back.actions[:, :7], there.actions[:, :7])


def test_a_clip_that_does_not_turn_is_the_clip_itself() -> None:
    there = clips()
    same = turned_back(there, np.full(3, 11))
    for name in ("frames", "actions", "egomotion", "poses", "surfaces"):
        assert torch.equal(getattr(same, name), getattr(there, name)), name


@pytest.mark.parametrize("frames", [2, 3, 12, 13])
def test_turning_frames_lie_between_the_middle_and_the_last_but_one(frames: int) -> None:
    turning = np.concatenate([turning_frames(1.0, 0, step, 64, frames) for step in range(20)])
    assert turning.min() == frames // 2 and turning.max() == max(frames - 2, frames // 2)


def test_the_share_is_kept_and_the_key_decides() -> None:
    turns = np.concatenate([turning_frames(0.3, 0, step, 64, 20) < 19 for step in range(40)])
    assert abs(turns.mean() - 0.3) < 0.03
    assert (turning_frames(0.5, 1, 2, 64, 20) == turning_frames(0.5, 1, 2, 64, 20)).all()
    for other in ((2, 2, 64, 20), (1, 3, 64, 20)):
        assert (turning_frames(0.5, 1, 2, 64, 20) != turning_frames(0.5, *other)).any()
