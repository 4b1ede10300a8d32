"""Collecting Memory Maze: the fast maze is the stock maze, and no interruption costs or spoils an episode."""

from __future__ import annotations

import ctypes.util
import errno
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rad_bench.cli import cli
from rad_bench.config import MemoryMazeData
from rad_bench.data import open_dataset
from rad_bench.data.collect import collection, mazes
from rad_bench.data.collect.explorer import Explorer
from rad_bench.data.collect.maze_env import FastMaze, StockMaze
from rad_bench.data.collect.mazes import collect_memory_maze
from rad_bench.errors import UserError
from rad_bench.store.lease import hold

installed = importlib.util.find_spec("memory_maze") and ctypes.util.find_library("OSMesa")
needs_maze = pytest.mark.skipif(not installed, reason="needs the extra memory-maze and libosmesa6")


@pytest.fixture(autouse=True)
def _osmesa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")


@pytest.mark.slow
@needs_maze
def test_the_fast_maze_is_the_stock_maze_to_the_last_bit() -> None:
    """An agent that walks to balls, so that touches, rewards and changes of target are among what is compared."""
    stock, fast = StockMaze("9x9", 5), FastMaze("9x9", 5)
    seen, twin = stock.reset(), fast.reset()
    policy, rewards, colours = Explorer(seen["maze_layout"].astype(bool), np.random.default_rng(0)), 0.0, set()
    for step in range(110):
        assert seen.keys() == twin.keys()
        for name, value in seen.items():
            assert np.array_equal(value, twin[name]), (step, name)
        rewards += float(seen["reward"])
        colours.add(tuple(seen["target_color"]))
        ball = seen["target_pos"]
        row, column = int(ball[1]), int(ball[0])
        here = policy._cell(*seen["agent_pos"])
        policy._path.clear()
        policy._path.extend(policy._shortest_path(here, (row, column)) or [(row, column)])  # to the ball that pays
        action = policy.act(seen["agent_pos"], seen["agent_dir"])
        seen, twin = stock.step(action), fast.step(action)
    assert rewards >= 2 and len(colours) >= 2, "the walk met too few balls for the comparison to mean anything"


def test_the_explorer_reaches_all_of_a_maze_and_returns() -> None:
    """In a maze of corridors, moved by a crude copy of the agent's motion."""
    layout = np.zeros((9, 9), bool)
    layout[0], layout[:, 0], layout[4], layout[8], layout[:, 8] = True, True, True, True, True
    for seed in range(3):
        policy = Explorer(layout, np.random.default_rng(seed))
        place, heading, path = np.array([0.5, 0.5]), 0.0, []
        for _ in range(800):
            action = policy.act(place, np.array([np.cos(heading), np.sin(heading)]))
            heading += {2: 0.3, 3: -0.3, 4: 0.28, 5: -0.28}.get(action, 0.0)
            ahead = place + {1: 0.24, 4: 0.18, 5: 0.18}.get(action, 0.0) * np.array([np.cos(heading), np.sin(heading)])
            row, column = int(np.floor(ahead[1])), int(np.floor(ahead[0]))
            if 0 <= row < 9 and 0 <= column < 9 and layout[row, column]:
                place = ahead
            path.append(policy._cell(*place))
        assert set(path) == {(int(r), int(c)) for r, c in np.argwhere(layout)}
        late = path[400:]
        assert sum(cell in path[:200] for cell in late) / len(late) > 0.3


@pytest.fixture
def collected(once: Callable[[str, Callable[[Path], None]], Path], tmp_path: Path) -> Path:
    if not installed:
        pytest.skip("needs the extra memory-maze and libosmesa6")

    def collect(folder: Path) -> None:
        arguments = ["data", "collect", "memory-maze", "--episodes", "3", "--steps", "40", "--out"]
        result = CliRunner().invoke(cli, [*arguments, str(folder / "episodes")])
        assert result.exit_code == 0, result.output

    return shutil.copytree(once("mazes", collect) / "episodes", tmp_path / "episodes")


def test_what_is_collected_has_the_official_keys_and_our_reader_takes_it(collected: Path) -> None:
    files = sorted(collected.glob("*.npz"))
    assert [file.name for file in files] == [f"memory_maze_9x9-s0-{number:05d}.npz" for number in range(3)]
    with np.load(files[0]) as arrays:
        shapes = {name: (arrays[name].shape, arrays[name].dtype.name) for name in arrays}
    assert shapes == {
        "image": ((41, 64, 64, 3), "uint8"), "action": ((41, 6), "uint8"), "reward": ((41,), "float32"),
        "maze_layout": ((9, 9), "bool"), "agent_pos": ((41, 2), "float32"), "agent_dir": ((41, 2), "float32"),
        "targets_pos": ((41, 3, 2), "float32"), "targets_vec": ((41, 3, 2), "float32"),
        "target_pos": ((41, 2), "float32"), "target_vec": ((41, 2), "float32"), "target_color": ((41, 3), "float32"),
    }  # fmt: skip
    data = open_dataset(MemoryMazeData(name="memory_maze", path=str(collected)))
    assert data.held_out(1, 41, 20).surfaces.shape == (1, 41, 32)
    manifest = json.loads((collected / "manifest.json").read_text())
    assert "not the published data set" in manifest["note"]
    assert set(manifest["files"]) == {file.name for file in files}
    assert manifest["versions"]["memory-maze"] == "1.0.3" and manifest["renderer"] == "osmesa"


def test_an_interrupted_collection_goes_on_and_repeats_itself_exactly(collected: Path) -> None:
    files = sorted(collected.glob("*.npz"))
    with np.load(files[1]) as arrays:
        before = dict(arrays)
    stamps = {file: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    outcome = collect_memory_maze("9x9", 3, 40, collected)
    assert (outcome.collected, outcome.kept) == (1, 2)
    assert {f: f.stat().st_mtime_ns for f in (files[0], files[2])} == {f: stamps[f] for f in (files[0], files[2])}
    with np.load(files[1]) as arrays:
        assert all(np.array_equal(before[name], arrays[name]) for name in before)


def test_other_settings_are_refused_in_a_folder_that_was_begun(collected: Path) -> None:
    with pytest.raises(UserError, match=r"was started with steps 40, but this command has 50"):
        collect_memory_maze("9x9", 3, 50, collected)
    with pytest.raises(UserError, match=r"was started with seed 0, but this command has 1"):
        collect_memory_maze("9x9", 3, 40, collected, seed=1)
    with pytest.raises(UserError, match=r"was started with size 9x9, but this command has 11x11"):
        collect_memory_maze("11x11", 3, 40, collected)


class Pool:
    """Runs what is submitted at once, in this process."""

    _processes: dict[int, Any] = {}  # noqa: RUF012

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def submit(self, function: Any, *arguments: Any) -> Any:
        from concurrent.futures import Future

        future: Future[None] = Future()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: Any) -> None: ...


@pytest.fixture
def without_maze(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect small files in this process, with nothing of Memory Maze."""

    def one_episode(size: str, seed: int, steps: int, number: int, path: Path) -> None:
        collection.save(path, {"image": np.zeros(number + 1)})

    monkeypatch.setattr(collection, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(mazes, "_check", lambda size, steps: None)
    monkeypatch.setattr(mazes.metadata, "version", lambda name: "0")
    monkeypatch.setattr(mazes, "_collect_one", one_episode)


@pytest.mark.usefixtures("without_maze")
def test_a_full_disk_keeps_what_is_whole_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = np.savez_compressed

    def fills(file: Any, **arrays: Any) -> None:
        real(file, **arrays)
        if len(arrays["image"]) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(np, "savez_compressed", fills)
        with pytest.raises(UserError, match=r"the disk is full. 2 of 3 episodes are complete.*continues from there"):
            collect_memory_maze("9x9", 3, 10, tmp_path)
    assert sorted(path.name[-9:] for path in tmp_path.iterdir()) == [".claims", "00000.npz", "00002.npz", "fest.json"]
    outcome = collect_memory_maze("9x9", 3, 10, tmp_path)
    assert (outcome.collected, outcome.kept) == (1, 2)
    assert len(json.loads((tmp_path / "manifest.json").read_text())["files"]) == 3


@pytest.mark.usefixtures("without_maze")
def test_episodes_of_another_world_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walls look different from MuJoCo 3.12 on, and other renderers may round otherwise."""
    collect_memory_maze("9x9", 1, 10, tmp_path)
    with monkeypatch.context() as other:
        other.setattr(mazes.metadata, "version", lambda name: "1" if name == "mujoco" else "0")
        with pytest.raises(UserError, match=r"was started with mujoco 0, but this command has 1"):
            collect_memory_maze("9x9", 2, 10, tmp_path)
    with monkeypatch.context() as other:
        other.setenv("MUJOCO_GL", "egl")
        with pytest.raises(UserError, match=r"was started with renderer osmesa, but this command has egl"):
            collect_memory_maze("9x9", 2, 10, tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 1


@pytest.mark.usefixtures("without_maze")
def test_settings_bind_only_once_there_is_an_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first try with a renderer that does not work must not spoil the folder."""

    def opens_not(*_: object) -> None:
        raise UserError("cannot be opened")

    with monkeypatch.context() as broken:
        broken.setattr(mazes, "_collect_one", opens_not)
        broken.setenv("MUJOCO_GL", "glfw")
        with pytest.raises(UserError, match="cannot be opened"):
            collect_memory_maze("9x9", 1, 10, tmp_path)
    assert collect_memory_maze("9x9", 1, 10, tmp_path).collected == 1
    assert json.loads((tmp_path / "manifest.json").read_text())["renderer"] == "osmesa"


@pytest.mark.usefixtures("without_maze")
def test_files_from_elsewhere_are_not_called_ours(tmp_path: Path) -> None:
    (tmp_path / "published.npz").write_bytes(b"")
    collect_memory_maze("9x9", 1, 10, tmp_path)
    assert list(json.loads((tmp_path / "manifest.json").read_text())["files"]) == ["memory_maze_9x9-s0-00000.npz"]


@pytest.mark.usefixtures("without_maze")
@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"{}", b'{"versions": {}, "files": 3}'])
def test_a_spoilt_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest.json: is not the manifest of a collection.*remove it"):
        collect_memory_maze("9x9", 1, 10, tmp_path)


@pytest.mark.usefixtures("without_maze")
def test_two_commands_do_not_collect_into_one_folder(tmp_path: Path) -> None:
    with hold(tmp_path / ".claims", 60), pytest.raises(UserError, match="another command is collecting here"):
        collect_memory_maze("9x9", 1, 10, tmp_path)
    assert collect_memory_maze("9x9", 1, 10, tmp_path).collected == 1


@pytest.mark.usefixtures("without_maze")
def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/episodes: cannot be written: Not a directory"):
        collect_memory_maze("9x9", 1, 10, tmp_path / "file" / "episodes")


def test_a_collecting_process_ends_with_the_one_that_began_it() -> None:
    """Even when that is killed: the pipe of its output closes only when the last process that holds it is gone."""
    begin = """if True:
        import multiprocessing, time
        from concurrent.futures import ProcessPoolExecutor
        from rad_bench.data.collect import collection
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=collection._prepare)
        print(pool.submit(abs, -1).result(), flush=True)
        time.sleep(60)"""
    process = subprocess.Popen([sys.executable, "-c", begin], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    process.kill()
    process.communicate(timeout=20)


def test_a_maze_that_does_not_open_is_one_clear_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opens_not(size: str, seed: int) -> FastMaze:
        raise AttributeError("no attribute 'flex_vertedge'")

    monkeypatch.setattr(mazes, "FastMaze", opens_not)
    with pytest.raises(UserError, match=r"cannot be opened with MUJOCO_GL=osmesa \(AttributeError: .*flex_vertedge"):
        mazes._collect_one("9x9", 0, 10, 0, tmp_path / "episode.npz")


def test_mistakes_are_one_clear_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no such maze; did you mean '9x9'"):
        collect_memory_maze("9x", 1, 10, tmp_path)
    with pytest.raises(UserError, match="an episode of 9x9 ends after 1000 steps"):
        collect_memory_maze("9x9", 1, 1001, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(UserError, match="apt install libosmesa6"):
        collect_memory_maze("9x9", 1, 10, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'rad-bench\[memory-maze\]'"):
        collect_memory_maze("9x9", 1, 10, tmp_path)
    assert not list(tmp_path.iterdir())
