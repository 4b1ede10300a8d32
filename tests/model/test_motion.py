"""Motion features: what tells poses apart."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rad_bench.blocks.none import NoMemory
from rad_bench.config import TrunkConfig
from rad_bench.data.episodes import egomotion_from_poses
from rad_bench.model.motion import motion_features, motion_size
from rad_bench.model.trunk import Trunk


def codes(poses_TP: torch.Tensor) -> torch.Tensor:
    """Return the unit pose codes of a path, [T, F], without the egomotion that leads there."""
    T, P = poses_TP.shape
    start = torch.zeros(1, P, dtype=torch.float64)
    egomotion = egomotion_from_poses(torch.cat([start, poses_TP])[None]).float()
    features = motion_features("pose", torch.zeros(1, T + 1, 4), egomotion)[0, 1:]
    return torch.nn.functional.normalize(features[:, motion_size("egomotion", 4, P) :], dim=-1)


@pytest.mark.parametrize("size", [3, 5])
def test_sizes_are_as_announced(size: int) -> None:
    egomotion = torch.randn(2, 5, size)
    for kind in ("action", "egomotion", "pose"):
        features = motion_features(kind, torch.zeros(2, 5, 6), egomotion)
        assert features.shape == (2, 5, motion_size(kind, 6, size)) and features.dtype == torch.float32


def test_a_trunk_takes_the_motion_of_either_size() -> None:
    for kind in ("egomotion", "pose"):
        for size in (3, 5):
            config = TrunkConfig(width=8, depth=1, patch=8, motion=kind)
            trunk = Trunk(config, NoMemory, (3, 16, 16), 4, 0, pose_size=size)
            motion = motion_features(kind, torch.zeros(1, 3, 4), torch.randn(1, 3, size))
            frames = torch.zeros(1, 3, 3, 16, 16)
            assert trunk(frames, frames, torch.zeros(1, 3), motion).shape == frames.shape


def test_on_the_level_five_columns_say_what_three_do() -> None:
    egomotion, nothing = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 9, 4)
    egomotion[..., 3:] = 0
    five, three = (motion_features("pose", nothing, motion) for motion in (egomotion, egomotion[..., :3]))
    in_common = [*range(4), *range(7, 15), *range(23, 87)]
    assert torch.equal(five[..., in_common], three)
    others = [number for number in range(87) if number not in in_common]
    assert (five[..., others] == five[:1, :1, others]).all()


@pytest.mark.parametrize("size", [3, 5])
def test_the_code_of_a_pose_does_not_depend_on_the_way_there(size: int) -> None:
    pose = torch.tensor([1.3, -0.4, 2.0, 0.7, -0.3], dtype=torch.float64)[:size]
    detour = torch.stack([torch.tensor([3.0, 1.0, -1.0, 2.0, 0.5], dtype=torch.float64)[:size], pose])
    torch.testing.assert_close(codes(pose[None])[-1], codes(detour)[-1], atol=1e-5, rtol=0)


def test_codes_are_alike_only_where_place_and_heading_are() -> None:
    """Linear memories need nearly orthogonal keys: one place seen in two directions, or one direction from two places,
    must not be alike."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    grid = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    poses = torch.cat([grid.repeat_interleave(8, 0), angle.repeat(16)[:, None]], 1)
    similar = codes(poses) @ codes(poses).mT
    same_place = (poses[:, None, :2] == poses[None, :, :2]).all(-1)
    same_heading = poses[:, None, 2] == poses[None, :, 2]
    assert (similar[same_place & same_heading] > 0.999).all()
    for alike in (same_place & ~same_heading, ~same_place & same_heading):
        assert similar[alike].abs().mean() < 0.3
    assert similar[~same_place & ~same_heading].abs().mean() < 0.15
    near = codes(torch.tensor([[1.0, 1.0, 0.5], [1.02, 1.0, 0.52]], dtype=torch.float64))
    assert near[0] @ near[1] > 0.95


def test_codes_differ_by_height_and_by_pitch_too() -> None:
    """Poses that differ in any of place, heading, height and pitch, or in several, must not be alike."""
    choices = (torch.arange(4.0), torch.arange(4.0), torch.arange(4) * math.pi / 2, torch.arange(3.0))
    poses = torch.cartesian_prod(*choices, torch.tensor([-0.8, 0.0, 0.8])).double()
    similar = codes(poses) @ codes(poses).mT
    place = (poses[:, None, :2] == poses[None, :, :2]).all(-1)
    same = torch.stack([place, *(poses[:, None, c] == poses[None, :, c] for c in (2, 3, 4))])
    assert (similar[same.all(0)] > 0.999).all()
    for differs in itertools.product([False, True], repeat=4):
        if any(differs):
            alike = similar[(same != torch.tensor(differs)[:, None, None]).all(0)]
            assert alike.abs().mean() < (0.4 if sum(differs) == 1 else 0.3) and alike.max() < 0.75
    near = codes(torch.tensor([[1, 1, 0.5, 1, 0.2], [1, 1, 0.5, 1.02, 0.22]], dtype=torch.float64))
    assert near[0] @ near[1] > 0.95
