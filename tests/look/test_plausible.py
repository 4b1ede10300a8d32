"""Poses that cannot be right are named with numbers; those that can be are not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from rad_bench.cli import cli
from rad_bench.data.source import Recording
from rad_bench.look.plausible import OutOfStep, pose_faults

FRAMES, SIDE = 240, 32
MAP = np.ones((7, 9), bool)
MAP[0] = MAP[-1] = MAP[:, 0] = MAP[:, -1] = False
MAP[1, 4:] = False


def walk(number: int = 0) -> NDArray[np.float64]:
    """Round the rectangle of free cells, with a turn on the spot at each corner."""
    rng = np.random.default_rng(number)
    poses, x, y, heading = [], 1.5, 2.75, 0.0
    while len(poses) < FRAMES:
        for side in (6.0, 2.5):
            for _ in range(int(side / 0.25)):
                poses.append((x, y, heading + rng.normal(0, 0.05)))
                x, y = x + 0.25 * math.cos(heading), y + 0.25 * math.sin(heading)
            for _ in range(6):
                poses.append((x, y, heading))
                heading += math.pi / 12
    return np.array(poses[:FRAMES])


def recording(number: int = 0, seen_from: NDArray[np.float64] | None = None) -> Recording:
    """A walk before a panorama, which moves to the right as the camera turns left."""
    poses = walk(number)
    seen = poses if seen_from is None else seen_from
    panorama = np.random.default_rng(99).integers(0, 255, (SIDE, 144, 3)).repeat(4, 1).astype(np.uint8)
    start = (-seen[:, 2] / (2 * np.pi) * panorama.shape[1] / 4).round().astype(int)
    columns = (start[:, None] + np.arange(SIDE)) % panorama.shape[1]
    frames = panorama[:, columns].transpose(1, 3, 0, 2)  # [T, 3, SIDE, SIDE]
    return Recording(torch.from_numpy(frames.copy()), torch.zeros(FRAMES, 6), torch.from_numpy(poses), MAP)


def posed(change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Recording:
    good = recording()
    assert good.poses is not None
    return replace(good, poses=torch.from_numpy(change(good.poses.numpy()).copy()))


def cosine_of_degrees(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """The heading of unit vectors whose angle was in degrees."""
    angle = np.rad2deg(poses[:, 2])
    return np.column_stack([poses[:, :2], np.arctan2(np.sin(angle), np.cos(angle))])


SPOILT = {
    "transposed map": (replace(recording(), layout=MAP.T), "places lie in walls.*x and y swapped, 0 do"),
    "map upside down": (replace(recording(), layout=MAP[::-1]), "places lie in walls.*reverse order, 0 do"),
    "metres": (posed(lambda p: p * [2, 2, 1]), r"outside the map of 9 x 7 cells \(x 3.00 to 15.00"),
    "centred": (posed(lambda p: p - [4.5, 3.5, 0]), r"of 240 places lie in walls or outside"),
    "one place": (posed(lambda p: np.where(np.arange(FRAMES)[:, None] == 7, [6.5, 1.5, 0], p)), "^1 of 240 places"),
    "x and y swapped": (posed(lambda p: p[:, [1, 0, 2]]), "would with x and y swapped"),
    "mirrored": (posed(lambda p: p * [1, 1, -1]), "would with the heading mirrored"),
    "off by 90": (posed(lambda p: p + [0, 0, np.pi / 2]), "would with the heading turned by -90 degrees"),
    "off by 180": (posed(lambda p: p + [0, 0, np.pi]), "would with the heading turned by 180 degrees"),
    "pitch in degrees": (
        posed(lambda p: np.column_stack([p, 0 * p[:, 0], np.arange(FRAMES) % 30])),
        r"beyond straight up or down in \d+ of 240 frames",
    ),
    "degrees for radians": (posed(cosine_of_degrees), r"turns by more than 60 degrees in \d+ of 239 frames"),
}


def matches(faults: list[str], pattern: str) -> bool:
    return any(re.search(pattern, fault) for fault in faults)


@pytest.mark.parametrize("number", range(3))
def test_right_poses_pass(number: int) -> None:
    assert pose_faults(recording(number), degrees=False) == []
    assert pose_faults(replace(recording(number), layout=None), degrees=True) == []


@pytest.mark.parametrize("fault", SPOILT)
def test_poses_that_cannot_be_right_are_named(fault: str) -> None:
    spoilt, pattern = SPOILT[fault]
    faults = pose_faults(spoilt, degrees=False)
    assert matches(faults, pattern), faults


def test_the_unit_of_yaw_is_judged_by_motion_range_and_pictures() -> None:
    radians = replace(posed(lambda p: np.deg2rad(p[:, 2:]) * [0, 0, 1] + p * [1, 1, 0]), layout=None)
    assert matches(pose_faults(radians, degrees=True), "would with yaw in radians")
    twice = replace(posed(lambda p: p * [1, 1, 180 / np.pi]), layout=None)
    assert matches(pose_faults(twice, degrees=True), "converted to degrees once, not twice")
    still = replace(posed(lambda p: np.deg2rad(p) * [0, 0, 1]), layout=None)  # only turns, several times round
    assert matches(pose_faults(still, degrees=True), r"the camera sees \d.\d degrees of yaw: is it in radians")
    little = replace(posed(lambda p: np.deg2rad(np.sin(p)) * [0, 0, 1]), layout=None)
    assert matches(pose_faults(little, degrees=True), r"yaw stays between -1.00 and 1.0\d degrees.*radians")
    ahead = replace(posed(lambda p: np.column_stack([0.1 * np.arange(FRAMES), *np.zeros((2, FRAMES))])), layout=None)
    assert pose_faults(ahead, degrees=True) == []  # walks straight on


@pytest.mark.parametrize("shift", [-12, -3, -1, 0, 1, 3, 12])
def test_frames_out_of_step_are_named_with_the_shift(shift: int) -> None:
    checks = OutOfStep()
    for number in range(3):
        good = recording(number)
        assert good.poses is not None
        first, last = max(0, shift), FRAMES + min(0, shift)
        checks.add(
            f"{number}",
            replace(good, frames=good.frames[first:last], poses=good.poses[first - shift :][: last - first]),
        )
    faults = checks.faults()
    when = "before" if shift > 0 else "after"
    assert len(faults) == (3 if shift else 0), faults
    assert all(f"pictures change {abs(shift)} frames {when} poses" in fault for fault in faults)


def test_frames_of_another_recording_are_named() -> None:
    checks = OutOfStep()
    for number in range(5):
        checks.add(f"{number}", recording(number, seen_from=walk(2)[::-1] if number == 3 else None))
    assert len(checks.faults()) == 1 and checks.faults()[0].startswith("3: ")


def test_a_world_whose_left_and_right_are_exchanged_is_named() -> None:
    """Motion and heading fit each other in the mirror, so only the pictures tell."""
    checks = OutOfStep()
    good = recording()
    assert good.poses is not None
    mirrored = replace(good, poses=good.poses * torch.tensor([1, -1, -1]), layout=None)
    assert pose_faults(mirrored, degrees=True) == []
    checks.add("0", mirrored)
    (fault,) = checks.faults()
    assert re.search(r"as if the camera turned the other way, in \d+ of \d+ turns", fault)


@pytest.mark.parametrize("seed", range(5))
def test_pictures_of_noise_prove_nothing(seed: int) -> None:
    rng, checks = np.random.default_rng(seed), OutOfStep()
    for number in range(6):
        pictures = torch.from_numpy(rng.integers(0, 255, (60, 3, 16, 16), np.uint8))
        heading = 2.5 * np.sin(np.arange(60) / 4 + number)
        poses = np.column_stack([np.zeros((60, 2)), heading])
        checks.add(f"{number}", Recording(pictures, torch.zeros(60, 4), torch.from_numpy(poses)))
    assert checks.faults() == []


def test_data_check_says_so_and_exits_with_1(tmp_path: Path) -> None:
    def save(number: int, **changes: Any) -> None:
        good = recording(number)
        assert good.poses is not None
        x, y, heading = good.poses.numpy().T
        arrays = {
            "image": good.frames.permute(0, 2, 3, 1).numpy() // 2 + 64,
            "action": np.zeros((FRAMES, 6)),
            "agent_pos": np.column_stack([x, y]),
            "agent_dir": np.column_stack([np.cos(heading), np.sin(heading)]),
            "maze_layout": MAP,
        }
        np.savez(tmp_path / f"{number}.npz", **{**arrays, **changes})

    for number in range(3):
        save(number)
    result = CliRunner().invoke(cli, ["data", "check", str(tmp_path)])
    assert result.exit_code == 0 and "look at" not in result.output
    save(1, maze_layout=MAP.T)
    result = CliRunner().invoke(cli, ["data", "check", str(tmp_path)])
    assert result.exit_code == 1
    assert "\nlook at: 1.npz: " in result.output and "with x and y swapped, 0 do" in result.output
