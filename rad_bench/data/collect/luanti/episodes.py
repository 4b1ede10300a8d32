"""Collect episodes of Luanti, the voxel engine that was called Minetest: the real game, walked by our explorer.

Each episode has a game and a world of its own. World, coloured landmarks and walk are a function of (seed, number).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rad_bench.data.collect.collection import Collected, Collection, fill, scratch
from rad_bench.data.collect.luanti.engine import GAME, MODS, SCALE, SETTINGS, Engine, EngineError, find_engine
from rad_bench.data.collect.walked import LAYOUT, check_size, save_walk
from rad_bench.data.voxels import walk
from rad_bench.data.voxels.terrain import ARENA, LEAST_CELLS
from rad_bench.errors import UserError

NOTE = f"recorded in Luanti (Minetest), game {GAME}, on walks of rad-bench's own explorer, with landmarks of wool"
LICENCE = (
    "the pictures show textures of Minetest Game, by Perttu Ahola (celeron55) and others, CC BY-SA 3.0: whoever shares "
    "them has to name that, under the same licence"
)
VERSION = 1  # of how places and landmarks are chosen
ATTEMPTS = 3  # games that may hang or end in one episode
PLACES, SPREAD = 60, 10  # places that are looked at in a world, and how far from its middle, in chunks of 80 nodes
RADIUS = 10  # of the ground with landmarks; the arena of a walk is as in the embedded world
LANDMARKS, APART = 12, 3  # and the least distance between two, along an axis
COLOURS = (
    "white", "grey", "black", "violet", "blue", "cyan", "dark_green", "yellow", "brown", "orange", "red", "magenta",
    "pink",
)  # fmt: skip
SAMPLE, ROUNDS = 16, 60  # views that must not change any more, and how often that is tried


def collect_luanti(
    size: int, episodes: int, steps: int, out: Path, workers: int = 1, seed: int = 0,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Collected:  # fmt: skip
    """Bring a folder to `episodes` episodes of `steps` steps (and one more frame) of size x size pixels.

    Existing episodes are kept. `report(done, of)` is called after each episode. Raises `UserError`.
    """
    check_size(size)
    collection = Collection(
        world="luanti",
        seed=seed,
        settings={"world": "luanti", "size": size, "steps": steps, "walk": walk.VERSION, "places": VERSION},
        versions=_versions(),
        collect_one=partial(_collect_one, size, seed, steps),
        about={"note": NOTE, "licence": LICENCE, "engine settings": SETTINGS},
        layout=LAYOUT,
    )
    return fill(out, collection, episodes, workers, report)


def why_not() -> str | None:
    """Return what is missing to collect here, and how to get it; None if nothing is."""
    missing = [name for name in ("Xvfb", "setpriv") if shutil.which(name) is None]
    if (program := find_engine()) is None:
        missing.insert(0, "Luanti")
    elif not _game(program)[1].is_dir():
        missing.append(f"the game {GAME}")
    if not missing:
        return None
    return (
        f"collecting in Luanti needs the engine with {GAME}, and Xvfb to run it without a screen; missing: "
        f"{', '.join(missing)}. On Debian and Ubuntu: apt install --no-install-recommends minetest xvfb (luanti "
        "instead of minetest where the engine has its new name)."
    )


def _game(program: str) -> tuple[str, Path]:
    """Return the engine's version, and the folder of the game."""
    told = subprocess.run([program, "--version"], capture_output=True, encoding="utf-8", check=False).stdout
    shared = re.search(r'STATIC_SHAREDIR="(.*)"', told)
    return told.partition("\n")[0], Path(shared[1] if shared else "", "games", GAME)


def _versions() -> dict[str, str]:
    """Return what decides a picture besides the settings. Raises `UserError` if something is not installed."""
    if reason := why_not():
        raise UserError(reason)
    program = find_engine()
    assert program is not None
    version, game = _game(program)
    ours = json.dumps([SETTINGS, SCALE]).encode() + b"".join(mod.read_bytes() for mod in MODS.values())
    files = sorted(path for path in game.glob("mods/**/*") if path.suffix in (".lua", ".png", ".mts"))
    return {
        "engine": version,
        "game": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16],
        "mods": hashlib.sha256(ours).hexdigest()[:16],
    }


def _collect_one(size: int, seed: int, steps: int, number: int, path: Path) -> None:
    for attempt in range(ATTEMPTS):
        try:
            rng = np.random.default_rng([seed, number])
            with Engine(scratch(path), size, int(rng.integers(2**31))) as engine:
                save_walk(path, *record(engine, rng, steps + 1))
            return
        except EngineError as error:
            if attempt == ATTEMPTS - 1:
                raise UserError(
                    f"{path.name}: Luanti failed {ATTEMPTS} times: {error}. The same command tries again."
                ) from None


def record(
    engine: Engine, rng: np.random.Generator, frames: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64]]:
    """Walk through a new world; return frames [T, H, W, 3], actions [T] and poses [T, 5]. Raises `EngineError`."""
    (x, z), ground_NN = _find_place(engine, rng)
    landmarks = _draw_landmarks(rng, ground_NN)
    engine.place([
        (x + i - RADIUS, int(ground_NN[i, j] + 0.5) + level, z + j - RADIUS, f"wool:{colour}")
        for (i, j), colours in landmarks.items()
        for level, colour in enumerate(colours)
    ])  # fmt: skip
    for cell in landmarks:
        ground_NN[cell] = np.nan
    arena_NN = _arena(ground_NN)
    actions, poses = walk.explore(rng, arena_NN, _start(arena_NN), frames)
    poses[:, :2] += np.array([x, z]) - RADIUS - 0.5  # a node's middle has whole numbers
    sample = np.unique(np.linspace(0, frames - 1, SAMPLE).astype(int))

    def look(which: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack([engine.view(poses[frame]) for frame in which])

    engine.load(poses[0])
    before = look(sample)
    for _ in range(ROUNDS):  # what has arrived last is not drawn at once
        before, earlier = look(sample), before
        if np.array_equal(before, earlier):
            images = look(np.arange(frames))
            if np.array_equal(before, images[sample]) and np.array_equal(before, look(sample)):
                return images, actions, poses
    raise EngineError(f"the world did not come to rest in {ROUNDS} looks at it")


def _find_place(engine: Engine, rng: np.random.Generator) -> tuple[tuple[int, int], NDArray[np.float64]]:
    """Return a place with enough ground to walk on, and the ground around it."""
    for _ in range(PLACES):
        x, z = (80 * int(chunk) for chunk in rng.integers(-SPREAD, SPREAD + 1, 2))
        ground_NN = engine.ground(x, z, RADIUS)
        arena_NN = _arena(ground_NN)
        if np.isfinite(arena_NN).any() and len(walk.reachable(arena_NN, _start(arena_NN))) >= LEAST_CELLS:
            return (x, z), ground_NN
    raise EngineError(f"none of {PLACES} places has ground to walk on")


def _arena(ground_NN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ground without what is too far from its middle: in a small arena a walk comes back often."""
    i, j = np.indices(ground_NN.shape) - RADIUS
    return np.where(np.hypot(i, j) <= ARENA, ground_NN, np.nan)


def _start(arena_NN: NDArray[np.float64]) -> walk.Cell:
    """Return the cell from which most cells can be reached; among equals, the one nearest to the middle."""
    cells = [(int(i), int(j)) for i, j in np.argwhere(np.isfinite(arena_NN))]
    cells.sort(key=lambda cell: (cell[0] - RADIUS) ** 2 + (cell[1] - RADIUS) ** 2)
    most: dict[walk.Cell, int] = {}
    seen: set[walk.Cell] = set()
    for cell in cells:
        if cell not in seen:
            seen |= (within := walk.reachable(arena_NN, cell)).keys()
            most[cell] = len(within)
    return max(most, key=lambda cell: most[cell])


def _draw_landmarks(rng: np.random.Generator, ground_NN: NDArray[np.float64]) -> dict[walk.Cell, list[str]]:
    """Draw cells and the colours of the pillars on them, upwards, so that a view tells where it is from."""
    landmarks: dict[walk.Cell, list[str]] = {}
    for i, j in rng.permutation(np.argwhere(np.isfinite(ground_NN))):
        if all(max(abs(i - a), abs(j - b)) >= APART for a, b in landmarks) and (i, j) != (RADIUS, RADIUS):
            height = int(rng.integers(2, 5))
            landmarks[int(i), int(j)] = [str(colour) for colour in rng.choice(COLOURS, height)]
        if len(landmarks) == LANDMARKS:
            break
    return landmarks
