"""Cast rays through a grid of blocks, and colour what they meet.

The traversal is Amanatides and Woo's: a ray goes from one border of cells to the next. All rays of some frames move
together, in float32, and those that have ended are removed. Each ray is computed on its own, so that a view has the
same bits whatever is drawn beside it.

Letters: N rays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rad_bench.data.voxels.terrain import AIR, OUT, SIZE, TALL, Blocks
from rad_bench.data.voxels.textures import BOTTOM, LEVELS, SIDE, TEXELS, TOP, textures

VERSION = 1  # of the drawing; part of the data's identity
RAYS_AT_ONCE = 1 << 15  # as many as the processor's cache can hold
SHAPE = (SIZE, SIZE, TALL)
STRIDES = (SIZE * TALL, TALL, 1)
FACE_SHADE = np.array([0.82, 0.74, 0.9, 0.66, 0.5, 1.0], np.float32)  # by face: -x, +x, -y, +y, -z (bottom), +z (top)
FACE_KIND = np.array([SIDE, SIDE, SIDE, SIDE, BOTTOM, TOP])
CLEAR, FAR = 7.0, 19.0  # distances at which haze begins, and at which nothing else is left
HORIZON, ZENITH, ABYSS = (206, 224, 240), (92, 150, 226), (150, 176, 204)  # colours of the sky
TINY = np.float32(1e-9)
_TEXELS = textures()
_FLAT = [np.ascontiguousarray(_TEXELS[..., channel].ravel()) for channel in range(3)]
_LEVEL_ENDS = np.array([1 / TEXELS * 2**level for level in range(LEVELS - 1)], np.float32)  # a pixel's side, blocks
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Hits:
    """What N rays meet."""

    block: NDArray[np.uint8]  # [N] kind of block; OUT where a ray leaves the world
    cell: Ints  # [N] number of the block in its world
    face: NDArray[np.int8]  # [N] by which the ray enters it
    distance: Floats  # [N]


def directions(poses_T5: NDArray[np.floating], rows: int, columns: int, fov: float) -> Floats:
    """Return the unit vectors of a view's rays, top left first, [T, rows, columns, 3]; `fov` is across, in degrees."""
    spread = math.tan(math.radians(fov) / 2)
    left = (-((np.arange(columns) + 0.5) / columns * 2 - 1) * spread)[None, None]
    up = (-((np.arange(rows) + 0.5) / rows * 2 - 1) * spread)[None, :, None]
    angles = np.ascontiguousarray(poses_T5[:, [2, 4]].T)[..., None, None]
    (cos_h, cos_p), (sin_h, sin_p) = np.cos(angles), np.sin(angles)
    ahead, rise = cos_p - up * sin_p, sin_p + up * cos_p
    length = np.sqrt(1 + left * left + up * up)
    rays = np.empty((len(poses_T5), rows, columns, 3), np.float32)
    rays[..., 0] = (ahead * cos_h - left * sin_h) / length
    rays[..., 1] = (ahead * sin_h + left * cos_h) / length
    rays[..., 2] = rise / length
    return rays


def meet_blocks(blocks: Blocks, first: Ints, start_N3: Floats, ray_N3: Floats) -> Hits:
    """Cast rays from free places; ray n runs in the world whose blocks begin at `blocks.ravel()[first[n]]`."""
    flat, N = blocks.ravel(), len(start_N3)
    hits = Hits(np.empty(N, np.uint8), np.empty(N, np.int32), np.empty(N, np.int8), np.empty(N, np.float32))
    at = first.copy()
    strides, apart, to = [], [], []  # by axis: to the next block, distance between borders, and to the next border
    for axis, stride in enumerate(STRIDES):
        start, ray = np.ascontiguousarray(start_N3[:, axis]), np.ascontiguousarray(ray_N3[:, axis])
        cell = np.floor(start)
        at += cell.astype(np.int32) * np.int32(stride)
        strides.append(np.where(ray > 0, stride, -stride).astype(np.int32))
        apart.append(1 / np.maximum(np.abs(ray), TINY))
        to.append(np.where(ray > 0, cell + 1 - start, start - cell) * apart[-1])
    (sx, sy, sz), (ax, ay, az), (tx, ty, tz) = strides, apart, to
    number = np.arange(N)
    while len(number):
        x_first = tx <= ty
        distance = np.where(x_first, tx, ty)
        by_z = tz < distance
        by_x, by_y = x_first & ~by_z, ~(x_first | by_z)
        distance = np.where(by_z, tz, distance)
        at += np.where(by_z, sz, np.where(by_x, sx, sy))
        block = flat.take(at)
        ended = np.flatnonzero(block)
        if len(ended):
            done = number[ended]
            hits.block[done], hits.cell[done], hits.distance[done] = block[ended], at[ended], distance[ended]
            up, across = by_z[ended], by_x[ended]
            forth = np.where(up, sz[ended], np.where(across, sx[ended], sy[ended])) > 0
            hits.face[done] = np.where(up, 5, np.where(across, 1, 3)) - forth
        tx += ax * by_x
        ty += ay * by_y
        tz += az * by_z
        if len(ended):
            moving = np.flatnonzero(block == AIR)
            number, at = number[moving], at[moving]
            sx, sy, sz = sx[moving], sy[moving], sz[moving]
            ax, ay, az = ax[moving], ay[moving], az[moving]
            tx, ty, tz = tx[moving], ty[moving], tz[moving]
    np.subtract(hits.cell, first, out=hits.cell)
    return hits


def look(blocks: Blocks, world_T: Ints, poses_T5: NDArray[np.floating], size: int, fov: float) -> NDArray[np.uint8]:
    """Return views of worlds `blocks` [B, ...]; frame t is in world `world_T[t]`. [T, 3, size, size]"""
    frames = np.empty((len(poses_T5), 3, size, size), np.uint8)
    each = max(1, RAYS_AT_ONCE // size**2)
    for begin in range(0, len(poses_T5), each):
        part = slice(begin, begin + each)
        ray, start, hits = _cast(blocks, world_T[part], poses_T5[part], (size, size), fov)
        for channel, image in enumerate(_colours(start, ray, hits, 2 * math.tan(math.radians(fov) / 2) / size)):
            frames[part, channel] = image.reshape(-1, size, size)
    return frames


def faces(blocks: Blocks, poses_T5: NDArray[np.floating], grid: tuple[int, int], fov: float) -> NDArray[np.int64]:
    """Return which face each of a grid of rays of one world meets, -1 for the sky and what haze hides. [T, R]"""
    _, _, hits = _cast(blocks[None], np.zeros(len(poses_T5), np.int32), poses_T5, grid, fov)
    face = np.where((hits.block == OUT) | (hits.distance >= FAR), -1, hits.cell.astype(np.int64) * 6 + hits.face)
    return face.reshape(len(poses_T5), -1)


def _cast(
    blocks: Blocks, world_T: Ints, poses_T5: NDArray[np.floating], grid: tuple[int, int], fov: float
) -> tuple[Floats, Floats, Hits]:
    ray = directions(poses_T5, *grid, fov).reshape(-1, 3)
    rays = grid[0] * grid[1]
    start = np.repeat(poses_T5[:, [0, 1, 3]].astype(np.float32), rays, 0)
    first = np.repeat(world_T.astype(np.int32) * np.int32(blocks[0].size), rays)
    return ray, start, meet_blocks(blocks, first, start, ray)


def _colours(start: Floats, ray: Floats, hits: Hits, pixel: float) -> list[NDArray[np.uint8]]:
    """Return red, green and blue of each ray, [N] each; `pixel` is a pixel's side at a distance of one block."""
    at = [start[:, axis] + ray[:, axis] * hits.distance for axis in range(3)]
    u, v, w = ((a - np.floor(a)) * TEXELS for a in at)
    axis = hits.face >> 1
    across, along = np.where(axis == 0, v, u), np.where(axis == 2, v, w)
    across, along = (np.minimum(a.astype(np.int32), TEXELS - 1) for a in (across, along))
    level = np.searchsorted(_LEVEL_ENDS / np.float32(pixel), hits.distance).astype(np.int32)
    texel = ((level * _TEXELS.shape[1] + hits.block) * 3 + FACE_KIND[hits.face]) * TEXELS**2 + across * TEXELS + along
    haze = np.clip((hits.distance - np.float32(CLEAR)) * np.float32(1 / (FAR - CLEAR)), 0, 1)
    haze = np.where(hits.block == OUT, np.float32(1), haze)
    light = FACE_SHADE[hits.face] * (1 - haze)
    rise = ray[:, 2]
    above, below = np.clip(rise * np.float32(1.6), 0, 1), np.clip(rise * np.float32(-3), 0, 1)
    images = []
    for channel in range(3):
        sky = HORIZON[channel] + above * np.float32(ZENITH[channel] - HORIZON[channel])
        sky += below * np.float32(ABYSS[channel] - HORIZON[channel])
        colour = _FLAT[channel].take(texel) * light + sky * haze
        images.append((colour + np.float32(0.5)).astype(np.uint8))
    return images
