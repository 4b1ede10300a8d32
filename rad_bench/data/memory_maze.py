"""Memory Maze episodes (https://github.com/jurgisp/memory-maze) in the official layout: a folder of npz files.

One file an episode: image [T, side, side, 3] uint8, action [T, 6] one-hot (row t led to frame t), agent_pos [T, 2] in
cells, agent_dir [T, 2] unit vectors, maze_layout [N, N] or [T, N, N] with 1 = free, indexed [int(y), int(x)]. Other
keys are not read. Whole episodes are training or held-out material, by a hash of their file names.

The camera. Walls cast from the poses line up with the edges in the images for a field of view of 80 degrees and an eye
0.075 cells ahead of agent_pos: over 2,000 frames their correlation peaks there, sharply (0.62; at 78 or 82 degrees
0.45 or less), and these are also the numbers of dm_control's walker (fovy 80, 0.15 ahead, two units a cell).
"""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rad_bench.config import MemoryMazeData
from rad_bench.data.episodes import Episodes, egomotion_from_poses
from rad_bench.data.raycast import IntArray, bearings, meet_grid
from rad_bench.errors import UserError

VERSION = 1  # of how files become episodes; part of the data's identity
ACTIONS = 6
FOV, EYE_AHEAD = 80.0, 0.075
RAYS = 32  # across a view, for telling which surfaces it meets
SEGMENTS = 4  # identities along one face of a cell
CACHE_BYTES = 1 << 30  # of decoded episodes
KEYS = ("image", "action", "agent_pos", "agent_dir", "maze_layout")
UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class _File:
    path: Path
    length: int  # frames
    side: int  # pixels


@dataclass(frozen=True)
class _Recording:
    """A decoded file of T frames."""

    frames: Tensor  # [T, 3, H, W] uint8
    actions: Tensor  # [T, 6] float32
    poses: Tensor  # [T, 3] float64
    free: NDArray[np.bool_]  # [N, N]


class MemoryMaze:
    """Implements `Dataset`. Files are decoded when asked for; up to `CACHE_BYTES` of them are kept.

    Raises `UserError` if the folder does not hold two good episodes; warns of files that it leaves out.
    """

    def __init__(self, config: MemoryMazeData) -> None:
        self.config = config
        files = _good_files(Path(config.path).expanduser(), config)
        by_hash = sorted(files, key=lambda file: hashlib.sha256(file.path.name.encode()).digest())
        # Rounding must not turn a share of exactly k files into k + 1.
        count = min(math.ceil(len(files) * config.held_out - 1e-9), len(files) - 1)
        self._held_out, self._training = by_hash[:count], by_hash[count:]
        side = config.size or files[0].side
        self.frame_shape = (3, side, side)
        self.action_size = ACTIONS
        self.identity = _identity(files, config)
        self._cache: OrderedDict[Path, _Recording] = OrderedDict()

    def training_batch(self, seed: int, step: int, batch: int, frames: int) -> Episodes:
        """Return random clips of random training episodes: a pure function of the files and the arguments."""
        long_enough = [file for file in self._training if file.length >= frames]
        if not long_enough:
            longest = max(file.length for file in self._training)
            raise UserError(
                f"training.frames {frames} is longer than every training episode in data.path {self.config.path}; "
                f"the longest has {longest} frames. Set training.frames to at most {longest}."
            )
        rng = np.random.default_rng([seed, step, batch, frames])
        picked = [long_enough[i] for i in rng.integers(len(long_enough), size=batch)]
        return self._clips([(file, int(rng.integers(file.length - frames + 1))) for file in picked], frames)

    def held_out(self, episodes: int, frames: int, context: int) -> Episodes:
        """Return clips of the held-out episodes, with surfaces: evenly spaced, none overlapping another."""
        room = [file.length // frames for file in self._held_out]
        if sum(room) < episodes:
            raise UserError(
                f"evaluation.episodes {episodes} of {frames} frames (context + horizon) do not fit into the "
                f"{len(room)} held-out episodes of data.path {self.config.path}: there is room for {sum(room)}. "
                f"Ask for {sum(room)} or fewer, shorten evaluation.context or evaluation.horizon, raise "
                f"data.held_out above {self.config.held_out}, or add episodes to the folder."
            )
        share = [0] * len(room)
        while sum(share) < episodes:  # deal them out in turn, as far as each file has room
            for i in range(len(room)):
                if share[i] < room[i] and sum(share) < episodes:
                    share[i] += 1
        clips = []
        for file, count in zip(self._held_out, share, strict=True):
            spare = file.length - frames
            clips += [(file, i * spare // (count - 1) if count > 1 else spare // 2) for i in range(count)]
        return self._clips(clips, frames, with_surfaces=True)

    def _clips(self, clips: list[tuple[_File, int]], frames: int, with_surfaces: bool = False) -> Episodes:
        images, actions, poses, surfaces = [], [], [], []
        for file, start in clips:
            recording, part = self._recording(file), slice(start, start + frames)
            images.append(recording.frames[part])
            actions.append(recording.actions[part])
            poses.append(recording.poses[part])
            seen = _surfaces(recording.free, poses[-1].numpy()) if with_surfaces else np.zeros((frames, 0), np.int64)
            surfaces.append(torch.from_numpy(seen))
        taken, pose = torch.stack(actions), torch.stack(poses)
        taken[:, 0] = 0  # what led to the first frame lies outside the clip
        return Episodes(
            frames=torch.stack(images),
            actions=taken,
            egomotion=egomotion_from_poses(pose).float(),
            poses=pose,
            surfaces=torch.stack(surfaces),
            names=tuple(f"{file.path.name}:{start}" for file, start in clips),
        )

    def _recording(self, file: _File) -> _Recording:
        if file.path in self._cache:
            self._cache.move_to_end(file.path)
        else:
            self._cache[file.path] = _decode(file.path, self.frame_shape[1])
            while len(self._cache) > 1 and sum(r.frames.nbytes for r in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        return self._cache[file.path]


def _good_files(folder: Path, config: MemoryMazeData) -> list[_File]:
    """Return the files that look right, by name. Warns of the others."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"data.path {config.path} {what}; it should be a folder of Memory Maze .npz episodes.")
    good: list[_File] = []
    bad: list[str] = []
    for path in sorted(folder.glob("*.npz")):
        try:
            file = _inspect(path)
        except UNREADABLE as error:
            bad.append(f"{path.name}: {error or type(error).__name__}")
            continue
        if good and config.size is None and file.side != good[0].side:
            bad.append(
                f"{path.name}: images are {file.side} pixels wide, the first file's {good[0].side}; set data.size"
            )
        else:
            good.append(file)
    reasons = "; ".join(bad[:10]) + (f"; and {len(bad) - 10} more" if len(bad) > 10 else "")
    if len(good) < 2:
        found = f"{len(good)} good .npz episode{'' if len(good) == 1 else 's'}"
        raise UserError(
            f"data.path {config.path} holds {found}, and two are needed, one to train on and one to hold out."
            + (f" Left out: {reasons}." if bad else "")
        )
    if bad:
        warnings.warn(f"left out {len(bad)} of {len(good) + len(bad)} files in {config.path}: {reasons}", stacklevel=3)
    return good


def _inspect(path: Path) -> _File:
    """Check a file without decoding its images. Raises one of `UNREADABLE`, whose text says what is wrong."""
    with zipfile.ZipFile(path) as archive:
        missing = [key for key in KEYS if f"{key}.npy" not in archive.namelist()]
        if missing:
            raise ValueError(f"has no {', '.join(missing)}")
        headers = {key: _header(archive, key) for key in KEYS}
        _check_shapes(headers)
    with np.load(path, allow_pickle=False) as arrays:
        _poses(arrays["agent_pos"], arrays["agent_dir"])
    return _File(path, *headers["image"][0][:2])


def _header(archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(f"{key}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return shape, dtype


def _check_shapes(headers: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
    image, kind = headers["image"]
    if kind != np.uint8 or len(image) != 4 or image[3] != 3 or image[1] != image[2] or image[0] < 2:
        raise ValueError(f"image is {kind} {image}, should be uint8 (frames, side, side, 3)")
    frames = image[0]
    for key, width, kinds in (("action", ACTIONS, "buif"), ("agent_pos", 2, "f"), ("agent_dir", 2, "f")):
        shape, dtype = headers[key]
        if shape != (frames, width) or dtype.kind not in kinds:
            raise ValueError(f"{key} is {dtype} {shape}, should be ({frames}, {width}) as there are {frames} frames")
    layout, dtype = headers["maze_layout"]
    if (
        len(layout) not in (2, 3)
        or 0 in layout
        or dtype.kind not in "buif"
        or (len(layout) == 3 and layout[0] != frames)
    ):
        raise ValueError(f"maze_layout is {dtype} {layout}, should be (N, N) or ({frames}, N, N)")


def _poses(place: NDArray[Any], direction: NDArray[Any]) -> Tensor:
    """Return poses [T, 3] float64: x and y in cells, heading in radians."""
    if not (np.isfinite(place).all() and np.isfinite(direction).all()):
        raise ValueError("agent_pos or agent_dir is not finite")
    place, direction = place.astype(np.float64), direction.astype(np.float64)
    if np.abs(np.linalg.norm(direction, axis=1) - 1).max() > 0.01:
        raise ValueError("agent_dir holds vectors that are not of length 1")
    return torch.from_numpy(np.column_stack([place, np.arctan2(direction[:, 1], direction[:, 0])]))


def _decode(path: Path, side: int) -> _Recording:
    """Read a whole file and resize its images. Raises `UserError` if it is not what it looked like."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in KEYS}
        _check_shapes({key: (array.shape, array.dtype) for key, array in arrays.items()})
        poses = _poses(arrays["agent_pos"], arrays["agent_dir"])
        layout = arrays["maze_layout"].astype(bool)
        if layout.ndim == 3 and (layout != layout[0]).any():
            raise ValueError("maze_layout changes within the episode")
    except UNREADABLE as error:
        raise UserError(
            f"data.path: {path} looked like a Memory Maze episode when it was opened but cannot be read "
            f"({error or type(error).__name__}). Copy it again from its source or remove it."
        ) from error
    frames = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2).contiguous()
    if frames.shape[-1] != side:
        frames = F.interpolate(frames.float(), size=(side, side), mode="area").round().to(torch.uint8)
    actions = torch.from_numpy(arrays["action"].astype(np.float32))
    return _Recording(frames, actions, poses, layout[0] if layout.ndim == 3 else layout)


def _surfaces(free: NDArray[np.bool_], poses: NDArray[np.float64]) -> IntArray:
    """Return which piece of which face of which wall cell each ray of each view meets. [T, RAYS]"""
    x, y, heading = poses.T[..., None]
    eye_x, eye_y = x + EYE_AHEAD * np.cos(heading), y + EYE_AHEAD * np.sin(heading)
    angle = heading + bearings(RAYS, FOV)
    _, cell, face, along = meet_grid(free, eye_x, eye_y, np.cos(angle), np.sin(angle))
    segment = np.minimum((along * SEGMENTS).astype(np.int64), SEGMENTS - 1)
    return np.where(cell < 0, -1, (cell * 4 + face) * SEGMENTS + segment)


def _identity(files: list[_File], config: MemoryMazeData) -> str:
    """Hash the files' names, sizes and contents and how they are read; not where they lie."""
    lines = [f"memory_maze {VERSION} size={config.size} held_out={config.held_out}"]
    for file in files:
        state = file.path.stat()
        lines.append(f"{file.path.name} {state.st_size} {_sha256(file.path, state.st_size, state.st_mtime_ns)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@functools.cache
def _sha256(path: Path, size: int, modified: int) -> str:
    """Hash a file's content, once a process as long as it does not change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
