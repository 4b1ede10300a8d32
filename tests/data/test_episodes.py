"""Egomotion, poses and their inversion."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rad_bench.data.episodes import Episodes, egomotion_from_poses, invert_egomotion, poses_from_egomotion, wrap

SIZES = pytest.mark.parametrize("size", [3, 5])


def random_poses(*shape: int, size: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(*shape, size, generator=generator, dtype=torch.float64)
    return steps.cumsum(-2)


def seen_from_the_first(poses: Tensor) -> Tensor:
    """The slow truth: every pose in the body frame of its episode's first."""
    relative = torch.zeros_like(poses)
    for b in range(len(poses)):
        x0, y0, heading = (float(v) for v in poses[b, 0, :3])
        for t in range(poses.shape[1]):
            dx, dy = float(poses[b, t, 0]) - x0, float(poses[b, t, 1]) - y0
            relative[b, t, 0] = dx * math.cos(-heading) - dy * math.sin(-heading)
            relative[b, t, 1] = dx * math.sin(-heading) + dy * math.cos(-heading)
            relative[b, t, 2:] = poses[b, t, 2:] - poses[b, 0, 2:]
    return relative


@SIZES
def test_dead_reckoning_finds_the_pose_relative_to_the_first(size: int) -> None:
    poses = random_poses(4, 60, size=size)
    found, truth = poses_from_egomotion(egomotion_from_poses(poses)), seen_from_the_first(poses)
    place = [0, 1, 3][: size // 2 + 1]
    torch.testing.assert_close(found[..., place], truth[..., place], atol=1e-9, rtol=0)
    assert wrap(found[..., 2::2] - truth[..., 2::2]).abs().max() < 1e-9


def test_forward_and_left_are_positive() -> None:
    north = math.pi / 2
    poses = [[0, 0, north], [0, 2, north], [-3, 2, north], [-3, 2, north + 0.5]]
    expected = torch.tensor([[0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 0.5]], dtype=torch.float64)
    found = egomotion_from_poses(torch.tensor(poses, dtype=torch.float64))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_height_and_pitch_change_neither_the_way_nor_its_bits() -> None:
    poses = random_poses(2, 40, size=5)
    motion = egomotion_from_poses(poses)
    assert torch.equal(motion[..., :3], egomotion_from_poses(poses[..., :3]))
    assert torch.equal(poses_from_egomotion(motion)[..., :3], poses_from_egomotion(motion[..., :3]))
    assert torch.equal(invert_egomotion(motion)[..., :3], invert_egomotion(motion[..., :3]))


@SIZES
def test_a_walk_by_random_motion_and_back_ends_where_it_began(size: int) -> None:
    motion = torch.randn(8, 61, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    motion[:, 0] = 0
    end = poses_from_egomotion(torch.cat([motion, invert_egomotion(motion[:, 1:].flip(1))], 1))[:, -1]
    assert end.abs().max() < 1e-12


@SIZES
def test_inverted_egomotion_leads_back_to_every_pose(size: int) -> None:
    poses = random_poses(3, 40, size=size)
    motion = egomotion_from_poses(poses)
    back = invert_egomotion(motion[:, 1:].flip(1))
    there_and_back = poses_from_egomotion(torch.cat([motion, back], 1))
    there, return_ = there_and_back[:, :40], there_and_back[:, 40:]
    torch.testing.assert_close(return_, there[:, :-1].flip(1), atol=1e-9, rtol=0)


@SIZES
def test_inversion_is_the_egomotion_of_the_reversed_path_and_undoes_itself(size: int) -> None:
    poses = random_poses(3, 40, size=size)
    motion = egomotion_from_poses(poses)
    of_reversed = egomotion_from_poses(poses.flip(1))[:, 1:]
    torch.testing.assert_close(invert_egomotion(motion[:, 1:]).flip(1), of_reversed, atol=1e-9, rtol=0)
    torch.testing.assert_close(invert_egomotion(invert_egomotion(motion)), motion, atol=1e-12, rtol=0)


def test_how_the_first_frame_was_reached_does_not_matter() -> None:
    motion = egomotion_from_poses(random_poses(2, 10))
    moved = motion.clone()
    moved[:, 0] = 7
    assert torch.equal(poses_from_egomotion(moved), poses_from_egomotion(motion))


def test_turns_take_the_short_way_round() -> None:
    poses = torch.tensor([[0.0, 0.0, 3.1], [0.0, 0.0, -3.1]], dtype=torch.float64)
    assert float(egomotion_from_poses(poses)[1, 2]) == pytest.approx(2 * math.pi - 6.2, abs=1e-12)


def test_up_and_looking_up_are_positive_whatever_the_heading() -> None:
    poses = torch.tensor([[0, 0, 1, 2, -0.5], [0, 0, 1, 5, 0.25]], dtype=torch.float64)
    assert egomotion_from_poses(poses)[1].tolist() == [0, 0, 0, 3, 0.75]


def test_select() -> None:
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1, 1)
    nothing = torch.zeros(2, 1, 0)
    episodes = Episodes(frames, nothing, nothing, nothing, nothing.long(), ("dark", "light"))
    assert len(episodes) == 2
    assert episodes.select(slice(1, 2)).names == ("light",)
    assert torch.equal(episodes.select(slice(1, 2)).frames, frames[1:])
