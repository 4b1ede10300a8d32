"""Memory Maze episodes (https://github.com/jurgisp/memory-maze) in the official layout: npz files, one an episode.

image [T, side, side, 3] uint8, action [T, 6] one-hot (row t led to frame t), agent_pos [T, 2] in cells, agent_dir
[T, 2] unit vectors, maze_layout [N, N] or [T, N, N] with 1 = free, indexed [int(y), int(x)]. Other keys are not read.

The camera. Walls cast from the poses line up with the edges in the images for a field of view of 80 degrees and an eye
0.075 cells ahead of agent_pos: over 2,000 frames their correlation peaks there, sharply (0.62; at 78 or 82 degrees
0.45 or less), and these are also the numbers of dm_control's walker (fovy 80, 0.15 ahead, two units a cell).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rad_bench.data.index import list_files
from rad_bench.data.raycast import IntArray, bearings, meet_grid
from rad_bench.data.recordings import Item, Recording

INSPECTION = "memory_maze 2"
ACTIONS = 6
FOV, EYE_AHEAD = 80.0, 0.075
RAYS = 32  # across a view, for telling which surfaces it meets
SEGMENTS = 4  # identities along one face of a cell
AROUND = 5  # points on a side of the square around the agent that a probe reads
STRIDE = 0.1  # cells from one place to the next along a ray, for telling which cells it crosses
SKIP = 1 << 22  # bytes thrown away at a time on the way to a clip
KEYS = ("image", "action", "agent_pos", "agent_dir", "maze_layout")
Header = tuple[tuple[int, ...], np.dtype[Any]]


class MemoryMazeFiles:
    """Implements `Source`."""

    kind = "memory_maze"
    action_size = ACTIONS
    has_poses = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listing = list_files(folder, ["*.npz"], _inspect, INSPECTION)

    def read(self, item: Item, start: int, stop: int) -> Recording:
        path = self.folder / item.name
        with zipfile.ZipFile(path) as archive:
            _check_shapes({key: _header(archive, key) for key in KEYS})
            frames, actions, place, direction = (_rows(path, archive, key, start, stop) for key in KEYS[:4])
            (layout_shape, _), T = _header(archive, "maze_layout"), item.length
            layout = _rows(path, archive, "maze_layout", 0, T if len(layout_shape) == 3 else layout_shape[0]).astype(
                bool
            )
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


def maze_surfaces(free: NDArray[np.bool_], poses: NDArray[np.float64]) -> IntArray:
    """Return which piece of which face of which wall cell each ray of each view meets. [T, RAYS]"""
    _, cell, face, along = meet_grid(free, *_rays(poses))
    segment = np.minimum((along * SEGMENTS).astype(np.int64), SEGMENTS - 1)
    return np.where(cell < 0, -1, (cell * 4 + face) * SEGMENTS + segment)


def maze_around(free: NDArray[np.bool_], poses: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which points around the last pose are free, and which any of the views has shown, both [AROUND^2].

    The points are one cell apart, along the pose's heading, with the agent in their middle. Beyond the map nothing is
    free, and nothing but the cells that border on it is ever shown.
    """
    x, y, heading = poses[-1]
    offsets = np.arange(AROUND) - AROUND // 2
    ahead, left = (part.ravel() for part in np.meshgrid(offsets, offsets, indexing="ij"))
    column = _cell(x + ahead * np.cos(heading) - left * np.sin(heading), free.shape[1])
    row = _cell(y + ahead * np.sin(heading) + left * np.cos(heading), free.shape[0])
    return np.pad(free, 2)[row, column], maze_shown(free, poses)[row, column]


def maze_shown(free: NDArray[np.bool_], poses: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which cells rays of any view cross or meet, on the grid with a border of two cells."""
    x, y, dx, dy = _rays(poses)
    distance, cell, _, _ = meet_grid(free, x, y, dx, dy)
    met = np.zeros((free.shape[0] + 2, free.shape[1] + 2), bool)  # the border that `meet_grid` numbers cells with
    met.flat[cell[cell >= 0]] = True
    shown = np.pad(met, 1)
    for along in np.arange(0, distance.max(), STRIDE):
        crossing = along < distance
        row, column = _cell(y + along * dy, free.shape[0]), _cell(x + along * dx, free.shape[1])
        shown[row[crossing], column[crossing]] = True
    return shown


def _rays(poses: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return where the rays of each view begin and where they run: x, y [T, 1], dx, dy [T, RAYS]."""
    x, y, heading = poses.T[..., None]
    angle = heading + bearings(RAYS, FOV)
    return x + EYE_AHEAD * np.cos(heading), y + EYE_AHEAD * np.sin(heading), np.cos(angle), np.sin(angle)


def _cell(place: NDArray[np.float64], size: int) -> IntArray:
    """Return the cells of places along a side of the grid, which has a border of two cells; the outer is all beyond."""
    return np.clip(np.floor(place).astype(np.int64) + 2, 0, size + 3)


def _inspect(path: Path, name: str) -> Item:
    """Check a file without decoding its images; the archive's own checksums stand for its content."""
    with zipfile.ZipFile(path) as archive:
        missing = [key for key in KEYS if f"{key}.npy" not in archive.namelist()]
        if missing:
            raise ValueError(f"has no {', '.join(missing)}")
        headers = {key: _header(archive, key) for key in KEYS}
        _check_shapes(headers)
        members = [archive.getinfo(f"{key}.npy") for key in KEYS]
    with np.load(path, allow_pickle=False) as arrays:
        _poses(arrays["agent_pos"], arrays["agent_dir"])
    length, height, width = headers["image"][0][:3]
    return Item(name, length, height, width, "-".join(f"{m.CRC:08x}.{m.file_size:x}" for m in members))


def _read_header(member: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if fortran and len(shape) > 1:
        raise ValueError("holds an array in Fortran's order")
    return shape, dtype


def _header(archive: zipfile.ZipFile, key: str) -> Header:
    with archive.open(f"{key}.npy") as member:
        return _read_header(member)


def _rows(path: Path, archive: zipfile.ZipFile, key: str, start: int, stop: int) -> NDArray[Any]:
    """Read rows start..stop-1 of an array: mapped from the file if it is stored as it is, else unpacked up to there."""
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as member:
        shape, dtype = _read_header(member)
        row = math.prod(shape[1:]) * dtype.itemsize
        if member.tell() + stop * row > info.file_size:
            raise ValueError(f"{key} ends early")
        if info.compress_type == zipfile.ZIP_STORED:
            with path.open("rb") as file:
                file.seek(
                    info.header_offset + 26
                )  # of the member's own header: the lengths of its name and extra field
                name, extra = np.frombuffer(file.read(4), "<u2")
            offset = info.header_offset + 30 + int(name) + int(extra) + member.tell() + start * row
            return np.array(np.memmap(path, dtype, "r", offset, (stop - start, *shape[1:])))
        skip = start * row
        while skip:
            skipped = len(member.read(min(skip, SKIP)))
            if not skipped:
                raise ValueError(f"{key} ends early")
            skip -= skipped
        content = member.read((stop - start) * row)
    if len(content) < (stop - start) * row:
        raise ValueError(f"{key} ends early")
    return np.frombuffer(content, dtype).reshape(stop - start, *shape[1:]).copy()


def _check_shapes(headers: Mapping[str, Header]) -> None:
    image, kind = headers["image"]
    if kind != np.uint8 or len(image) != 4 or image[3] != 3 or image[1] != image[2] or image[0] < 2:
        raise ValueError(f"image is {kind} {image}, should be uint8 (frames, side, side, 3)")
    frames = image[0]
    for key, width, kinds in (("action", ACTIONS, "buif"), ("agent_pos", 2, "f"), ("agent_dir", 2, "f")):
        shape, dtype = headers[key]
        if shape != (frames, width) or dtype.kind not in kinds:
            raise ValueError(f"{key} is {dtype} {shape}, should be ({frames}, {width}) as there are {frames} frames")
    layout, dtype = headers["maze_layout"]
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
