"""Self-consistency of rollouts, on rollouts whose memory is known because they are drawn here."""

import numpy as np
import torch

from rad_bench.config import RoomsData
from rad_bench.data import open_dataset
from rad_bench.evaluation.consistency import _pairs, self_similarity, view_overlap
from rad_bench.evaluation.tasks import Task

C, H, VIEWS = 4, 40, 5


def task_and_pictures(walk):
    """A task whose views are numbered: each shows surfaces of its own and has a random picture of its own."""
    rng = np.random.default_rng(0)
    pictures = torch.from_numpy(rng.integers(0, 256, (VIEWS, 3, 16, 16), np.uint8))
    ids = torch.tensor([0] * C + walk)
    surfaces = (ids[:, None] * 10 + torch.arange(6))[None].repeat(2, 1, 1)
    nothing = torch.zeros(2, C + H, 0)
    task = Task("continuation", C, torch.zeros(2, C + H, 3, 16, 16).byte(), nothing, nothing, nothing, surfaces)
    return task, pictures


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
    assert all(j - i == 17 and j % 4 == 0 for _, i, j in revisits)  # from the last frame of a visit to the next first
    assert len(revisits) == 2 * (H // 4 - VIEWS)
    for number, b, i, j in others:
        assert j - i == 17 and b == revisits[number][0] and WALK[i] != WALK[j]


def test_a_rollout_that_remembers_scores_one_and_one_that_invents_scores_zero():
    task, pictures = task_and_pictures(WALK)
    remembers = pictures[torch.tensor(WALK)].repeat(2, 1, 1, 1, 1)
    visit = torch.arange(H) // 4
    rng = np.random.default_rng(1)
    inventions = torch.from_numpy(rng.integers(0, 256, (H // 4, 3, 16, 16), np.uint8))
    invents = inventions[visit].repeat(2, 1, 1, 1, 1)
    neighbours_differ_at_turns = 0.8  # one neighbour in four shows another view
    assert nmr(self_similarity(task, remembers, 6, None)) > 1 / neighbours_differ_at_turns - 0.05
    assert abs(nmr(self_similarity(task, invents, 6, None))) < 0.1


def test_standing_still_earns_nothing():
    task, pictures = task_and_pictures([1] * H)
    still = pictures[torch.ones(H, dtype=torch.long)].repeat(2, 1, 1, 1, 1)
    found = self_similarity(task, still, 6, None)
    assert np.isnan(found["self_revisit"]).all()
    assert np.nanmean(found["self_neighbour"]) == 1.0


def test_the_embedded_worlds_truth_is_consistent_with_itself():
    episodes = open_dataset(RoomsData(size=16)).held_out(24, 60, 20)
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
