"""Collecting in Luanti: frames belong to their poses, episodes repeat themselves, and nothing is left running."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from rad_bench.cli import cli
from rad_bench.config import ClipsData
from rad_bench.data import open_dataset
from rad_bench.data.collect.luanti import engine as engines
from rad_bench.data.collect.luanti import episodes
from rad_bench.data.collect.luanti.engine import FOV, Engine, EngineError
from rad_bench.data.collect.luanti.episodes import collect_luanti
from rad_bench.data.voxels import walk
from rad_bench.errors import UserError

MISSING = episodes.why_not()
needs_luanti = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")
COLLECT = ["data", "collect", "luanti", "--steps", "40", "--size", "48", "--seed", "1"]


def processes_in(folder: Path) -> list[int]:
    """Return the processes that work in a folder or below it."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            found += [int(process)] if Path(os.readlink(f"/proc/{process}/cwd")).is_relative_to(folder) else []
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def collected(once: Callable[[str, Callable[[Path], None]], Path], tmp_path: Path) -> Path:
    def collect(folder: Path) -> None:
        result = CliRunner().invoke(cli, [*COLLECT, "--episodes", "2", "--workers", "2", "--out", str(folder / "out")])
        assert result.exit_code == 0, result.output

    return shutil.copytree(once("luanti", collect) / "out", tmp_path / "out")


@pytest.mark.slow
@needs_luanti
def test_what_is_collected_is_read_and_checked_as_it_is(collected: Path) -> None:
    files = sorted(collected.glob("*.npz"))
    assert [file.name for file in files] == ["luanti-s1-00000.npz", "luanti-s1-00001.npz"]
    assert sorted(os.listdir(collected)) == [".claims", "layout.yaml", *[file.name for file in files], "manifest.json"]
    for file in files:
        with np.load(file) as arrays:
            image, action, pose = arrays["image"], arrays["action"], arrays["pose"]
        assert (image.shape, image.dtype, action.shape, pose.shape) == ((41, 48, 48, 3), np.uint8, (41,), (41, 5))
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100, "a view of nothing but the sky"
        moved = np.abs(np.diff(pose, axis=0)) > 1e-9
        assert np.array_equal(moved[:, :2].any(1), action[1:] == walk.FORWARD)
        assert np.array_equal(moved[:, 2], np.isin(action[1:], (walk.LEFT, walk.RIGHT)))
        assert np.array_equal(moved[:, 4], np.isin(action[1:], (walk.UP, walk.DOWN)))
    manifest = json.loads((collected / "manifest.json").read_text())
    assert set(manifest["files"]) == {file.name for file in files} and "CC BY-SA 3.0" in manifest["licence"]
    assert {"engine", "game", "mods"} <= manifest["versions"].keys()
    data = open_dataset(ClipsData(name="clips", path=str(collected)))
    assert data.frame_shape == (3, 48, 48) and data.action_size == walk.ACTIONS and data.pose_size == 5
    result = CliRunner().invoke(cli, ["data", "check", str(collected)])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@needs_luanti
def test_a_resumed_collection_repeats_itself_exactly(collected: Path) -> None:
    """As measured: the engine promises nothing of the kind."""
    path = collected / "luanti-s1-00000.npz"
    with np.load(path) as arrays:
        before = dict(arrays)
    path.unlink()
    outcome = collect_luanti(48, 2, 40, collected, seed=1)
    assert (outcome.collected, outcome.kept) == (1, 1)
    with np.load(path) as arrays:
        assert all(np.array_equal(before[name], arrays[name]) for name in before)


@pytest.mark.slow
@needs_luanti
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_whatever_ends_a_collection_leaves_no_process_and_another_call_finishes_it(
    tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "rad_bench", *COLLECT, "--episodes", "2", "--workers", "2", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(processes_in(out)) == 4)  # two games with a display each
    process.send_signal(how)
    assert process.wait(timeout=60) != 0
    wait_until(lambda: not processes_in(out))
    if how == signal.SIGKILL:
        collect_luanti(48, 1, 40, out, seed=1)
    expected = ["luanti-s1-00000.npz"] * (how == signal.SIGKILL)
    assert sorted(os.listdir(out)) == [".claims", "layout.yaml", *expected, "manifest.json"]


@pytest.fixture(scope="module")
def flying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A game with a red block four nodes east and a green one four nodes north of (2, 3), high in the air."""
    with Engine(tmp_path_factory.mktemp("luanti") / "game", 64, 1) as engine:
        engine.ground(2, 3, 1)
        engine.place([(6, 70, 3, "wool:red"), (2, 70, 7, "wool:green")])
        engine.load(looking(0))
        wait_until(lambda: centre_of(engine.view(looking(0)), 0) is not None)
        wait_until(lambda: centre_of(engine.view(looking(math.pi / 2)), 1) is not None)
        yield engine


def looking(heading: float, pitch: float = 0.0) -> NDArray[np.float64]:
    return np.array([2.0, 3.0, heading, 70.0, pitch])


def coloured(frame: NDArray[np.uint8], channel: int) -> NDArray[np.bool_]:
    others = np.delete(frame.astype(int), channel, 2).max(2)
    return frame[..., channel] > 1.5 * others


def centre_of(frame: NDArray[np.uint8], channel: int) -> tuple[float, float] | None:
    """Return the row and column of the middle of what has a colour."""
    where = np.argwhere(coloured(frame, channel))
    return (float(where[:, 0].mean()), float(where[:, 1].mean())) if len(where) else None


@pytest.mark.slow
@needs_luanti
def test_a_frame_shows_what_its_pose_says(flying: Engine) -> None:
    """Headings are counter-clockwise from +x, pitch is up from level, and the angle of view is as stated."""
    assert centre_of(flying.view(looking(0)), 0) == pytest.approx((31.5, 31.5), abs=0.6)
    assert centre_of(flying.view(looking(math.pi / 2)), 1) == pytest.approx((31.5, 31.5), abs=0.6)
    away = 32 / math.tan(math.radians(FOV / 2)) * math.tan(math.radians(15))  # pixels
    assert centre_of(flying.view(looking(math.radians(15))), 0) == pytest.approx((31.5, 31.5 + away), abs=1.5)
    assert centre_of(flying.view(looking(0, math.radians(-15))), 0) == pytest.approx((31.5 - away, 31.5), abs=1.5)
    width = 64 * 0.5 / 3.5 / math.tan(math.radians(FOV / 2))
    assert coloured(flying.view(looking(0)), 0).any(0).sum() == pytest.approx(width, abs=1.5)  # its edges are mixed


@pytest.mark.slow
@needs_luanti
def test_the_camera_is_where_it_should_be_and_each_frame_is_of_its_own_pose(
    flying: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames asked for in any order are those asked for one at a time; the client's report is what is compared."""
    reports: list[list[str]] = []
    ask = flying._ask
    monkeypatch.setattr(flying, "_ask", lambda command: reports.append(ask(command)) or reports[-1])
    headings = np.arange(walk.HEADINGS) * walk.TURN
    frames = {heading: flying.view(looking(heading)) for heading in headings}
    for heading in np.random.default_rng(0).permutation(np.tile(headings, 3)):
        assert np.array_equal(flying.view(looking(heading)), frames[heading])
        place, looks = np.array(reports[-1][1:4], float), np.array(reports[-1][4:7], float)
        assert np.abs(place - [2, 70, 3]).max() < 1e-4
        assert np.abs(looks - [math.cos(heading), 0, math.sin(heading)]).max() < 1e-4


@pytest.mark.slow
@needs_luanti
def test_a_game_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PATIENCE", 3.0)
    with Engine(tmp_path / "game", 32, 1) as engine:
        engine._processes[-1][0].send_signal(signal.SIGSTOP)
        with pytest.raises(EngineError, match="has not answered for 3 seconds"):
            engine.ground(0, 0, 1)
    assert not processes_in(tmp_path) and not list(tmp_path.iterdir())


class Failing:
    """An engine that fails so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, folder: Path, size: int, map_seed: int) -> Failing:
        self.left -= 1
        if self.left >= 0:
            raise EngineError("the game ended: out of memory")
        return self

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_an_episode_whose_game_fails_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def record(engine: Engine, rng: np.random.Generator, frames: int) -> tuple[NDArray[np.generic], ...]:
        drawn.append(rng.random())
        return np.zeros((frames, 2, 2, 3), np.uint8), np.zeros(frames, int), np.zeros((frames, 5))

    monkeypatch.setattr(episodes, "record", record)
    for fails in (0, 2):
        monkeypatch.setattr(episodes, "Engine", Failing(fails))
        episodes._collect_one(64, 0, 3, 7, tmp_path / "episode.npz")
    assert drawn[0] == drawn[1], "another attempt must give the same episode"
    monkeypatch.setattr(episodes, "Engine", Failing(3))
    with pytest.raises(UserError, match=r"episode.npz: Luanti failed 3 times: the game ended: out of memory"):
        episodes._collect_one(64, 0, 3, 7, tmp_path / "episode.npz")


def test_a_walk_stays_in_its_arena_and_landmarks_apart() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        side = 2 * episodes.RADIUS + 1
        ground = np.where(rng.random((side, side)) < 0.2, np.nan, np.round(rng.random((side, side)) * 1.4))
        landmarks = episodes._draw_landmarks(rng, ground)
        cells = list(landmarks)
        assert len(cells) == episodes.LANDMARKS and np.isfinite([ground[cell] for cell in cells]).all()
        assert all(
            max(abs(a - c), abs(b - d)) >= episodes.APART for n, (a, b) in enumerate(cells) for c, d in cells[:n]
        )
        arena = episodes._arena(ground)
        start = episodes._start(arena)
        most = max(len(walk.reachable(arena, (int(i), int(j)))) for i, j in np.argwhere(np.isfinite(arena)))
        assert len(walk.reachable(arena, start)) == most
        _, poses = walk.explore(rng, arena, start, 200)
        assert np.hypot(*(poses[:, :2] - episodes.RADIUS - 0.5).T).max() <= episodes.ARENA + 1e-9


def test_what_is_missing_is_one_clear_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--size 8: frames of this world have 32 to 256 pixels"):
        collect_luanti(8, 1, 10, tmp_path)
    result = CliRunner().invoke(cli, [*COLLECT, "--size", "9x9", "--episodes", "1", "--out", str(tmp_path)])
    assert "--size 9x9: should be a number of pixels" in str(result.exception)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(
        UserError, match=r"missing: Luanti, Xvfb, setpriv.*apt install --no-install-recommends minetest"
    ):
        collect_luanti(64, 1, 10, tmp_path)
    assert not list(tmp_path.iterdir())
