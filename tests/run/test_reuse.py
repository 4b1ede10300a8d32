"""Weights are taken up where training was the same, to the bit, and nowhere else."""

import json
import pathlib
import shutil
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch

from rad_bench.blocks.lstm import LSTM
from rad_bench.blocks.memory import Path
from rad_bench.config import LaunchConfig
from rad_bench.data import open_dataset
from rad_bench.model.budget import plan_model
from rad_bench.run import identity
from rad_bench.run.execute import execute
from rad_bench.run.identity import Machine, training_key
from rad_bench.run.reuse import Training, find_trained, keep_training
from rad_bench.store.run_folder import RunFolder
from rad_bench.training.checkpoint import Progress
from rad_bench.training.trainer import Trainer
from tests.run.test_execute import start, tiny
from tests.sweep.faults import truncated
from tests.sweep.tiny import ROOT

FURTHER = tiny(evaluation={"horizon": 20, "interventions": ("keep", "swap"), "seed": 3})


def done(folder, config):
    execute(RunFolder(start(folder, config)), LaunchConfig())
    return json.loads(RunFolder(folder).result.read_text())


@pytest.fixture(scope="module")
def runs(once):
    return once("reused", lambda folder: done(folder / "lstm-seed0-first", tiny()))


def test_another_evaluation_of_the_same_training_trains_nothing_and_ends_with_the_same_bits(
    runs, tmp_path, monkeypatch
):
    anew = done(tmp_path / "lstm-seed0-later", FURTHER)
    beside = shutil.copytree(runs, tmp_path / "beside")
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("trained again"))
    later = done(beside / "lstm-seed0-later", FURTHER)
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(RunFolder(at / "lstm-seed0-later").frames) for at in (tmp_path, beside))
    )
    first = json.loads((runs / "lstm-seed0-first" / "result.json").read_text())
    assert later["training"] == first["training"] and anew["training"]["key"] == later["training"]["key"]
    assert (anew["training"]["by"], later["training"]["by"]) == ("lstm-seed0-later", "lstm-seed0-first")
    assert later["peak_memory_bytes"] >= first["peak_memory_bytes"]
    shutil.rmtree(beside / "lstm-seed0-first")
    assert done(beside / "lstm-seed0-third", tiny(evaluation={"horizon": 12}))["training"] == first["training"]


@pytest.mark.parametrize(
    ("config", "spoil"),
    [
        (tiny(training={"steps": 26}), None),
        (FURTHER, lambda folder: folder.weights.unlink()),
        (FURTHER, lambda folder: truncated(folder.weights)),
        (FURTHER, lambda folder: truncated(folder.training)),
        (FURTHER, lambda folder: folder.training.unlink()),
    ],
)
def test_where_anything_else_differs_or_is_spoilt_a_run_trains_itself(runs, tmp_path, config, spoil):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    if spoil:
        spoil(RunFolder(tmp_path / "lstm-seed0-first"))
    assert done(tmp_path / "lstm-seed0-second", config)["training"]["by"] == "lstm-seed0-second"


def failing(*_):
    raise RuntimeError("no room for this evaluation")


def test_a_training_whose_evaluation_failed_is_not_done_again(runs, tmp_path, monkeypatch):
    """Neither by another evaluation of it nor by the same run, and both end with the bits of an undisturbed one."""
    folder = start(tmp_path / "lstm-seed0-first", tiny())
    with monkeypatch.context() as broken:
        broken.setattr("rad_bench.run.execute.evaluate", failing)
        with pytest.raises(RuntimeError, match="no room"):
            execute(RunFolder(folder), LaunchConfig())
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("trained again"))
    later = done(tmp_path / "lstm-seed0-later", FURTHER)
    assert later["training"]["by"] == "lstm-seed0-first"
    RunFolder(folder).checkpoint.unlink()
    same = done(folder, tiny())
    assert same["training"]["by"] == "lstm-seed0-first" and same["training"]["steps"] == tiny().training.steps
    undisturbed = RunFolder(runs / "lstm-seed0-first").frames
    pd.testing.assert_frame_equal(*(pd.read_parquet(frames) for frames in (RunFolder(folder).frames, undisturbed)))


def test_the_record_of_a_training_never_stands_beside_other_weights(runs, tmp_path, monkeypatch):
    """A run that is killed between the two writes leaves weights without a record."""
    folder = RunFolder(shutil.copytree(runs / "lstm-seed0-first", tmp_path / "lstm-seed0-first"))
    average = Training(None, Progress(step=1), 0, "lstm-seed0-first")
    monkeypatch.setattr("rad_bench.run.reuse.save_weights", failing)
    with pytest.raises(RuntimeError):
        keep_training(folder, average, "another key")
    assert not folder.training.exists()


HERE = Machine(torch.device("cpu"), LaunchConfig(), 1)


def key_of(config, machine=HERE):
    dataset = open_dataset(config.data)
    plan = plan_model(config, dataset.frame_shape, dataset.action_size)
    return training_key(config, dataset, plan.options, machine)


def test_a_finished_run_is_found_by_the_key_of_its_training(runs):
    assert find_trained(runs, key_of(tiny()), 0) == find_trained(runs, key_of(FURTHER), 0) == runs / "lstm-seed0-first"
    assert find_trained(runs, key_of(tiny(seed=1)), 1) is None
    assert find_trained(runs, key_of(tiny(), replace(HERE, processes=2)), 0) is None


def test_the_key_of_a_training_is_made_of_what_decides_weights():
    same = (FURTHER, tiny(training={"checkpoint_every": 3}), tiny(memory={"name": "lstm", "hidden": 8, "chrono": 24}))
    assert {key_of(config) for config in same} == {key_of(tiny())}
    others = (
        tiny(memory={"name": "lstm", "hidden": 9}), tiny(memory={"name": "ttt"}), tiny(seed=5),
        tiny(data={"size": 32}), tiny(trunk={"window": 3}), tiny(diffusion={"prediction": "v"}),
        tiny(training={"precision": "bf16"}), tiny(match={"by": "parameters", "budget": 3000}, memory={"name": "lstm"}),
    )  # fmt: skip
    assert len({key_of(config) for config in (tiny(), *others)}) == 1 + len(others)


def test_the_key_of_a_training_is_made_of_what_it_is_done_with(monkeypatch):
    launches = (
        {"threads": 2}, {"accumulate": 2}, {"compile": True}, {"activation_checkpointing": True},
    )  # fmt: skip
    machines = [HERE, replace(HERE, processes=2), *(replace(HERE, launch=LaunchConfig(**how)) for how in launches)]
    assert key_of(tiny(), replace(HERE, launch=LaunchConfig(parallel=9, loaders=0))) == key_of(tiny())
    keys = {key_of(tiny(), machine) for machine in machines}
    monkeypatch.setattr(LSTM, "path", lambda *_: Path("another kernel"))
    keys.add(key_of(tiny()))
    monkeypatch.undo()
    monkeypatch.setattr(identity, "version", lambda package: "another")
    keys.add(key_of(tiny()))
    monkeypatch.undo()
    monkeypatch.setattr(identity, "_sources", lambda: "an edited block")
    keys.add(key_of(tiny()))
    assert len(keys) == len(machines) + 3


def test_sources_are_all_that_training_imports():
    """A file that training comes to use, and that its key does not know, would let old weights pass for new ones."""
    used = subprocess.run(
        [sys.executable, "-c", "import sys, rad_bench.training.loop, rad_bench.data, rad_bench.model.budget; "
         "names = [name for name in sys.modules if name.startswith('rad_bench.')]; "
         "print(*filter(None, (sys.modules[name].__file__ for name in names)), sep='\\n')"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout.split()  # fmt: skip
    rooms = {pathlib.Path(file).relative_to(ROOT).parts[:2] for file in used}
    known = {("rad_bench", name) for name in ("blocks", "data", "model", "training")}
    beside = {("rad_bench", name) for name in ("__init__.py", "config.py", "errors.py", "store")}
    assert rooms <= known | beside, rooms
