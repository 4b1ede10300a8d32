"""What each format of recorded episodes provides: a list of items, and their frames."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Item:
    """One recorded episode."""

    name: str  # its path below the data set's folder, with /
    length: int  # frames
    height: int  # pixels
    width: int
    content: str  # hash or checksums of the content; part of the data's identity
    variant: str = ""  # of the format; all items of a data set have the same
    key_frames: list[list[int]] = field(default_factory=list, compare=False)  # of a video: see `video.Video`


@dataclass(frozen=True)
class Recording:
    """T frames of an item."""

    frames: Tensor  # [T, 3, H, W] uint8
    actions: Tensor  # [T, A] float32; row t is the action that led to frame t
    poses: Tensor | None  # [T, P] float64; see `episodes`
    layout: NDArray[np.bool_] | None = None  # [N, N], true where free, in the poses' coordinates

    def slice(self, start: int, stop: int) -> Recording:
        """Return frames start..stop-1, as views."""
        poses = None if self.poses is None else self.poses[start:stop]
        return Recording(self.frames[start:stop], self.actions[start:stop], poses, self.layout)


@dataclass(frozen=True)
class Listing:
    """The good items of a folder, sorted by name, and the files that are left out, with reasons."""

    items: list[Item]
    left_out: list[str]
    others: list[str] = field(default_factory=list)  # names of files that are no part of any item
    wanted: str = ""  # which files are items


class Source(Protocol):
    """A format of recordings in files below a folder."""

    kind: str  # `data.name` in a config
    action_size: int
    has_poses: bool
    pose_size: int  # P; 3 without poses
    in_degrees: bool  # the files hold headings in degrees
    listing: Listing

    def read(self, item: Item, start: int, stop: int) -> Recording:
        """Return frames start..stop-1 of an item at their recorded size. Raises one of `UNREADABLE`."""
        ...

    def surfaces(self, recording: Recording) -> NDArray[np.int64]:
        """Return which surface each ray of each view meets, [T, R]; R = 0 without a map of the world."""
        ...

    def surroundings(self, recording: Recording) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        """Return which points around the last pose are free and which a view has shown, both [P]; None: no map."""
        ...

    def ground(self, item: Item) -> NDArray[np.float64] | None:
        """Return the height of the ground, [X, Y] in the poses' places, or NaN, to be drawn; None: no map."""
        ...
