"""Weights on the way of training: kept to the bit, evaluated as the final ones are, and reused with them."""

import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from rad_bench.config import LaunchConfig
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.report.intervals import episode_means
from rad_bench.run import execute as execution
from rad_bench.run.execute import execute
from rad_bench.run.identity import decisive
from rad_bench.store.run_folder import RunFolder
from rad_bench.training.trainer import Trainer
from tests.run.test_execute import Killed, dying_at, evaluated, start, tiny
from tests.run.test_reuse import key_of
from tests.runs import opened
from tests.sweep.faults import truncated

AT = (3, 7, 20)


def with_curve(at=AT, **evaluation):
    return tiny(evaluation={"at": at, "probe": 0, **evaluation})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run with a learning curve; beside it the averaged weights at its steps, as they were in training."""
    folder = tmp_path_factory.mktemp("runs")
    seen = {}

    class Watch(execution.Watch):
        def __call__(self, progress, average):
            seen[progress.step] = {name: tensor.clone() for name, tensor in average.state_dict().items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "Watch", Watch)
        execute(RunFolder(start(folder / "lstm-seed0-first", with_curve())), LaunchConfig())
    torch.save(seen, folder / "seen.pt")
    return folder


@pytest.fixture
def finished(runs):
    return RunFolder(runs / "lstm-seed0-first")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.snapshot(0).parent.iterdir()}


def test_snapshots_are_the_averaged_weights_when_their_step_was_done(runs, finished):
    seen = torch.load(runs / "seen.pt")
    assert set(files(finished)) == {f"{step}.safetensors" for step in AT}
    for step in AT:
        weights = load_file(finished.snapshot(step))
        assert weights.keys() == seen[step].keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in seen[step].items())


@pytest.mark.parametrize(("at", "spoilt"), [(3, ()), (8, ()), (18, ("checkpoint.pt",)), (24, ("checkpoint.pt",))])
def test_a_training_killed_and_resumed_leaves_the_same_snapshots_and_curve(tmp_path, monkeypatch, finished, at, spoilt):
    folder = RunFolder(start(tmp_path / finished.path.name, with_curve()))
    monkeypatch.setattr(Trainer, "step", dying_at(at))
    with pytest.raises(Killed):
        execute(folder, LaunchConfig())
    monkeypatch.undo()
    for name in spoilt:
        truncated(folder.path / name)
    execute(folder, LaunchConfig())
    assert files(folder) == files(finished)
    pd.testing.assert_frame_equal(pd.read_parquet(folder.curve), pd.read_parquet(finished.curve))


def test_the_curve_ends_at_the_final_evaluation_and_its_points_are_those_of_the_snapshots(finished):
    curve, frames = pd.read_parquet(finished.curve), pd.read_parquet(finished.frames)
    assert sorted(curve["step"].unique()) == [*AT, 25] and set(curve["task"]) == {"continuation", "retrieval"}
    kept = frames[(frames["intervention"] == "keep") & ~frames["block"].isin(CONTROLS)]
    columns = [column for column in curve if column != "step"]
    last = curve[curve["step"] == 25]
    pd.testing.assert_frame_equal(last[columns].reset_index(drop=True), kept[columns].reset_index(drop=True))
    pd.testing.assert_series_equal(episode_means(last), episode_means(kept))
    experiment = opened(with_curve(at=(), interventions=("keep",)))
    experiment.trunk.load_state_dict(load_file(finished.snapshot(7)))
    alone = evaluated(experiment)
    alone = alone[alone["block"].isna()]
    assert curve[curve["step"] == 7]["psnr"].tolist() == alone["psnr"].tolist()


def test_a_run_without_a_curve_has_no_such_files_and_the_same_weights(finished, tmp_path):
    plain = tiny(evaluation={"probe": 0})
    assert decisive(plain) != decisive(with_curve())  # another evaluation is another run
    assert key_of(plain) == key_of(with_curve())  # the weights are the same
    folder = RunFolder(start(tmp_path / "lstm-seed0", plain))
    execute(folder, LaunchConfig())
    assert not folder.curve.exists() and not folder.snapshot(0).parent.exists()
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(at.frames).drop(columns="run") for at in (folder, finished)), check_exact=True
    )


@pytest.mark.parametrize(
    ("config", "spoil", "trains"),
    [
        (with_curve(horizon=12), None, False),
        (with_curve(at=(7,)), None, False),
        (tiny(evaluation={"probe": 0}), None, False),
        (with_curve(at=(7, 8)), None, True),
        (with_curve(horizon=12), lambda folder: folder.snapshot(7).unlink(), True),
        (with_curve(horizon=12), lambda folder: truncated(folder.snapshot(7)), True),
    ],
)
def test_a_training_is_reused_with_its_snapshots_if_it_has_them_all(runs, finished, tmp_path, config, spoil, trains):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    if spoil:
        spoil(RunFolder(tmp_path / finished.path.name))
    folder, steps, real = RunFolder(start(tmp_path / "lstm-seed0-second", config)), [], Trainer.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", lambda *given: steps.append(1) or real(*given))
        execute(folder, LaunchConfig())
    assert bool(steps) == trains
    for step in config.evaluation.at:
        if step in AT:
            assert folder.snapshot(step).read_bytes() == finished.snapshot(step).read_bytes()
    if config.evaluation.at:
        assert sorted(pd.read_parquet(folder.curve)["step"].unique()) == [*config.evaluation.at, 25]


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ((5, 25), r"evaluation\.at 25 must be less than training\.steps 25; the end of training is always evaluated"),
        ((30,), r"evaluation\.at 30 must be less than training\.steps 25"),
        ((7, 3), r"at \[7, 3\] must list different steps, in ascending order"),
        ((3, 3), r"at \[3, 3\] must list different steps, in ascending order"),
        ((0, 3), r"greater than or equal to 1"),
    ],
)
def test_steps_that_training_does_not_have_are_refused_by_name_and_value(at, told):
    with pytest.raises(ValueError, match=told):
        with_curve(at=at)
