"""Read the frames that a model from outside generated: arrays, pictures or videos, one an episode."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rad_bench.data.files import suffix
from rad_bench.data.recordings import resize
from rad_bench.data.source import UNREADABLE
from rad_bench.data.video import SUFFIXES, inspect_video, read_frames
from rad_bench.errors import UserError
from rad_bench.evaluation.scoring import Key
from rad_bench.exchange.suspects import shift_sentences, video_suspects

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
NAMED = 10  # problems that a message names; the rest is counted


@dataclass
class Reading:
    """What was noticed in a folder of generated frames."""

    problems: list[str] = field(default_factory=list)  # why it cannot be scored
    notes: list[str] = field(default_factory=list)  # what is changed before scoring
    suspects: list[str] = field(default_factory=list)  # what can be scored but hardly be meant
    digest: str = ""  # of all frames


def inspect(folder: Path, keys: list[Key]) -> Reading:
    """Read all frames of a folder once, and return what was noticed. Problems are collected, not raised."""
    reading, digest = Reading(), hashlib.sha256()
    if not folder.is_dir():
        reading.problems.append(f"{folder} is not a folder")
        return reading
    for key in keys:
        if not (folder / key.task.name).is_dir():
            reading.problems.append(f"{key.task.name}: all episodes are missing, as there is no folder of this name")
            continue
        changes: dict[str, int] = {}
        shifts: dict[str, tuple[int, float]] = {}
        for episode, truth in enumerate(key.truth):
            name = f"{key.task.name}/{episode:03d}"
            try:
                frames, changed = read_video(folder, key, episode)
            except UNREADABLE as error:
                reading.problems.append(f"{name}: {error or type(error).__name__}")
                continue
            digest.update(frames.numpy().tobytes())
            changes |= {text: changes.get(text, 0) + 1 for text in changed}
            suspects, shift = video_suspects(frames, truth)
            reading.suspects += [f"{name} {text}" for text in suspects]
            shifts |= {name: shift} if shift is not None else {}
        count = len(key.truth)
        reading.notes += [f"{key.task.name}: {text} ({n} of {count} videos)" for text, n in changes.items()]
        reading.suspects += shift_sentences(key.task.name, shifts, count)
    reading.digest = digest.hexdigest()
    return reading


def read_task(folder: Path, key: Key) -> Tensor:
    """Return the generated frames of a task at the truth's size, uint8 [B, H, 3, h, w]. Raises `UserError`."""
    try:
        return torch.stack([read_video(folder, key, episode)[0] for episode in range(len(key.truth))])
    except UNREADABLE as error:  # it was whole when it was inspected
        raise UserError(f"{folder}: was changed while it was scored: {error}.") from None


def read_video(folder: Path, key: Key, episode: int) -> tuple[Tensor, list[str]]:
    """Return an episode's frames at the truth's size, uint8 [H, 3, h, w], and what was changed in them.

    Raises one of `UNREADABLE` if they are missing, or are not as many as were asked for.
    """
    path = _find(folder / key.task.name, episode)
    frames, changes = _read(path)
    C, H = key.task.context, key.task.horizon
    if len(frames) == C + H:
        frames, changes = frames[C:], [*changes, f"its first {C} of {C + H} frames are left out, as the context"]
    if len(frames) != H:
        raise ValueError(f"{path.name} has {len(frames)} frames, and {H} were asked for")
    size, wanted = tuple(frames.shape[-2:]), tuple(key.truth.shape[-2:])
    if size != wanted:
        frames = resize(frames, *wanted)
        changes.append(f"resized from {size[0]} x {size[1]} to {wanted[0]} x {wanted[1]} pixels")
    return frames.contiguous(), changes  # the last bits of SSIM depend on the order in memory


def problems_text(where: str, problems: list[str]) -> str:
    """Return problems as a text; of many, the first ones and the number of the rest."""
    more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return f"{where}: {'; '.join(problems[:NAMED])}{more}"


def _find(folder: Path, episode: int) -> Path:
    """Return the file or folder of an episode: `003.npz`, `3.mp4`, `003/`."""
    matches = [
        path
        for path in sorted(folder.iterdir())
        if (path.stem.isdecimal() and int(path.stem) == episode)
        and (path.is_dir() or suffix(path.name) in (".npz", *SUFFIXES))
    ]
    if not matches:
        others = sorted(path.name for path in folder.iterdir() if not path.stem.isdecimal())
        raise ValueError("is missing" + (f"; what is {others[0]}, which has no number as its name?" if others else ""))
    if len(matches) > 1:
        raise ValueError(f"is there twice: {', '.join(path.name for path in matches)}")
    return matches[0]


def _read(path: Path) -> tuple[Tensor, list[str]]:
    if path.is_dir():
        return _read_pictures(path)
    if suffix(path.name) == ".npz":
        return _read_array(path)
    video = inspect_video(path)
    frames = read_frames(path, [], 0, video.length)
    return frames, ["read from a video, so that what its compression loses is scored too"]


def _read_array(path: Path) -> tuple[Tensor, list[str]]:
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        if "frames" not in names and len(names) != 1:
            raise ValueError(f"{path.name} has no array frames, only {', '.join(names) or 'nothing'}")
        array = archive["frames" if "frames" in names else names[0]]
    if array.ndim != 4 or 3 not in (array.shape[-1], array.shape[1]):
        raise ValueError(f"{path.name} holds {array.dtype} {array.shape}, should be uint8 (H, height, width, 3)")
    if array.shape[-1] == 3:
        array = np.moveaxis(array, -1, 1)
    if array.dtype == np.uint8:
        return torch.from_numpy(array), []
    if array.dtype.kind != "f" or not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        span = f" from {array.min():g} to {array.max():g}" if array.size and array.dtype.kind in "fiu" else ""
        raise ValueError(f"{path.name} holds {array.dtype}{span}, should be uint8, or floats from 0 to 1")
    eight_bits = np.round(array.astype(np.float64) * 255).astype(np.uint8)
    return torch.from_numpy(eight_bits), ["floats from 0 to 1 were rounded to 8 bits"]


def _read_pictures(folder: Path) -> tuple[Tensor, list[str]]:
    pictures = list(_numbered(folder))
    if not pictures:
        raise ValueError(f"{folder.name} holds no pictures with numbers")
    numbers = [number for number, _ in pictures]
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        raise ValueError(f"{folder.name} has picture {twice} twice")
    if numbers[-1] - numbers[0] + 1 != len(numbers):
        lacking = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
        raise ValueError(f"{folder.name} has no picture {lacking[0]}, but {numbers[-1]}")
    arrays = []
    for _, path in pictures:
        try:
            with Image.open(path) as image:
                arrays.append(np.array(image.convert("RGB")))
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{folder.name}/{path.name} cannot be read ({error})") from None
        if arrays[-1].shape != arrays[0].shape:
            raise ValueError(f"{folder.name} holds pictures of several sizes")
    lossy = any(suffix(path.name) in (".jpg", ".jpeg") for _, path in pictures)
    notes = ["read from JPEG pictures, so that what their compression loses is scored too"] if lossy else []
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2), notes


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the pictures of a folder by the last number in their names."""
    paths = [path for path in folder.iterdir() if suffix(path.name) in PICTURES and not path.name.startswith(".")]
    numbers = [(re.findall(r"\d+", path.stem), path) for path in paths]
    yield from sorted((int(found[-1]), path) for found, path in numbers if found)
