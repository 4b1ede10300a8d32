"""The probe reads what is there and nothing else."""

import numpy as np
import pytest
import torch

from rad_bench.config import MemoryMazeData, RoomsData, RunConfig
from rad_bench.data import open_dataset
from rad_bench.data.maze_view import maze_shown
from rad_bench.evaluation import probe as probing
from rad_bench.evaluation.probe import _inner_products, _score, probe
from tests.runs import opened


def score(x, y, x_test, y_test, known):
    return _score(*_inner_products([(x.copy(), x_test.copy())]), y, y_test, known)


def test_what_is_linear_in_the_state_is_read_and_noise_is_not():
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(200, 40)), rng.normal(size=(100, 40))
    weights = rng.normal(size=(40, 3))
    known = np.ones((100, 3), bool)
    assert score(x, x @ weights + 5, x_test, x_test @ weights + 5, known) > 0.99
    assert score(x, rng.normal(size=(200, 3)), x_test, rng.normal(size=(100, 3)), known) < 0.05


def test_only_what_was_shown_counts():
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(200, 5)), rng.normal(size=(100, 5))
    y_test = np.concatenate([x_test[:, :1], rng.normal(size=(100, 1))], 1)
    y = np.concatenate([x[:, :1], rng.normal(size=(200, 1))], 1)
    known = np.tile([True, False], (100, 1))
    assert score(x, y, x_test, y_test, known) > 0.99 > score(x, y, x_test, y_test, ~known)


def test_the_embedded_worlds_hidden_colours_are_those_that_are_drawn():
    clips = open_dataset(RoomsData(preset="rotation", size=32)).probe_clips(True, 20, 12)
    hidden = clips.hidden["wall colours"]
    colours = hidden.values.reshape(20, 8, 3)
    heading = ((clips.poses[..., 2] - clips.poses[:, :1, 2]) / (2 * torch.pi / 8)).round().long() % 8
    drawn = clips.frames[:, :, :, 14, 15:17].double().mean(-1) / 255  # just above the horizon, in the middle
    told = torch.stack([colours[b, heading[b]] for b in range(20)])
    off = (drawn - told).abs().amax(-1)
    assert (off < 0.02).double().mean() > 0.9  # but for edges between surfaces
    assert hidden.known.reshape(20, 8, 3)[torch.arange(20), heading[:, -1]].all()


def test_a_mazes_layout_around_the_agent_turns_with_it(tmp_path):
    layout = np.zeros((5, 5), bool)
    layout[2] = True  # a corridor along x, at y = 2.5
    for number, direction in enumerate(([1.0, 0.0], [0.0, 1.0], [1.0, 0.0])):
        np.savez(
            tmp_path / f"{number}.npz",
            image=np.full((6, 16, 16, 3), number, np.uint8),
            action=np.zeros((6, 6)),
            agent_pos=np.full((6, 2), 2.5),
            agent_dir=np.tile(direction, (6, 1)),
            maze_layout=layout,
        )
    data = open_dataset(MemoryMazeData(name="memory_maze", path=str(tmp_path)))
    clips = data.probe_clips(True, 30, 4)
    layout, known = (part.reshape(30, 5, 5) for part in (clips.hidden["layout"].values, clips.hidden["layout"].known))
    for name, values, shown in zip(clips.names, layout, known, strict=True):
        sideways = name.startswith("1.npz")
        along = values[2] if sideways else values[:, 2]  # to both sides, or ahead
        assert along.all() and values.sum() == 5
        assert not shown[:2].any()  # what lies behind was never in view
        assert shown[2].int().tolist() == [0, 0, 1, 0, 0]
        # Along the corridor its cells and walls; across it the wall that is faced, and what is behind it is not.
        expected = [[0, 1, 1, 1, 0], [0, 0, 0, 0, 0]] if sideways else [[0, 1, 1, 1, 0], [0, 1, 1, 1, 0]]
        assert shown[3:].int().tolist() == expected
    assert not clips.hidden["position"].values.any()


def test_a_maze_is_known_as_far_as_it_was_in_view():
    free = np.ones((9, 9), bool)
    free[4, 6] = False
    east, north = np.array([[2.5, 4.5, 0.0]]), np.array([[2.5, 4.5, np.pi / 2]])
    shown = maze_shown(free, east)[2:-2, 2:-2]
    assert shown[4].tolist() == [False] * 2 + [True] * 5 + [False] * 2  # from the agent to the wall that hides the rest
    assert shown[:, 5].tolist() == [False] + [True] * 7 + [False]  # 40 degrees to either side
    assert (maze_shown(free, np.concatenate([east, north])) == (maze_shown(free, east) | maze_shown(free, north))).all()


def test_a_trunk_is_probed_where_its_state_is_of_constant_size():
    for block, probed in (("lstm", True), ("attention", False), ("none", False)):
        run = RunConfig.model_validate(
            {"memory": block, "data": {"name": "rooms", "size": 16}, "trunk": {"patch": 8, "width": 16, "depth": 1},
             "evaluation": {"probe": 12, "context": 8}}
        )  # fmt: skip
        found = probe(opened(run))
        assert list(found) == (["wall colours"] if probed else [])
        assert all(np.isfinite(value) for value in found.values())


def test_states_in_pieces_give_the_scores_of_whole_ones(monkeypatch):
    run = RunConfig.model_validate(
        {"memory": "ttt", "data": {"name": "rooms", "size": 16}, "trunk": {"patch": 8, "width": 16, "depth": 2},
         "evaluation": {"probe": 12, "context": 8}}
    )  # fmt: skip
    experiment = opened(run, perturbed=True)
    whole, held = probe(experiment), []
    real = probing._states
    monkeypatch.setattr(probing, "_states", lambda *given: held.append(real(*given)) or held[-1])
    monkeypatch.setattr(probing, "PIECE", 1000)
    assert probe(experiment) == {name: pytest.approx(value, rel=1e-9) for name, value in whole.items()}
    sizes = [part.shape[1] for part in held[::2]]
    assert max(sizes) == 1000 and sum(sizes) == experiment.trunk.start(1).memory_bytes() / 4
