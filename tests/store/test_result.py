"""A result is read as it was written, and one of another shape is refused by its file and key."""

import json
import subprocess
import sys

import pytest

from rad_bench.errors import UserError
from rad_bench.store.result import Result, read_result

OLDEST = {  # the keys that every finished run has had
    "run": "lstm-seed1", "block": "lstm", "seed": 1, "memory": {"name": "lstm", "options": {"hidden": 8}},
    "parameters": {"memory": 944, "trunk": 15792}, "flops_per_frame": {"memory": 11946, "trunk": 132054},
    "match": {"by": "none", "budget": None, "residual": None}, "state_bytes": {"1": 256, "10": 256}, "reach": 2,
    "training": {"steps": 20, "seconds": 0.4, "seconds_per_step": 0.02, "loss_first": 0.3, "loss_last": 0.2},
    "rollout": {"seconds_per_frame_start": 0.004, "seconds_per_frame_end": 0.004, "videos": 3},
    "peak_memory_bytes": 440049664, "device": "cpu", "threads": 1, "trunk_hash": "f38e40d0fbf0d7fe",
    "metrics": {"psnr": "p", "ssim": "s", "lpips": "l", "mse": "m", "card": "d8a1ef19"}, "science_version": 1,
    "commit": None, "episodes": 4, "data": {"name": "rooms", "identity": "1587791b"},
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    """Where a run's result lies."""
    folder = tmp_path / "lstm-seed1"
    folder.mkdir()
    return folder / "result.json"


def test_what_is_written_is_read_and_written_again_alike(path):
    path.write_text(json.dumps(OLDEST))
    first = read_result(path)
    path.write_text(json.dumps(first.model_dump()))
    assert read_result(path) == first
    written = json.loads(path.read_text())
    assert {key: value for key, value in written.items() if key in OLDEST} == {
        **OLDEST,
        "memory": {**OLDEST["memory"], "identity": None},
        "data": {**OLDEST["data"], "codec": "pixels"},
        "training": {
            **OLDEST["training"],
            "share_waiting_for_data": 0.0, "peak_memory_bytes": 0, "by": None, "key": None,
        },
    }  # fmt: skip


def test_a_result_that_lacks_later_keys_is_read(path):
    path.write_text(json.dumps(OLDEST))
    result = read_result(path)
    assert result.parity is result.evaluation is result.window_bytes is None and result.strips == {}
    assert result.trained_by == "lstm-seed1" and result.state_bytes == {1: 256, 10: 256}


def test_a_run_is_called_what_its_folder_is_called(path):
    path.write_text(json.dumps({**OLDEST, "run": "../../../etc", "block": "two\nlines"}))
    assert (read_result(path).run, read_result(path).block) == ("lstm-seed1", "two lines")


def test_every_key_that_has_no_default_is_needed(path):
    needed = {name for name, field in Result.model_fields.items() if field.is_required()}
    assert needed == {*OLDEST}
    for key in needed:
        path.write_text(json.dumps({name: value for name, value in OLDEST.items() if name != key}))
        with pytest.raises(UserError, match=f"not the result of a run: {key}: Field required"):
            read_result(path)


@pytest.mark.parametrize(
    "key", ["seed", "memory", "parameters", "state_bytes", "match", "rollout", "metrics", "trunk_hash"]
)
@pytest.mark.parametrize("value", [None, 3.5, [1], {}])
def test_a_result_of_another_shape_names_its_file_and_key(path, key, value):
    path.write_text(json.dumps({**OLDEST, key: value}))
    with pytest.raises(UserError, match=rf"lstm-seed1/result.json: is not the result of a run: {key}"):
        read_result(path)


@pytest.mark.parametrize("by", ["../../elsewhere", "/etc", ".."])
def test_a_training_that_lies_elsewhere_is_refused(path, by):
    path.write_text(json.dumps({**OLDEST, "training": {**OLDEST["training"], "by": by}}))
    with pytest.raises(UserError, match=r"lstm-seed1/result\.json: .* is not a valid name of a run"):
        read_result(path)


def test_reading_a_result_needs_no_torch():
    subprocess.run(
        [sys.executable, "-c", "import rad_bench.store.result, sys; assert 'torch' not in sys.modules"], check=True
    )
