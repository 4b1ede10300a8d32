"""Terrain of blocks: hills, water, patches of ground, trees, huts, and coloured landmarks around the arena of a walk.

A world is a small array of blocks [x, y, z], z up, with a border of `OUT` on all sides, where rays end. The walker
stays in the arena, a disc around the middle; what lies farther is only seen. There are many landmarks, because open
grass looks the same from everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rad_bench.data.voxels.walk import Cell, reachable

VERSION = 1  # of the terrain; part of the data's identity
SIZE, TALL = 34, 18  # blocks along x and y, and along z, with the border
ARENA = 4.1  # radius of the arena, blocks
LEAST_CELLS = 25  # of the arena's 57 that can be reached
SEA = 4  # the water's surface
AIR, OUT = 0, 1
GROUNDS = GRASS, SAND, SNOW, STONE, CLAY, MOSS = range(2, 8)
DIRT, WATER, LOG, PLANK, BRICK, MARBLE = range(8, 14)
LEAVES = range(14, 17)
DYES = range(17, 27)  # blocks of one bright colour
BLOCKS = 27
HILLS = 1.6  # deviation of the height, blocks
CLEARING, SPREAD = 2.5, 7.0  # things stand at least so far from the middle, and about so much farther
TREES, HUTS, PILLARS, RUGS = 10, 4, 26, 14  # tries; those that hit water, each other or the edge fail
Blocks = NDArray[np.uint8]


@dataclass(frozen=True)
class World:
    """One world, and where one can walk in it."""

    blocks: Blocks  # [SIZE, SIZE, TALL]
    ground: NDArray[np.float64]  # [SIZE, SIZE] height at which one stands in the arena; NaN: nobody can
    start: Cell


def make_world(rng: np.random.Generator) -> World:
    """Draw worlds until one has an arena that is wide enough."""
    while True:
        blocks, ground = _draw(rng)
        cells = np.argwhere(~np.isnan(ground))
        if not len(cells):
            continue
        middle = np.abs(cells - SIZE // 2).sum(1).argmin()
        start = (int(cells[middle][0]), int(cells[middle][1]))
        within = reachable(ground, start)
        if len(within) >= LEAST_CELLS:
            return World(blocks, ground, start)


def _draw(rng: np.random.Generator) -> tuple[Blocks, NDArray[np.float64]]:
    height = np.clip(np.round(SEA + 1.6 + HILLS * _noise(rng, (3, 6))), 2, 9).astype(int)
    blocks = _layers(rng, height)
    for _ in range(RUGS):  # patches of coloured ground
        i, j = _place(rng)
        colour = _one_of(rng, DYES)
        for a, b in ((i, j), (i + 1, j), (i, j + 1), (i + 1, j + 1)):
            if height[a, b] > SEA:
                blocks[a, b, height[a, b] - 1] = colour
    for _ in range(HUTS):
        _hut(rng, blocks, height)
    for _ in range(TREES):
        _tree(rng, blocks, height)
    for _ in range(PILLARS):
        _pillar(rng, blocks, height)
    for edge in (0, -1):
        blocks[edge], blocks[:, edge], blocks[:, :, edge] = OUT, OUT, OUT
    return blocks, _standing(blocks, height)


def _layers(rng: np.random.Generator, height: NDArray[np.int64]) -> Blocks:
    """Return ground of several kinds, over dirt and stone, and water up to the sea's level."""
    kind = np.stack([_noise(rng, (5,)) for _ in GROUNDS]).argmax(0)
    top = np.array(GROUNDS)[kind][:, :, None]
    top = np.where(height[:, :, None] <= SEA, SAND, top)
    z, h = np.arange(TALL), height[:, :, None]
    under = np.where(z < h - 2, STONE, DIRT)
    blocks = np.where(z < h - 1, under, np.where(z < h, top, np.where(z < SEA, WATER, AIR)))
    return blocks.astype(np.uint8)


def _noise(rng: np.random.Generator, cells: tuple[int, ...]) -> NDArray[np.float64]:
    """Return smooth noise [SIZE, SIZE], a sum of octaves with so many cells a side; the first has deviation 1."""
    total = np.zeros((SIZE, SIZE))
    for octave, n in enumerate(cells):
        at = np.linspace(0, n, SIZE, endpoint=False)
        index, share = at.astype(int), at % 1
        weights = np.zeros((SIZE, n + 1))
        weights[np.arange(SIZE), index] = 1 - share
        weights[np.arange(SIZE), index + 1] = share
        total += weights @ rng.standard_normal((n + 1, n + 1)) @ weights.T / 2**octave
    return total


def _place(rng: np.random.Generator) -> Cell:
    """Return a place off the middle; the farther, the less likely."""
    angle, distance = rng.uniform(0, 2 * math.pi), CLEARING + SPREAD * abs(rng.standard_normal())
    i, j = SIZE / 2 + distance * math.cos(angle), SIZE / 2 + distance * math.sin(angle)
    return min(max(round(i), 2), SIZE - 4), min(max(round(j), 2), SIZE - 4)


def _one_of(rng: np.random.Generator, blocks: Sequence[int]) -> int:
    return blocks[int(rng.integers(len(blocks)))]


def _is_free(blocks: Blocks, height: NDArray[np.int64], i: int, j: int) -> bool:
    h = height[i, j]
    return bool(h > SEA and blocks[i, j, h] == AIR)


def _tree(rng: np.random.Generator, blocks: Blocks, height: NDArray[np.int64]) -> None:
    (i, j), trunk, leaves = _place(rng), int(rng.integers(3, 6)), _one_of(rng, LEAVES)
    if not _is_free(blocks, height, i, j):
        return
    top = height[i, j] + trunk
    for radius, low, high in ((1, top - 1, top + 1), (0, top + 1, top + 2)):
        crown = blocks[i - radius : i + radius + 1, j - radius : j + radius + 1, low:high]
        crown[crown == AIR] = leaves
    blocks[i, j, height[i, j] : top] = LOG


def _pillar(rng: np.random.Generator, blocks: Blocks, height: NDArray[np.int64]) -> None:
    """A landmark: one to four blocks of one colour, often with a head of another."""
    (i, j), tall = _place(rng), int(rng.integers(1, 5))
    colour, head = _one_of(rng, DYES), _one_of(rng, DYES)
    if not _is_free(blocks, height, i, j):
        return
    h = height[i, j]
    blocks[i, j, h : h + tall] = colour
    if rng.random() < 0.5:
        blocks[i, j, h + tall - 1] = head


def _hut(rng: np.random.Generator, blocks: Blocks, height: NDArray[np.int64]) -> None:
    """A hut with a door to the middle of the world, a roof, and ground that is made level below it."""
    (i, j), (wide, deep) = _place(rng), (int(n) for n in rng.integers(4, 6, 2))
    wall, roof = _one_of(rng, (PLANK, BRICK, MARBLE, *DYES)), _one_of(rng, DYES)
    i, j = min(i, SIZE - 2 - wide), min(j, SIZE - 2 - deep)
    ground = height[i : i + wide, j : j + deep]
    floor = int(np.median(ground))
    if floor <= SEA or abs(i + wide / 2 - SIZE / 2) + abs(j + deep / 2 - SIZE / 2) < 5:
        return
    height[i : i + wide, j : j + deep] = floor
    box = blocks[i : i + wide, j : j + deep]
    box[:, :, :floor], box[:, :, floor:] = DIRT, AIR
    box[:, :, floor - 1] = PLANK
    box[:, :, floor : floor + 3], box[1:-1, 1:-1, floor : floor + 3] = wall, AIR
    box[:, :, floor + 3] = roof
    if abs(i + wide / 2 - SIZE / 2) > abs(j + deep / 2 - SIZE / 2):
        box[0 if i > SIZE / 2 else -1, deep // 2, floor : floor + 2] = AIR
    else:
        box[wide // 2, 0 if j > SIZE / 2 else -1, floor : floor + 2] = AIR


def _standing(blocks: Blocks, height: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return where one can stand in the arena: on ground above the water, with two blocks of air."""
    i, j = np.indices(height.shape)
    free = (blocks[i, j, height] == AIR) & (blocks[i, j, height + 1] == AIR) & (height > SEA)
    near = np.hypot(i - SIZE // 2, j - SIZE // 2) <= ARENA
    return np.where(free & near, height, np.nan)
