"""Recall of colours has the answers that are known: of the truth, of guesses, and of a memory that holds some."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from rad_bench.config import EvaluationConfig, RoomsData
from rad_bench.data.rooms import Rooms
from rad_bench.evaluation.recall import recall
from rad_bench.evaluation.revisits import longest_stretches
from rad_bench.evaluation.tasks import make_task
from tests.runs import finished

CONTEXT, HORIZON, REACH = 26, 30, 6


def rooms(**options):
    return Rooms(RoomsData(**options))


def asked(world, episodes=6):
    """Return the continuation task of a world, and its episodes."""
    drawn = world.held_out(episodes, CONTEXT + HORIZON, CONTEXT)
    config = EvaluationConfig(episodes=episodes, context=CONTEXT, horizon=HORIZON)
    return make_task("continuation", drawn, config, 1), drawn


def redrawn(world, drawn, numbers):
    """Draw the horizon of the same walks in rooms whose surfaces have other colours of the palette."""
    frames = []
    for e in range(len(drawn)):
        layout = world._held_out_layout(e, CONTEXT + HORIZON, CONTEXT)[1]
        colours = drawn.palette.candidates.numpy()[np.arange(numbers.shape[1]), numbers[e]][None]
        frames.append(world._draw(replace(layout, colours=colours), drawn.poses[e : e + 1].numpy())[0])
    return torch.from_numpy(np.stack(frames))[:, CONTEXT:]


@pytest.mark.parametrize(
    "options", [{}, {"panels": 4, "palette": 12}, {"size": 64}, {"preset": "walking", "palette": 6}]
)
def test_of_the_truth_every_answer_is_right(options):
    task, _ = asked(rooms(**options))
    scores = recall(task, task.truth[:, CONTEXT:], REACH)
    assert np.nanmin(scores["recall"]) == 1 and np.isfinite(scores["recall"]).mean() > 0.2
    assert scores["items"].min() >= 0 and scores["items"].max() <= task.palette.colours.shape[1]
    assert set(scores["choices"].flat) == {options.get("palette", 8)}


def test_of_guesses_one_in_as_many_as_there_are_colours_is_right():
    world = rooms(panels=4)
    task, drawn = asked(world, episodes=100)
    guesses = np.random.default_rng(0).integers(8, size=tuple(drawn.palette.colours.shape))
    scores = recall(task, redrawn(world, drawn, guesses), REACH)
    assert abs(np.nanmean(scores["recall"]) - 1 / 8) < 0.03


def test_of_a_memory_that_holds_some_surfaces_just_these_are_right():
    world = rooms(panels=4)
    task, drawn = asked(world)
    truth = drawn.palette.colours.numpy()
    held = np.random.default_rng(1).random(truth.shape) < 0.5
    scores = recall(task, redrawn(world, drawn, np.where(held, truth, (truth + 1) % 8)), REACH)
    ids = task.surfaces.numpy()
    stretches, expected = longest_stretches(ids, CONTEXT), np.full(scores["recall"].shape, np.nan)
    for e, h in np.ndindex(*expected.shape):
        row, stretch = ids[e, CONTEXT + h], stretches[e, CONTEXT + h]
        questions = [s for s in set(row[np.isfinite(stretch) & (stretch > REACH)]) if (row == s).sum() >= 4]
        if questions:
            expected[e, h] = held[e, questions].mean()
    np.testing.assert_allclose(scores["recall"], expected)
    assert 0.3 < np.nanmean(expected) < 0.7


def test_blur_makes_no_wrong_answer_right():
    world = rooms(panels=4)
    task, drawn = asked(world)
    numbers = drawn.palette.colours.numpy().copy()
    numbers[:, ::2] = (numbers[:, ::2] + 3) % 8
    frames = redrawn(world, drawn, numbers)
    sharp = recall(task, frames, REACH)["recall"]
    for kernel in (5, 11, 31):
        flat = frames.flatten(0, 1).float()
        blurred = F.avg_pool2d(F.pad(flat, [kernel // 2] * 4, mode="replicate"), kernel, 1).round().byte()
        soft = recall(task, blurred.unflatten(0, frames.shape[:2]), REACH)["recall"]
        assert np.nanmean(soft) <= np.nanmean(sharp)
    grey = torch.full_like(frames, 128)
    assert np.nanmean(recall(task, grey, REACH)["recall"]) < 0.3


def test_what_attention_reaches_is_not_asked_for():
    task, _ = asked(rooms())
    frames = task.truth[:, CONTEXT:]
    far = recall(task, frames, CONTEXT + HORIZON)
    assert np.isnan(far["recall"]).all() and not far["items"].any()
    assert np.isfinite(recall(task, frames, 2)["recall"]).sum() > np.isfinite(recall(task, frames, 12)["recall"]).sum()


@pytest.mark.parametrize("options", [{"palette": None}, {"texture": 0.5}, {"size": 8, "fov": 140}])
def test_without_plain_colours_nothing_is_asked(options):
    task, _ = asked(rooms(**options))
    assert task.palette is None and recall(task, task.truth[:, CONTEXT:], REACH) == {}


def test_a_run_stores_it_for_its_frames_and_its_controls(tmp_path):
    folder = finished(
        tmp_path / "run", data={"size": 16}, training={"steps": 1}, evaluation={"interventions": ("keep",)}
    )
    frames = pd.read_parquet(folder / "frames.parquet")
    assert {"recall", "items", "choices"} <= set(frames.columns)
    assert frames.groupby("block")["recall"].count().nunique() == 1  # the same questions
