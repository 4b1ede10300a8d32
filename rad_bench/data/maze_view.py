"""What the camera of Memory Maze sees: which walls its rays meet, and which cells they cross.

The field of view is 80 degrees, and the eye is 0.075 cells ahead of agent_pos. These are the numbers of dm_control's
walker (fovy 80, 0.15 ahead, two units a cell). They were also measured: over 2,000 frames, the correlation of edges in
the images with wall edges cast from the poses has its peak there (0.62; at 78 or 82 degrees 0.45 or less).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rad_bench.data.raycast import IntArray, bearings, meet_grid

FOV, EYE_AHEAD = 80.0, 0.075
RAYS = 32  # across a view, to find the surfaces it shows
SEGMENTS = 4  # surfaces along one face of a cell
AROUND = 5  # points on a side of the square around the agent that is a probe target
STRIDE = 0.1  # cells between points along a ray, to find the cells it crosses


def maze_surfaces(free: NDArray[np.bool_], poses: NDArray[np.float64]) -> IntArray:
    """Return the surface (segment of a face of a wall cell) that each ray of each view meets, [T, RAYS]."""
    _, cell, face, along = meet_grid(free, *_rays(poses))
    segment = np.minimum((along * SEGMENTS).astype(np.int64), SEGMENTS - 1)
    return np.where(cell < 0, -1, (cell * 4 + face) * SEGMENTS + segment)


def maze_around(free: NDArray[np.bool_], poses: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which points around the last pose are free, and which any of the views has shown, both [AROUND^2].

    The points are one cell apart, along the pose's heading, with the agent in the middle. Outside the map, no point
    is free, and only the cells that touch the map can be shown.
    """
    x, y, heading = poses[-1]
    offsets = np.arange(AROUND) - AROUND // 2
    ahead, left = (offset.ravel() for offset in np.meshgrid(offsets, offsets, indexing="ij"))
    column = _cell(x + ahead * np.cos(heading) - left * np.sin(heading), free.shape[1])
    row = _cell(y + ahead * np.sin(heading) + left * np.cos(heading), free.shape[0])
    return np.pad(free, 2)[row, column], maze_shown(free, poses)[row, column]


def maze_shown(free: NDArray[np.bool_], poses: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which cells the rays of any view cross or meet, on the grid with a border of two cells."""
    x, y, dx, dy = _rays(poses)
    distance, cell, _, _ = meet_grid(free, x, y, dx, dy)
    met = np.zeros((free.shape[0] + 2, free.shape[1] + 2), bool)  # `meet_grid` numbers cells on a grid with a border
    met.flat[cell[cell >= 0]] = True
    shown = np.pad(met, 1)
    for along in np.arange(0, distance.max(), STRIDE):
        crossing = along < distance
        row, column = _cell(y + along * dy, free.shape[0]), _cell(x + along * dx, free.shape[1])
        shown[row[crossing], column[crossing]] = True
    return shown


def _rays(poses: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return the rays of each view: their origins x, y [T, 1] and directions dx, dy [T, RAYS]."""
    x, y, heading = poses.T[..., None]
    angle = heading + bearings(RAYS, FOV)
    return x + EYE_AHEAD * np.cos(heading), y + EYE_AHEAD * np.sin(heading), np.cos(angle), np.sin(angle)


def _cell(place: NDArray[np.float64], size: int) -> IntArray:
    """Return cell indices on an axis with a border of two cells; the outer cell stands for all that is beyond."""
    return np.clip(np.floor(place).astype(np.int64) + 2, 0, size + 3)
