"""Minecraft videos: a video and, beside it, an npz of the same name with one row a frame (see `minecraft_rows`)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rad_bench.data.files import find_files, suffix
from rad_bench.data.index import list_items
from rad_bench.data.minecraft_rows import LAYOUTS, Rows, read_rows
from rad_bench.data.source import Item, Listing, Recording
from rad_bench.data.video import SUFFIXES, inspect_video, pyav, read_frames

INSPECTION = "minecraft 2"
WANTED = (
    "minecraft reads videos (.mp4, .mkv, .webm, .mov, .avi ...), each with an npz of the same name beside it; npz "
    "episodes of Memory Maze are data.name: memory_maze"
)


class MinecraftFiles:
    """Implements `Source`."""

    kind = "minecraft"
    in_degrees = True

    def __init__(self, folder: Path) -> None:
        pyav()
        files = find_files(folder)
        self.paths = files.paths
        videos = [name for name in files.paths if suffix(name) in SUFFIXES]
        rows = {_npz(files.paths[name]) for name in videos}
        others = [name for name, path in files.paths.items() if name not in videos and path not in rows]
        listing = list_items(folder, files, videos, _inspect, INSPECTION, lambda path: [_npz(path)])
        self.listing = replace(_one_video_each(listing, files.paths), others=others, wanted=WANTED)
        variant = self.listing.items[0].variant if self.listing.items else ""
        layout = LAYOUTS.get(variant)
        self.has_poses = layout is not None and layout.poses is not None
        self.pose_size = 5 if self.has_poses else 3
        self.action_size = layout.action_size if layout is not None else 0

    def read(self, item: Item, start: int, stop: int) -> Recording:
        path = self.paths[item.name]
        rows = _rows(path)
        if rows.layout.variant != item.variant or len(rows) < stop:
            raise ValueError(f"{_npz(path).name} was changed: it has {len(rows)} rows, {rows.layout.variant}")
        poses = rows.poses(start, stop)
        return Recording(
            read_frames(path, item.key_frames, start, stop),
            torch.from_numpy(rows.actions(start, stop)),
            None if poses is None else torch.from_numpy(poses),
        )

    def surfaces(self, recording: Recording) -> NDArray[np.int64]:
        return np.zeros((len(recording.frames), 0), np.int64)

    def surroundings(self, recording: Recording) -> None:
        return None

    def ground(self, item: Item) -> None:
        return None


def _inspect(path: Path, name: str) -> Item:
    """Decode the video and read its rows. All bytes of both are the item's content."""
    rows = _rows(path)
    video = inspect_video(path)
    if not video.length <= len(rows) <= video.length + 1:  # an action may follow the last frame
        more = "" if len(rows) < video.length else "; it is not known which rows belong to which frames"
        raise ValueError(f"has {video.length} frames and actions for {len(rows)}{more}")
    digest = hashlib.sha256(rows.content)
    with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    content, variant = digest.hexdigest()[:16], rows.layout.variant
    return Item(name, video.length, video.height, video.width, content, variant, video.key_frames)


def _one_video_each(listing: Listing, paths: dict[str, Path]) -> Listing:
    """Leave out a second video of the same name: it would be the same recording, or not the npz's."""
    items: list[Item] = []
    left_out = list(listing.left_out)
    first: dict[Path, str] = {}
    for item in listing.items:
        npz = _npz(paths[item.name])
        if npz in first:
            left_out.append(f"{item.name}: {npz.name} lies beside {first[npz]} too; keep one of the two videos")
        else:
            first[npz] = item.name
            items.append(item)
    return Listing(items, left_out)


def _rows(video: Path) -> Rows:
    path = _npz(video)
    if not path.is_file():
        raise ValueError(f"has no {path.name} beside it")
    return read_rows(path)


def _npz(video: Path) -> Path:
    """Return the npz beside a video, which is there or not."""
    lower, upper = video.with_suffix(".npz"), video.with_suffix(".NPZ")
    return upper if upper.is_file() and not lower.is_file() else lower
