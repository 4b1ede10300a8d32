"""Recording the embedded voxel world: what is stored is the world itself, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from rad_bench.cli import cli
from rad_bench.config import ClipsData, VoxelsData
from rad_bench.data import open_dataset
from rad_bench.data.collect.voxels import collect_voxels
from rad_bench.data.recordings import Recordings
from rad_bench.data.voxels.dataset import Voxels
from rad_bench.data.voxels.walk import EYE
from rad_bench.errors import UserError


def test_recordings_of_voxels_are_the_world_itself_to_the_last_bit(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["data", "collect", "voxels", "--episodes", "2", "--steps", "30", "--size", "32", "--seed", "5"]
    result = CliRunner().invoke(cli, [*command, "--workers", "2", "--out", str(out)])
    assert result.exit_code == 0, result.output
    data = open_dataset(ClipsData(name="clips", path=str(out)))
    assert isinstance(data, Recordings) and data.pose_size == 5
    for item in (*data.training, *data.held_out_items):
        recorded = data.clip(item, 0, item.length)
        drawn, ground = Voxels(VoxelsData(name="voxels", size=32)).recording(5, int(item.name[-5:]), 31)
        stored = data.source.ground(item)
        assert stored is not None and np.array_equal(stored, ground.astype(np.float32), equal_nan=True)
        x, y, height = drawn.poses[0][:, [0, 1, 3]].numpy().T
        assert np.allclose(height, stored[x.astype(int), y.astype(int)] + EYE)  # [X, Y], in the poses' places
        assert torch.equal(recorded.frames, drawn.frames[0]) and torch.equal(recorded.actions[1:], drawn.actions[0, 1:])
        assert recorded.poses is not None and drawn.poses is not None
        assert torch.allclose(recorded.poses, drawn.poses[0], atol=1e-12)
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in out.glob("*.npz")} and len(manifest["files"]) == 2
    result = CliRunner().invoke(cli, ["data", "check", str(out)])
    assert "2 good, 0 left out" in result.output


def test_one_folder_holds_one_world(tmp_path: Path) -> None:
    np.savez(tmp_path / "voxels-s0-00000.npz", image=np.zeros(1))
    (tmp_path / "manifest.json").write_text(json.dumps({"world": "luanti", "versions": {}, "files": {}}))
    with pytest.raises(UserError, match="was started with world luanti, but this command has voxels"):
        collect_voxels(64, 1, 10, tmp_path)
    with pytest.raises(UserError, match="--size 500: frames of this world have 32 to 256 pixels"):
        collect_voxels(500, 1, 10, tmp_path)
