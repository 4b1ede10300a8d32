"""Motion features: what tells poses apart."""

from __future__ import annotations

import math

import torch

from rad_bench.data.episodes import egomotion_from_poses
from rad_bench.model.motion import motion_features, motion_size


def codes(poses_T3: torch.Tensor) -> torch.Tensor:
    """Return the unit pose codes of a path, [T, F], without the egomotion that leads there."""
    start = torch.zeros(1, 3, dtype=torch.float64)
    egomotion = egomotion_from_poses(torch.cat([start, poses_T3])[None]).float()
    features = motion_features("pose", torch.zeros(1, len(poses_T3) + 1, 4), egomotion)[0, 1:]
    return torch.nn.functional.normalize(features[:, 4:], dim=-1)


def test_sizes_are_as_announced() -> None:
    egomotion = torch.randn(2, 5, 3)
    for kind in ("action", "egomotion", "pose"):
        features = motion_features(kind, torch.zeros(2, 5, 6), egomotion)
        assert features.shape == (2, 5, motion_size(kind, 6)) and features.dtype == torch.float32


def test_the_code_of_a_pose_does_not_depend_on_the_way_there() -> None:
    pose = torch.tensor([1.3, -0.4, 2.0], dtype=torch.float64)
    detour = torch.stack([torch.tensor([3.0, 1.0, -1.0], dtype=torch.float64), pose])
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
