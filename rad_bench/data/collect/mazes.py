"""Collect Memory Maze episodes, in the official key layout, with a policy that explores and comes back.

The environment is that of the published data set, but the policy of that data set was not published. Scores on the two
are not comparable. The folder's manifest says so.

Each episode has an environment of its own. It is a function of (size, seed, number) only.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import logging
import os
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from rad_bench.data.collect import explorer
from rad_bench.data.collect.collection import Collected, Collection, fill, save
from rad_bench.data.collect.maze_env import SIZES, Arrays, FastMaze
from rad_bench.errors import UserError, did_you_mean

NOTE = (
    "generated with Memory Maze by rad-bench's own policy (shortest paths to cells, half of them visited before; one "
    "action in ten random); not the published data set, nor comparable with it"
)
WORLD = ("memory-maze", "mujoco", "dm-control", "labmaze")  # packages whose versions decide the content of an episode


def collect_memory_maze(
    size: str, episodes: int, steps: int, out: Path, workers: int = 1, seed: int = 0,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Collected:  # fmt: skip
    """Bring a folder to `episodes` episodes of `steps` steps (and one more frame). Raises `UserError`.

    Existing episodes are kept. `report(done, of)` is called after each episode.
    """
    _check(size, steps)
    collection = Collection(
        world=f"memory_maze_{size}",
        seed=seed,
        settings={"size": size, "steps": steps, "policy": explorer.VERSION, "renderer": os.environ["MUJOCO_GL"]},
        versions={name: metadata.version(name) for name in WORLD},
        collect_one=partial(_collect_one, size, seed, steps),
        about={"note": NOTE},
    )
    return fill(out, collection, episodes, workers, report)


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


def _collect_one(size: str, seed: int, steps: int, number: int, path: Path) -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)  # dm_control warns of a velocity that this agent does not have
    rng = np.random.default_rng([seed, number])
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
    save(path, {**arrays, "action": np.stack(actions), "maze_layout": layout})
