"""Minecraft in its published layouts, on real mp4 files made here."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from rad_bench.config import LaunchConfig, MinecraftData
from rad_bench.data import open_dataset, recordings
from rad_bench.data.recordings import Recordings, resize
from rad_bench.errors import UserError
from rad_bench.report import write_report
from rad_bench.report.reading import read_frames
from rad_bench.run.execute import execute
from rad_bench.store.run_folder import RunFolder, save_run
from rad_bench.sweep.gather import aggregate
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep

av = pytest.importorskip("av", reason="PyAV is not installed (extra: video)")
FRAMES, HEIGHT, WIDTH = 30, 36, 64


def video(path: Path, number: int, frames: int = FRAMES, size: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.uint8]:
    """Write an H.264 video with B-frames, 20 a second, and return what was drawn: brightness tells the frame."""
    drawn = np.zeros((frames, *size, 3), np.uint8)
    drawn[:] = (4 + 8 * np.arange(frames))[:, None, None, None]
    drawn[:, :, : size[1] // 2, number % 3] //= 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"crf": "12", "g": "7", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv444p"
        for image in drawn:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return drawn


def walk(frames: int = FRAMES) -> NDArray[np.float32]:
    """Actions and poses of VRAG's layout: on the spot, turning right by 20 degrees a frame, then ahead along yaw 0."""
    rows = np.zeros((frames, 8), np.float32)
    rows[1:19, 3], rows[19:, 0] = 1, 1
    rows[:, 5] = 64  # height
    rows[:19, 7] = 20 * np.arange(19)
    rows[19:, 7] = 360
    rows[19:, 6] = 0.5 * np.arange(1, frames - 18)
    return rows


def vrag(folder: Path, count: int = 5, columns: int = 8) -> list[NDArray[np.uint8]]:
    (folder / "batch0").mkdir(exist_ok=True)
    drawn = []
    for number in range(count):
        drawn.append(video(folder / "batch0" / f"{number:06d}.mp4", number))
        rows = walk()
        rows[:, 4:7] += number
        np.savez(folder / "batch0" / f"{number:06d}.npz", actions=rows[:, :columns])
    return drawn


def teco(folder: Path) -> None:
    for number, part in enumerate(("train", "train", "train", "test")):
        (folder / part / "0").mkdir(parents=True, exist_ok=True)
        video(folder / part / "0" / f"{number}.mp4", number, size=(32, 32))
        actions = np.random.default_rng(number).integers(0, 4, FRAMES)
        np.savez(folder / part / "0" / f"{number}.npz", actions=actions)


def opened(folder: Path, **options: Any) -> Recordings:
    data = open_dataset(MinecraftData(name="minecraft", path=str(folder), **options))
    assert isinstance(data, Recordings)
    return data


def test_teco_has_actions_its_own_split_and_no_poses(tmp_path: Path) -> None:
    teco(tmp_path)
    data = opened(tmp_path)
    assert (data.action_size, data.has_poses, data.frame_shape) == (4, False, (3, 32, 32))
    assert [item.name for item in data.held_out_items] == ["test/0/3.mp4"]
    clips = data.training_batch(0, 0, 4, 6)
    number, start = clips.names[0].split("/")[-1].split(".mp4:")
    actions = np.load(tmp_path / "train" / "0" / f"{number}.npz")["actions"]
    assert clips.actions[0, 1:].argmax(-1).tolist() == actions[int(start) + 1 : int(start) + 6].tolist()
    assert not clips.actions[:, 0].any()
    assert data.held_out(2, 10, 5).surfaces.shape == (2, 10, 0)


def test_every_clip_holds_exactly_its_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = vrag(tmp_path, 2)
    monkeypatch.setattr(recordings, "CACHE_BYTES", 1)  # decode each clip anew, from the key frame before it
    data = opened(tmp_path)
    items = {item.name: item for item in [*data.training, *data.held_out_items]}
    for number, images in enumerate(drawn):
        for start in range(0, FRAMES - 4):
            frames = data.clip(items[f"batch0/{number:06d}.mp4"], start, start + 4).frames
            expected = torch.from_numpy(images[start : start + 4]).permute(0, 3, 1, 2)
            assert (frames.int() - expected.int()).abs().float().mean() < 2  # lossy, but neighbours are 8 apart


def test_poses_are_minecrafts_seen_from_above(tmp_path: Path) -> None:
    vrag(tmp_path)
    data = opened(tmp_path)
    assert (data.action_size, data.has_poses) == (4, True)
    clip = data.held_out(1, FRAMES, 20)
    egomotion = clip.egomotion[0]
    # Yaw grows clockwise, our heading the other way; yaw 0 is ahead along +z.
    torch.testing.assert_close(egomotion[1:19, 2], torch.full((18,), -math.radians(20)), atol=1e-5, rtol=0)
    torch.testing.assert_close(egomotion[19:, 0], torch.full((FRAMES - 19,), 0.5), atol=1e-4, rtol=0)
    assert egomotion[1:, 1].abs().max() < 1e-4


def test_sideways_is_to_the_left(tmp_path: Path) -> None:
    vrag(tmp_path, 2)
    rows = walk()
    rows[:, 4:], rows[:, 4] = 0, np.arange(FRAMES)  # facing south (+z), moving east (+x), which is to the left
    for number in range(2):
        np.savez(tmp_path / "batch0" / f"{number:06d}.npz", actions=rows)
    egomotion = opened(tmp_path).held_out(1, 10, 5).egomotion[0]
    expected = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(egomotion[1:], expected.expand(9, 5), atol=1e-5, rtol=0)


def test_frames_are_cropped_to_a_square_and_averaged() -> None:
    frames = torch.arange(36 * 64, dtype=torch.float32).reshape(1, 1, 36, 64).expand(2, 3, -1, -1) % 256
    square = resize(frames.to(torch.uint8), 12, 12)
    middle = frames[..., 14:50].to(torch.uint8).double().unflatten(-1, (12, 3)).unflatten(2, (12, 3)).mean((3, 5))
    assert square.shape == (2, 3, 12, 12) and (square - middle).abs().max() <= 0.5


def worldmem_arrays(number: int = 0, frames: int = FRAMES) -> dict[str, NDArray[Any]]:
    """WorldMem's arrays: turning right by 15 degrees a frame, then ahead along yaw 0, looking up once, and a jump."""
    actions = np.tile([0, 0, 0, 12, 12, 0, 0, 0], (frames, 1)).astype(np.int32)
    poses = np.tile([100.5 + number, 64, -20.5, 0, 0], (frames, 1))
    actions[1:25, 4], poses[:25, 4] = 13, 15 * np.arange(25)
    actions[25:, 0], poses[25:, 2] = 1, -20.5 + 0.25 * np.arange(1, frames - 24)
    actions[3, 3], poses[3:, 3] = 11, -15
    poses[20, 1] += 1.25
    return {"actions": actions, "poses": poses}


def test_worldmems_poses_are_read_from_their_own_array(tmp_path: Path) -> None:
    vrag(tmp_path, 2)
    for number in range(2):
        np.savez(tmp_path / "batch0" / f"{number:06d}.npz", **worldmem_arrays(number))
    data = opened(tmp_path)
    assert (data.action_size, data.has_poses) == (16, True)
    clip = data.clip(data.training[0], 0, FRAMES)
    egomotion = data.held_out(1, FRAMES, 20).egomotion[0]
    torch.testing.assert_close(egomotion[1:25, 2], torch.full((24,), -math.radians(15)), atol=1e-5, rtol=0)
    torch.testing.assert_close(egomotion[25:, 0], torch.full((FRAMES - 25,), 0.25), atol=1e-5, rtol=0)
    assert clip.poses is not None and float(clip.poses[0, 0]) == -20.5  # x is Minecraft's z
    assert clip.poses[:, 3].tolist() == [64.0] * 20 + [65.25] + [64.0] * 9
    assert torch.rad2deg(clip.poses[:, 4]).tolist() == pytest.approx([0] * 3 + [15] * 27)  # its pitch grows downwards
    assert egomotion[20:22, 3].tolist() == [1.25, -1.25] and float(egomotion[3, 4]) == pytest.approx(math.radians(15))
    forward, pitch, yaw = clip.actions[:, 0], clip.actions[:, 7], clip.actions[:, 8]
    assert forward.tolist() == [0] * 25 + [1] * 5 and yaw.tolist() == [0] + [1] * 24 + [0] * 5
    assert pitch.nonzero().tolist() == [[3]] and pitch[3] == -1
    assert not clip.actions[:, [1, 2, 3, 4, 5, 6, *range(9, 16)]].any()


def with_layout(**changes: Any) -> dict[str, NDArray[Any]]:
    arrays = worldmem_arrays()
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


BINS, POSES = worldmem_arrays()["actions"], worldmem_arrays()["poses"]
AMBIGUOUS = {
    "bins without poses": (with_layout(poses=None), "look like MineDojo's coding"),
    "bins as floats": (with_layout(poses=None, actions=BINS.astype(np.float64)), "look like MineDojo's coding"),
    "bins counted from none": (
        with_layout(poses=None, actions=BINS - [0, 0, 0, 12, 12, 0, 0, 0]),
        "look like MineDojo's coding",
    ),
    "four of the bins": (with_layout(poses=None, actions=BINS[:, :4]), "look like MineDojo's coding"),
    "poses first": (
        {"actions": np.concatenate([POSES[:, [0, 1, 2, 4]], np.zeros((FRAMES, 4))], 1)},
        "should begin with the keys.*from 100.5 to 100.5",
    ),
    "poses twice": (with_layout(actions=walk()), "not in MineDojo's coding"),
    "poses and TECO's actions": (with_layout(actions=np.zeros(FRAMES, int)), "not in MineDojo's coding"),
    "bins beyond their range": (with_layout(actions=BINS * 3), "not in MineDojo's coding: .*36 to 39"),
    "six columns": (with_layout(poses=np.zeros((FRAMES, 6))), r"poses float64 \(30, 6\): it is not known"),
    "matrices": (with_layout(poses=np.zeros((FRAMES, 4, 4))), r"poses float64 \(30, 4, 4\): it is not known"),
    "a row less": (with_layout(poses=POSES[1:]), r"poses float64 \(29, 5\): it is not known"),
    "another name": (with_layout(poses=None, camera_poses=POSES), "camera_poses float64.*it is not known"),
    "yaw before pitch": (with_layout(poses=POSES[:, [0, 1, 2, 4, 3]]), "fourth column is from 0 to 360: no pitch"),
    "poses of NaN": (with_layout(poses=POSES * np.nan), "poses are not finite"),
}


@pytest.mark.parametrize("fault", AMBIGUOUS)
def test_an_ambiguous_layout_is_left_out_with_what_it_holds(tmp_path: Path, fault: str) -> None:
    vrag(tmp_path, 3)
    arrays, reason = AMBIGUOUS[fault]
    np.savez(tmp_path / "batch0" / "000001.npz", **arrays)
    with pytest.warns(UserWarning, match=f"left out 1 of 3 files .*000001.mp4: 000001.npz: .*{reason}"):
        opened(tmp_path)


@pytest.mark.parametrize("count", [FRAMES, FRAMES + 1])
def test_whole_numbers_that_cannot_be_bins_are_keys_and_poses(tmp_path: Path, count: int) -> None:
    vrag(tmp_path, 2)
    rows = np.zeros((count, 8), np.int64)
    rows[:, 4], rows[:, 7] = 10 * np.arange(count), 90
    for number in range(2):
        np.savez(tmp_path / "batch0" / f"{number:06d}.npz", actions=rows)
    assert opened(tmp_path).has_poses


def test_every_byte_of_both_files_is_part_of_the_identity(tmp_path: Path) -> None:
    vrag(tmp_path, 3, columns=4)
    without_poses = opened(tmp_path)
    for number in range(3):
        rows = walk()
        rows[:, 4:7] += number
        np.savez(tmp_path / "batch0" / f"{number:06d}.npz", actions=rows)
    with_poses = opened(tmp_path)
    assert with_poses.has_poses and not without_poses.has_poses
    rows[20, 6] += 0.125
    status = (tmp_path / "batch0" / "000002.npz").stat()
    np.savez(tmp_path / "batch0" / "000002.npz", actions=rows)
    os.utime(tmp_path / "batch0" / "000002.npz", ns=(status.st_atime_ns, status.st_mtime_ns))  # as `cp -p` would
    corrected = opened(tmp_path)
    path = tmp_path / "batch0" / "000001.mp4"
    content = bytearray(path.read_bytes())
    content[content.index(b"x264 - core")] = ord("y")  # a comment of the encoder
    path.write_bytes(content)
    identities = [data.identity for data in (without_poses, with_poses, corrected, opened(tmp_path))]
    assert len(set(identities)) == 4


def test_rows_and_a_video_of_other_lengths_do_not_belong_together(tmp_path: Path) -> None:
    vrag(tmp_path, 3)
    np.savez(tmp_path / "batch0" / "000001.npz", actions=walk(FRAMES + 9))
    with pytest.warns(UserWarning, match="has 30 frames and actions for 39; it is not known which"):
        opened(tmp_path)


def test_videos_of_every_suffix_are_read(tmp_path: Path) -> None:
    for number, suffix in enumerate((".mp4", ".MP4", ".mkv", ".Mov", ".avi")):
        video(tmp_path / f"{number}.mkv", number)
        (tmp_path / f"{number}.mkv").rename(tmp_path / f"{number}{suffix}")  # the content tells the container
        np.savez(tmp_path / f"{number}.npz", actions=walk())
    (tmp_path / "1.npz").rename(tmp_path / "1.NPZ")
    data = opened(tmp_path)
    assert len(data.training) + len(data.held_out_items) == 5
    video(tmp_path / "0.avi", 7)
    with pytest.warns(UserWarning, match="0.mp4: 0.npz lies beside 0.avi too"):
        opened(tmp_path)


BROKEN = {
    "no actions": (lambda p: p.with_suffix(".npz").unlink(), "has no 000009.npz beside it"),
    "other key": (lambda p: np.savez(p.with_suffix(".npz"), action=walk()), "has no actions, only action"),
    "few actions": (lambda p: np.savez(p.with_suffix(".npz"), actions=walk(20)), "has 30 frames and actions for 20"),
    "big number": (lambda p: np.savez(p.with_suffix(".npz"), actions=np.full(30, 7)), r"from 7 to 7, should be 0..3"),
    "odd columns": (
        lambda p: np.savez(p.with_suffix(".npz"), actions=np.zeros((30, 5))),
        r"should be whole numbers \(T,\), or numbers \(T, 4\)",
    ),
    "text": (lambda p: p.with_suffix(".npz").write_text("actions"), "000009.npz: is not an npz archive"),
    "an array": (lambda p: np.save(p.with_suffix(".npz").open("wb"), walk()), "000009.npz: is not an npz archive"),
    "objects": (lambda p: np.savez(p.with_suffix(".npz"), actions=np.full(30, None)), "000009.npz: .*allow_pickle"),
    "NaN": (lambda p: np.savez(p.with_suffix(".npz"), actions=np.full((30, 8), np.nan)), "not finite"),
    "other layout": (lambda p: np.savez(p.with_suffix(".npz"), actions=walk()[:, :4]), "has actions of 4 columns"),
    "no video": (lambda p: p.write_text("nothing"), "is not a readable video"),
    "half a video": (lambda p: p.write_bytes(p.read_bytes()[:900]), "is not a readable video"),
    "empty": (lambda p: p.write_bytes(b""), "is not a readable video"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_recording_is_named_and_left_out(tmp_path: Path, fault: str) -> None:
    vrag(tmp_path, 2)
    path = tmp_path / "batch0" / "000009.mp4"
    video(path, 2)
    np.savez(path.with_suffix(".npz"), actions=walk())
    spoil, reason = BROKEN[fault]
    spoil(path)
    with pytest.warns(UserWarning, match=f"left out 1 of 3 files .*000009.mp4: .*{reason}"):
        opened(tmp_path)


def sweep(folder: Path, **run: Any) -> list[Any]:
    import yaml

    text = yaml.safe_dump({"name": "mc", "run": {"data": {"name": "minecraft", "path": str(folder)}, **run}})
    (folder / "mc.yaml").write_text(text)
    return plan_runs(load_sweep(folder / "mc.yaml"))


def test_data_without_poses_refuse_what_needs_poses(tmp_path: Path) -> None:
    teco(tmp_path)
    with pytest.raises(
        UserError, match=r"trunk.motion: pose is derived from poses, and these minecraft data have none"
    ):
        sweep(tmp_path)
    with pytest.raises(UserError, match="retrieval walks the path backwards"):
        sweep(tmp_path, trunk={"motion": "action"})
    assert len(sweep(tmp_path, trunk={"motion": "action"}, evaluation={"tasks": ["continuation"]})) == 1


def test_data_without_poses_are_trained_and_reported_without_a_word_on_memory(tmp_path: Path) -> None:
    teco(tmp_path)
    (run,) = sweep(
        tmp_path,
        trunk={"motion": "action", "width": 16, "depth": 1, "patch": 8, "window": 2},
        training={"steps": 2, "batch": 2, "frames": 8, "loss_from": 4},
        evaluation={"tasks": ["continuation"], "episodes": 2, "context": 6, "horizon": 8, "strips": 1},
    )
    folder = tmp_path / "results"
    save_run(run, folder / "runs" / run.name)
    execute(RunFolder(folder / "runs" / run.name), LaunchConfig(device="cpu"))
    (folder / "sweep.yaml").write_text(f"name: mc\nplanned: [{run.name}]\n")
    aggregate(folder, {run.name: read_frames(folder / "runs" / run.name / "frames.parquet")})
    page = write_report(folder).read_text()
    assert set(pd.read_parquet(folder / "frames.parquet")["kind"]) == {"unknown"}
    assert "no generated frame is known to be a revisit, so nothing can be said about memory" in page
