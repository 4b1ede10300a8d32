"""The pictures on the blocks' faces, drawn from a seed, with coarser copies for faces that are far away."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from rad_bench.data.voxels import terrain as t

VERSION = 1  # of the textures; part of the data's identity
TEXELS = 16  # along a face
LEVELS = 5  # of detail: 16, 8, 4, 2 and 1 texels along a face
TOP, SIDE, BOTTOM = range(3)  # faces
COLOURS = {
    t.GRASS: (92, 158, 54), t.SAND: (222, 204, 140), t.SNOW: (238, 243, 248), t.STONE: (128, 128, 130),
    t.CLAY: (176, 96, 66), t.MOSS: (64, 104, 82), t.DIRT: (120, 84, 54), t.WATER: (44, 92, 200), t.LOG: (100, 76, 44),
    t.PLANK: (184, 144, 88), t.BRICK: (150, 66, 54), t.MARBLE: (206, 200, 214),
    **dict(zip(t.LEAVES, ((44, 110, 30), (214, 120, 30), (232, 150, 190)), strict=True)),
    **dict(zip(t.DYES, (
        (204, 36, 40), (36, 160, 50), (30, 60, 196), (244, 208, 44), (140, 50, 170), (244, 244, 244), (28, 28, 32),
        (240, 130, 30), (40, 190, 196), (236, 110, 180),
    ), strict=True)),
}  # fmt: skip
GRAIN = {**dict.fromkeys(t.LEAVES, 0.12), **dict.fromkeys(t.DYES, 0.02), t.WATER: 0.03, t.SNOW: 0.02}
SEED = 7


@functools.cache
def textures() -> NDArray[np.float32]:
    """Return the texels in 0..255, [LEVELS, BLOCKS, 3 (top, side, bottom), TEXELS, TEXELS, 3].

    On sides the last texel axis is up, so that a strip of grass lies on the top of dirt.
    """
    rng = np.random.default_rng(SEED)
    fine = np.zeros((t.BLOCKS, 3, TEXELS, TEXELS, 3))
    for block, colour in COLOURS.items():
        grain = 1 + GRAIN.get(block, 0.05) * rng.standard_normal((3, TEXELS, TEXELS, 1))
        fine[block] = np.array(colour) * grain
    rims = rng.integers(2, 6, (len(t.GROUNDS), TEXELS))
    for block, rim in zip(t.GROUNDS, rims, strict=True):
        if block in (t.GRASS, t.SNOW, t.MOSS):
            over = np.arange(TEXELS) >= TEXELS - rim[:, None]
            fine[block, SIDE] = np.where(over[..., None], fine[block, TOP], fine[t.DIRT, SIDE])
            fine[block, BOTTOM] = fine[t.DIRT, BOTTOM]
    ring = np.hypot(*np.mgrid[-7.5:8, -7.5:8])[..., None]
    fine[t.LOG, [TOP, BOTTOM]] = np.array((158, 122, 72)) * (0.85 + 0.15 * np.cos(2.2 * ring))
    fine[t.LOG, SIDE, ::4] *= 0.7
    fine[t.PLANK, :, :, ::4] *= 0.75
    fine[t.BRICK, :, :, ::4] *= 0.65
    fine[t.BRICK, :, ::8] *= 0.75
    for block in t.DYES:  # a darker frame, so that neighbouring faces can be told apart
        fine[block, :, [0, -1]] *= 0.8
        fine[block, :, :, [0, -1]] *= 0.8
    levels = [np.clip(fine, 0, 255)]
    for level in range(1, LEVELS):
        side = TEXELS >> level
        coarse = levels[0].reshape(t.BLOCKS, 3, side, 1 << level, side, 1 << level, 3).mean((3, 5))
        levels.append(coarse.repeat(1 << level, 2).repeat(1 << level, 3))
    return np.stack(levels).astype(np.float32)
