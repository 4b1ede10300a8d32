"""Memory Maze episodes (https://github.com/jurgisp/memory-maze) in the official layout: npz files, one an episode.

image [T, side, side, 3] uint8, action [T, 6] one-hot (row t is the action that led to frame t),
agent_pos [T, 2] in cells, agent_dir [T, 2] unit vectors, maze_layout [N, N] or [T, N, N] with 1 = free, indexed
[int(y), int(x)]. Other keys are not read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rad_bench.data.files import find_files, suffix
from rad_bench.data.index import list_items
from rad_bench.data.maze_view import maze_around, maze_surfaces
from rad_bench.data.npz import Header, header_of, read_rows
from rad_bench.data.raycast import IntArray
from rad_bench.data.source import Item, Recording

INSPECTION = "memory_maze 3"
WANTED = "memory_maze reads .npz files, one an episode; videos, each with an npz beside it, are data.name: minecraft"
ACTIONS = 6
KEYS = ("image", "action", "agent_pos", "agent_dir", "maze_layout")


class MemoryMazeFiles:
    """Implements `Source`."""

    kind = "memory_maze"
    action_size = ACTIONS
    has_poses = True
    pose_size = 3
    in_degrees = False

    def __init__(self, folder: Path) -> None:
        files = find_files(folder)
        self.paths = files.paths
        episodes = [name for name in files.paths if suffix(name) == ".npz"]
        others = [name for name in files.paths if suffix(name) != ".npz"]
        listing = list_items(folder, files, episodes, _inspect, INSPECTION)
        self.listing = replace(listing, others=others, wanted=WANTED)

    def read(self, item: Item, start: int, stop: int) -> Recording:
        path = self.paths[item.name]
        with zipfile.ZipFile(path) as archive:
            _check_shapes({key: header_of(archive, key) for key in KEYS})
            frames, actions, place, direction = (read_rows(path, archive, key, start, stop) for key in KEYS[:4])
            rows = header_of(archive, "maze_layout").shape[0]  # of the map, or a map for each frame
            layout = read_rows(path, archive, "maze_layout", 0, rows).astype(bool)
        if layout.ndim == 3 and (layout != layout[0]).any():
            raise ValueError("maze_layout changes within the episode")
        return Recording(
            frames=torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(),
            actions=torch.from_numpy(actions.astype(np.float32)),
            poses=torch.from_numpy(_poses(place, direction)),
            layout=layout[0] if layout.ndim == 3 else layout,
        )

    def surfaces(self, recording: Recording) -> IntArray:
        assert recording.layout is not None and recording.poses is not None
        return maze_surfaces(recording.layout, recording.poses.numpy())

    def surroundings(self, recording: Recording) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        assert recording.layout is not None and recording.poses is not None
        return maze_around(recording.layout, recording.poses.numpy())

    def ground(self, item: Item) -> None:
        return None


def _inspect(path: Path, name: str) -> Item:
    """Check a file without decoding its images; the archive's checksums identify its content."""
    with zipfile.ZipFile(path) as archive:
        missing = [key for key in KEYS if f"{key}.npy" not in archive.namelist()]
        if missing:
            raise ValueError(f"has no {', '.join(missing)}")
        headers = {key: header_of(archive, key) for key in KEYS}
        _check_shapes(headers)
        members = [archive.getinfo(f"{key}.npy") for key in KEYS]
    with np.load(path, allow_pickle=False) as arrays:
        _poses(arrays["agent_pos"], arrays["agent_dir"])
    length, height, width = headers["image"].shape[:3]
    return Item(name, length, height, width, "-".join(f"{m.CRC:08x}.{m.file_size:x}" for m in members))


def _check_shapes(headers: Mapping[str, Header]) -> None:
    image, kind = headers["image"].shape, headers["image"].dtype
    if kind != np.uint8 or len(image) != 4 or image[3] != 3 or image[1] != image[2] or image[0] < 2:
        raise ValueError(f"image is {kind} {image}, should be uint8 (frames, side, side, 3)")
    frames = image[0]
    for key, width, kinds, wanted in (
        ("action", ACTIONS, "buif", "one-hot numbers"),
        ("agent_pos", 2, "f", "floats: x and y in cells, where 0.5 is the middle of the first cell"),
        ("agent_dir", 2, "if", "numbers: unit vectors"),
    ):
        shape, dtype = headers[key].shape, headers[key].dtype
        if shape != (frames, width):
            raise ValueError(f"{key} is {dtype} {shape}, should be ({frames}, {width}) as there are {frames} frames")
        if dtype.kind not in kinds:
            raise ValueError(f"{key} is {dtype}, should be {wanted}")
    layout, dtype = headers["maze_layout"].shape, headers["maze_layout"].dtype
    fits = len(layout) == 2 or (len(layout) == 3 and layout[0] == frames)
    if not fits or 0 in layout or dtype.kind not in "buif":
        raise ValueError(f"maze_layout is {dtype} {layout}, should be (N, N) or ({frames}, N, N)")


def _poses(place: NDArray[Any], direction: NDArray[Any]) -> NDArray[np.float64]:
    """Return poses [T, 3]: x and y in cells, heading in radians."""
    if not (np.isfinite(place).all() and np.isfinite(direction).all()):
        raise ValueError("agent_pos or agent_dir is not finite")
    place, direction = place.astype(np.float64), direction.astype(np.float64)
    if np.abs(np.linalg.norm(direction, axis=1) - 1).max() > 0.01:
        raise ValueError("agent_dir holds vectors that are not of length 1")
    return np.column_stack([place, np.arctan2(direction[:, 1], direction[:, 0])])
