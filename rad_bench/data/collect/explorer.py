"""A policy that explores a maze and returns to places visited long ago, so that its episodes test a memory.

It follows shortest paths over free cells. Half of the goals are visited cells; cells visited longer ago are more
likely. At a goal the agent sometimes looks around. One action in ten is random.

Actions: 0 none, 1 forward, 2 left, 3 right, 4 forward and left, 5 forward and right. A turn is about 17 degrees.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

VERSION = 1
NONE, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(6)
RETURN_SHARE, LOOK_SHARE, RANDOM_SHARE = 0.5, 0.25, 0.1
LOOK = 21  # turns of a look around
ARRIVED = 0.35  # cells
PATIENCE, PROGRESS = 14, 0.25  # the agent must move this many cells in so many steps
Cell = tuple[int, int]  # row (y), column (x)


class Explorer:
    """A policy for one maze: a function of its layout, the random generator, and the agent's poses."""

    def __init__(self, layout: NDArray[np.bool_], rng: np.random.Generator) -> None:
        self.layout, self.rng = layout, rng
        self.visited: dict[Cell, int] = {}  # cell -> time of the last visit
        self._time = 0
        self._path: deque[Cell] = deque()
        self._plan: deque[int] = deque()  # the next actions, already chosen
        self._recent: deque[tuple[float, float]] = deque(maxlen=PATIENCE)

    def act(self, place: NDArray[np.float64], direction: NDArray[np.float64]) -> int:
        """Return the next action at a place (x, y in cells) and a viewing direction (unit vector)."""
        x, y = float(place[0]), float(place[1])
        here = self._cell(x, y)
        self._time += 1
        self.visited[here] = self._time
        if self._plan:
            return self._plan.popleft()
        if self.rng.random() < RANDOM_SHARE:
            return int(self.rng.integers(1, 6))
        self._recent.append((x, y))
        if len(self._recent) == PATIENCE and math.dist(self._recent[0], (x, y)) < PROGRESS:
            self._escape()
        while self._path and math.dist(self._centre(self._path[0]), (x, y)) < ARRIVED:
            self._path.popleft()
            if not self._path and self.rng.random() < LOOK_SHARE:
                self._recent.clear()
                self._plan.extend([int(self.rng.choice([LEFT, RIGHT]))] * LOOK)
                return self._plan.popleft()
        if not self._path:
            self._path = deque(self._shortest_path(here, self._goal(here)))
        if not self._path:  # a maze of a single cell
            return LEFT
        return self._steer(x, y, direction)

    def _steer(self, x: float, y: float, direction: NDArray[np.float64]) -> int:
        to_x, to_y = self._centre(self._path[0])
        wanted = math.atan2(to_y - y, to_x - x) - math.atan2(float(direction[1]), float(direction[0]))
        off = math.degrees((wanted + math.pi) % (2 * math.pi) - math.pi)  # positive: to the left
        if abs(off) > 40:
            return LEFT if off > 0 else RIGHT
        if abs(off) > 9:
            return FORWARD_LEFT if off > 0 else FORWARD_RIGHT
        return FORWARD

    def _escape(self) -> None:
        """Give up a blocked path: turn away, and choose another goal."""
        self._recent.clear()
        self._path.clear()
        turn = int(self.rng.choice([LEFT, RIGHT]))
        self._plan.extend([turn] * int(self.rng.integers(3, 9)) + [FORWARD] * 3)

    def _goal(self, here: Cell) -> Cell:
        distance = self._distances(here)
        far = [cell for cell, steps in distance.items() if steps >= 3] or [cell for cell in distance if cell != here]
        if not far:
            return here
        old = [cell for cell in far if cell in self.visited]
        new = [cell for cell in far if cell not in self.visited]
        if old and (not new or self.rng.random() < RETURN_SHARE):
            age = np.array([self._time - self.visited[cell] for cell in old], float)
            return old[int(self.rng.choice(len(old), p=age / age.sum()))]
        return new[int(self.rng.integers(len(new)))]

    def _distances(self, start: Cell) -> dict[Cell, int]:
        distance, queue = {start: 0}, deque([start])
        while queue:
            row, column = queue.popleft()
            for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if cell not in distance and self._is_free(cell):
                    distance[cell] = distance[row, column] + 1
                    queue.append(cell)
        return distance

    def _shortest_path(self, start: Cell, goal: Cell) -> list[Cell]:
        """Return the cells of a shortest path from `start`, which is left out, to `goal`."""
        distance = self._distances(goal)
        path, cell = [], start
        while cell != goal and cell in distance:
            row, column = cell
            around = ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1))
            cell = min((c for c in around if c in distance), key=lambda c: distance[c])
            path.append(cell)
        return path

    def _is_free(self, cell: Cell) -> bool:
        rows, columns = self.layout.shape
        return 0 <= cell[0] < rows and 0 <= cell[1] < columns and bool(self.layout[cell])

    def _cell(self, x: float, y: float) -> Cell:
        rows, columns = self.layout.shape
        return min(max(int(y), 0), rows - 1), min(max(int(x), 0), columns - 1)

    @staticmethod
    def _centre(cell: Cell) -> tuple[float, float]:
        return cell[1] + 0.5, cell[0] + 0.5
