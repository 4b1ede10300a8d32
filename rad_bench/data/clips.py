"""Recordings in whatever form a layout describes: videos, folders of pictures or arrays, and tables beside them."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rad_bench.data.files import Files, find_files, suffix
from rad_bench.data.index import list_items
from rad_bench.data.layout import EPISODE, OWN, PICTURE, VIDEO, Layout
from rad_bench.data.npz import header_of, read_rows
from rad_bench.data.source import Item, Recording
from rad_bench.data.tables import FRAME, TABLES, frame_names, opened
from rad_bench.data.video import SUFFIXES, inspect_video, pyav, read_frames

INSPECTION = "clips 2"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Part:
    """Frames that lie together: a video, an array, or the pictures of a folder by number."""

    files: tuple[Path, ...]

    @property
    def kind(self) -> str:
        """Return the first file's suffix."""
        return suffix(self.files[0].name)


class ClipFiles:
    """Implements `Source` by a layout."""

    kind = "clips"

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.layout = layout
        files = find_files(folder)
        if any(VIDEO in pattern or suffix(pattern) in SUFFIXES for pattern in layout.frames.files):
            pyav()
        self.parts, incomplete = _episodes(files, layout)
        lower = {name.lower(): path for name, path in files.paths.items()}
        self.tables = {name: _tables(name, files, lower, layout) for name in self.parts}
        first = {name: parts[0].files[0] for name, parts in self.parts.items()}
        by_path = {path: name for name, path in first.items()}
        mine = {path for name in first for path in self._files(name)}
        others = [name for name, path in files.paths.items() if path not in mine and name != OWN]
        listing = list_items(
            folder, Files(first, [*files.left_out, *incomplete]), first, self._inspect,
            f"{INSPECTION} {layout.identity}", lambda path: self._files(by_path[path])[1:],
        )  # fmt: skip
        wanted = f"the layout asks for {' and '.join(layout.frames.files)}"
        self.listing = replace(listing, others=others, wanted=wanted)
        self.has_poses = layout.poses is not None
        self.pose_size = 3 if layout.poses is None else layout.poses.size
        self.in_degrees = layout.poses is not None and layout.poses.unit == "degrees"
        self.action_size = int(self.listing.items[0].variant.split()[0]) if self.listing.items else 0

    def read(self, item: Item, start: int, stop: int) -> Recording:
        actions, poses, _ = self._rows(item.name, item.length)
        return Recording(
            self._frames(item, start, stop),
            torch.from_numpy(actions[start:stop].copy()),
            None if poses is None else torch.from_numpy(poses[start:stop].copy()),
        )

    def surfaces(self, recording: Recording) -> NDArray[np.int64]:
        return np.zeros((len(recording.frames), 0), np.int64)

    def surroundings(self, recording: Recording) -> None:
        return None

    def ground(self, item: Item) -> NDArray[np.float64] | None:
        path = self.tables[item.name].get("ground")
        return None if self.layout.ground is None or path is None else self.layout.ground.read(path)

    def _files(self, name: str) -> list[Path]:
        """Return all files of a recording, the one that names it first."""
        return [*(path for part in self.parts[name] for path in part.files), *dict.fromkeys(self.tables[name].values())]

    def _inspect(self, path: Path, name: str) -> Item:
        """Look at all files of a recording once. All their bytes, and the layout, are the item's content."""
        sizes = [_size(part, self.layout.frames.array) for part in self.parts[name]]
        length = sum(frames for frames, *_ in sizes)
        shapes = {(height, width) for _, height, width, _ in sizes}
        if len(shapes) > 1 or length < 2:
            raise ValueError(f"has frames of several sizes: {shapes}" if length > 1 else f"has {length} frames")
        actions, _, more = self._rows(name, length)
        digest = hashlib.sha256(self.layout.identity.encode())
        for file in self._files(name):
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        ((height, width),) = shapes
        key_frames = sizes[0][3] if len(sizes) == 1 else []
        variant = f"{actions.shape[1]} action columns" + (f" and a row more of {more} than frames" if more else "")
        return Item(name, length, height, width, digest.hexdigest()[:16], variant, key_frames)

    def _rows(self, name: str, length: int) -> tuple[NDArray[np.float32], NDArray[np.float64] | None, str]:
        """Return the actions and poses of a recording, and of which there is a row after the last frame.

        Such a row is a recorder's habit: where only some recordings have one, they may as well lack their first frame.
        Raises `ValueError` if it is not known which row is which's.
        """
        actions, poses = np.zeros((length, 0), np.float32), None
        if self.layout.actions is not None:
            actions = self.layout.actions.read(self._table(name, "actions"))
        if self.layout.poses is not None:
            poses = self.layout.poses.read(self._table(name, "poses"))
        counts = {"actions": len(actions), **({} if poses is None else {"poses": len(poses)})}
        for what, count in counts.items():
            if not length <= count <= length + 1:
                raise ValueError(f"has {length} frames and {what} for {count}")
        more = " and ".join(what for what, count in counts.items() if count > length)
        return actions[:length], None if poses is None else poses[:length], more

    def _table(self, name: str, what: str) -> Path:
        if what not in self.tables[name]:
            raise ValueError(f"has no {what}: {_filled(getattr(self.layout, what).file, name)} is missing")
        return self.tables[name][what]

    def _frames(self, item: Item, start: int, stop: int) -> Tensor:
        """Return frames start..stop-1 of a recording's parts, which follow each other, [T, 3, H, W]."""
        pieces, first = [], 0
        parts = self.parts[item.name]
        for part in parts:
            length = item.length if len(parts) == 1 else _size(part, self.layout.frames.array)[0]
            low, high = max(start - first, 0), min(stop - first, length)
            if low < high:
                pieces.append(_read(part, self.layout.frames.array, item.key_frames, low, high))
            first += length
        frames = torch.cat(pieces)
        if len(frames) < stop - start:
            raise ValueError(f"has no frame {start + len(frames)}")
        return (frames.flip(1) if self.layout.frames.colour == "bgr" else frames).contiguous()


def _episodes(files: Files, layout: Layout) -> tuple[dict[str, list[Part]], list[str]]:
    """Return the parts of each recording by its name, and which recordings are left out because one is missing."""
    found: list[dict[str, list[Path]]] = []
    for pattern in layout.frames.files:
        regex = _regex(pattern)
        by_episode: dict[str, list[Path]] = {}
        for name, path in files.paths.items():
            if match := regex.fullmatch(name):
                by_episode.setdefault(match["episode"], []).append(path)
        found.append(by_episode)
    names = dict.fromkeys(name for by_episode in found for name in by_episode)
    parts, left_out = {}, []
    for name in names:
        lacking = [p for p, by in zip(layout.frames.files, found, strict=True) if name not in by]
        several = [by[name] for by in found if name in by and len(by[name]) > 1 and not _pictures(by[name])]
        if lacking:
            left_out.append(f"{name}: has no {_filled(lacking[0], name)}")
        elif several:
            left_out.append(f"{name}: has several files of frames: {', '.join(path.name for path in several[0])}")
        else:
            parts[name] = [Part(tuple(sorted(by[name], key=_number))) for by in found]
    return parts, left_out


def _pictures(paths: list[Path]) -> bool:
    return all(suffix(path.name) in PICTURES for path in paths)


def _number(path: Path) -> tuple[int, str]:
    """Sort pictures by the last number in their names."""
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, path.name)


def _tables(name: str, files: Files, lower: dict[str, Path], layout: Layout) -> dict[str, Path]:
    """Return the files of actions and poses of a recording that there are; `lower` has all in lower case."""
    found = {}
    for what, table in (("actions", layout.actions), ("poses", layout.poses), ("ground", layout.ground)):
        if table is not None:
            wanted = _filled(table.file, name)
            match = files.paths.get(wanted) or lower.get(wanted.lower())
            if match is not None:
                found[what] = match
    return found


def _filled(pattern: str, episode: str) -> str:
    return pattern.replace(EPISODE, episode)


def _regex(pattern: str) -> re.Pattern[str]:
    """Return the expression for names below the folder; letter case does not matter."""
    endings = {VIDEO: SUFFIXES, PICTURE: PICTURES}
    parts = re.split(r"(\{\w+\}|\*)", pattern)
    text = ""
    for part in parts:
        if part == EPISODE:
            text += "(?P=episode)" if "(?P<episode>" in text else "(?P<episode>.+)"
        elif part in endings:
            text += "(?:" + "|".join(end[1:] for end in endings[part]) + ")"
        else:
            text += "[^/]*" if part == "*" else re.escape(part)
    return re.compile(text, re.IGNORECASE)


def _size(part: Part, array: str | None) -> tuple[int, int, int, list[list[int]]]:
    """Return frames, height, width and, of a video, where decoding can begin. Raises `ValueError`."""
    if part.kind in SUFFIXES:
        video = inspect_video(part.files[0])
        return video.length, video.height, video.width, video.key_frames
    if part.kind in PICTURES:
        sizes = set()
        for path in part.files:
            with _opened_picture(path) as image:
                sizes.add(image.size)
        numbers = [_number(path)[0] for path in part.files]
        if -1 in numbers or len(set(numbers)) < len(numbers):
            raise ValueError("has pictures without a number of their own")
        if numbers[-1] - numbers[0] + 1 != len(numbers):
            raise ValueError(f"lacks picture {min(set(range(numbers[0], numbers[-1])) - set(numbers))}")
        if len(sizes) > 1:
            raise ValueError(f"has pictures of several sizes: {sorted(sizes)}")
        ((width, height),) = sizes
        return len(part.files), height, width, []
    shape, dtype = _array_shape(part.files[0], array)
    if dtype != np.uint8 or len(shape) != 4 or 3 not in (shape[3], shape[1]):
        raise ValueError(f"{array} is {dtype} {shape}, should be uint8 (frames, height, width, 3)")
    height, width = shape[1:3] if shape[3] == 3 else shape[2:]
    return shape[0], height, width, []


def _array_shape(path: Path, array: str | None) -> tuple[tuple[int, ...], np.dtype]:  # type: ignore[type-arg]
    if array is None or suffix(path.name) not in TABLES:
        raise ValueError(f"{path.name} is no video and no picture; frames.array names the array in an npz or HDF5 file")
    if suffix(path.name) == ".npz" and FRAME not in array:
        with zipfile.ZipFile(path) as archive:
            if f"{array}.npy" not in archive.namelist():
                held = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
                raise ValueError(f"has no {array}, only {held}")
            header = header_of(archive, array)
            return header.shape, header.dtype
    with opened(path) as arrays:
        if FRAME in array:
            names = frame_names(arrays, array)
            return (len(names), *arrays[names[0]].shape), arrays[names[0]].dtype
        if array not in arrays:
            raise ValueError(f"has no {array}, only {', '.join(list(arrays)[:20])}")
        return arrays[array].shape, arrays[array].dtype


@contextmanager
def _opened_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture. Raises `ValueError` with its name, also while it is decoded."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "is no picture" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{path.name}: {reason}") from None


def _read(part: Part, array: str | None, key_frames: list[list[int]], start: int, stop: int) -> Tensor:
    """Return frames start..stop-1 of a part, [T, 3, H, W] uint8."""
    path = part.files[0]
    if part.kind in SUFFIXES:
        return read_frames(path, key_frames, start, stop)
    if part.kind in PICTURES:
        pictures = []
        for file in part.files[start:stop]:
            with _opened_picture(file) as image:
                pictures.append(np.array(image.convert("RGB")))
        frames = np.stack(pictures)
    else:
        assert array is not None
        frames = _array_rows(path, array, start, stop)
    return torch.from_numpy(np.moveaxis(frames, 3, 1) if frames.shape[3] == 3 else frames)


def _array_rows(path: Path, array: str, start: int, stop: int) -> NDArray[np.uint8]:
    if suffix(path.name) == ".npz" and FRAME not in array:
        with zipfile.ZipFile(path) as archive:
            return read_rows(path, archive, array, start, stop)
    with opened(path) as arrays:
        if FRAME in array:
            return np.stack([arrays[array.replace(FRAME, str(frame))][()] for frame in range(start, stop)])
        rows: NDArray[np.uint8] = arrays[array][start:stop]
        return rows
