"""The places that a user can walk in: what arrow keys do there, and what a pose shows.

A step is one that occurs in the training data: in the embedded world an action of its generator, in a maze the typical
motion of the recorded action of that name. There is no step back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rad_bench.config import RunConfig
from rad_bench.data import Dataset, rooms
from rad_bench.data.collect.mazes import explorer
from rad_bench.data.encoded import Encoded
from rad_bench.data.episodes import egomotion_from_poses
from rad_bench.data.maze_view import FOV, maze_surfaces
from rad_bench.data.memory_maze import MemoryMazeFiles
from rad_bench.data.recordings import Recordings
from rad_bench.data.rooms import Room, Rooms
from rad_bench.data.voxels import dataset as voxels
from rad_bench.data.voxels import terrain, walk
from rad_bench.data.voxels.dataset import Voxels
from rad_bench.errors import UserError

LEFT, RIGHT, FORWARD, LOOK_UP, LOOK_DOWN = "left", "right", "forward", "look_up", "look_down"
ITEMS = 20  # number of training recordings from which typical motions are computed
STILL = 1e-3  # cells or radians; a smaller motion means that a wall stopped the agent
MARGIN = 0.25  # smallest distance to a wall ahead in a maze, in cells
WALL = [128, 128, 128]  # colour of maze walls on the floor plan
NEARBY = slice(terrain.SIZE // 2 - 9, terrain.SIZE // 2 + 9)  # columns of a voxel world that the floor plan shows
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Shape:
    """A shape on the floor plan of a place."""

    points: Floats  # [P, 2] in the place's coordinates
    colour: list[int]
    filled: bool


class Place(Protocol):
    """The place of one held-out episode. Its poses have P = 3 or 5 columns, as in its data set."""

    fov: float  # degrees

    def step(self, pose_P: Floats, key: str) -> tuple[Floats, Floats] | None:
        """Return the action [A] of a key and the next pose; None if a wall is in the way."""
        ...

    def surfaces(self, pose_P: Floats) -> NDArray[np.int64]:
        """Return which surface each ray of the view meets, [R]."""
        ...

    def look(self, pose_P: Floats) -> NDArray[np.uint8] | None:
        """Return the true view, [3, h, w]; None if it cannot be drawn."""
        ...

    def plan(self) -> list[Shape]:
        """Return the shapes of the floor plan."""
        ...


@dataclass(frozen=True)
class Places:
    """The places of all held-out episodes of a run, and the keys that can be used there."""

    kind: str  # what the page calls one of them
    keys: tuple[str, ...]
    of: list[Place]  # by episode


def open_places(run: RunConfig, dataset: Dataset) -> Places:
    """Return the places of a run's held-out episodes. Raises `UserError` if keys cannot be mapped to motions."""
    if isinstance(dataset, Encoded):
        dataset = dataset.data
    config = run.evaluation
    frames = config.context + config.horizon
    if isinstance(dataset, Rooms):
        keys = (LEFT, RIGHT, FORWARD) if dataset.config.step else (LEFT, RIGHT)
        rooms = [dataset.room(e, frames, config.context) for e in range(config.episodes)]
        return Places("room", keys, [RoomPlace(dataset, room) for room in rooms])
    if isinstance(dataset, Voxels):
        worlds = [VoxelPlace(dataset.place(e, frames)) for e in range(config.episodes)]
        return Places("world", tuple(VoxelPlace.actions), list(worlds))
    if isinstance(dataset, Recordings) and dataset.source.kind == MemoryMazeFiles.kind:
        motions = typical_motions(dataset)
        layouts = [
            dataset.clip(item, start, start + 1).layout
            for item, start in dataset.held_out_places(config.episodes, frames)
        ]
        if motions and all(layout is not None for layout in layouts):
            stride = dataset.config.stride
            of = [MazePlace(layout, motions, stride) for layout in layouts if layout is not None]
            return Places("maze", tuple(motions), list(of))
        raise UserError(
            f"play: data.path {dataset.config.path} holds no {'map of its mazes' if motions else 'single steps'}, so "
            "arrow keys cannot be mapped to motions. `rad-bench rollout` shows this run along its episodes' paths."
        )
    raise UserError(
        f"play: this run was trained on {run.data.name} recordings, whose motions (a mouse's turns, jumps, speeds) do "
        "not map to single steps of arrow keys. `rad-bench rollout` shows it along its episodes' paths. Runs on rooms, "
        "voxels and memory_maze can be played."
    )


class RoomPlace:
    """A room of the embedded world. Implements `Place`."""

    actions: ClassVar = {LEFT: rooms.LEFT, RIGHT: rooms.RIGHT, FORWARD: rooms.FORWARD}

    def __init__(self, dataset: Rooms, room: Room) -> None:
        self.room, self.fov = room, dataset.config.fov
        self._one_hot = np.eye(dataset.action_size, dtype=np.float32)

    def step(self, pose_3: Floats, key: str) -> tuple[Floats, Floats] | None:
        action = self.actions[key]
        pose = self.room.step(pose_3, action)
        return None if pose is None else (self._one_hot[action], pose)

    def surfaces(self, pose_3: Floats) -> NDArray[np.int64]:
        return self.room.surfaces(pose_3[None])[0]

    def look(self, pose_3: Floats) -> NDArray[np.uint8] | None:
        return self.room.look(pose_3[None])[0] if self.room.contains(pose_3) else None

    def plan(self) -> list[Shape]:
        return [Shape(points, colour, len(points) > 2) for points, colour in self.room.plan()]


class VoxelPlace:
    """A voxel world. Implements `Place`."""

    actions: ClassVar = {
        LEFT: walk.LEFT, RIGHT: walk.RIGHT, FORWARD: walk.FORWARD, LOOK_UP: walk.UP, LOOK_DOWN: walk.DOWN,
    }  # fmt: skip

    def __init__(self, place: voxels.Place) -> None:
        self.place, self.fov = place, place.config.fov
        self._one_hot = np.eye(walk.ACTIONS, dtype=np.float32)

    def step(self, pose_P: Floats, key: str) -> tuple[Floats, Floats] | None:
        action = self.actions[key]
        pose = self.place.step(pose_P, action)
        return None if pose is None else (self._one_hot[action], pose)

    def surfaces(self, pose_P: Floats) -> NDArray[np.int64]:
        return self.place.surfaces(pose_P[None])[0]

    def look(self, pose_P: Floats) -> NDArray[np.uint8] | None:
        return self.place.look(pose_P[None])[0] if self.place.contains(pose_P) else None

    def plan(self) -> list[Shape]:
        square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
        colours = self.place.plan()[NEARBY, NEARBY].astype(int)
        return [
            Shape(square + NEARBY.start + cell, colours[cell].tolist(), True) for cell in np.ndindex(colours.shape[:2])
        ]


class MazePlace:
    """A recorded maze. It has a map, but views that were not recorded cannot be drawn. Implements `Place`."""

    actions: ClassVar = {LEFT: explorer.LEFT, RIGHT: explorer.RIGHT, FORWARD: explorer.FORWARD}
    fov = FOV

    def __init__(self, free: NDArray[np.bool_], motions: dict[str, Floats], stride: int = 1) -> None:
        self.free, self.motions, self.stride = free, motions, stride

    def step(self, pose_3: Floats, key: str) -> tuple[Floats, Floats] | None:
        pose = follow(pose_3, self.motions[key])
        move = pose[:2] - pose_3[:2]
        length = float(np.linalg.norm(move))
        if key == FORWARD and length and not self._is_free(pose[:2] + move / length * MARGIN):
            return None
        return np.tile(np.eye(6, dtype=np.float32)[self.actions[key]], self.stride), pose

    def _is_free(self, place_2: Floats) -> bool:
        column, row = np.floor(place_2).astype(int)
        rows, columns = self.free.shape
        return 0 <= row < rows and 0 <= column < columns and bool(self.free[row, column])

    def surfaces(self, pose_3: Floats) -> NDArray[np.int64]:
        return maze_surfaces(self.free, pose_3[None].astype(np.float64))[0]

    def look(self, pose_3: Floats) -> NDArray[np.uint8] | None:
        return None

    def plan(self) -> list[Shape]:
        square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
        walls = np.argwhere(~np.pad(self.free, 1)) - 1  # with the border around the grid
        return [Shape(square + (column, row), WALL, True) for row, column in walls]


def typical_motions(data: Recordings) -> dict[str, Floats]:
    """Return the median egomotion [P] of each key's action over recordings.

    With a stride, only steps that repeat one action count. Steps that a wall stopped and keys whose action was never
    recorded are left out.
    """
    motions, actions = [], []
    for item in data.training[:ITEMS]:
        recording = data.clip(item, 0, item.length)
        if recording.poses is not None:
            motions.append(egomotion_from_poses(recording.poses)[1:])
            step_actions = recording.actions[1:].unflatten(-1, (data.config.stride, -1)).argmax(-1)
            actions.append(torch.where((step_actions == step_actions[:, :1]).all(-1), step_actions[:, 0], -1))
    if not motions:
        return {}
    motion, action = torch.cat(motions).numpy(), torch.cat(actions).numpy()
    moves = np.abs(motion).max(1) > STILL
    typical = {key: motion[moves & (action == number)] for key, number in MazePlace.actions.items()}
    return {key: np.median(rows, 0) for key, rows in typical.items() if len(rows)}


def follow(pose_P: Floats, egomotion_P: Floats) -> Floats:
    """Return the pose after an egomotion. Also converts a pose relative to `pose_P` into world coordinates."""
    x, y, heading, *above = (float(number) for number in pose_P)
    forward, sideways, turn, *rise = (float(number) for number in egomotion_P)
    return np.array([
        x + forward * math.cos(heading) - sideways * math.sin(heading),
        y + forward * math.sin(heading) + sideways * math.cos(heading),
        heading + turn,
        *(before + change for before, change in zip(above, rise, strict=True)),
    ])  # fmt: skip


def relative_to(pose_P: Floats, points_N2: Floats) -> Floats:
    """Return points relative to a pose: distance ahead and to the left, [N, 2]."""
    x, y, heading = (float(number) for number in pose_P[:3])
    dx, dy = points_N2[:, 0] - x, points_N2[:, 1] - y
    ahead = dx * math.cos(heading) + dy * math.sin(heading)
    left: Floats = dy * math.cos(heading) - dx * math.sin(heading)
    return np.stack([ahead, left], -1)
