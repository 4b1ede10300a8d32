"""Frames of a video by number. Frame k is the k-th picture that a player shows, whatever the clock and the header say.

A header's number of frames may be wrong, recordings pause, and a file that was cut without encoding it again holds
frames that are never shown. So `inspect_video` decodes a whole file once and counts. `read_frames` then begins at the
last key frame before a clip, which it knows by its timestamp, and counts from there. `frames_in_order` is the obvious
way, and tests hold the two together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rad_bench.errors import UserError

# Containers that PyAV can read; in any letter case.
SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv",
    ".3gp",
)  # fmt: skip


@dataclass(frozen=True)
class Video:
    """What a video holds."""

    length: int  # frames
    height: int  # pixels
    width: int
    key_frames: list[list[int]]  # [frame number, timestamp] where decoding can begin, in order


def inspect_video(path: Path) -> Video:
    """Decode a video to its end. Raises `ValueError` or `OSError` if it is not whole."""
    times: list[int | None] = []
    key_frames: list[list[int]] = []
    sizes: set[tuple[int, int]] = set()
    for number, frame in enumerate(frames_in_order(path)):
        if frame.is_corrupt:
            raise ValueError(f"frame {number} is damaged")
        sizes.add((frame.height, frame.width))
        times.append(frame.pts)
        if _is_key(frame) and frame.pts is not None:
            key_frames.append([number, frame.pts])
    if len(times) < 2:
        raise ValueError(f"has {len(times)} frames")
    if len(sizes) > 1:
        raise ValueError(f"has frames of several sizes: {', '.join(f'{h} x {w}' for h, w in sorted(sizes))} pixels")
    ((height, width),) = sizes
    uses = Counter(times)
    return Video(len(times), height, width, [key for key in key_frames if uses[key[1]] == 1])


def read_frames(path: Path, key_frames: list[list[int]], start: int, stop: int) -> Tensor:
    """Decode frames start..stop-1, [T, 3, H, W] uint8. Raises `ValueError` or `OSError` if the file lacks them."""
    before = [(number, time) for number, time in key_frames if 0 < number <= start]
    pictures = _from_key_frame(path, *before[-1], start, stop) if before else None
    if pictures is None:  # also for containers that cannot seek to every key frame
        pictures = [_picture(frame) for frame in islice(frames_in_order(path), start, stop)]
    if len(pictures) < stop - start:
        raise ValueError(f"has no frame {start + len(pictures)}")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def frames_in_order(path: Path) -> Iterator[Any]:
    """Decode a video from its beginning and return its frames as they are shown."""
    number = -1
    with _opened(path) as (container, stream), _errors(lambda: f"cannot be decoded after frame {number}"):
        for number, frame in enumerate(container.decode(stream)):  # noqa: B007
            yield frame


def _from_key_frame(path: Path, number: int, time: int, start: int, stop: int) -> list[np.ndarray] | None:
    """Decode from a key frame; None if seeking does not lead to it, or the file ends early."""
    import av

    with _opened(path) as (container, stream):
        try:
            container.seek(time, stream=stream)
            frames = container.decode(stream)
            first = next((frame for frame in frames if _is_key(frame) and frame.pts == time), None)
            if first is None:
                return None
            wanted = islice(chain([first], frames), start - number, stop - number)
            pictures = [_picture(frame) for frame in wanted]
        except av.FFmpegError:
            return None
    return pictures if len(pictures) == stop - start else None


def _is_key(frame: Any) -> bool:
    # Codecs that refresh a picture bit by bit mark frames as key frames that are not decodable on their own.
    return bool(frame.key_frame) and frame.pict_type == pyav().video.frame.PictureType.I


def _picture(frame: Any) -> np.ndarray:
    picture: np.ndarray = frame.to_ndarray(format="rgb24")
    return picture


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video by its content: PyAV takes some names for addresses or patterns, and refuses those not UTF-8."""
    av = pyav()
    with path.open("rb") as file:
        with _errors(lambda: "is not a readable video"):
            container = av.open(file)
        with container:
            if not container.streams.video:
                raise ValueError("has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream


@contextmanager
def _errors(what: Any) -> Iterator[None]:
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:  # OSError: from reading the file
        raise ValueError(f"{what()} ({error.strerror})") from None


def pyav() -> Any:
    """Return the module PyAV. Raises `UserError` if it is not installed."""
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV to be decoded: pip install 'rad-bench[video]'.") from None
    return av
