"""A data set packed into plain arrays, which are memory-mapped: clips load as fast as the disk reads.

    pack.json     the kind of the source, and the items in order
    frames.npy    [total, 3, H, W] uint8, all items concatenated, resized
    actions.npy   [total, A] float32
    poses.npy     [total, P] float64, where the source has poses
    layouts.npz   one array an item, where the source has layouts

A packed data set has the identity of its source at that size, so that the runs are the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rad_bench.data.maze_view import maze_around, maze_surfaces
from rad_bench.data.recordings import NAMED, Recordings
from rad_bench.data.source import Item, Listing, Recording
from rad_bench.errors import UserError

INDEX = "pack.json"
FORMAT = 1


class Packed:
    """Implements `Source` over a packed folder."""

    def __init__(self, folder: Path) -> None:
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if index["format"] != FORMAT:
                raise ValueError(f"its format is {index['format']}, but this version reads {FORMAT}")
            self.listing = Listing([Item(**item) for item in index["items"]], [])
            self.kind, self.has_poses = str(index["kind"]), bool(index["has_poses"])
            self.action_size = int(index["action_size"])
            self.in_degrees = bool(index.get("in_degrees", self.kind == "minecraft"))
            self._frames = np.load(folder / "frames.npy", mmap_mode="r", allow_pickle=False)
            self._actions = np.load(folder / "actions.npy", mmap_mode="r", allow_pickle=False)
            self._poses = np.load(folder / "poses.npy", mmap_mode="r", allow_pickle=False) if self.has_poses else None
            self.pose_size = 3 if self._poses is None else self._poses.shape[1]
            self._layouts = _load_layouts(folder / "layouts.npz")
            lengths = [item.length for item in self.listing.items]
            if len(self._frames) != sum(lengths) or len(self._actions) != sum(lengths):
                raise ValueError(f"frames.npy holds {len(self._frames)} frames, {INDEX} lists {sum(lengths)}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"data.path {folder}: not a readable packed data set: {error}. Pack it again.") from None
        self._starts = dict(zip((item.name for item in self.listing.items), np.cumsum([0, *lengths]), strict=False))

    def read(self, item: Item, start: int, stop: int) -> Recording:
        first = int(self._starts[item.name])
        rows = slice(first + start, first + stop)
        return Recording(
            frames=torch.from_numpy(np.array(self._frames[rows])),
            actions=torch.from_numpy(np.array(self._actions[rows])),
            poses=None if self._poses is None else torch.from_numpy(np.array(self._poses[rows])),
            layout=self._layouts.get(item.name),
        )

    def surfaces(self, recording: Recording) -> NDArray[np.int64]:
        if recording.layout is None or recording.poses is None:
            return np.zeros((len(recording.frames), 0), np.int64)
        return maze_surfaces(recording.layout, recording.poses.numpy())

    def surroundings(self, recording: Recording) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        if recording.layout is None or recording.poses is None:
            return None
        return maze_around(recording.layout, recording.poses.numpy())

    def ground(self, item: Item) -> None:
        return None


def _load_layouts(path: Path) -> dict[str, NDArray[np.bool_]]:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def is_packed(folder: Path) -> bool:
    """Return whether a folder holds a packed data set."""
    return os.path.isfile(folder / INDEX)  # also False for an invalid name, or without permission


def pack(data: Recordings, out: Path, report: Callable[[int, int], None]) -> None:
    """Write a data set's items into `out`, which must not exist; `report(done, of)` is called after each item.

    The folder is written completely or not at all. Raises `UserError` if it cannot be written, or an
    episode cannot be read.
    """
    if out.exists():
        raise UserError(f"{out}: exists already. Pack into a new folder, or remove this one first.")
    temporary = out.with_name(f".{out.name}.tmp")
    items = sorted([*data.training, *data.held_out_items], key=lambda item: item.name)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(data, items, temporary, report)
        temporary.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}. Nothing was kept.") from None
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)


def _write(data: Recordings, items: list[Item], folder: Path, report: Callable[[int, int], None]) -> None:
    total = sum(item.length for item in items)
    layouts: dict[str, NDArray[np.bool_]] = {}
    bad: list[str] = []
    with contextlib.ExitStack() as files:

        def open_array(name: str, shape: tuple[int, ...], dtype: type) -> IO[bytes]:
            return files.enter_context(_open_array(folder / f"{name}.npy", (total, *shape), np.dtype(dtype)))

        frames = open_array("frames", data.frame_shape, np.uint8)
        actions = open_array("actions", (data.action_size,), np.float32)
        poses = open_array("poses", (data.pose_size,), np.float64) if data.has_poses else None
        for item, recording in data.read_through(items, bad, report):
            if bad:  # nothing will be kept; read on, to name all of them
                continue
            frames.write(recording.frames.contiguous().numpy().tobytes())
            actions.write(recording.actions.contiguous().numpy().tobytes())
            if poses is not None and recording.poses is not None:
                poses.write(recording.poses.contiguous().numpy().tobytes())
            if recording.layout is not None:
                layouts[item.name] = recording.layout
    if bad:
        raise UserError(
            f"{len(bad)} of {len(items)} episodes cannot be packed: {'; '.join(bad[:NAMED])}. Copy them again from "
            "their source or remove them. Nothing was kept."
        )
    if layouts:
        np.savez(folder / "layouts.npz", **layouts)  # type: ignore[arg-type]
    height, width = data.frame_shape[1:]
    sized_items = [{**asdict(item), "height": height, "width": width, "key_frames": []} for item in items]
    index = {"format": FORMAT, "kind": data.source.kind, "action_size": data.action_size, "has_poses": data.has_poses}
    index["in_degrees"] = data.source.in_degrees
    (folder / INDEX).write_text(json.dumps({**index, "items": sized_items}, indent=1), encoding="utf-8")


def _open_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> IO[bytes]:
    """Open an npy file and write its header; the data follow by plain writes.

    On a full disk a write raises `OSError`, but a memory map would kill the process.
    """
    file = path.open("wb")
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file
