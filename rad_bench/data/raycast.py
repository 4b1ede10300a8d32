"""Ray casting in a square room, at a cylinder, and in a grid of walls. Plain vectorised geometry.

Rays start at (x, y) and run along unit vectors (dx, dy); all arguments broadcast against each other. World axes: x to
the right, y up, angles counter-clockwise. Distances are in the world's unit of length.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.int64]

TINY = 1e-12  # replaces a component of exactly 0, so that a parallel wall is very far away


def bearings(columns: int, fov: float) -> FloatArray:
    """Return the angles in radians, left (positive) to right, of image column centres. `fov` in degrees. [columns]"""
    centre = (np.arange(columns) + 0.5) / columns * 2 - 1
    return -np.arctan(centre * math.tan(math.radians(fov) / 2))


def meet_square(
    x: FloatArray, y: FloatArray, dx: FloatArray, dy: FloatArray
) -> tuple[FloatArray, IntArray, FloatArray]:
    """Cast rays from inside the room [-1, 1] x [-1, 1].

    Returns the distance, the wall (0 at +x, 1 at +y, 2 at -x, 3 at -y) and the position along it in [0, 1).
    """
    to_x = (np.copysign(1, dx) - x) / np.where(dx == 0, TINY, dx)
    to_y = (np.copysign(1, dy) - y) / np.where(dy == 0, TINY, dy)
    to_x, to_y = np.abs(to_x), np.abs(to_y)
    meets_x = to_x < to_y
    distance = np.where(meets_x, to_x, to_y)
    wall = np.where(meets_x, np.where(dx > 0, 0, 2), np.where(dy > 0, 1, 3))
    across = np.where(meets_x, y + distance * dy, x + distance * dx)
    return distance, wall, np.clip(across * 0.5 + 0.5, 0, 1 - 1e-6)


def meet_circle(x: FloatArray, y: FloatArray, dx: FloatArray, dy: FloatArray, radius: float) -> FloatArray:
    """Return the distance from (x, y), given relative to the circle's centre, to its rim; inf if the ray misses it."""
    middle = x * dx + y * dy
    inside = middle**2 - (x**2 + y**2 - radius**2)
    distance = -middle - np.sqrt(np.maximum(inside, 0))
    return np.where((inside > 0) & (distance > 0), distance, np.inf)


def meet_grid(
    free: NDArray[np.bool_], x: FloatArray, y: FloatArray, dx: FloatArray, dy: FloatArray
) -> tuple[FloatArray, IntArray, IntArray, FloatArray]:
    """Cast rays through a grid of square cells of side 1, `free[int(y), int(x)]`; outside the grid everything is wall.

    Returns the distance, the number of the wall cell met (row by row in a grid with a border of one cell; -1 where
    the ray starts in a wall), the face of that cell (0 at -x, 1 at -y, 2 at +x, 3 at +y) and the position along that
    face in [0, 1). This is Amanatides and Woo's traversal, in which all rays move from border to border together.
    """
    x, y, dx, dy = (np.asarray(a, float) for a in np.broadcast_arrays(x, y, dx, dy))
    open_ = np.pad(free, 1)
    height, width = open_.shape
    column = np.clip(np.floor(x).astype(np.int64) + 1, 0, width - 1)
    row = np.clip(np.floor(y).astype(np.int64) + 1, 0, height - 1)
    in_wall = ~open_[row, column]
    step_x, step_y = np.where(dx > 0, 1, -1), np.where(dy > 0, 1, -1)
    per_x, per_y = 1 / np.maximum(np.abs(dx), TINY), 1 / np.maximum(np.abs(dy), TINY)
    to_x = np.where(dx > 0, column - x, x - column + 1) * per_x  # the column's borders are at column - 1 and column
    to_y = np.where(dy > 0, row - y, y - row + 1) * per_y
    distance, sideways = np.zeros_like(x), np.zeros(x.shape, bool)
    moving = ~in_wall
    while moving.any():
        cross_x = to_x < to_y
        distance = np.where(moving, np.where(cross_x, to_x, to_y), distance)
        sideways = np.where(moving, cross_x, sideways)
        column = column + np.where(moving & cross_x, step_x, 0)
        row = row + np.where(moving & ~cross_x, step_y, 0)
        to_x, to_y = to_x + cross_x * per_x, to_y + ~cross_x * per_y
        moving &= open_[row, column]
    face = np.where(sideways, np.where(dx > 0, 0, 2), np.where(dy > 0, 1, 3))
    across = np.where(sideways, y + distance * dy, x + distance * dx)
    cell = np.where(in_wall, -1, row * width + column)
    return distance, cell, face, across - np.floor(across)
