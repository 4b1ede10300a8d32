"""Ray casting against slow marching and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rad_bench.data.raycast import FloatArray, bearings, meet_circle, meet_grid, meet_square


def random_rays(count: int, low: float, high: float) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(low, high, (2, count))
    angle = rng.uniform(-math.pi, math.pi, count)
    return x, y, np.cos(angle), np.sin(angle)


def test_bearings_run_from_left_to_right_and_span_the_field_of_view() -> None:
    found = bearings(1000, 70.0)
    assert (np.diff(found) < 0).all()
    assert np.degrees(found[0]) == pytest.approx(35, abs=0.1)
    np.testing.assert_allclose(found, -found[::-1], atol=1e-12)


def test_square_is_met_on_its_border_where_the_ray_points() -> None:
    x, y, dx, dy = random_rays(500, -0.95, 0.95)
    distance, wall, along = meet_square(x, y, dx, dy)
    end_x, end_y = x + distance * dx, y + distance * dy
    assert (distance > 0).all()
    np.testing.assert_allclose(np.maximum(abs(end_x), abs(end_y)), 1, atol=1e-9)
    normal = np.choose(wall, (end_x, end_y, -end_x, -end_y))
    across = np.choose(wall % 2, (end_y, end_x))
    np.testing.assert_allclose(normal, 1, atol=1e-9)
    np.testing.assert_allclose(along, across / 2 + 0.5, atol=1e-5)


def test_rays_along_the_axes_meet_the_walls_ahead() -> None:
    ones, zeros = np.array([1.0, 0.0, -1.0, 0.0]), np.array([0.0, 1.0, 0.0, -1.0])
    distance, wall, _ = meet_square(np.full(4, 0.25), np.full(4, 0.5), ones, zeros)
    assert wall.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(distance, [0.75, 0.5, 1.25, 1.5])


def test_circle_is_met_on_its_near_rim_or_missed() -> None:
    x, y, dx, dy = random_rays(2000, -2, 2)
    outside = np.hypot(x, y) > 0.5
    x, y, dx, dy = x[outside], y[outside], dx[outside], dy[outside]
    distance = meet_circle(x, y, dx, dy, 0.5)
    met = np.isfinite(distance)
    nearest = np.clip(-(x * dx + y * dy), 0, None)  # how far along the ray its point nearest to the centre lies
    np.testing.assert_array_equal(met, np.hypot(x + nearest * dx, y + nearest * dy) < 0.5)
    assert 0 < met.sum() < len(met)
    np.testing.assert_allclose(np.hypot((x + distance * dx)[met], (y + distance * dy)[met]), 0.5, atol=1e-9)
    assert (distance[met] <= nearest[met]).all()


def march(free: np.ndarray, x: float, y: float, dx: float, dy: float) -> tuple[float, tuple[int, int]]:
    """The slow truth: walk along the ray in tiny steps until a cell is not free."""
    distance = 0.0
    while True:
        column, row = math.floor(x + distance * dx), math.floor(y + distance * dy)
        if not (0 <= row < len(free) and 0 <= column < free.shape[1] and free[row, column]):
            return distance, (row, column)
        distance += 1e-3


def test_grid_agrees_with_marching_in_tiny_steps() -> None:
    rng = np.random.default_rng(1)
    free = rng.random((6, 8)) < 0.7
    rows, columns = np.nonzero(free)
    pick = rng.integers(len(rows), size=80)
    x, y = columns[pick] + rng.uniform(0.1, 0.9, 80), rows[pick] + rng.uniform(0.1, 0.9, 80)
    angle = rng.uniform(-math.pi, math.pi, 80)
    distance, cell, face, along = meet_grid(free, x, y, np.cos(angle), np.sin(angle))
    agree = 0
    for i in range(80):
        slow, (row, column) = march(free, x[i], y[i], math.cos(angle[i]), math.sin(angle[i]))
        assert distance[i] == pytest.approx(slow, abs=0.05)  # marching may cut a corner
        agree += cell[i] == (row + 1) * 10 + column + 1
    assert agree >= 78
    assert ((along >= 0) & (along < 1)).all() and set(face) == {0, 1, 2, 3}


def test_grid_names_the_face_that_looks_at_the_agent() -> None:
    free = np.zeros((3, 3), bool)
    free[1, 1] = True
    angles = np.arange(4) * math.pi / 2
    distance, cell, face, along = meet_grid(free, np.full(4, 1.25), np.full(4, 1.5), np.cos(angles), np.sin(angles))
    assert face.tolist() == [0, 1, 2, 3]  # looking along +x shows the face at -x of the cell beyond
    assert cell.tolist() == [2 * 5 + 3, 3 * 5 + 2, 2 * 5 + 1, 1 * 5 + 2]
    np.testing.assert_allclose(distance, [0.75, 0.5, 0.25, 0.5])
    np.testing.assert_allclose(along, [0.5, 0.25, 0.5, 0.25])


def test_a_ray_that_starts_in_a_wall_meets_nothing() -> None:
    free = np.array([[True, False]])
    _, cell, _, _ = meet_grid(free, np.array([0.5, 1.5]), np.array([0.5, 0.5]), np.ones(2), np.zeros(2))
    assert cell[0] >= 0 and cell[1] == -1
