"""Collect Memory Maze episodes, in the official key layout, with a policy that explores and comes back.

The environment is that of the published data set, but the policy of that data set was not published. Scores on the two
are not comparable. The folder's manifest says so, and holds versions and checksums.

Each episode is one file, written completely or not at all, and has an environment of its own. It is a function of
(size, seed, number) only, so an interrupted collection can be continued.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import errno
import hashlib
import importlib.util
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from rad_bench.data.collect import explorer
from rad_bench.data.collect.maze_env import SIZES, Arrays, FastMaze
from rad_bench.errors import UserError, did_you_mean
from rad_bench.store.atomic import write_atomically
from rad_bench.store.lease import BusyError, hold

MANIFEST, CLAIMS = "manifest.json", ".claims"
LEASE_SECONDS = 60.0
NOTE = (
    "generated with Memory Maze by rad-bench's own policy (shortest paths to cells, half of them visited before; one "
    "action in ten random); not the published data set, nor comparable with it"
)
WORLD = ("memory-maze", "mujoco", "dm-control", "labmaze")  # packages whose versions decide the content of an episode
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Collected:
    """How many episodes a call added, and how many were there before."""

    collected: int
    kept: int


def collect_memory_maze(
    size: str, episodes: int, steps: int, out: Path, workers: int = 1, seed: int = 0,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Collected:  # fmt: skip
    """Bring a folder to `episodes` episodes of `steps` steps (and one more frame). Raises `UserError`.

    Existing episodes are kept. `report(done, of)` is called after each episode.
    """
    _check(size, steps)
    settings = {"size": size, "steps": steps, "seed": seed, "policy": explorer.VERSION}
    files = {number: out / f"memory_maze_{size}-s{seed}-{number:05d}.npz" for number in range(episodes)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with hold(out / CLAIMS, LEASE_SECONDS):
            return _fill(out, files, _open_manifest(out, settings), workers, report)
    except BusyError as error:
        raise UserError(
            f"{out}: another command is collecting here: {error}. Let it finish, or collect into another folder."
        ) from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}.") from None


def _fill(
    out: Path, files: dict[int, Path], manifest: dict[str, Any], workers: int, report: Callable[[int, int], None]
) -> Collected:
    """Collect the episodes whose files are missing."""
    size, steps, seed = manifest["size"], manifest["steps"], manifest["seed"]
    missing = [number for number, path in files.items() if not path.exists()]
    kept, why = len(files) - len(missing), ""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, max(len(missing), 1)), context, initializer=_prepare)
    try:
        futures: list[Future[None]] = [
            pool.submit(_collect_one, size, [seed, number], steps, files[number]) for number in missing
        ]
        for done, future in enumerate(as_completed(futures), start=kept + 1):
            future.result()
            report(done, len(files))
    except OSError as error:
        why = "the disk is full" if error.errno in FULL else f"{error.strerror or error}"
    except BrokenProcessPool:
        why = "a worker process was killed"
    finally:
        _terminate(pool)
        for leftover in out.glob(".memory_maze*.tmp"):
            leftover.unlink(missing_ok=True)
        _finish_manifest(out, manifest)
    if why:
        complete = sum(path.exists() for path in files.values())
        raise UserError(
            f"{out}: {why}. {complete} of {len(files)} episodes are complete and kept; "
            "the same command continues from there."
        )
    return Collected(len(missing), kept)


def _check(size: str, steps: int) -> None:
    if size not in SIZES:
        raise UserError(f"--size {size}: there is no such maze{did_you_mean(size, SIZES)}")
    if steps > SIZES[size]:
        raise UserError(f"--steps {steps}: an episode of {size} ends after {SIZES[size]} steps.")
    if importlib.util.find_spec("memory_maze") is None or importlib.util.find_spec("mujoco") is None:
        raise UserError("collecting needs Memory Maze, with pinned versions: pip install 'rad-bench[memory-maze]'.")
    if os.environ.setdefault("MUJOCO_GL", "osmesa") == "osmesa" and ctypes.util.find_library("OSMesa") is None:
        raise UserError(
            "rendering needs the OSMesa library: install it (Debian, Ubuntu: apt install libosmesa6), or set "
            "MUJOCO_GL=egl where there is a GPU or libegl1."
        )


def _open_manifest(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read the folder's manifest, or write a new one. Raises `UserError` if it has other settings."""
    path = out / MANIFEST
    requested = {**settings, "renderer": os.environ["MUJOCO_GL"]}
    versions = {name: metadata.version(name) for name in WORLD}
    if path.exists():
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            recorded = {**manifest, **manifest["versions"]}
            if not isinstance(manifest["files"], dict):
                raise TypeError("files is not a mapping")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}: is not the manifest of a collection ({type(error).__name__}: {error}); remove it, and the "
                "same command writes a new one."
            ) from None
        if any(out.glob("memory_maze_*.npz")):
            for key, value in {**requested, **versions}.items():
                if recorded.get(key) != value:
                    raise UserError(
                        f"{out}: was started with {key} {recorded.get(key)}, but this command has {value}. "
                        "Collect into another folder."
                    )
            return manifest
    manifest = {"note": NOTE, **requested, "versions": versions | {"numpy": np.__version__}, "files": {}}
    write_atomically(path, _json(manifest))
    return manifest


def _finish_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """Add the checksums of this collection's files; other files in the folder are ignored."""
    known = manifest["files"]
    for path in sorted(out.glob(f"memory_maze_{manifest['size']}-s{manifest['seed']}-*.npz")):
        if path.name not in known:
            with path.open("rb") as file:
                known[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # the disk is full: the next call adds the missing checksums
        write_atomically(out / MANIFEST, _json(manifest))


def _prepare() -> None:
    """Set up a worker process."""
    import logging
    import signal
    import threading

    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops it
    logging.getLogger("absl").setLevel(logging.ERROR)  # dm_control warns of a velocity that this agent does not have


def _exit_with_parent() -> None:
    """Exit when the parent process has ended, even if it was killed. An idle worker would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _collect_one(size: str, seed: list[int], steps: int, path: Path) -> None:
    rng = np.random.default_rng(seed)
    try:
        maze = FastMaze(size, int(rng.integers(1, 2**31 - 1)))
        rows: list[Arrays] = [maze.reset()]
    except Exception as error:  # the renderer does not work here, or versions do not match
        raise UserError(
            f"Memory Maze cannot be opened with MUJOCO_GL={os.environ['MUJOCO_GL']} ({type(error).__name__}: {error}). "
            "MUJOCO_GL=osmesa and the versions of rad-bench[memory-maze] are known to work."
        ) from error
    layout = rows[0]["maze_layout"].astype(bool)
    policy, actions = explorer.Explorer(layout, rng), [np.zeros(6, np.uint8)]
    for _ in range(steps):
        action = policy.act(rows[-1]["agent_pos"], rows[-1]["agent_dir"])
        actions.append(np.eye(6, dtype=np.uint8)[action])
        rows.append(maze.step(action))
    maze.close()
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0] if name != "maze_layout"}
    arrays = {name: a if name == "image" else a.astype(np.float32) for name, a in arrays.items()}
    _save(path, {**arrays, "action": np.stack(actions), "maze_layout": layout})


def _save(path: Path, arrays: Arrays) -> None:
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def _terminate(pool: ProcessPoolExecutor) -> None:
    """Terminate all workers and wait for them, so that none is left and none writes a file any more."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
