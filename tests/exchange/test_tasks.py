import json

import numpy as np
import pytest
from PIL import Image

from rad_bench.evaluation.evaluate import answer_keys
from rad_bench.evaluation.interventions import partners
from rad_bench.exchange.folder import ABOUT, read_index
from rad_bench.model.codec import Pixels
from tests.data.test_memory_maze import episode, save
from tests.data.test_minecraft import teco
from tests.exchange.outside import tasks
from tests.runs import opened, tiny_run
from tests.sweep.tiny import TINY, run_here


def test_questions_are_those_of_the_sweep(tmp_path):
    where = tasks(tmp_path)
    index = json.loads((where / "index.json").read_text())
    assert (index["format"], index["version"], index["reach"]) == ("rad-bench tasks", 1, 2)
    run = tiny_run(
        trunk={"depth": 1, "window": 2}, evaluation={"context": 9, "horizon": 8, "tasks": ["continuation", "retrieval"]}
    )
    experiment = opened(run.config)
    keys = answer_keys(run.config, experiment.dataset, Pixels(experiment.dataset.frame_shape), experiment.device)
    assert [task["name"] for task in index["tasks"]] == [key.task.name for key in keys] == ["continuation", "retrieval"]
    for listed, key in zip(index["tasks"], keys, strict=True):
        task, partner = key.task, partners(key.task.origins)
        assert (listed["context"], listed["horizon"]) == (9, task.horizon)
        for question in listed["episodes"]:
            e = question["episode"]
            assert question["swap_partner"] == partner[e] != e
            arrays = np.load(where / question["folder"] / "question.npz")
            assert set(arrays) == {name.partition(": ")[2] for name in ABOUT if ": " in name}
            np.testing.assert_array_equal(arrays["frames"], task.truth[e, :9].permute(0, 2, 3, 1))
            for name in ("actions", "egomotion", "poses"):
                np.testing.assert_array_equal(arrays[name], getattr(task, name)[e])
            pictures = sorted((where / question["folder"] / "context").iterdir())
            np.testing.assert_array_equal(np.stack([np.array(Image.open(p)) for p in pictures]), arrays["frames"])


def test_no_question_holds_what_is_to_be_generated(tmp_path):
    where = tasks(tmp_path)
    assert {path.name for path in where.iterdir()} == {"index.json", "questions", "truth"}
    for path in (where / "questions").rglob("*.npz"):
        arrays = np.load(path)
        assert len(arrays["frames"]) == 9 and len(arrays["poses"]) == 17
    names = {path.name for path in (where / "questions").rglob("*") if path.is_file()}
    assert names == {"question.npz", *(f"{number:04d}.png" for number in range(9))}
    assert "surfaces" not in (where / "index.json").read_text()


def test_a_folder_of_recordings_is_asked_by_the_defaults_and_by_what_is_set(tmp_path):
    (tmp_path / "my maze").mkdir()
    for number in range(6):
        save(tmp_path / "my maze", f"e{number}.npz", **episode(number, 40))
    sizes = ["--set", "run.evaluation.episodes=2", "--set", "run.evaluation.context=10"]
    told = run_here("tasks", "my maze", "--out", "asked", *sizes, cwd=tmp_path, expect=2).stderr
    assert "evaluation.horizon" in told and not (tmp_path / "asked").exists()
    run_here("tasks", "my maze", "--out", "asked", *sizes, "--set", "run.evaluation.horizon=30", cwd=tmp_path)
    index = read_index(tmp_path / "asked")
    assert (index.name, index.data_name, index.has_poses) == ("my-maze", "memory_maze", True)
    assert [question.recording for question in index.tasks[0].episodes] != [None, None]


def test_recordings_without_poses_are_asked_to_go_on_and_nothing_else(tmp_path):
    pytest.importorskip("av")
    teco(tmp_path / "clips")
    sizes = [f"--set=run.evaluation.{key}" for key in ("episodes=2", "context=4", "horizon=4")]
    run_here("tasks", "clips", "--out", "asked", *sizes, cwd=tmp_path)
    index = read_index(tmp_path / "asked")
    assert [task.name for task in index.tasks] == ["continuation"] and not index.has_poses
    arrays = np.load(tmp_path / "asked" / index.tasks[0].episodes[0].folder / "question.npz")
    assert set(arrays) == {"frames", "actions"}


def test_a_sweep_that_asks_several_things_needs_a_choice(tmp_path):
    (tmp_path / "windows.yaml").write_text(TINY.replace("seed: [0, 1]", "trunk.window: [2, 3]"))
    told = run_here("tasks", "windows.yaml", "--out", "asked", cwd=tmp_path, expect=2).stderr
    assert "the reach of attention" in told and "--only" in told
    run_here("tasks", "windows.yaml", "--out", "asked", "--only", "trunk.window=3", cwd=tmp_path)
    assert read_index(tmp_path / "asked").reach == 3
    told = run_here("tasks", "windows.yaml", "--out", "asked", cwd=tmp_path, expect=2).stderr
    assert "exists already" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index.update(version=2), ["version 2", "this rad-bench reads 1"]),
        (lambda index: index.update(format="other"), ["format"]),
        (lambda index: index["tasks"][0].pop("horizon"), ["tasks.0.horizon"]),
        (lambda index: index["tasks"][0].update(horizon=5), ["continuation.npz", "4 episodes of 8 frames"]),
    ],
)
def test_a_folder_that_is_not_understood_is_refused(tmp_path, change, words):
    where = tasks(tmp_path)
    index = json.loads((where / "index.json").read_text())
    change(index)
    (where / "index.json").write_text(json.dumps(index))
    told = run_here("score", where, "--rollouts", f"mine={tmp_path}", cwd=tmp_path, expect=2).stderr
    assert all(word in told for word in words), told
