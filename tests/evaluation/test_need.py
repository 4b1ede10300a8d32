"""What trained and scored frames need: against the definition, and on worlds where the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rad_bench.config import RunConfig
from rad_bench.data import open_dataset
from rad_bench.evaluation.need import evaluation_need, training_need
from rad_bench.evaluation.revisits import stretches_out_of_sight
from tests.runs import TINY


def config(**sections: Any) -> RunConfig:
    merged = {key: {**TINY.get(key, {}), **value} for key, value in sections.items()}
    return RunConfig.model_validate({**TINY, **merged})


def test_a_stretch_counts_from_the_last_sighting_in_any_earlier_frame() -> None:
    run = config(data={"headings": 24, "size": 8}, training={"frames": 40})
    clips = open_dataset(run.data).training_batch(0, 0, 3, 40, with_surfaces=True)
    found, ids = stretches_out_of_sight(clips, None), clips.surfaces.numpy()
    for b, t, r in np.ndindex(*ids.shape):
        earlier = [u for u in range(t) if ids[b, t, r] in ids[b, u]]
        assert found[b, t, r] == (t - earlier[-1] if earlier else np.inf)


def test_without_a_map_a_view_is_met_where_a_pose_is_near() -> None:
    run = config()
    clips = open_dataset(run.data).training_batch(0, 0, 1, 5)
    poses = torch.tensor([[[0, 0, 0], [5, 0, 0], [0.5, 0, 0], [9, 0, 0], [5, 0, 3.0]]], dtype=torch.float64)
    near = type(clips)(**{**vars(clips), "poses": poses})
    assert stretches_out_of_sight(near, (1.0, 0.5))[0, :, 0].tolist() == [np.inf, np.inf, 2, np.inf, np.inf]


def test_clips_that_turn_back_need_a_memory_where_recorded_ones_do_not() -> None:
    """Half a turn on the spot, a heading a frame, shows nothing twice; the way back shows all of it again."""
    there = {"data": {"headings": 36, "panels": 8, "pillar": False}, "training": {"frames": 18, "loss_from": 4}}
    none, back = config(**there), config(data=there["data"], training={**there["training"], "return_share": 1.0})
    data = open_dataset(none.data)
    assert training_need(none, data).share == 0 and training_need(none, data).gaps is None
    need = training_need(back, data)
    assert need.share > 0.1 and need.episodes > need.of / 2
    assert back.trunk.reach < need.gaps[0] <= need.gaps[1] <= need.gaps[2] < 18


def test_scored_frames_that_need_a_memory_are_the_revisits() -> None:
    run = config(data={"headings": 8})
    need = evaluation_need(run, open_dataset(run.data))
    assert set(need) == {"continuation", "retrieval"}
    assert need["continuation"].frames == 4 * 12 and need["continuation"].of == 4
    assert 0 < need["continuation"].share < 1


@pytest.mark.parametrize("reach", [1, 100])
def test_beyond_a_longer_reach_less_is_needed(reach: int) -> None:
    run = config(data={"headings": 8}, trunk={"window": reach}, evaluation={"reach": None})
    need = training_need(run, open_dataset(run.data))
    assert (need.share == 0) is (reach == 100)
