"""Episodes recorded in files: which of them are good, how they are split, and clips of them.

A `Source` reads one format; the code here is common to all formats. Whole episodes are either training or held-out
items. Their folders decide which, if the data set is already split (train, training; test, validation, eval);
otherwise a hash of their names does.

`data.split: validation` holds out a part of the training items instead: trials that choose a setting train on the rest
and are scored on that part. The runs of the results train on all of it, as is usual after a choice by validation: they
need every recording, and none of those that score them has had a say. A part of the held-out recordings would not do:
there are often fewer of them than scored episodes, and another clip of the same maze is not another episode.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rad_bench.data.episodes import Episodes, Hidden, egomotion_from_poses, poses_from_egomotion
from rad_bench.data.files import HELD_OUT_FOLDERS, TRAINING_FOLDERS, count_by_suffix, top_folder
from rad_bench.data.source import UNREADABLE, Item, Listing, Recording, Source
from rad_bench.errors import UserError

VERSION = 2  # of the conversion from recordings to episodes; part of the data's identity
CACHE_BYTES = 1 << 30  # a data set that is smaller, decoded and resized, is decoded once and kept
PROBE = 3  # first word of the random key of probe clips
NAMED = 10  # bad files that a message names; the rest is counted


class FilesConfig(Protocol):
    """The options that all configs of recorded data have."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int | None: ...
    @property
    def stride(self) -> int: ...
    @property
    def held_out(self) -> float: ...
    @property
    def split(self) -> str: ...


class Recordings:
    """Implements `Dataset` over a source. Raises `UserError` if fewer than two items are good; warns of the others."""

    def __init__(self, source: Source, config: FilesConfig, same_view: tuple[float, float] | None = None) -> None:
        self.source, self.config = source, config
        items, self.left_out = _uniform(_strided(source.listing, config.stride), config.size)
        reasons, others = _reasons(self.left_out), source.listing.others
        if len(items) < 2:
            good = f"{len(items)} good episode{'' if len(items) == 1 else 's'}"
            raise UserError(
                f"data.path {config.path} holds {good}, but two are needed: one to train on and one to hold out."
                + (f" Left out: {reasons}." if reasons else "")
                + (f" It holds {count_by_suffix(others)} besides; {source.listing.wanted}." if others else "")
            )
        if reasons:
            bad, files = len(self.left_out), len(items) + len(self.left_out)
            warnings.warn(f"left out {bad} of {files} files in {config.path}: {reasons}", stacklevel=2)
        self.training, self.held_out_items = split(items, config.held_out)
        first = items[0]
        self.frame_shape = (3, config.size or first.height, config.size or first.width)
        self.action_size, self.has_poses = config.stride * source.action_size, source.has_poses
        self.pose_size, self.same_view = source.pose_size, same_view
        self.content = self.identity = self._identity(items)
        if config.split == "validation":
            self._hold_out_validation()
        pixels = math.prod(self.frame_shape)
        self._keeps_all = sum(item.length for item in items) * pixels <= CACHE_BYTES
        self._kept: OrderedDict[str, Recording] = OrderedDict()

    def _hold_out_validation(self) -> None:
        """Hold out a part of the training items, as large a share as of all items, instead of the held-out ones."""
        if len(self.training) < 2:
            raise UserError(
                f"data.path {self.config.path} has only one training recording, and choosing a setting (data.split: "
                "validation) needs two: one to train on and one to validate on. Add recordings."
            )
        self.training, self.held_out_items = split_by_hash(self.training, self.config.held_out)
        text = f"{self.identity} validation={self.config.held_out}"
        self.identity = hashlib.sha256(text.encode()).hexdigest()[:16]

    def training_batch(
        self, seed: int, step: int, batch: int, frames: int, rows: slice = slice(None), with_surfaces: bool = False
    ) -> Episodes:
        """Return random clips of random training items: a pure function of the files and the arguments."""
        return self.clips(self.draw(seed, step, batch, frames)[rows], frames, with_surfaces)

    def draw(self, seed: int, step: int, batch: int, frames: int) -> list[tuple[Item, int]]:
        """Draw the clips of a training batch. Returns their items and first frames."""
        long_enough = [item for item in self.training if item.length >= frames]
        if not long_enough:
            longest = max(item.length for item in self.training)
            raise UserError(
                f"training.frames {frames} is longer than every training episode in data.path {self.config.path}; "
                f"the longest has {longest} frames. Set training.frames to at most {longest}."
            )
        rng = np.random.default_rng([seed, step, batch, frames])
        chosen = [long_enough[i] for i in rng.integers(len(long_enough), size=batch)]
        return [(item, int(rng.integers(item.length - frames + 1))) for item in chosen]

    def held_out(self, episodes: int, frames: int, context: int) -> Episodes:
        """Return clips of the held-out items, with surfaces where they are known: evenly spaced, without overlap."""
        return self.clips(self.held_out_places(episodes, frames), frames, with_surfaces=True)

    def held_out_places(self, episodes: int, frames: int) -> list[tuple[Item, int]]:
        """Return the items and first frames of the clips of `held_out`."""
        most = [item.length // frames for item in self.held_out_items]
        if sum(most) < episodes:
            longest = max(item.length for item in self.held_out_items)
            room = (
                f"there is room for {sum(most)}. Ask for {sum(most)} or fewer, shorten"
                if sum(most)
                else f"the longest has {longest}. Shorten"
            )
            kind = self.config.split.replace("_", "-")
            raise UserError(
                f"evaluation.episodes {episodes} of {frames} frames (context + horizon) do not fit into the "
                f"{len(most)} {kind} episodes of data.path {self.config.path}: {room} evaluation.context or "
                f"evaluation.horizon, raise data.held_out above {self.config.held_out}, or add episodes to the folder."
            )
        counts = [0] * len(most)
        while sum(counts) < episodes:  # one clip of each item in turn, as long as it has room
            for i in range(len(most)):
                if counts[i] < most[i] and sum(counts) < episodes:
                    counts[i] += 1
        clips = []
        for item, count in zip(self.held_out_items, counts, strict=True):
            spare = item.length - frames
            clips += [(item, i * spare // (count - 1) if count > 1 else spare // 2) for i in range(count)]
        return clips

    def probe_clips(self, training: bool, count: int, frames: int) -> Episodes:
        """Return random clips with probe targets: the agent's position and, with a map, the layout around it.

        `position` is x and y in the first frame's body frame; for `layout` see `Source.surroundings`.
        """
        items = [item for item in (self.training if training else self.held_out_items) if item.length >= frames]
        rng = np.random.default_rng([PROBE, training, count, frames])
        chosen = [items[i] for i in rng.integers(len(items), size=count)] if items else []
        clips = [(item, int(rng.integers(item.length - frames + 1))) for item in chosen]
        if not clips or not self.has_poses:
            return self.clips([(self.training[0], 0)], min(frames, self.training[0].length))
        recordings = [self.clip(item, start, start + frames) for item, start in clips]
        episodes = self.as_episodes(clips, recordings)
        position = poses_from_egomotion(episodes.egomotion)[:, -1, :2]
        hidden = {"position": Hidden(position, torch.ones_like(position, dtype=torch.bool))}
        maps = [self.source.surroundings(recording) for recording in recordings]
        known = [around for around in maps if around is not None]
        if len(known) == len(recordings):
            free, shown = (np.stack(arrays) for arrays in zip(*known, strict=True))
            hidden["layout"] = Hidden(torch.from_numpy(free).double(), torch.from_numpy(shown))
        return replace(episodes, hidden=hidden)

    def clip(self, item: Item, start: int, stop: int) -> Recording:
        """Return frames start..stop-1 of an item at the data set's size. Raises `UserError` if they cannot be read."""
        if not self._keeps_all:
            return self._read(item, start, stop)
        if item.name not in self._kept:
            self._kept[item.name] = self._read(item, 0, item.length)
        return self._kept[item.name].slice(start, stop)

    def read_through(
        self, items: Sequence[Item], unread: list[str], report: Callable[[int, int], None] = lambda done, of: None
    ) -> Iterator[tuple[Item, Recording]]:
        """Read whole items, one after the other; `report(done, of)` is called after each.

        Those that cannot be read are appended to `unread` with reasons, so that all of them are named at once.
        """
        for done, item in enumerate(items, 1):
            try:
                recording = self.clip(item, 0, item.length)
            except UserError as error:
                unread.append(f"{item.name}: cannot be read ({error.__cause__ or error})")
            else:
                yield item, recording
            report(done, len(items))

    def _read(self, item: Item, start: int, stop: int) -> Recording:
        stride = self.config.stride
        try:
            recording = self.source.read(item, start * stride, (stop - 1) * stride + 1)
        except UNREADABLE as error:
            raise UserError(
                f"data.path: {self.config.path}/{item.name} looked good when the data set was opened, but cannot be "
                f"read ({error or type(error).__name__}). Copy it again from its source or remove it."
            ) from error
        frames = resize(recording.frames[::stride], *self.frame_shape[1:])
        actions = recording.actions
        if stride > 1:  # a row holds all actions since the last kept frame; those before the first frame are unknown
            first = torch.zeros_like(actions[:1]).repeat(1, stride)
            actions = torch.cat([first, actions[1:].reshape(stop - start - 1, -1)])
        poses = None if recording.poses is None else recording.poses[::stride]
        return Recording(frames, actions, poses, recording.layout)

    def clips(self, clips: Sequence[tuple[Item, int]], frames: int, with_surfaces: bool = False) -> Episodes:
        """Return clips of equal length, given as items and first frames."""
        recordings = [self.clip(item, start, start + frames) for item, start in clips]
        return self.as_episodes(clips, recordings, with_surfaces)

    def as_episodes(
        self, clips: Sequence[tuple[Item, int]], recordings: Sequence[Recording], with_surfaces: bool = False
    ) -> Episodes:
        """Return recordings of equal length as episodes; `clips` are their items and first frames."""
        frames = len(recordings[0].frames)
        actions = torch.stack([recording.actions for recording in recordings])
        actions[:, 0] = 0  # the action that led to the first frame is outside the clip
        zeros = torch.zeros(frames, self.pose_size).double()
        poses = torch.stack([zeros if recording.poses is None else recording.poses for recording in recordings])
        unknown = np.zeros((frames, 0), np.int64)
        surfaces = [self.source.surfaces(recording) if with_surfaces else unknown for recording in recordings]
        return Episodes(
            frames=torch.stack([recording.frames for recording in recordings]),
            actions=actions,
            egomotion=egomotion_from_poses(poses).float(),
            poses=poses,
            surfaces=torch.from_numpy(np.stack(surfaces)),
            names=tuple(f"{item.name}:{start}" for item, start in clips),
            recordings=tuple(item.name for item, _ in clips),
        )

    def _identity(self, items: list[Item]) -> str:
        """Hash the items' names, contents and reading options, but not their folder or storage format."""
        held_out = "" if _comes_split(items) else f" held_out={self.config.held_out}"
        stride = "" if self.config.stride == 1 else f" stride={self.config.stride}"
        poses = "" if self.pose_size == 3 else f" poses={self.pose_size}"
        lines = [f"{self.source.kind} {VERSION} {self.frame_shape}{held_out}{stride}{poses}"]
        lines += [f"{item.name} {item.length} {item.content}" for item in items]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def split(items: list[Item], held_out: float) -> tuple[list[Item], list[Item]]:
    """Return training and held-out items: by folder if there are folders of both kinds, else by a hash of names."""
    if _comes_split(items):
        held_out_items = [item for item in items if top_folder(item.name) in HELD_OUT_FOLDERS]
        return [item for item in items if item not in held_out_items], held_out_items
    return split_by_hash(items, held_out)


def split_by_hash(items: list[Item], held_out: float) -> tuple[list[Item], list[Item]]:
    """Return items to train on and, by a hash of names, a share of them to hold out; at least one of each."""
    by_hash = sorted(items, key=lambda item: hashlib.sha256(PurePosixPath(item.name).name.encode()).digest())
    # Rounding must not turn a share of exactly k items into k + 1.
    count = min(math.ceil(len(items) * held_out - 1e-9), len(items) - 1)
    return by_hash[count:], by_hash[:count]


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Crop frames [T, 3, h, w] around their centre to the new aspect ratio, then resize them by area averaging."""
    h, w = frames.shape[-2:]
    if (h, w) == (height, width):
        return frames
    keep_h, keep_w = min(h, round(w * height / width)), min(w, round(h * width / height))
    top, left = (h - keep_h) // 2, (w - keep_w) // 2
    cropped = frames[..., top : top + keep_h, left : left + keep_w].float()
    return F.interpolate(cropped, size=(height, width), mode="area").round().to(torch.uint8)


def _strided(listing: Listing, stride: int) -> Listing:
    """Count the frames of each item at a stride; leave out items that have only one."""
    items = [replace(item, length=-(-item.length // stride)) for item in listing.items]
    short = [f"{item.name}: has one frame at data.stride {stride}" for item in items if item.length < 2]
    return Listing([item for item in items if item.length >= 2], [*listing.left_out, *short])


def _uniform(listing: Listing, size: int | None) -> tuple[list[Item], list[str]]:
    """Leave out copies of another item, other variants and, without `size`, frames of another size than the first."""
    good: list[Item] = []
    left_out = list(listing.left_out)
    seen: dict[str, str] = {}
    for item in listing.items:
        if item.content in seen:
            left_out.append(f"{item.name}: the same content as {seen[item.content]}")
        elif good and item.variant != good[0].variant:
            left_out.append(f"{item.name}: has {item.variant}, but the first file has {good[0].variant}")
        elif good and size is None and (item.height, item.width) != (good[0].height, good[0].width):
            sizes = f"{item.height} x {item.width} pixels, but the first file's are {good[0].height} x {good[0].width}"
            left_out.append(f"{item.name}: frames are {sizes}; set data.size")
        else:
            seen[item.content] = item.name
            good.append(item)
    return good, left_out


def _reasons(left_out: list[str]) -> str:
    """Return which files are left out, and why; a reason that several share is told once."""
    by_reason: dict[str, list[str]] = {}
    for name, _, reason in (line.partition(": ") for line in left_out):
        by_reason.setdefault(reason, []).append(name)
    texts = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        texts.append(", ".join(names[:NAMED]) + more + (f": {reason}" if reason else ""))
    return "; ".join(texts[:NAMED]) + (f"; and {len(texts) - NAMED} other reasons" if len(texts) > NAMED else "")


def _comes_split(items: list[Item]) -> bool:
    folders = {top_folder(item.name) for item in items}
    return bool(folders & TRAINING_FOLDERS) and bool(folders & HELD_OUT_FOLDERS)
