"""Open a data set; it returns training clips and held-out episodes."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

from rad_bench.config import DataConfig, MemoryMazeData, MinecraftData, RoomsData
from rad_bench.data.episodes import Dataset, Episodes
from rad_bench.data.recordings import Recordings
from rad_bench.data.source import Source
from rad_bench.errors import UserError


def open_dataset(config: DataConfig) -> Dataset:
    """Return the data set that the config names. Raises `UserError` if it cannot be read."""
    if isinstance(config, RoomsData):
        from rad_bench.data.rooms import Rooms

        return Rooms(config)
    same_view = None
    if isinstance(config, MinecraftData):
        same_view = (config.same_place, math.radians(config.same_heading))
    return Recordings(open_source(config.name, Path(config.path)), config, same_view)


def open_folder(folder: Path, size: int | None = None) -> Recordings:
    """Open a folder of recordings; its files tell which kind of data it is. Raises `UserError` if it holds none."""
    kind = _kind(folder)
    config: MinecraftData | MemoryMazeData = MemoryMazeData(name="memory_maze", path=str(folder), size=size)
    if kind == "minecraft":
        config = MinecraftData(name="minecraft", path=str(folder), size=size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the caller reads `left_out`
        data = open_dataset(config)
    assert isinstance(data, Recordings)
    return data


def _kind(folder: Path) -> str:
    """Return the `data.name` that fits a folder: by most of its files where several would."""
    from rad_bench.data.files import count_by_suffix, find_files, suffix
    from rad_bench.data.packed import Packed, is_packed
    from rad_bench.data.video import SUFFIXES

    if is_packed(folder):
        return Packed(folder).kind
    files = find_files(folder)
    videos = {os.path.splitext(name)[0] for name in files.paths if suffix(name) in SUFFIXES}
    arrays = {os.path.splitext(name)[0] for name in files.paths if suffix(name) == ".npz"}
    if not videos and not arrays:
        holds = count_by_suffix(files.paths) or "no files"
        reasons = f" Left out: {'; '.join(files.left_out[:10])}." if files.left_out else ""
        raise UserError(
            f"{folder} holds {holds}, and no recordings.{reasons} Recordings are npz files in Memory Maze's layout, or "
            "videos (.mp4, .mkv, .webm, .mov, .avi ...), each with an npz of the same name beside it. Pictures have to "
            "be made into a video first: examples/own_clips.py shows how."
        )
    return "minecraft" if videos & arrays or not arrays else "memory_maze"


def open_source(kind: str, folder: Path) -> Source:
    """Return the recordings of this kind below a folder, packed or not. Raises `UserError` for another kind."""
    from rad_bench.data.packed import Packed, is_packed

    if is_packed(folder):
        packed = Packed(folder)
        if packed.kind != kind:
            raise UserError(f"data.path {folder} holds packed {packed.kind} data, but data.name is {kind}.")
        return packed
    if kind == "minecraft":
        from rad_bench.data.minecraft import MinecraftFiles

        return MinecraftFiles(folder)
    from rad_bench.data.memory_maze import MemoryMazeFiles

    return MemoryMazeFiles(folder)


__all__ = ["Dataset", "Episodes", "open_dataset", "open_folder", "open_source"]
