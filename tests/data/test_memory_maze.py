"""Reading npz episodes, the good and the bad, on small files made here."""

from __future__ import annotations

import io
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rad_bench.config import MemoryMazeData
from rad_bench.data import open_dataset, recordings
from rad_bench.data.episodes import egomotion_from_poses
from rad_bench.data.maze_view import RAYS
from rad_bench.data.recordings import Recordings
from rad_bench.errors import UserError

LAYOUT = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1], [1, 1, 1, 0]], np.uint8)


def episode(number: int, frames: int = 40, side: int = 16) -> dict[str, NDArray[Any]]:
    """An agent that turns on the spot in one corner. Every pixel tells its episode and frame."""
    heading = 0.3 * np.arange(frames)
    image = np.zeros((frames, side, side, 3), np.uint8)
    image[..., 0], image[..., 1] = number, np.arange(frames)[:, None, None]
    return {
        "image": image,
        "action": np.eye(6, dtype=bool)[np.full(frames, 2)],
        "agent_pos": np.full((frames, 2), 0.5, np.float32),
        "agent_dir": np.column_stack([np.cos(heading), np.sin(heading)]).astype(np.float32),
        "maze_layout": np.repeat(LAYOUT[None], frames, 0),
        "reward": np.zeros(frames),
    }


def save(folder: Path, name: str, **arrays: NDArray[Any]) -> Path:
    np.savez_compressed(folder / name, **arrays)  # type: ignore[arg-type]
    return folder / name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(5):
        save(tmp_path, f"episode{number}.npz", **episode(number))
    return tmp_path


def opened(folder: Path, **options: Any) -> Recordings:
    data = open_dataset(MemoryMazeData(name="memory_maze", path=str(folder), **options))
    assert isinstance(data, Recordings)
    return data


def test_shapes_and_types(folder: Path) -> None:
    data = open_dataset(MemoryMazeData(name="memory_maze", path=str(folder)))
    clips = data.training_batch(0, 0, 3, 7)
    assert data.frame_shape == (3, 16, 16) and data.action_size == 6
    assert clips.frames.shape == (3, 7, 3, 16, 16) and clips.frames.dtype == torch.uint8
    assert clips.actions.shape == (3, 7, 6) and clips.actions.dtype == torch.float32
    assert clips.egomotion.shape == (3, 7, 3) and clips.egomotion.dtype == torch.float32
    assert clips.poses.shape == (3, 7, 3) and clips.poses.dtype == torch.float64
    assert clips.surfaces.shape == (3, 7, 0)
    assert data.held_out(1, 9, 5).surfaces.shape == (1, 9, RAYS)


def test_rows_of_a_clip_belong_together(folder: Path) -> None:
    clips = opened(folder).training_batch(0, 0, 16, 10)
    start = clips.frames[:, 0, 1, 0, 0].long()
    assert len(start.unique()) > 5
    for b in range(16):
        assert clips.names[b] == f"episode{clips.frames[b, 0, 0, 0, 0]}.npz:{start[b]}"
        assert (clips.frames[b, :, 1, 0, 0].long() == start[b] + torch.arange(10)).all()
    turned = 0.3 * (start[:, None] + torch.arange(10))
    torch.testing.assert_close(clips.poses[..., 2].cos(), turned.double().cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(egomotion_from_poses(clips.poses).float(), clips.egomotion)
    torch.testing.assert_close(clips.egomotion[:, 1:, 2], torch.full((16, 9), 0.3), atol=1e-5, rtol=0)
    assert not clips.actions[:, 0].any() and (clips.actions[:, 1:, 2] == 1).all()


def test_a_training_batch_is_a_function_of_its_arguments(folder: Path) -> None:
    one, other = opened(folder), opened(folder)
    other.training_batch(3, 3, 2, 5)
    assert one.training_batch(1, 2, 6, 8).names == other.training_batch(1, 2, 6, 8).names
    assert one.training_batch(1, 2, 6, 8).names != one.training_batch(1, 3, 6, 8).names
    assert one.training_batch(1, 2, 6, 8).names != one.training_batch(2, 2, 6, 8).names


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.2, 1), (0.21, 2), (0.6, 3), (0.99, 4)])
def test_no_episode_is_on_both_sides_and_none_is_lost(folder: Path, share: float, count: int) -> None:
    data = opened(folder, held_out=share)
    training = {name.split(":")[0] for name in data.training_batch(0, 0, 100, 5).names}
    held_out = {name.split(":")[0] for name in data.held_out(count * 4, 10, 5).names}
    assert len(held_out) == count and training.isdisjoint(held_out) and len(training | held_out) == 5


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6])
def test_validation_takes_whole_episodes_from_training_and_none_that_is_scored(folder: Path, share: float) -> None:
    data, validation = (opened(folder, held_out=share, split=split) for split in ("held_out", "validation"))
    training, tried, validated = (
        {item.name for item in items} for items in (data.training, validation.training, validation.held_out_items)
    )
    scored = {item.name for item in data.held_out_items}
    assert tried and validated and tried.isdisjoint(validated) and tried | validated == training
    assert scored.isdisjoint(tried | validated)
    assert {name.split(":")[0] for name in validation.held_out(len(validated), 10, 5).names} == validated
    assert {name.split(":")[0] for name in validation.training_batch(0, 0, 100, 5).names} <= tried
    assert {name.split(":")[0] for name in validation.probe_clips(False, 20, 10).names} <= validated
    assert validation.identity != data.identity and validation.content == data.content


def test_validation_needs_two_training_episodes(folder: Path) -> None:
    with pytest.raises(UserError, match="only one training recording"):
        opened(folder, held_out=0.99, split="validation")
    with pytest.raises(UserError, match="into the 1 validation episodes"):
        opened(folder, split="validation").held_out(5, 10, 5)


def test_the_split_depends_on_names_alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for number in range(5):
        save(elsewhere, f"episode{number}.npz", **episode(number + 10))
    first, second = opened(folder), opened(elsewhere)
    assert first.held_out(2, 10, 5).names == second.held_out(2, 10, 5).names
    assert first.identity != second.identity


def test_held_out_clips_never_overlap_and_use_the_whole_episode(folder: Path) -> None:
    data = opened(folder, held_out=0.4)
    for count in range(1, 9):
        names = data.held_out(count, 10, 5).names
        assert len(names) == count
        for file in {name.split(":")[0] for name in names}:
            starts = sorted(int(name.split(":")[1]) for name in names if name.startswith(file))
            assert all(b - a >= 10 for a, b in zip(starts, starts[1:], strict=False))
            if len(starts) > 1:
                assert starts[0] == 0 and starts[-1] == 30


def test_asking_for_more_than_there_is_says_how_much_there_is(folder: Path) -> None:
    with pytest.raises(UserError, match=r"there is room for 4.*data.held_out"):
        opened(folder).held_out(5, 10, 5)
    with pytest.raises(UserError, match=r"training.frames 41.*at most 40"):
        opened(folder).training_batch(0, 0, 1, 41)


def test_resizing_averages_areas(folder: Path) -> None:
    for number in range(5):
        arrays = episode(number)
        arrays["image"] = np.random.default_rng(number).integers(0, 256, (40, 16, 16, 3), np.uint8)
        save(folder, f"episode{number}.npz", **arrays)
    full, small = opened(folder), opened(folder, size=8)
    assert small.frame_shape == (3, 8, 8) and small.identity != full.identity
    large = full.training_batch(0, 0, 8, 5).frames.double()
    mean = large.unflatten(3, (8, 2)).unflatten(5, (8, 2)).mean((4, 6))
    assert (small.training_batch(0, 0, 8, 5).frames - mean).abs().max() <= 0.5


def test_surfaces_tell_walls_apart_and_return_with_the_view(folder: Path) -> None:
    held_out = opened(folder).held_out(1, 40, 5)
    surfaces, heading = held_out.surfaces[0], held_out.poses[0, :, 2]
    assert (surfaces >= 0).all()
    again = int(torch.argmin((heading[10:] - heading[0]).abs())) + 10  # 21 * 0.3 is almost a full turn
    assert torch.isin(surfaces[again], surfaces[0]).float().mean() > 0.9
    opposite = int(torch.argmin(((heading - heading[0]).abs() - math.pi).abs()))
    assert not set(surfaces[opposite].tolist()) & set(surfaces[0].tolist())
    # Looking along +x down the first row, the middle rays end on the wall beyond column 3, 3.5 cells away.
    free_columns = 4 + 2
    cell = surfaces[0, RAYS // 2 - 1 : RAYS // 2 + 1] // 16
    assert cell.tolist() == [1 * free_columns + 5] * 2


def test_a_layout_may_be_given_once_an_episode(folder: Path) -> None:
    before = opened(folder).held_out(4, 10, 5).surfaces
    for number in range(5):
        save(folder, f"episode{number}.npz", **{**episode(number), "maze_layout": LAYOUT.astype(bool)})
    assert torch.equal(opened(folder).held_out(4, 10, 5).surfaces, before)


def stored(array: NDArray[Any], version: tuple[int, int] | None) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, array, version)
    return content.getvalue()


STORED: dict[str, tuple[Callable[[NDArray[Any]], NDArray[Any]], tuple[int, int] | None, int]] = {
    "Fortran order": (np.asfortranarray, None, zipfile.ZIP_DEFLATED),
    "Fortran order, not compressed": (np.asfortranarray, None, zipfile.ZIP_STORED),
    "big-endian": (lambda a: a.astype(a.dtype.newbyteorder(">")), None, zipfile.ZIP_STORED),
    "npy 2.0": (lambda a: a, (2, 0), zipfile.ZIP_STORED),
    "npy 3.0": (lambda a: a, (3, 0), zipfile.ZIP_DEFLATED),
    "bzip2": (lambda a: a, None, zipfile.ZIP_BZIP2),
    "doubles": (lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a, None, zipfile.ZIP_STORED),
    "bytes for truths": (lambda a: a.astype(np.uint8) if a.dtype.kind == "b" else a, None, zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("how", STORED)
def test_arrays_are_read_however_they_are_stored(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "CACHE_BYTES", 1)  # read each clip anew
    good = opened(folder)
    before = [good.clip(item, 7, 19) for item in good.training]
    convert, version, compression = STORED[how]
    for number in range(5):
        with zipfile.ZipFile(folder / f"episode{number}.npz", "w", compression) as archive:
            for key, array in episode(number).items():
                archive.writestr(f"{key}.npy", stored(convert(array), version))
    data = opened(folder)
    assert len(data.training) == len(before)
    for item, clip in zip(data.training, before, strict=True):
        again = data.clip(item, 7, 19)
        assert torch.equal(again.frames, clip.frames) and torch.equal(again.actions, clip.actions)
        assert again.poses is not None and clip.poses is not None
        torch.testing.assert_close(again.poses, clip.poses, atol=1e-6, rtol=0)
        assert again.layout is not None and clip.layout is not None and (again.layout == clip.layout).all()


def test_content_of_arrays_in_rows_is_what_it_always_was(tmp_path: Path) -> None:
    """Results are published with these identities."""
    for number in range(2):
        save(tmp_path, f"{number}.npz", **episode(number))
    contents = [item.content for item in opened(tmp_path).source.listing.items]
    others = "2597d1d7.170-af53c928.1c0-f4a566aa.1c0-532044c5.300"  # all but the images: CRC and length of each array
    assert contents == [f"3a301407.7880-{others}", f"4dfb5517.7880-{others}"]


def broken(key: str, value: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {**episode(9), key: value}


BROKEN = {
    "float images": (broken("image", np.zeros((40, 16, 16, 3), np.float32)), "image is float32"),
    "grey images": (broken("image", np.zeros((40, 16, 16), np.uint8)), "image is uint8 \\(40, 16, 16\\)"),
    "oblong images": (broken("image", np.zeros((40, 16, 12, 3), np.uint8)), "side, side"),
    "other size": (broken("image", np.zeros((40, 32, 32, 3), np.uint8)), "frames are 32 x 32 pixels.*data.size"),
    "few actions": (broken("action", np.zeros((39, 6))), "action is float64 \\(39, 6\\), should be \\(40, 6\\)"),
    "action numbers": (broken("action", np.zeros(40, np.int64)), "action is int64 \\(40,\\)"),
    "whole cells": (
        broken("agent_pos", np.ones((40, 2), int)),
        "agent_pos is int64, should be floats: x and y in cells",
    ),
    "NaN pose": (broken("agent_pos", np.full((40, 2), np.nan)), "not finite"),
    "no direction": (broken("agent_dir", np.zeros((40, 2))), "not of length 1"),
    "flat layout": (broken("maze_layout", np.zeros(16)), "maze_layout is float64"),
    "objects": (broken("agent_pos", np.full((40, 2), None)), "agent_pos is object"),
    "missing key": ({k: v for k, v in episode(9).items() if k != "agent_dir"}, "has no agent_dir"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_named_and_left_out(folder: Path, fault: str) -> None:
    intact = opened(folder).identity
    arrays, reason = BROKEN[fault]
    save(folder, "spoilt.npz", **arrays)
    with pytest.warns(UserWarning, match=f"left out 1 of 6 files .*spoilt.npz: .*{reason}"):
        assert opened(folder).identity == intact


def test_files_that_are_no_archives_are_named_together(folder: Path) -> None:
    whole = (folder / "episode0.npz").read_bytes()
    (folder / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "text.npz").write_text("not an archive")
    (folder / "empty.npz").write_bytes(b"")
    (folder / "notes.txt").write_text("not looked at")
    with pytest.warns(UserWarning, match="left out 3 of 8 files.*empty.npz.*text.npz.*truncated.npz") as warned:
        opened(folder)
    assert len(warned) == 1


def test_a_folder_without_two_good_files_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        opened(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a folder"):
        opened(folder / "episode0.npz")
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match=r"holds 0 good episodes"):
        opened(tmp_path / "sub")
    shutil.copy(folder / "episode0.npz", tmp_path / "sub")
    (tmp_path / "sub" / "bad.npz").write_text("")
    with pytest.raises(UserError, match=r"holds 1 good episode, but two.*Left out: bad.npz: File is not a zip"):
        opened(tmp_path / "sub")


def spoil(path: Path, key: str, keep: float) -> None:
    """Cut the data of one array short, behind a header that still promises all of it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[f"{key}.npy"] = members[f"{key}.npy"][: int(keep * len(members[f"{key}.npy"]))]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("key", ["image", "action"])
def test_a_file_that_lies_about_its_length_is_named_when_read(folder: Path, key: str) -> None:
    for number in range(5):
        spoil(folder / f"episode{number}.npz", key, 0.7)
    with pytest.raises(UserError, match=r"episode[0-4].npz looked good.*cannot be read"):
        opened(folder).training_batch(0, 0, 1, 5)


def test_a_file_replaced_after_opening_is_named_when_read(folder: Path) -> None:
    data = opened(folder)
    for number in range(5):
        save(folder, f"episode{number}.npz", **broken("image", np.zeros((40, 16, 16, 3), np.float32)))
    with pytest.raises(UserError, match=r"episode[0-4].npz looked good.*image is float32"):
        data.held_out(1, 5, 3)


def test_a_maze_that_changes_within_an_episode_is_named_when_read(folder: Path) -> None:
    for number in range(5):
        arrays = episode(number)
        arrays["maze_layout"][20:] = 1
        save(folder, f"episode{number}.npz", **arrays)
    with pytest.raises(UserError, match=r"episode[0-4].npz.*maze_layout changes"):
        opened(folder).held_out(1, 5, 3)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_clips_are_the_same_from_memory_and_from_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    for number in range(5):
        write(folder / f"episode{number}.npz", **episode(number))
    kept = opened(folder)
    monkeypatch.setattr(recordings, "CACHE_BYTES", 1)
    read = opened(folder)
    for step in range(5):
        one, other = (data.training_batch(0, step, 4, 5) for data in (kept, read))
        assert torch.equal(one.frames, other.frames) and torch.equal(one.poses, other.poses)
        assert torch.equal(one.actions, other.actions) and one.names == other.names
    assert torch.equal(kept.held_out(3, 10, 5).surfaces, read.held_out(3, 10, 5).surfaces)
    assert kept._kept and not read._kept


def test_folders_train_and_eval_are_the_split(folder: Path) -> None:
    for number in range(5):
        place = folder / ("eval" if number in (1, 3) else "train")
        place.mkdir(exist_ok=True)
        (folder / f"episode{number}.npz").rename(place / f"episode{number}.npz")
    data = opened(folder, held_out=0.9)
    assert {item.name for item in data.held_out_items} == {"eval/episode1.npz", "eval/episode3.npz"}
    assert {name.split("/")[0] for name in data.training_batch(0, 0, 50, 5).names} == {"train"}


def test_a_copy_of_an_episode_cannot_lie_on_both_sides(folder: Path) -> None:
    shutil.copy(folder / "episode2.npz", folder / "zcopy.npz")
    with pytest.warns(UserWarning, match="zcopy.npz: the same content as episode2.npz"):
        data = opened(folder)
    assert len(data.training) + len(data.held_out_items) == 5


def test_a_file_is_inspected_again_only_when_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rad_bench.data import memory_maze

    inspected = []
    inspect = memory_maze._inspect
    monkeypatch.setattr(memory_maze, "_inspect", lambda path, name: (inspected.append(name), inspect(path, name))[1])
    first = opened(folder)
    assert len(inspected) == 5
    assert opened(folder).identity == first.identity and len(inspected) == 5
    save(folder, "episode3.npz", **episode(33))
    assert opened(folder).identity != first.identity and inspected[5:] == ["episode3.npz"]


def test_identity_follows_content_not_place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("copy") / "other"
    shutil.copytree(folder, copy)
    assert opened(copy).identity == opened(folder).identity
    save(copy, "episode3.npz", **episode(33))
    assert opened(copy).identity != opened(folder).identity


def test_a_folder_or_file_without_permission_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Denied by hand: tests may run as root, whom nothing is denied."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("rad_bench.data.index.os.listdir", denied)
        with pytest.raises(UserError, match="cannot be read: Permission denied"):
            opened(folder)
    inspect = zipfile.ZipFile.__init__
    monkeypatch.setattr(
        zipfile.ZipFile,
        "__init__",
        lambda z, path, *a, **k: (denied if "2.npz" in str(path) else inspect)(z, path, *a, **k),
    )
    with pytest.warns(UserWarning, match=r"left out 1 of 5 .*episode2.npz: .*Permission denied"):
        opened(folder)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_stride_takes_every_nth_frame_with_its_pose_and_all_actions_since_the_one_before(
    folder: Path, stride: int
) -> None:
    every, some = opened(folder), opened(folder, stride=stride)
    item, same = every.training[0], some.training[0]
    whole, part = every.clip(item, 0, item.length), some.clip(same, 2, 9)
    at = np.arange(2, 9) * stride
    assert same.length == -(-item.length // stride) and some.action_size == 6 * stride
    assert torch.equal(part.frames, whole.frames[at])
    assert part.poses is not None and whole.poses is not None and torch.equal(part.poses, whole.poses[at])
    for t, frame in list(enumerate(at))[1:]:
        assert torch.equal(part.actions[t], whole.actions[frame - stride + 1 : frame + 1].flatten())
    clips = some.training_batch(0, 0, 2, 5)
    torch.testing.assert_close(clips.egomotion[:, 1:, 2], torch.full((2, 4), 0.3 * stride), atol=1e-5, rtol=0)


def test_a_stride_is_part_of_the_datas_identity(folder: Path) -> None:
    assert opened(folder).identity == opened(folder, stride=1).identity != opened(folder, stride=2).identity
    with pytest.raises(UserError, match=r"has one frame at data\.stride 40"):
        opened(folder, stride=40)
