"""An explorer of uneven ground: it looks around, goes out, and comes back, so that its walks test a memory.

The explorer stands on the middle of a cell. In each frame it turns by 15 degrees, tilts its head by 15 degrees, or
steps to the one of the eight cells around it that it faces most nearly, at most one unit up or down. A walk begins with
a look around. After that it goes to one goal after another on shortest paths. Most goals were visited before, those
visited longer ago more likely, and at a goal it often looks around. The seed and the ground decide the walk, so that it
is the same in every engine.

World axes: cell (i, j) covers x in [i, i + 1] and y in [j, j + 1]. Lengths are in cells, angles in radians.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

VERSION = 1  # of the walks; part of the data's identity
NONE, LEFT, RIGHT, FORWARD, UP, DOWN = range(6)  # the actions; up and down tilt the head
ACTIONS = 6
HEADINGS = 24  # in a full turn
TURN = 2 * math.pi / HEADINGS
TILTS = (-2, 1)  # lowest and highest tilt of the head, in turns
CLIMB = 1.0  # highest step, up or down
EYE = 1.62  # height of the eye above the ground
RETURN_SHARE, LOOK_SHARE, TILT_SHARE = 0.6, 0.4, 0.5  # of goals: visited before, followed by a look around or a tilt
HALF_TURN_SHARE = 0.4  # of looks around
COMPASS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))  # steps, 45 degrees apart
Cell = tuple[int, int]
Ground = NDArray[np.floating]


def explore(
    rng: np.random.Generator, ground_NN: Ground, start: Cell, frames: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the actions [T] and the eye's poses [T, 5] (x, y, heading, height, pitch) of a walk of T frames.

    `ground_NN` has the height at which one stands in each cell, NaN where nobody can. Row t of the actions led to
    frame t; the first is 0.
    """
    walk = _Walk(rng, ground_NN, start, frames)
    walk.look_around()
    while not walk.done:
        goal = walk.choose_goal()
        if rng.random() < TILT_SHARE:
            walk.tilt_to(int(rng.integers(TILTS[0], TILTS[1] + 1)))
        walk.go_to(goal)
        if goal == walk.start or rng.random() < LOOK_SHARE:
            walk.look_around()
    return np.array(walk.actions[:frames]), np.array(walk.poses[:frames])


def step(ground_NN: Ground, pose_5: NDArray[np.floating], action: int) -> NDArray[np.float64] | None:
    """Return the pose [5] after an action; None if the ground or the neck does not allow it."""
    heading, tilt = round(float(pose_5[2]) / TURN), round(float(pose_5[4]) / TURN)
    cell: Cell = (math.floor(pose_5[0]), math.floor(pose_5[1]))
    if action == FORWARD:
        ahead = COMPASS[round(heading * len(COMPASS) / HEADINGS) % len(COMPASS)]
        if not _can_step(ground_NN, cell, ahead):
            return None
        cell = (cell[0] + ahead[0], cell[1] + ahead[1])
    heading += {LEFT: 1, RIGHT: -1}.get(action, 0)
    tilt += {UP: 1, DOWN: -1}.get(action, 0)
    return _pose(ground_NN, cell, heading, tilt) if TILTS[0] <= tilt <= TILTS[1] else None


def reachable(ground_NN: Ground, start: Cell) -> dict[Cell, int]:
    """Return the cells that can be reached, with the number of steps."""
    steps, queue = {start: 0}, deque([start])
    while queue:
        cell = queue.popleft()
        for ahead in COMPASS:
            beyond = (cell[0] + ahead[0], cell[1] + ahead[1])
            if beyond not in steps and _can_step(ground_NN, cell, ahead):
                steps[beyond] = steps[cell] + 1
                queue.append(beyond)
    return steps


class _Walk:
    """A walk as far as it has been decided."""

    def __init__(self, rng: np.random.Generator, ground: Ground, start: Cell, frames: int) -> None:
        self.rng, self.ground, self.start, self.frames = rng, ground, start, frames
        self.actions = [NONE]
        self.poses = [_pose(ground, start, int(rng.integers(HEADINGS)), int(rng.integers(-1, 1)))]
        self.visited = {start: 0}  # cell -> frame of the last visit
        self.within = sorted(reachable(ground, start))

    @property
    def done(self) -> bool:
        return len(self.actions) >= self.frames

    def look_around(self) -> None:
        turn = int(self.rng.choice((LEFT, RIGHT)))
        for _ in range(HEADINGS // 2 if self.rng.random() < HALF_TURN_SHARE else HEADINGS):
            self._act(turn)

    def tilt_to(self, tilt: int) -> None:
        for _ in range(abs(tilt - self.tilt)):
            self._act(UP if tilt > self.tilt else DOWN)

    def choose_goal(self) -> Cell:
        others = [cell for cell in self.within if cell != self.cell]
        old = [cell for cell in others if cell in self.visited]
        new = [cell for cell in others if cell not in self.visited]
        if old and (not new or self.rng.random() < RETURN_SHARE):
            age = np.array([len(self.actions) - self.visited[cell] for cell in old], float)
            return old[int(self.rng.choice(len(old), p=age / age.sum()))]
        return new[int(self.rng.integers(len(new)))] if new else self.cell

    def go_to(self, goal: Cell) -> None:
        """Turn and step along a shortest path; among equal ones, the one with the least turning at each step."""
        steps = reachable(self.ground, goal)
        while self.cell != goal and not self.done:
            closer = [
                n for n, (i, j) in enumerate(COMPASS)
                if steps.get((self.cell[0] + i, self.cell[1] + j), len(steps)) < steps[self.cell]
                and _can_step(self.ground, self.cell, (i, j))
            ]  # fmt: skip
            turns = [_turns(self.heading, n * HEADINGS // len(COMPASS)) for n in closer]
            turn = min(turns, key=abs)
            for _ in range(abs(turn) - 1):  # the last turn is not needed to face the cell
                self._act(LEFT if turn > 0 else RIGHT)
            self._act(FORWARD)
            self.visited[self.cell] = len(self.actions)

    @property
    def cell(self) -> Cell:
        return math.floor(self.poses[-1][0]), math.floor(self.poses[-1][1])

    @property
    def heading(self) -> int:
        return round(self.poses[-1][2] / TURN)

    @property
    def tilt(self) -> int:
        return round(self.poses[-1][4] / TURN)

    def _act(self, action: int) -> None:
        pose = step(self.ground, self.poses[-1], action)
        assert pose is not None
        self.actions.append(action)
        self.poses.append(pose)


def _pose(ground: Ground, cell: Cell, heading: int, tilt: int) -> NDArray[np.float64]:
    return np.array([cell[0] + 0.5, cell[1] + 0.5, heading * TURN, ground[cell] + EYE, tilt * TURN])


def _turns(heading: int, wanted: int) -> int:
    """Return the shortest turn to a heading, in headings; positive: to the left."""
    return (wanted - heading + HEADINGS // 2) % HEADINGS - HEADINGS // 2


def _can_step(ground: Ground, cell: Cell, ahead: Cell) -> bool:
    """Return whether the ground allows the step; a diagonal one needs both cells beside it."""
    i, j = cell
    cells = {(i + ahead[0], j + ahead[1]), (i + ahead[0], j), (i, j + ahead[1])} - {cell}
    rows, columns = ground.shape
    return all(
        0 <= a < rows and 0 <= b < columns and abs(float(ground[a, b]) - float(ground[cell])) <= CLIMB for a, b in cells
    )
