"""Weights are taken up where training was the same, to the bit, and nowhere else."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from rad_bench.config import LaunchConfig
from rad_bench.data import open_dataset
from rad_bench.identity import training_key
from rad_bench.reuse import Machinery, find_trained
from rad_bench.run import execute
from rad_bench.run_folder import RunFolder
from rad_bench.training import Trainer
from tests.sweep.faults import truncated
from tests.test_run import start, tiny

FURTHER = tiny(evaluation={"horizon": 20, "interventions": ("keep", "swap"), "seed": 3})


def done(folder, config):
    execute(RunFolder(start(folder, config)), LaunchConfig())
    return json.loads(RunFolder(folder).result.read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    done(folder / "lstm-seed0-first", tiny())
    return folder


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
        (FURTHER, lambda folder: truncated(folder.result)),
        (FURTHER, lambda folder: folder.result.unlink()),
    ],
)
def test_where_anything_else_differs_or_is_spoilt_a_run_trains_itself(runs, tmp_path, config, spoil):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    if spoil:
        spoil(RunFolder(tmp_path / "lstm-seed0-first"))
    assert done(tmp_path / "lstm-seed0-second", config)["training"]["by"] == "lstm-seed0-second"


def test_another_device_number_of_threads_or_of_processes_trains_itself(runs):
    result = json.loads((runs / "lstm-seed0-first" / "result.json").read_text())
    key, here = result["training"]["key"], Machinery(result["device"], 1, 1)
    assert find_trained(runs, key, 0, here) == runs / "lstm-seed0-first"
    assert find_trained(runs, key, 1, here) is None
    for other in ({"device": "cuda (NVIDIA H100)"}, {"threads": 2}, {"processes": 4}):
        assert find_trained(runs, key, 0, replace(here, **other)) is None


def test_the_key_of_a_training_is_made_of_what_decides_weights():
    def key(config, options=None):
        return training_key(config, open_dataset(config.data), options or {"hidden": 8})

    base = key(tiny())
    assert base == key(FURTHER) == key(tiny(match={"by": "parameters", "budget": 1000}))
    assert base == key(tiny(training={"checkpoint_every": 3}))
    others = (
        key(tiny(), {"hidden": 9}),
        key(tiny(memory={"name": "ttt"})),
        key(tiny(seed=5)),
        key(tiny(data={"size": 32})),
        key(tiny(trunk={"window": 3})),
        key(tiny(diffusion={"prediction": "v"})),
        key(tiny(training={"precision": "bf16"})),
    )
    assert len({base, *others}) == 1 + len(others)
