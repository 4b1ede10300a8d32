"""What an npz beside a Minecraft video tells of each frame: actions and, in two layouts, poses.

A layout is recognised by its arrays, their types and their values together; what fits none, or two, is refused:

    TECO      actions [T] whole numbers 0..3 (Yan et al. 2023, arXiv 2210.02396); no poses
    VRAG      actions [T, 4] forward, back, jump, turn (arXiv 2505.21996); no poses
    VRAG      actions [T, 8] the same, then x, y, z and yaw: poses
    WorldMem  actions [T, 8] whole numbers, MineDojo's action space (Xiao et al. 2025, arXiv 2504.12369), and
              poses [T, 5] x, y, z, pitch, yaw

Row t is the action that led to frame t, and the pose at frame t. x, y and z are in blocks, and y is the height.
Minecraft's yaw is in degrees, 0 along +z, and grows clockwise as seen from above. Our x is its z, our y is its x, and
our heading is -yaw, which is right-handed from above. Its pitch is in degrees and grows downwards; where none is
recorded, it is 0.

MineDojo's eight numbers are forward (1) or back (2); left (1) or right (2); jump, sneak or sprint (1..3); the turns of
pitch and of yaw in bins of 15 degrees, 12 for none; use, drop, attack, craft, equip, place or destroy (1..7); and what
to craft or equip, which is not read. They become 16 columns: one-hot, except for the turns, which count bins from none.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rad_bench.data.source import UNREADABLE

Array = NDArray[Any]
DISCRETE = 4  # actions of TECO's layout
KEYS = 4  # forward, back, jump, turn
MINEDOJO = (3, 3, 4, 25, 25, 8, 244, 36)  # values of each of its numbers
NO_TURN = 12  # MineDojo's bin
KNOWN = (
    "Known are actions (T,) from 0 to 3 (TECO); actions (T, 4), keys, or (T, 8), keys and then x, y, z, yaw (VRAG); "
    "and actions (T, 8) in MineDojo's coding with poses (T, 5): x, y, z, pitch, yaw (WorldMem)"
)


@dataclass(frozen=True)
class Layout:
    """A published layout."""

    variant: str  # as messages call it
    action_size: int
    actions: Callable[[Array], NDArray[np.float32]]  # of the array `actions`: [T, A]
    poses: Callable[[dict[str, Array]], Array] | None  # of all arrays: columns x, y, z, pitch, yaw, [T, 5]


def _minedojo_columns(actions: Array) -> NDArray[np.float32]:
    one_hot = [actions[:, [i]] == np.arange(1, MINEDOJO[i]) for i in (0, 1, 2, 5)]
    turns = actions[:, 3:5] - NO_TURN
    return np.concatenate([*one_hot[:3], turns, one_hot[3]], 1).astype(np.float32)


TECO = Layout("one action number a frame", DISCRETE, lambda a: np.eye(DISCRETE, dtype=np.float32)[a], None)
VRAG = Layout("actions of 4 columns", KEYS, lambda a: a.astype(np.float32), None)
VRAG_POSES = Layout(
    "actions of 8 columns",
    KEYS,
    lambda a: a[:, :KEYS].astype(np.float32),
    lambda arrays: np.insert(arrays["actions"][:, KEYS:], 3, 0, axis=1),
)
WORLDMEM = Layout("MineDojo's actions, and poses", 16, _minedojo_columns, lambda arrays: arrays["poses"])
LAYOUTS = {layout.variant: layout for layout in (TECO, VRAG, VRAG_POSES, WORLDMEM)}


@dataclass(frozen=True)
class Rows:
    """The arrays of an npz that are read, and the layout that they have."""

    layout: Layout
    arrays: dict[str, Array]

    def __len__(self) -> int:
        return len(self.arrays["actions"])

    @property
    def content(self) -> bytes:
        """All that is read, with its types and shapes."""
        return b"".join(
            f"{key} {array.dtype.str} {array.shape} ".encode() + array.tobytes() for key, array in self.arrays.items()
        )

    def actions(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the actions of frames start..stop-1, [T, A]."""
        return self.layout.actions(self.arrays["actions"][start:stop])

    def poses(self, start: int, stop: int) -> NDArray[np.float64] | None:
        """Return the poses of frames start..stop-1, [T, 5]; None in a layout without poses."""
        if self.layout.poses is None:
            return None
        x, y, z, pitch, yaw = self.layout.poses(self.arrays)[start:stop].astype(np.float64).T
        return np.column_stack([z, x, -np.deg2rad(yaw), y, -np.deg2rad(pitch)])


def read_rows(path: Path) -> Rows:
    """Read an npz and recognise its layout. Raises `ValueError` or `OSError`, also if the layout is not known."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("is not an npz archive, or not all of it")
        with np.load(path, allow_pickle=False) as archive:
            if "actions" not in archive:
                raise ValueError(f"has no actions, only {', '.join(archive.files) or 'nothing'}")
            keys = ["actions", *sorted(key for key in archive.files if "pose" in key.lower())]
            arrays = {key: archive[key] for key in keys}
        layout = _layout(arrays)
    except UNREADABLE as error:
        raise ValueError(f"{path.name}: {error or type(error).__name__}") from None
    return Rows(layout, arrays)


def _layout(arrays: dict[str, Array]) -> Layout:
    for key, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{key} are {array.dtype} {array.shape}, not numbers. {KNOWN}")
        if not np.isfinite(array).all():
            raise ValueError(f"{key} are not finite")
    actions = arrays["actions"]
    if len(arrays) > 1:
        return _layout_with_poses(arrays)
    if actions.ndim == 1 and actions.dtype.kind in "iu":
        if len(actions) and not (actions.min() >= 0 and actions.max() < DISCRETE):
            raise ValueError(f"actions range from {actions.min()} to {actions.max()}, should be 0..{DISCRETE - 1}")
        return TECO
    if actions.ndim != 2 or actions.shape[1] not in (KEYS, 2 * KEYS):
        expected = "whole numbers (T,), or numbers (T, 4) or (T, 8)"
        raise ValueError(f"actions are {actions.dtype} {actions.shape}, should be {expected}. {KNOWN}")
    if _looks_like_minedojo(actions):
        raise ValueError(
            f"actions are {actions.dtype} {actions.shape} and look like MineDojo's coding, not like keys and a pose "
            f"({_ranges(actions)}). With an array poses (T, 5), x, y, z, pitch, yaw, they would be read as WorldMem's; "
            "keys and poses should be floats"
        )
    outside = [column for column in range(KEYS - 1) if np.abs(actions[:, column].astype(float)).max(initial=0) > 1]
    if outside:
        raise ValueError(
            f"actions should begin with the keys forward, back and jump, from 0 to 1, but have {_ranges(actions)}. "
            f"{KNOWN}"
        )
    return VRAG if actions.shape[1] == KEYS else VRAG_POSES


def _layout_with_poses(arrays: dict[str, Array]) -> Layout:
    actions, poses = arrays["actions"], arrays.get("poses")
    shapes = ", ".join(f"{key} {array.dtype} {array.shape}" for key, array in arrays.items())
    if poses is None or len(arrays) > 2 or poses.ndim != 2 or poses.shape[1] != 5 or len(poses) != len(actions):
        raise ValueError(f"holds {shapes}: it is not known what they mean. {KNOWN}")
    if not _is_minedojo(actions):
        raise ValueError(
            f"has poses, and actions that are not in MineDojo's coding: {shapes}, {_ranges(actions)}. {KNOWN}"
        )
    if len(poses) and np.abs(poses[:, 3]).max() > 90:
        pitch = f"from {poses[:, 3].min():g} to {poses[:, 3].max():g}"
        raise ValueError(f"poses should be x, y, z, pitch, yaw, but the fourth column is {pitch}: no pitch in degrees")
    return WORLDMEM


def _is_minedojo(actions: Array) -> bool:
    """Return whether all numbers are whole and among MineDojo's."""
    if actions.ndim != 2 or actions.shape[1] != len(MINEDOJO):
        return False
    return bool((actions == np.floor(actions)).all() and (actions >= 0).all() and (actions < MINEDOJO).all())


def _looks_like_minedojo(actions: Array) -> bool:
    """Return whether keys (and poses) may as well be MineDojo's numbers, with bins as they are or counted from none."""
    columns = actions.shape[1]
    if not (actions == np.floor(actions)).all() or not len(actions):
        return False
    around_none = actions.astype(np.float64)
    as_they_are = ((around_none >= 0) & (around_none < MINEDOJO[:columns])).all()
    around_none[:, 3:5] += NO_TURN
    counted_from_none = ((around_none >= 0) & (around_none < MINEDOJO[:columns])).all()
    if actions.dtype.kind in "iub" and columns == len(MINEDOJO):
        return bool(as_they_are or counted_from_none)
    return bool(as_they_are and np.median(actions[:, 3]) == NO_TURN)


def _ranges(actions: Array) -> str:
    if actions.ndim != 2 or not len(actions):
        return f"shape {actions.shape}"
    return "columns from " + ", ".join(f"{c.min():g} to {c.max():g}" for c in actions.astype(np.float64).T)
