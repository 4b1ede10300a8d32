"""Episodes recorded in files: which are good, how they are split, and clips of them.

A `Source` knows one format; what formats have in common is here. Whole episodes are training or held-out material:
by their folder where the data set comes split (train, training; test, validation, eval), else by a hash of their names.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rad_bench.data.episodes import Episodes, Hidden, egomotion_from_poses, poses_from_egomotion
from rad_bench.data.source import UNREADABLE, Item, Listing, Recording, Source
from rad_bench.errors import UserError

VERSION = 2  # of how recordings become episodes; part of the data's identity
CACHE_BYTES = 1 << 30  # a data set that fits, once decoded and resized, is decoded once and kept
PROBE = 3  # first word of the random key of probe clips
NAMED = 10  # bad files that a message names; the others are counted
TRAINING_FOLDERS, HELD_OUT_FOLDERS = {"train", "training"}, {"test", "validation", "eval"}


class FilesConfig(Protocol):
    """What the configs of all recorded data have."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int | None: ...
    @property
    def stride(self) -> int: ...
    @property
    def held_out(self) -> float: ...


class Recordings:
    """Implements `Dataset` over a source. Raises `UserError` without two good items; warns of those left out."""

    def __init__(self, source: Source, config: FilesConfig, same_view: tuple[float, float] | None = None) -> None:
        self.source, self.config = source, config
        items, self.left_out = _uniform(_strided(source.listing, config.stride), config.size)
        reasons = _reasons(self.left_out)
        if len(items) < 2:
            found = f"{len(items)} good episode{'' if len(items) == 1 else 's'}"
            raise UserError(
                f"data.path {config.path} holds {found}, and two are needed, one to train on and one to hold out."
                + (f" Left out: {reasons}." if reasons else "")
            )
        if reasons:
            left, of = len(self.left_out), len(items) + len(self.left_out)
            warnings.warn(f"left out {left} of {of} files in {config.path}: {reasons}", stacklevel=2)
        self.training, self.held_out_items = split(items, config.held_out)
        first = items[0]
        self.frame_shape = (3, config.size or first.height, config.size or first.width)
        self.action_size, self.has_poses = config.stride * source.action_size, source.has_poses
        self.same_view = same_view
        self.identity = self._identity(items)
        pixels = math.prod(self.frame_shape)
        self._keeps_all = sum(item.length for item in items) * pixels <= CACHE_BYTES
        self._kept: OrderedDict[str, Recording] = OrderedDict()

    def training_batch(
        self, seed: int, step: int, batch: int, frames: int, rows: slice = slice(None), with_surfaces: bool = False
    ) -> Episodes:
        """Return random clips of random training items: a pure function of the files and the arguments."""
        return self.clips(self.draw(seed, step, batch, frames)[rows], frames, with_surfaces)

    def draw(self, seed: int, step: int, batch: int, frames: int) -> list[tuple[Item, int]]:
        """Return the clips of a training batch, as items and first frames."""
        long_enough = [item for item in self.training if item.length >= frames]
        if not long_enough:
            longest = max(item.length for item in self.training)
            raise UserError(
                f"training.frames {frames} is longer than every training episode in data.path {self.config.path}; "
                f"the longest has {longest} frames. Set training.frames to at most {longest}."
            )
        rng = np.random.default_rng([seed, step, batch, frames])
        picked = [long_enough[i] for i in rng.integers(len(long_enough), size=batch)]
        return [(item, int(rng.integers(item.length - frames + 1))) for item in picked]

    def held_out(self, episodes: int, frames: int, context: int) -> Episodes:
        """Return clips of the held-out items, with surfaces where they are known: evenly spaced, none overlapping."""
        return self.clips(self.held_out_places(episodes, frames), frames, with_surfaces=True)

    def held_out_places(self, episodes: int, frames: int) -> list[tuple[Item, int]]:
        """Return where the clips of `held_out` lie, as items and first frames."""
        room = [item.length // frames for item in self.held_out_items]
        if sum(room) < episodes:
            raise UserError(
                f"evaluation.episodes {episodes} of {frames} frames (context + horizon) do not fit into the "
                f"{len(room)} held-out episodes of data.path {self.config.path}: there is room for {sum(room)}. "
                f"Ask for {sum(room)} or fewer, shorten evaluation.context or evaluation.horizon, raise "
                f"data.held_out above {self.config.held_out}, or add episodes to the folder."
            )
        share = [0] * len(room)
        while sum(share) < episodes:  # deal them out in turn, as far as each item has room
            for i in range(len(room)):
                if share[i] < room[i] and sum(share) < episodes:
                    share[i] += 1
        clips = []
        for item, count in zip(self.held_out_items, share, strict=True):
            spare = item.length - frames
            clips += [(item, i * spare // (count - 1) if count > 1 else spare // 2) for i in range(count)]
        return clips

    def probe_clips(self, training: bool, count: int, frames: int) -> Episodes:
        """Return random clips whose hidden part is where the agent stands and, with a map, what is around it.

        `position` is x and y in the first frame's body frame; for `layout` see `Source.surroundings`.
        """
        items = [item for item in (self.training if training else self.held_out_items) if item.length >= frames]
        rng = np.random.default_rng([PROBE, training, count, frames])
        picked = [items[i] for i in rng.integers(len(items), size=count)] if items else []
        drawn = [(item, int(rng.integers(item.length - frames + 1))) for item in picked]
        if not drawn or not self.has_poses:
            return self.clips([(self.training[0], 0)], min(frames, self.training[0].length))
        parts = [self.clip(item, start, start + frames) for item, start in drawn]
        episodes = self.as_episodes(drawn, parts)
        place = poses_from_egomotion(episodes.egomotion)[:, -1, :2]
        hidden = {"position": Hidden(place, torch.ones_like(place, dtype=torch.bool))}
        around = [found for part in parts if (found := self.source.surroundings(part)) is not None]
        if len(around) == len(parts):
            free, shown = (np.stack(arrays) for arrays in zip(*around, strict=True))
            hidden["layout"] = Hidden(torch.from_numpy(free).double(), torch.from_numpy(shown))
        return replace(episodes, hidden=hidden)

    def clip(self, item: Item, start: int, stop: int) -> Recording:
        """Return frames start..stop-1 of an item at the data set's size. Raises `UserError` if they cannot be read."""
        if not self._keeps_all:
            return self._read(item, start, stop)
        if item.name not in self._kept:
            self._kept[item.name] = self._read(item, 0, item.length)
        return self._kept[item.name].part(start, stop)

    def _read(self, item: Item, start: int, stop: int) -> Recording:
        stride = self.config.stride
        try:
            recording = self.source.read(item, start * stride, (stop - 1) * stride + 1)
        except UNREADABLE as error:
            raise UserError(
                f"data.path: {self.config.path}/{item.name} looked good when it was opened but cannot be read "
                f"({error or type(error).__name__}). Copy it again from its source or remove it."
            ) from error
        frames = resize(recording.frames[::stride], *self.frame_shape[1:])
        # All actions since the frame before, one after the other; what led to the first lies outside.
        led = [
            torch.zeros_like(recording.actions[:1]).repeat(1, stride),
            recording.actions[1:].reshape(stop - start - 1, -1),
        ]
        poses = None if recording.poses is None else recording.poses[::stride]
        actions = recording.actions if stride == 1 else torch.cat(led)
        return Recording(frames, actions, poses, recording.layout)

    def clips(self, clips: Sequence[tuple[Item, int]], frames: int, with_surfaces: bool = False) -> Episodes:
        """Return clips of equal length, given as items and first frames."""
        parts = [self.clip(item, start, start + frames) for item, start in clips]
        return self.as_episodes(clips, parts, with_surfaces)

    def as_episodes(
        self, clips: Sequence[tuple[Item, int]], parts: Sequence[Recording], with_surfaces: bool = False
    ) -> Episodes:
        """Return clips (item and first frame) of equal length, whose content is given, as episodes."""
        frames = len(parts[0].frames)
        actions = torch.stack([part.actions for part in parts])
        actions[:, 0] = 0  # what led to the first frame lies outside the clip
        poses = torch.stack([torch.zeros(frames, 3).double() if p.poses is None else p.poses for p in parts])
        unasked = np.zeros((frames, 0), np.int64)
        surfaces = [self.source.surfaces(part) if with_surfaces else unasked for part in parts]
        return Episodes(
            frames=torch.stack([part.frames for part in parts]),
            actions=actions,
            egomotion=egomotion_from_poses(poses).float(),
            poses=poses,
            surfaces=torch.from_numpy(np.stack(surfaces)),
            names=tuple(f"{item.name}:{start}" for item, start in clips),
            recordings=tuple(item.name for item, _ in clips),
        )

    def _identity(self, items: list[Item]) -> str:
        """Hash the items' names and contents and how they are read; not where they lie, nor how they are stored."""
        held_out = "" if _comes_split(items) else f" held_out={self.config.held_out}"
        stride = "" if self.config.stride == 1 else f" stride={self.config.stride}"
        lines = [f"{self.source.kind} {VERSION} {self.frame_shape}{held_out}{stride}"]
        lines += [f"{item.name} {item.length} {item.content}" for item in items]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def split(items: list[Item], held_out: float) -> tuple[list[Item], list[Item]]:
    """Return training and held-out items: as the folders say where there are both kinds, else by a hash of names."""
    if _comes_split(items):
        outside = [item for item in items if _top_folder(item) in HELD_OUT_FOLDERS]
        return [item for item in items if item not in outside], outside
    by_hash = sorted(items, key=lambda item: hashlib.sha256(PurePosixPath(item.name).name.encode()).digest())
    # Rounding must not turn a share of exactly k items into k + 1.
    count = min(math.ceil(len(items) * held_out - 1e-9), len(items) - 1)
    return by_hash[count:], by_hash[:count]


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Crop frames [T, 3, h, w] around their centre to the wanted shape of rectangle, then average over areas."""
    h, w = frames.shape[-2:]
    if (h, w) == (height, width):
        return frames
    keep_h, keep_w = min(h, round(w * height / width)), min(w, round(h * width / height))
    top, left = (h - keep_h) // 2, (w - keep_w) // 2
    cropped = frames[..., top : top + keep_h, left : left + keep_w].float()
    return F.interpolate(cropped, size=(height, width), mode="area").round().to(torch.uint8)


def _strided(listing: Listing, stride: int) -> Listing:
    """Count the items' frames in strides; leave out items of which a single frame is left."""
    items = [replace(item, length=-(-item.length // stride)) for item in listing.items]
    short = [f"{item.name}: has one frame at data.stride {stride}" for item in items if item.length < 2]
    return Listing([item for item in items if item.length >= 2], [*listing.left_out, *short])


def _uniform(listing: Listing, size: int | None) -> tuple[list[Item], list[str]]:
    """Leave out items that repeat another one or, at their own size, differ in size from the first."""
    good: list[Item] = []
    left_out = list(listing.left_out)
    seen: dict[str, str] = {}
    for item in listing.items:
        if item.content in seen:
            left_out.append(f"{item.name}: the same content as {seen[item.content]}")
        elif good and item.variant != good[0].variant:
            left_out.append(f"{item.name}: has {item.variant}, the first file {good[0].variant}")
        elif good and size is None and (item.height, item.width) != (good[0].height, good[0].width):
            sizes = f"{item.height} x {item.width} pixels, the first file's {good[0].height} x {good[0].width}"
            left_out.append(f"{item.name}: frames are {sizes}; set data.size")
        else:
            seen[item.content] = item.name
            good.append(item)
    return good, left_out


def _reasons(left_out: list[str]) -> str:
    return "; ".join(left_out[:NAMED]) + (f"; and {len(left_out) - NAMED} more" if len(left_out) > NAMED else "")


def _top_folder(item: Item) -> str:
    return item.name.split("/")[0] if "/" in item.name else ""


def _comes_split(items: list[Item]) -> bool:
    folders = {_top_folder(item) for item in items}
    return bool(folders & TRAINING_FOLDERS) and bool(folders & HELD_OUT_FOLDERS)
