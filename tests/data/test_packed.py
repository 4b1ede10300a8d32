"""A packed data set is the same data set, read faster."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from rad_bench.config import MemoryMazeData
from rad_bench.data import open_dataset, packed
from rad_bench.data.recordings import Recordings
from rad_bench.errors import UserError


def opened(folder: Path, size: int | None = 8) -> Recordings:
    data = open_dataset(MemoryMazeData(name="memory_maze", path=str(folder), size=size))
    assert isinstance(data, Recordings)
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "raw"
    place.mkdir()
    for number in range(4):
        rng, frames = np.random.default_rng(number), 20 + number
        heading = 0.3 * np.arange(frames)
        np.savez_compressed(
            place / f"{number}.npz",
            image=rng.integers(0, 256, (frames, 16, 16, 3), np.uint8),
            action=np.eye(6)[rng.integers(0, 6, frames)],
            agent_pos=np.full((frames, 2), 1.5),
            agent_dir=np.column_stack([np.cos(heading), np.sin(heading)]),
            maze_layout=np.ones((3 + number % 2,) * 2, bool),
        )
    return place


def test_the_same_identity_split_clips_and_surfaces(folder: Path, tmp_path: Path) -> None:
    before, told = opened(folder), []
    packed.pack(before, tmp_path / "packed", lambda done, of: told.append((done, of)))
    after = opened(tmp_path / "packed")
    assert told[-1] == (4, 4)
    assert isinstance(after.source, packed.Packed)
    assert after.identity == before.identity == opened(tmp_path / "packed", size=None).identity
    for step in range(4):
        one, other = (data.training_batch(0, step, 3, 9) for data in (before, after))
        for name in ("frames", "actions", "egomotion", "poses"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert one.names == other.names
    assert torch.equal(before.held_out(1, 18, 9).surfaces, after.held_out(1, 18, 9).surfaces)


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "packed"

    class Full:
        def write(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packed, "_open_array", lambda *_: contextlib.nullcontext(Full()))
        with pytest.raises(UserError, match=r"cannot be written: No space left.*Nothing was"):
            packed.pack(opened(folder), out, lambda done, of: None)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    packed.pack(opened(folder), out, lambda done, of: None)
    with pytest.raises(UserError, match="exists already"):
        packed.pack(opened(folder), out, lambda done, of: None)


def test_a_damaged_or_mistaken_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    from rad_bench.config import MinecraftData

    out = tmp_path / "packed"
    packed.pack(opened(folder), out, lambda done, of: None)
    with pytest.raises(UserError, match=r"holds packed memory_maze data, but data.name is minecraft"):
        open_dataset(MinecraftData(name="minecraft", path=str(out)))
    np.save(out / "frames.npy", np.zeros((3, 3, 8, 8), np.uint8))
    with pytest.raises(UserError, match=r"frames.npy holds 3 frames, pack.json lists 86"):
        opened(out)
    (out / "pack.json").write_text("{")
    with pytest.raises(UserError, match="not a readable packed data set"):
        opened(out)
