"""Minecraft videos: an mp4 and, beside it, an npz of the same name with `actions`, one row a frame.

The shape of `actions` tells the published layouts apart:

    [T]      integers 0..3: TECO (Yan et al. 2023, arXiv 2210.02396), 128 x 128, 300 frames; no poses
    [T, 4]   forward, back, jump, turn: VRAG (arXiv 2505.21996), 360 x 640, 1200 frames; no poses
    [T, 8]   the same, then x, y, z and yaw: poses

Row t is the action that led to frame t. Minecraft's yaw is in degrees, 0 along +z, and grows clockwise as seen from
above. Our x is its z, our y is its x, and our heading is -yaw, which is right-handed from above. Height (its y) and
pitch are not part of a pose, because walking back does not undo a jump.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rad_bench.data.index import list_files
from rad_bench.data.source import Item, Recording
from rad_bench.errors import UserError

INSPECTION = "minecraft 1"
DISCRETE = 4  # actions of TECO's layout
KEYS = 4  # forward, back, jump, turn
SAMPLE = 1 << 16  # bytes at both ends of a video that are hashed into its identity


class MinecraftFiles:
    """Implements `Source`."""

    kind = "minecraft"

    def __init__(self, folder: Path) -> None:
        _pyav()
        self.folder = folder
        self.listing = list_files(folder, ["*.mp4"], _inspect, INSPECTION)
        variant = self.listing.items[0].variant if self.listing.items else ""
        self.has_poses = variant == _variant((2 * KEYS,))
        self.action_size = DISCRETE if variant == _variant(()) else KEYS

    def read(self, item: Item, start: int, stop: int) -> Recording:
        path = self.folder / item.name
        rows = _actions(path)[start:stop]
        if rows.ndim == 1:
            return Recording(
                _decode(path, start, stop), torch.from_numpy(np.eye(DISCRETE, dtype=np.float32)[rows]), None
            )
        actions = torch.from_numpy(rows[:, :KEYS].astype(np.float32))
        poses = torch.from_numpy(_poses(rows[:, KEYS:])) if self.has_poses else None
        return Recording(_decode(path, start, stop), actions, poses)

    def surfaces(self, recording: Recording) -> NDArray[np.int64]:
        return np.zeros((len(recording.frames), 0), np.int64)

    def surroundings(self, recording: Recording) -> None:
        return None


def _poses(columns: NDArray[Any]) -> NDArray[np.float64]:
    x, _, z, yaw = columns.astype(np.float64).T
    return np.column_stack([z, x, -np.deg2rad(yaw)])


def _inspect(path: Path, name: str) -> Item:
    av = _pyav()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("has no video stream")
            stream = container.streams.video[0]
            length = stream.frames or sum(1 for _ in container.decode(stream))
            height, width = stream.height, stream.width
    except av.FFmpegError as error:
        raise ValueError(f"is not a readable video ({error.strerror})") from None
    if length < 2:
        raise ValueError(f"has {length} frames")
    rows = _actions(path)
    if len(rows) < length:
        raise ValueError(f"has {length} frames and actions for {len(rows)}")
    state = path.stat()
    digest = hashlib.sha256(f"{state.st_size}".encode() + rows.tobytes())
    with path.open("rb") as file:
        digest.update(file.read(SAMPLE))
        file.seek(max(0, state.st_size - SAMPLE))
        digest.update(file.read(SAMPLE))
    return Item(name, length, height, width, digest.hexdigest()[:16], _variant(rows.shape[1:]))


def _actions(video: Path) -> NDArray[Any]:
    path = video.with_suffix(".npz")
    if not path.is_file():
        raise ValueError(f"has no {path.name} beside it")
    with np.load(path, allow_pickle=False) as archive:
        if "actions" not in archive:
            raise ValueError(f"{path.name} has no actions, only {', '.join(archive.files) or 'nothing'}")
        rows: NDArray[Any] = archive["actions"]
    discrete = rows.ndim == 1 and rows.dtype.kind in "iu"
    if discrete and len(rows) and not (rows.min() >= 0 and rows.max() < DISCRETE):
        raise ValueError(f"{path.name}: actions range from {rows.min()} to {rows.max()}, should be 0..{DISCRETE - 1}")
    if not discrete and not (rows.ndim == 2 and rows.shape[1] in (KEYS, 2 * KEYS) and rows.dtype.kind in "fiub"):
        expected = "whole numbers (T,), or numbers (T, 4) or (T, 8)"
        raise ValueError(f"{path.name}: actions are {rows.dtype} {rows.shape}, should be {expected}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{path.name}: actions are not finite")
    return rows


def _variant(row: tuple[int, ...]) -> str:
    return f"actions of {row[0]} columns" if row else "one action number a frame"


def _decode(path: Path, start: int, stop: int) -> torch.Tensor:
    """Decode frames start..stop-1, [T, 3, H, W] uint8, from the last key frame before them."""
    av = _pyav()
    frames: dict[int, NDArray[np.uint8]] = {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            first, base, rate = stream.start_time or 0, stream.time_base, stream.average_rate
            if base is None or rate is None:
                raise ValueError("has no frame rate")
            container.seek(first + int(start / rate / base), stream=stream)
            for frame in container.decode(stream):
                number = round((frame.pts - first) * base * rate)
                if start <= number < stop:
                    frames[number] = frame.to_ndarray(format="rgb24")
                if number >= stop - 1:
                    break
    except av.FFmpegError as error:
        raise ValueError(f"cannot be decoded ({error.strerror})") from None
    missing = [number for number in range(start, stop) if number not in frames]
    if missing:
        raise ValueError(f"has no frame {missing[0]}; is its frame rate constant?")
    return torch.from_numpy(np.stack([frames[number] for number in range(start, stop)])).permute(0, 3, 1, 2)


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise UserError("data.name minecraft needs PyAV to decode video: pip install 'rad-bench[video]'.") from None
    return av
