"""The kinds of frames, against a slow twin and by hand."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

from rad_bench.evaluation.revisits import classify, classify_poses, classify_task
from rad_bench.evaluation.tasks import Task


def slow_frame(surfaces: list[list[int]], context: int, reach: int, t: int) -> tuple[str, float]:
    """One frame, read straight off the definition."""
    rays = [s for s in surfaces[t] if s >= 0]
    if not rays:
        return "recent", 0.0
    stretches = []
    for surface in rays:
        true_sightings = [u for u in range(context) if surface in surfaces[u]]
        if not true_sightings:
            stretches.append(math.inf)
            continue
        sightings = [true_sightings[-1]] + [u for u in range(context, t + 1) if surface in surfaces[u]]
        stretches.append(max(b - a for a, b in zip(sightings, sightings[1:], strict=False)))
    seen = sum(s < math.inf for s in stretches) / len(rays)
    gap = statistics.median_low(stretches)
    if seen < 0.5:
        return "novel", math.nan
    if seen < 0.9:
        return "partial", gap
    return ("revisit" if gap > reach else "recent"), gap


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 40, (3, 1, 1)) + rng.integers(-2, 3, (3, 50, 1)).cumsum(1)
    surfaces = (start + np.arange(7 + seed)) // 2 % 30  # a view that wanders round a ring of surfaces
    surfaces[rng.random(surfaces.shape) < 0.05 * seed] = -1
    surfaces[0, 30] = -1
    context, reach = 12 + seed, seed
    kind, gap = classify(torch.from_numpy(surfaces), context, reach)
    slow = [[slow_frame(s.tolist(), context, reach, t) for t in range(context, 50)] for s in surfaces]
    assert kind.tolist() == [[k for k, _ in row] for row in slow]
    np.testing.assert_array_equal(gap, np.array([[g for _, g in row] for row in slow]))


def one_ray(*surfaces: int) -> Tensor:
    return torch.tensor(surfaces).view(1, -1, 1)


def test_the_four_kinds_all_occur() -> None:
    views = torch.tensor([[1, 1], [2, 2], [3, 3], [3, 3], [1, 1], [9, 9], [3, 8]])[None]
    kind, gap = classify(views, context=3, reach=1)
    assert kind.tolist() == [["recent", "revisit", "novel", "partial"]]
    np.testing.assert_array_equal(gap, [[1, 4, math.nan, 3]])


def test_turning_away_and_back_must_bridge_the_time_out_of_sight() -> None:
    kind, gap = classify(one_ray(1, 1, 2, 2, 2, 2, 2, 1, 1), context=4, reach=4)
    assert gap.tolist() == [[1, 1, 1, 6, 6]]  # once bridged by memory, in view again does not make it easier
    assert kind.tolist() == [["recent", "recent", "recent", "revisit", "revisit"]]


def test_short_looks_away_stay_within_reach_however_many() -> None:
    kind, gap = classify(one_ray(1, 2, 1, 2, 1, 2, 1, 2, 1, 2), context=2, reach=2)
    assert set(kind[0]) == {"recent"} and set(gap[0]) == {2.0}


def test_only_the_last_sighting_in_the_context_counts() -> None:
    _, gap = classify(one_ray(1, 2, 2, 2, 2, 1, 1), context=6, reach=2)
    assert gap.tolist() == [[1]]


def test_a_surface_first_met_in_generated_frames_is_never_seen() -> None:
    kind, gap = classify(one_ray(1, 1, 5, 5, 5, 5), context=2, reach=3)
    assert set(kind[0]) == {"novel"} and np.isnan(gap).all()


def test_identities_of_other_episodes_do_not_count() -> None:
    views = torch.tensor([[[5], [5]], [[1], [5]]])
    kind, _ = classify(views, context=1, reach=3)
    assert kind.tolist() == [["recent"], ["novel"]]


def test_rays_that_meet_nothing_are_left_out() -> None:
    views = torch.tensor([[[1, 1, 1], [-1, -1, 1], [-1, -1, -1]]])
    kind, gap = classify(views, context=1, reach=3)
    assert kind.tolist() == [["recent", "recent"]] and gap.tolist() == [[1, 0]]


def test_thresholds_are_inclusive() -> None:
    context = [1] * 10
    kind, _ = classify(torch.tensor([[context, [1] * 9 + [7], [1] * 5 + [7] * 5, [1] * 4 + [7] * 6]]), 1, 9)
    assert kind.tolist() == [["recent", "partial", "novel"]]


def test_without_rays_everything_is_recent() -> None:
    kind, gap = classify(torch.zeros(2, 5, 0).long(), context=3, reach=1)
    assert kind.shape == gap.shape == (2, 2)
    assert (kind == "recent").all() and (gap == 0).all()


def test_poses_alone_tell_what_was_seen_where_there_is_no_map():
    # Turn by 30 degrees a frame for a full turn, look away for 8 frames, and come back; then go far away.
    heading = np.deg2rad(np.concatenate([30 * np.arange(12), np.full(8, 90), [0, 30], [0, 0]]))
    x = np.zeros(len(heading))
    x[-2:] = 50
    poses = torch.from_numpy(np.column_stack([x, np.zeros_like(x), heading]))[None]
    kind, gap = classify_poses(poses, context=12, reach=5, distance=1.0, angle=math.radians(10))
    assert kind[0].tolist() == ["revisit"] * 10 + ["novel"] * 2
    # 90 degrees was seen at frame 3: frame 12 bridges 9 frames, and what stays in view has that stretch behind it.
    assert gap[0, :10].tolist() == [9.0] * 8 + [20.0, 20.0] and np.isnan(gap[0, 10:]).all()
    kind, _ = classify_poses(poses, context=12, reach=9, distance=1.0, angle=math.radians(10))
    assert kind[0].tolist() == ["recent"] * 8 + ["revisit"] * 2 + ["novel"] * 2


def test_another_height_or_pitch_is_another_view():
    level = [0.0, 0.0, 0.0, 64.0, 0.1]
    for column, near, far in ((3, 64.9, 65.1), (4, 0.25, 0.35), (0, 0.9, 1.1), (2, 2 * math.pi - 0.15, 0.25)):
        views = torch.tensor([level, level, level], dtype=torch.float64)
        views[1, column], views[2, column] = near, far
        kind, _ = classify_poses(views[None], context=1, reach=5, distance=1.0, angle=0.2)
        assert kind[0].tolist() == ["recent", "novel"], column


def test_distance_is_that_in_space():
    views = torch.tensor([[0, 0, 0, 0, 0], [0.8, 0, 0, 0.5, 0], [0.8, 0, 0, 0.7, 0]], dtype=torch.float64)
    kind, _ = classify_poses(views[None], context=1, reach=5, distance=1.0, angle=0.2)
    assert kind[0].tolist() == ["recent", "novel"]


def test_a_camera_that_turns_slowly_leaves_its_view_all_the_same():
    # 5 degrees a frame, less than what still counts as the same view: all round, and 10 frames on.
    heading = np.deg2rad(5.0 * np.arange(82))
    poses = torch.from_numpy(np.column_stack([0 * heading, 0 * heading, heading]))[None]
    kind, gap = classify_poses(poses, context=12, reach=6, distance=1.0, angle=math.radians(20.1))
    # The last true view, at 55 degrees, covers up to 75; the first, at 0, is come to again at 340.
    assert kind[0].tolist() == ["recent"] * 4 + ["novel"] * 52 + ["revisit"] * 14
    # The view at 340 was truly met at 0 (frame 0), next at 320 (frame 64); that at 45 until 65 (13), then at 25 (77).
    assert gap[0, 56] == 64 - 0 and gap[0, -1] == 77 - 13 and np.isnan(gap[0, 4:56]).all()


def test_without_poses_nothing_is_called_a_revisit():
    frames = torch.zeros(2, 9, 3, 8, 8, dtype=torch.uint8)
    nothing = torch.zeros(2, 9, 0)
    task = Task("continuation", 4, frames, nothing, nothing, nothing, nothing.long())
    kind, gap = classify_task(task, 3, has_poses=False, same_view=None)
    assert kind.shape == (2, 5) and set(kind.ravel()) == {"unknown"} and np.isnan(gap).all()
