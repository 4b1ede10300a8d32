"""Watching a training: what is there to see, and that looking changes nothing."""

import builtins

import numpy as np
import pytest
from PIL import Image

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.run.execute import execute
from rad_bench.run.watch import check_tensorboard
from rad_bench.store.run_folder import RunFolder, save_run
from tests.runs import tiny_run


def test_watching_shows_strips_and_curves_and_changes_no_bit(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen, unseen = tmp_path / "seen", tmp_path / "unseen"
    for folder, launch in ((seen, LaunchConfig(strip_every=8, tensorboard=True)), (unseen, LaunchConfig())):
        save_run(tiny_run(data={"preset": "rotation"}), folder)
        execute(RunFolder(folder), launch)

    assert (seen / "model.safetensors").read_bytes() == (unseen / "model.safetensors").read_bytes()
    strips = {path.name for path in (seen / "strips").iterdir()} - {path.name for path in (unseen / "strips").iterdir()}
    assert strips == {"training-000008.png", "training-000016.png"}
    early, late = (np.asarray(Image.open(seen / "strips" / name)) for name in sorted(strips))
    side = 16
    assert early.shape == (2 * side + 1, 12 * (side + 1) - 1, 3)
    truth = np.asarray(Image.open(next((unseen / "strips").glob("continuation-truth-*.png"))))
    assert np.array_equal(early[:side], truth) and np.array_equal(late[:side], truth)
    assert not np.array_equal(early[side + 1 :], late[side + 1 :])  # it has learned meanwhile

    events = EventAccumulator(str(seen / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20]
    assert events.Scalars("learning rate")[0].value > events.Scalars("learning rate")[1].value > 0
    assert [event.step for event in events.Images("truth above, generated below")] == [8, 16]
    assert not (unseen / "tensorboard").exists()


def test_a_missing_tensorboard_is_told_before_anything_runs(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError("No module named 'tensorboard'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"launch.tensorboard: needs the package .*rad-bench\[tensorboard\]"):
        check_tensorboard()
