"""Recordings in the forms that layouts describe, on small files made here: one walk, written as each data set would."""

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rad_bench.config import ClipsData, MemoryMazeData, MinecraftData
from rad_bench.data import open_dataset, open_folder
from rad_bench.data.episodes import egomotion_from_poses
from rad_bench.data.layout import PRESETS, Layout, presets, read_layout
from rad_bench.data.packed import pack
from rad_bench.errors import UserError
from rad_bench.exchange.folder import read_index
from tests.data.test_memory_maze import episode, save
from tests.data.test_minecraft import teco, video, vrag
from tests.sweep.tiny import run_here

T, SIDE, EPISODES = 14, 16, 3


def walk(number):
    """Poses [T, 5]: ahead along +x, a turn to the left on the spot, and ahead on a curve; bobbing, and looking up."""
    turn = np.concatenate([np.zeros(5), 0.3 * np.arange(1, 5), 1.2 + 0.1 * np.arange(T - 9)])
    step = np.where((np.arange(T) < 5) | (np.arange(T) > 8), 0.5 + 0.1 * number, 0.0)
    delta = np.stack([step * np.cos(turn), step * np.sin(turn)], 1)
    height, pitch = 1.5 + 0.2 * np.sin(np.arange(T)), 0.05 * np.arange(T) - 0.2
    return np.column_stack([np.cumsum(delta, 0), turn, height, pitch])


def pictures(number):
    """Frames whose red tells the recording, whose green the frame, and whose blue is 200."""
    frames = np.full((T, SIDE, SIDE, 3), 200, np.uint8)
    frames[..., 0], frames[..., 1] = 10 * number, 10 * np.arange(T)[:, None, None]
    return frames


def keys(number):
    """Whole numbers from 0 to 2, [T, 4]."""
    return np.random.default_rng(number).integers(0, 3, (T, 4))


def unreal(number):
    """Return place in cm [T, 3], and pitch and yaw in degrees: z is up, y to the right of x, yaw clockwise."""
    x, y, heading, height, pitch = walk(number).T
    place = 100 * np.stack([x, -y, height], 1)
    return place, np.degrees(pitch), -np.degrees(heading)


def write_video(path, number, frames=T):
    pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    video(path, number, frames, (SIDE, SIDE))


def write_mind(folder, number):
    write_video(folder / f"data-{number}" / "video.MP4", number)
    place, pitch, yaw = unreal(number)
    records = [
        {
            "time": t, **dict(zip(("ws", "ad", "ud", "lr"), keys(number)[t].tolist(), strict=True)),
            "actor_pos": dict(zip("xyz", place[t] / 100, strict=True)),
            "actor_rpy": {"x": 0.0, "y": pitch[t], "z": yaw[t]},
        }
        for t in range(T)
    ]  # fmt: skip
    tree = {"mark_time": 5, "total_time": T, "caption": "a walk", "data": records}
    (folder / f"data-{number}" / "action.json").write_text(json.dumps(tree))


def write_scenemembench(folder, number, form="records"):
    case = folder / "core" / f"case{number}"
    write_video(case / "context.mp4", number, 9)
    write_video(case / "eval.mp4", number, T - 9)
    place, pitch, yaw = unreal(number)
    poses = [{"primary_pose": [*place[t], pitch[t], yaw[t], 0.0]} for t in range(T)]
    (case / "pose").mkdir()
    trees = {"records": poses, "by name": {"unit": "cm", "frames": poses}, "by number": dict(enumerate(poses))}
    (case / "pose" / "poses.json").write_text(json.dumps(trees[form]))


def write_minecraft(folder, number, layout):
    write_video(folder / f"{number}.mkv", number)
    x, y, heading, height, pitch = walk(number).T
    place = np.stack([y, height, x], 1)  # Minecraft's x, y and z: its z is our x, and its x is on our left
    down, yaw = -np.degrees(pitch)[:, None], -np.degrees(heading)[:, None]
    if layout == "vrag":
        np.savez(folder / f"{number}.npz", actions=np.concatenate([keys(number) > 0, place, yaw], 1))
    else:
        bins = np.concatenate([keys(number)[:, :3], np.full((T, 2), 12), np.zeros((T, 3), int)], 1)
        np.savez(folder / f"{number}.npz", actions=bins, poses=np.concatenate([place, down, yaw], 1))


def write_csgo(folder, number):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / f"hdf5_dm_{number}.hdf5", "w") as file:
        for t, frame in enumerate(pictures(number)):
            file[f"frame_{t}_x"] = frame[..., ::-1]
            file[f"frame_{t}_y"] = keys(number)[t].astype(np.float32)
            file[f"frame_{t}_helperarr"] = np.zeros(2)


def write_pictures(folder, number):
    place = folder / f"walk {number}"
    place.mkdir(parents=True)
    for t, frame in enumerate(pictures(number)):
        Image.fromarray(frame).save(place / f"img{t + 1}.PNG")
    x, y, heading, height, pitch = walk(number).T
    with (place / "poses.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "x", "y", "yaw", "z", "tilt"])
        columns = (x, y, np.degrees(heading), height, -np.degrees(pitch))
        writer.writerows([f"img{t + 1}.PNG", *(column[t] for column in columns)] for t in range(T))


WRITERS = {
    "mind": write_mind,
    "scenemembench": write_scenemembench,
    "vrag": lambda folder, number: write_minecraft(folder, number, "vrag"),
    "worldmem": lambda folder, number: write_minecraft(folder, number, "worldmem"),
    "pictures": write_pictures,
}
COLUMNS = {"vrag": 4, "pictures": 3}  # of a pose, that a file holds: not pitch, not height; all five in the others


def opened(folder, layout=None, **options):
    return open_dataset(ClipsData(name="clips", path=str(folder), layout=layout, **options))


def recorded(data):
    """Return the whole recordings of a data set by name."""
    items = sorted([*data.training, *data.held_out_items], key=lambda item: item.name)
    return {item.name: data.clip(item, 0, item.length) for item in items}


@pytest.mark.parametrize("preset", WRITERS)
def test_a_walk_is_the_same_in_every_layout(tmp_path, preset):
    for number in range(EPISODES):
        WRITERS[preset](tmp_path, number)
    data = opened(tmp_path, preset)
    assert data.action_size == {"mind": 12, "vrag": 4, "worldmem": 60}.get(preset, 0)
    assert data.has_poses and not data.left_out and len(data.training) + len(data.held_out_items) == EPISODES
    for number, recording in enumerate(recorded(data).values()):
        assert recording.frames.shape == (T, 3, SIDE, SIDE)
        truth, columns = egomotion_from_poses(torch.from_numpy(walk(number))), COLUMNS.get(preset, 5)
        egomotion = egomotion_from_poses(recording.poses)
        assert egomotion.shape[-1] == data.pose_size == (3 if preset == "pictures" else 5)
        torch.testing.assert_close(egomotion[:, :columns], truth[:, :columns], rtol=0, atol=1e-9)
        assert not egomotion[:, columns:].any()
        green = recording.frames[:, 1].float().mean((-2, -1))
        cuts = {8} if preset == "scenemembench" else set()  # between its two videos
        assert all(step > 3 or at in cuts for at, step in enumerate(green.diff()))  # in order, none twice


def test_pictures_and_tables_are_read_exactly(tmp_path):
    for number in range(EPISODES):
        write_pictures(tmp_path, number)
    data = opened(tmp_path, "pictures")
    assert data.action_size == 0
    for number, (name, recording) in enumerate(recorded(data).items()):
        assert name == f"walk {number}"
        np.testing.assert_array_equal(recording.frames.permute(0, 2, 3, 1), pictures(number))
        np.testing.assert_allclose(recording.poses, walk(number)[:, :3], atol=1e-12)


def test_csgo_pictures_are_bgr_and_an_action_leads_to_the_next_frame(tmp_path):
    for number in range(EPISODES):
        write_csgo(tmp_path, number)
    data = opened(tmp_path, "csgo")
    assert not data.has_poses and data.action_size == 4
    for number, recording in enumerate(recorded(data).values()):
        np.testing.assert_array_equal(recording.frames.permute(0, 2, 3, 1), pictures(number))
        np.testing.assert_array_equal(recording.actions[1:], keys(number)[:-1])
        assert not recording.actions[0].any()
    item = data.training[0]
    piece = data.source.read(item, 3, 7)
    assert torch.equal(piece.frames, data.clip(item, 0, T).frames[3:7])


def test_dmlabs_arrays_are_frames_and_action_numbers(tmp_path):
    for number in range(EPISODES):
        np.savez(tmp_path / f"{number}.npz", video=pictures(number), actions=keys(number)[:, 0])
    data = opened(tmp_path, "teco_dmlab")
    assert not data.has_poses and data.action_size == 6
    for number, recording in enumerate(recorded(data).values()):
        np.testing.assert_array_equal(recording.frames.permute(0, 2, 3, 1), pictures(number))
        np.testing.assert_array_equal(recording.actions.argmax(1), keys(number)[:, 0])
    np.savez(tmp_path / "odd.npz", video=pictures(8), actions=keys(8)[:, 0] + 4)
    assert (
        "odd: odd.npz: actions are from 4 to 6, should be whole numbers 0..5"
        in open_folder(tmp_path, layout="teco_dmlab").left_out
    )


def test_memory_maze_is_read_as_by_its_own_reader(tmp_path):
    for number in range(EPISODES):
        save(tmp_path, f"e{number}.npz", **episode(number))
    ours = recorded(opened(tmp_path, "memory_maze"))
    own = recorded(open_dataset(MemoryMazeData(name="memory_maze", path=str(tmp_path))))
    for (name, recording), theirs in zip(ours.items(), own.values(), strict=True):
        assert name == name.removesuffix(".npz")
        for what in ("frames", "actions", "poses"):
            assert torch.equal(getattr(recording, what), getattr(theirs, what)), what


@pytest.mark.parametrize("preset", ["vrag", "teco_minecraft"])
def test_minecraft_is_read_as_by_its_own_reader(tmp_path, preset):
    pytest.importorskip("av")
    {"vrag": vrag, "teco_minecraft": teco}[preset](tmp_path)
    ours = opened(tmp_path, preset)
    own = open_dataset(MinecraftData(name="minecraft", path=str(tmp_path)))
    assert [item.name for item in own.held_out_items] == [f"{item.name}.mp4" for item in ours.held_out_items] or (
        preset == "vrag"  # whose split is by a hash of names, and these have no suffix
    )
    for recording, theirs in zip(recorded(ours).values(), recorded(own).values(), strict=True):
        assert torch.equal(recording.frames, theirs.frames) and torch.equal(recording.actions, theirs.actions)
        if own.has_poses:
            torch.testing.assert_close(recording.poses, theirs.poses, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["records", "by name", "by number"])
def test_records_of_json_are_found_where_they_are(tmp_path, form):
    for number in range(EPISODES):
        write_scenemembench(tmp_path, number, form)
    data = opened(tmp_path, "scenemembench")
    truth = egomotion_from_poses(torch.from_numpy(walk(0)))
    first = next(iter(recorded(data).values()))
    torch.testing.assert_close(egomotion_from_poses(first.poses), truth, rtol=0, atol=1e-9)
    # A clip that begins in one video and ends in the next.
    item = data.training[0]
    assert torch.equal(data.source.read(item, 7, 11).frames, data.clip(item, 0, T).frames[7:11])


def conventions():
    for handedness in ("right", "left"):
        for zero in ("+x", "+y", "-x", "-y"):
            for turns in ("counter-clockwise", "clockwise"):
                yield handedness, zero, turns


@pytest.mark.parametrize(("handedness", "zero", "turns"), conventions())
@pytest.mark.parametrize("unit", ["degrees", "radians"])
def test_axes_handedness_and_units_are_undone(tmp_path, handedness, zero, turns, unit):
    x, y, heading = walk(1).T[:3]
    y_of_file = y if handedness == "right" else -y
    # What a compass would read: the angle from the zero direction, which lies on an axis of the file.
    axis = {"+x": (1, 0), "+y": (0, 1), "-x": (-1, 0), "-y": (0, -1)}[zero]
    from_x = np.arctan2(axis[1] if handedness == "right" else -axis[1], axis[0])
    angle = (heading - from_x) * (1 if turns == "counter-clockwise" else -1)
    np.savetxt(tmp_path / "p.txt", np.stack([x, y_of_file, np.degrees(angle) if unit == "degrees" else angle], 1))
    poses = {"file": "{episode}.txt", "x": "0", "y": "1", "heading": "2", "unit": unit, "zero": zero, "turns": turns}
    layout = Layout.model_validate({"frames": {"file": "{episode}.mp4"}, "poses": {**poses, "handedness": handedness}})
    read = layout.poses.read(tmp_path / "p.txt")
    np.testing.assert_allclose(read[:, :2], walk(1)[:, :2], atol=1e-12)
    np.testing.assert_allclose(np.exp(1j * read[:, 2]), np.exp(1j * heading), atol=1e-12)


@pytest.mark.parametrize("tilts", ["up", "down"])
@pytest.mark.parametrize("recorded", [("height",), ("pitch",), ("height", "pitch")])
def test_of_height_and_pitch_one_alone_has_the_other_at_0(tmp_path, tilts, recorded):
    x, y, heading, height, pitch = walk(1).T
    columns = {"x": x, "y": y, "heading": np.stack([np.cos(heading), np.sin(heading)], 1), "height": 100 * height}
    columns["pitch"] = np.degrees(pitch) if tilts == "up" else -np.degrees(pitch)
    np.savez(tmp_path / "p.npz", **columns)
    poses = {"file": "{episode}.npz", "x": "x", "y": "y", "heading": ["heading[0]", "heading[1]"], "scale": 0.01}
    poses |= {"unit": "degrees", "tilts": tilts, **{name: name for name in recorded}}
    layout = Layout.model_validate({"frames": {"file": "{episode}.mp4"}, "poses": poses})
    truth = np.stack([height * ("height" in recorded), pitch * ("pitch" in recorded)], 1)
    np.testing.assert_allclose(layout.poses.read(tmp_path / "p.npz")[:, 3:], truth, atol=1e-12)


OWN = """
frames: {file: "{episode}/*.{picture}"}
actions: {file: "{episode}/keys.csv", columns: [w, s], leads_to: next}
poses:
  {file: "{episode}/poses.csv", x: x, y: y, heading: yaw, unit: degrees, height: z, pitch: tilt, tilts: down}
"""


def own_folder(folder):
    for number in range(EPISODES + 1):
        write_pictures(folder, number)
        rows = "\n".join(f"{w}; {s}" for w, s in keys(number)[:, :2])
        (folder / f"walk {number}" / "keys.csv").write_text(f"w; s\n{rows}\n")
    (folder / "layout.yaml").write_text(OWN)
    return folder


def test_a_layout_in_the_folder_is_found_by_every_verb(tmp_path):
    folder = own_folder(tmp_path / "mine")
    told = run_here("data", "check", folder, cwd=tmp_path).stdout
    assert "4 good, 0 left out" in told and "clips" in told
    run_here("data", "pack", folder, "packed", cwd=tmp_path)
    packed, folder_read = open_folder(tmp_path / "packed"), open_folder(folder)
    assert (packed.identity, packed.pose_size) == (folder_read.identity, 5)
    for name, recording in recorded(packed).items():
        np.testing.assert_allclose(recording.poses, walk(int(name.split()[1])), atol=1e-12)
    run_here("data", "show", folder, "--out", "seen.png", cwd=tmp_path)
    sizes = [f"--set=run.evaluation.{key}" for key in ("episodes=2", "context=5", "horizon=2")]
    sizes += ["--set=run.data.held_out=0.5"]
    run_here("tasks", folder, "--out", "asked", *sizes, cwd=tmp_path)
    index = read_index(tmp_path / "asked")
    arrays = np.load(tmp_path / "asked" / index.tasks[0].episodes[0].folder / "question.npz")
    assert arrays["poses"].shape == arrays["egomotion"].shape == (7, 5)


def test_a_sweep_trains_on_them(tmp_path):
    own_folder(tmp_path / "mine")
    (tmp_path / "mine" / "layout.yaml").rename(tmp_path / "mine.yaml")
    (tmp_path / "s.yaml").write_text(
        """
name: own
run:
  data: {name: clips, path: mine, layout: mine.yaml, held_out: 0.5}
  trunk: {width: 16, depth: 1, patch: 8, window: 2}
  training: {steps: 2, batch: 2, frames: 8, loss_from: 2, return_share: 0.5}
  evaluation: {episodes: 2, context: 5, horizon: 4, probe: 0, strips: 0}
grid: {memory: [none], seed: [0]}
"""
    )
    run_here("sweep", "s.yaml", "--cluster", "debug", cwd=tmp_path)
    assert (tmp_path / "results" / "own" / "report" / "index.html").is_file()


def test_height_and_pitch_are_told_where_they_are_recorded(tmp_path):
    for number in range(EPISODES):
        write_minecraft(tmp_path, number, "worldmem")
    told = " ".join(run_here("data", "check", tmp_path, "--layout", "worldmem", cwd=tmp_path, expect=1).stdout.split())
    assert "1.30 to 1.70" in told and "-11.5 to 25.8 degrees; up is positive" in told


def test_the_identity_is_of_content_and_meaning_not_of_place(tmp_path):
    first = own_folder(tmp_path / "a")
    second = own_folder(tmp_path / "b")
    same = opened(first).identity
    assert opened(second).identity == same
    (second / "layout.yaml").write_text(OWN.replace("degrees", "radians"))
    assert opened(second).identity != same
    (first / "walk 0" / "poses.csv").write_text((first / "walk 1" / "poses.csv").read_text())
    assert opened(first).identity != same


def spoil(folder, kind):
    walk0 = folder / "walk 0"
    if kind == "picture":
        (walk0 / "img5.PNG").unlink()
    elif kind == "table":
        (walk0 / "poses.csv").unlink()
    elif kind == "rows":
        text = (walk0 / "poses.csv").read_text().splitlines()
        (walk0 / "poses.csv").write_text("\n".join(text[:-2]))
    elif kind == "name":
        text = (walk0 / "poses.csv").read_text()
        (walk0 / "poses.csv").write_text(text.replace("yaw", "angle"))
    elif kind == "number":
        text = (walk0 / "poses.csv").read_text().splitlines()
        (walk0 / "poses.csv").write_text("\n".join([*text[:-1], "img14.PNG,1,2,east,0,0"]))
    elif kind == "torn":
        (walk0 / "img5.PNG").write_bytes(b"")
    elif kind == "first":  # the rows are one more than the frames, but not behind the last one
        (walk0 / "img1.PNG").unlink()
        walk0.rename(folder / "walk 9")
    elif kind == "text":
        (walk0 / "poses.csv").write_text((walk0 / "poses.csv").read_text(), encoding="utf-16")
    elif kind == "nan":
        (walk0 / "poses.csv").write_text("x,y,yaw\n" + "0,0,0\n" + "nan,0,0\n" * (T - 1))
    elif kind == "cells":
        (walk0 / "poses.csv").write_text("x,y,yaw\n1,2\n")
    else:
        Image.new("RGB", (8, 8)).save(walk0 / "img3.PNG")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("picture", "walk 0: lacks picture 5"),
        ("table", "walk 0: has no poses: walk 0/poses.csv is missing"),
        ("rows", "walk 0: has 14 frames and poses for 12"),
        ("name", "walk 0: has no yaw, only image, x, y, angle, z, tilt"),
        ("number", "walk 0: poses.csv: yaw is 'east' in row 13, not a number"),
        ("cells", "walk 0: poses.csv: line 2 has 2 cells, and the first has 3"),
        ("size", "walk 0: has pictures of several sizes"),
        ("torn", "walk 0: img5.PNG: is no picture"),
        ("first", "walk 0: has 2 action columns and a row more of actions and poses than frames, but the first file"),
        ("text", "walk 0: poses.csv is not text in UTF-8"),
        ("nan", "walk 0: poses.csv: x is not finite in row 1"),
    ],
)
def test_what_does_not_fit_is_left_out_with_its_reason(tmp_path, kind, words):
    own_folder(tmp_path)
    spoil(tmp_path, kind)
    (reason,) = open_folder(tmp_path).left_out
    assert words.replace("walk 0", "walk 9" if kind == "first" else "walk 0") in reason


def test_a_reason_that_all_share_is_told_once(tmp_path):
    own_folder(tmp_path)
    (tmp_path / "layout.yaml").write_text(OWN.replace("yaw", "angle"))
    with pytest.raises(
        UserError, match=r"Left out: walk 0, .*, walk 3: has no angle, only image, x, y, yaw, z, tilt\.$"
    ):
        opened(tmp_path)


def test_a_folder_without_what_the_layout_asks_for_says_what_it_holds(tmp_path):
    own_folder(tmp_path / "mine")
    pytest.importorskip("av")
    with pytest.raises(UserError, match=r"holds 0 good episodes.*56 .png files.*\{episode\}.\{video\}"):
        opened(tmp_path / "mine", "vrag")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("frames: {file: x.mp4}", "file 'x.mp4' must hold {episode}"),
        ("frame: {file: x}", "did you mean 'frames'?"),
        ("actions: {file: x, columns: [y]}", "frames: Field required"),
        ('frames: {file: "{episode}.mp4"}\nposes: {file: a, x: b, y: c, headin: d}', "did you mean 'heading'?"),
        ('frames: {file: "{episode}.mp4"}\nposes: {file: a, x: b, y: c, heading: d, unit: turns}', "degrees"),
        ("frames: [", "is not valid YAML"),
    ],
)
def test_a_layout_that_is_none_is_refused(tmp_path, text, words):
    (tmp_path / "layout.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        opened(tmp_path)
    assert words in str(caught.value) and "layout.yaml" in str(caught.value)


def test_layouts_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(UserError, match="no preset 'worldmen'; did you mean 'worldmem'"):
        opened(tmp_path, "worldmen")
    with pytest.raises(UserError, match=r"layout\.yaml does not exist"):
        opened(tmp_path)
    with pytest.raises(UserError, match=r"data\.path .*nowhere does not exist"):
        opened(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read"):
        opened(tmp_path, "./none.yaml")


def test_every_preset_is_a_layout_and_says_what_it_is():
    assert set(WRITERS) | {"csgo", "teco_dmlab", "memory_maze", "teco_minecraft"} == set(presets())
    for name in presets():
        read_layout(name, Path())
        assert (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")


def test_arrays_of_another_type_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", video=pictures(0).astype(np.float32), actions=keys(0)[:, 0])
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("other.npy", b"")
    with pytest.raises(UserError) as caught:
        opened(tmp_path, "teco_dmlab")
    assert "a: video is float32 (14, 16, 16, 3), should be uint8" in str(caught.value)
    assert "b: has no video, only other" in str(caught.value)


def test_packed_clips_know_their_unit(tmp_path):
    folder = own_folder(tmp_path / "mine")
    pack(open_folder(folder), tmp_path / "packed", lambda done, of: None)
    assert open_folder(tmp_path / "packed").source.in_degrees
