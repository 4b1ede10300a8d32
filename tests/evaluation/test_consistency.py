"""Self-consistency of rollouts, on rollouts whose memory is known because they are drawn here."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rad_bench.config import RoomsData
from rad_bench.data import open_dataset
from rad_bench.evaluation.consistency import _pairs, _sighting, self_similarity, view_overlap
from rad_bench.evaluation.tasks import Task

C, H, VIEWS = 4, 40, 5


def task_that_meets(surfaces_HR):
    """A task of two episodes whose generated views meet these surfaces."""
    surfaces = torch.cat([surfaces_HR[:1].repeat(C, 1), surfaces_HR])[None].repeat(2, 1, 1)
    B, T, _ = surfaces.shape
    nothing = torch.zeros(B, T, 0)
    return Task("continuation", C, torch.zeros(B, T, 3, 16, 16).byte(), nothing, nothing, nothing, surfaces)


def task_and_pictures(walk):
    """A task whose views are numbered: each shows surfaces of its own and has a random picture of its own."""
    rng = np.random.default_rng(0)
    pictures = torch.from_numpy(rng.integers(0, 256, (VIEWS, 3, 16, 16), np.uint8))
    return task_that_meets(torch.tensor(walk)[:, None] * 10 + torch.arange(6)), pictures


def pan(starts, rays=20, around=100):
    """Views that meet `rays` neighbouring surfaces of a ring of `around`, from each start on."""
    return (torch.tensor(starts)[:, None] + torch.arange(rays)) % around


def nmr(found):
    revisit, other, neighbour = (np.nanmean(found[f"self_{name}"]) for name in ("revisit", "other", "neighbour"))
    defined = ~np.isnan(found["self_revisit"])
    other = found["self_other"][defined].mean()
    return (revisit - other) / (neighbour - other)


WALK = [i // 4 % VIEWS for i in range(H)]  # four frames a view, all views in turn: a view returns after 20


def test_pairs_are_returns_from_out_of_sight_and_others_are_as_far_apart():
    task, _ = task_and_pictures(WALK)
    overlap = view_overlap(task, None)
    assert set(np.unique(overlap)) == {0.0, 1.0}
    revisits, others = _pairs(overlap, reach=6)
    assert all(i % 4 == 3 and 17 <= j - i < 20 for _, i, j in revisits)  # all frames of a visit, to the last one's end
    assert len(revisits) == 2 * (H // 4 - VIEWS) * 3  # the fourth's gap is the walk's period: no other pairs
    for number, b, i, j in others:
        b_revisit, i_revisit, j_revisit = revisits[number]
        assert b == b_revisit and j - i == j_revisit - i_revisit and WALK[i] != WALK[j]


def slow_sighting(overlap, reach):
    """The same, read straight off the definition."""
    for begin in reversed(range(len(overlap) - reach)):
        if all(overlap[begin : begin + reach + 1] <= 0.1) and not (begin and overlap[begin - 1] <= 0.1):
            visit = [i for i in range(begin) if overlap[i] >= 0.9]
            while visit and visit[0] + len(visit) - 1 != visit[-1]:
                del visit[0]  # of an earlier visit
            return max(visit, key=lambda i: (overlap[i], i), default=None)
    return None


@pytest.mark.parametrize("reach", [1, 3])
def test_sightings_agree_with_the_definition(reach):
    rng = np.random.default_rng(reach)
    drawn = [rng.choice([0, 0.05, 0.1, 0.5, 0.9, 0.95, 1], int(rng.integers(30))) for _ in range(500)]
    walks = [np.repeat(overlap, rng.integers(1, 5, len(overlap))) for overlap in drawn]
    found = [_sighting(overlap, reach) for overlap in walks]
    assert found == [slow_sighting(overlap, reach) for overlap in walks]
    assert sum(i is not None for i in found) > 100


def test_a_rollout_that_remembers_scores_one_and_one_that_invents_scores_zero():
    task, pictures = task_and_pictures(WALK)
    remembers = pictures[torch.tensor(WALK)].repeat(2, 1, 1, 1, 1)
    visit = torch.arange(H) // 4
    rng = np.random.default_rng(1)
    inventions = torch.from_numpy(rng.integers(0, 256, (H // 4, 3, 16, 16), np.uint8))
    invents = inventions[visit].repeat(2, 1, 1, 1, 1)
    assert nmr(self_similarity(task, remembers, 6, None)) == 1
    assert abs(nmr(self_similarity(task, invents, 6, None))) < 0.1


def test_neighbours_that_show_other_views_do_not_count():
    turns = [i % VIEWS for i in range(H)]  # another view each frame
    task, pictures = task_and_pictures(turns)
    found = self_similarity(task, pictures[torch.tensor(turns)].repeat(2, 1, 1, 1, 1), 3, None)
    assert np.isnan(found["self_neighbour"]).all()
    lingers = self_similarity(task_and_pictures(WALK)[0], pictures[torch.tensor(WALK)].repeat(2, 1, 1, 1, 1), 6, None)
    counted = np.flatnonzero(~np.isnan(lingers["self_neighbour"][0]))
    assert counted.tolist() == [j for j in range(H) if j % 4]


def test_a_view_that_stays_half_in_sight_is_not_revisited():
    def visits(between):
        """Revisit pairs of a walk that looks at 0, then elsewhere, then at 0 again, at last at what it never saw."""
        starts = [0] * 3 + between + [0] * 3 + [75] * 6
        return {(i, j) for _, i, j in _pairs(view_overlap(task_that_meets(pan(starts)), None), reach=6)[0]}

    assert visits([50] * 20) == {(2, 23), (2, 24), (2, 25)}
    assert not visits([10] * 20)
    assert not visits([50] * 6 + [10] + [50] * 6)  # never away for longer than attention reaches


def test_a_camera_that_turns_slowly_meets_its_view_of_one_round_before():
    walk = torch.tensor([*range(150), *[150] * 40, *range(150, 230)])  # hundredths of a round, a rest after 150
    mapped = task_that_meets(pan(walk.tolist()))
    heading = 2 * math.pi / 100 * torch.cat([walk[:1].repeat(C), walk]).double()
    poses = torch.stack([torch.zeros_like(heading), torch.zeros_like(heading), heading], -1)[None].repeat(2, 1, 1)
    posed = replace(mapped, poses=poses, surfaces=mapped.surfaces[..., :0])
    for task, same_view in ((mapped, None), (posed, (1.0, math.radians(20)))):
        pairs, _ = _pairs(view_overlap(task, same_view), reach=6)
        turned = {(b, j): int(walk[j] - walk[i]) for b, i, j in pairs}
        assert all(turned[b, j] == 100 for b in range(2) for j in range(100, len(walk)))
    rest = replace(posed, poses=torch.zeros_like(poses))
    assert not _pairs(view_overlap(rest, (1.0, math.radians(20))), reach=6)[0]


def test_standing_still_earns_nothing():
    task, pictures = task_and_pictures([1] * H)
    still = pictures[torch.ones(H, dtype=torch.long)].repeat(2, 1, 1, 1, 1)
    found = self_similarity(task, still, 6, None)
    assert np.isnan(found["self_revisit"]).all()
    assert np.nanmean(found["self_neighbour"]) == 1.0


def test_the_embedded_worlds_truth_is_consistent_with_itself():
    episodes = open_dataset(RoomsData(preset="rotation", size=16)).held_out(24, 60, 20)
    task = Task(
        "continuation", 20, episodes.frames, episodes.actions, episodes.egomotion, episodes.poses, episodes.surfaces
    )
    found = self_similarity(task, episodes.frames[:, 20:], 6, None)
    defined = ~np.isnan(found["self_revisit"])
    assert defined.sum() > 20
    assert found["self_revisit"][defined].mean() > 0.99 > 0.8 > found["self_other"][defined].mean()


def test_without_map_and_poses_nothing_is_said():
    task, pictures = task_and_pictures(WALK)
    bare = Task(task.name, C, task.truth, task.actions, task.egomotion, task.poses, task.surfaces[..., :0])
    found = self_similarity(bare, pictures[torch.tensor(WALK)].repeat(2, 1, 1, 1, 1), 6, None)
    assert np.isnan(found["self_revisit"]).all()
