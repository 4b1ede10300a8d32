"""Open a data set; it returns training clips and held-out episodes."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

from rad_bench.config import ClipsData, DataConfig, MemoryMazeData, MinecraftData, RoomsData, VoxelsData
from rad_bench.data.episodes import Dataset, Episodes
from rad_bench.data.recordings import Recordings
from rad_bench.data.source import Source
from rad_bench.errors import UserError


def open_dataset(config: DataConfig) -> Dataset:
    """Return the data set that the config names. Raises `UserError` if it cannot be read."""
    if isinstance(config, RoomsData):
        from rad_bench.data.rooms import Rooms

        return Rooms(config)
    if isinstance(config, VoxelsData):
        from rad_bench.data.voxels.dataset import Voxels

        return Voxels(config)
    same_view = None
    if isinstance(config, MinecraftData | ClipsData):
        same_view = (config.same_place, math.radians(config.same_heading))
    layout = config.layout if isinstance(config, ClipsData) else None
    return Recordings(open_source(config.name, Path(config.path), layout), config, same_view)


def open_folder(folder: Path, size: int | None = None, layout: str | None = None) -> Recordings:
    """Open a folder of recordings, by a layout or as its files tell. Raises `UserError` if it holds none."""
    kind = "clips" if layout is not None else _kind(folder)
    config: MinecraftData | MemoryMazeData | ClipsData = MemoryMazeData(name="memory_maze", path=str(folder), size=size)
    if kind == "minecraft":
        config = MinecraftData(name="minecraft", path=str(folder), size=size)
    elif kind == "clips":
        config = ClipsData(name="clips", path=str(folder), size=size, layout=layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the caller reads `left_out`
        data = open_dataset(config)
    assert isinstance(data, Recordings)
    return data


def _kind(folder: Path) -> str:
    """Return the `data.name` that fits a folder: by most of its files where several would."""
    from rad_bench.data.files import count_by_suffix, find_files, suffix
    from rad_bench.data.layout import OWN, presets
    from rad_bench.data.packed import Packed, is_packed
    from rad_bench.data.video import SUFFIXES

    if is_packed(folder):
        return Packed(folder).kind
    if os.path.isfile(folder / OWN):
        return "clips"
    files = find_files(folder)
    videos = {os.path.splitext(name)[0] for name in files.paths if suffix(name) in SUFFIXES}
    arrays = {os.path.splitext(name)[0] for name in files.paths if suffix(name) == ".npz"}
    if not videos and not arrays:
        holds = count_by_suffix(files.paths) or "no files"
        reasons = f" Left out: {'; '.join(files.left_out[:10])}." if files.left_out else ""
        raise UserError(
            f"{folder} holds {holds}, and no recordings.{reasons} Recordings are npz files in Memory Maze's layout, or "
            "videos (.mp4, .mkv, .webm, .mov, .avi ...), each with an npz of the same name beside it. Files in any "
            f"other form, such as pictures and a csv, need a layout that says what they mean: a {OWN} in the folder, "
            f"or a preset ({', '.join(presets())}); docs/data.md shows how."
        )
    return "minecraft" if videos & arrays or not arrays else "memory_maze"


def open_source(kind: str, folder: Path, layout: str | None = None) -> Source:
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
    if kind == "clips":
        from rad_bench.data.clips import ClipFiles
        from rad_bench.data.layout import read_layout

        return ClipFiles(folder, read_layout(layout, folder))
    from rad_bench.data.memory_maze import MemoryMazeFiles

    return MemoryMazeFiles(folder)


__all__ = ["Dataset", "Episodes", "open_dataset", "open_folder", "open_source"]
