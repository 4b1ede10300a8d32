"""How the episodes of walks on uneven ground are stored: an npz each, with frames, actions and five-number poses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rad_bench.data.collect.collection import save
from rad_bench.data.voxels import walk
from rad_bench.errors import UserError

SIZES = (32, 256)  # pixels
LAYOUT = f"""\
# Frames [T, H, W, 3]. Actions: 0 none, 1 left, 2 right, 3 forward, 4 up, 5 down; row t led to frame t. The eye's poses:
# x, y, heading, height, pitch; lengths in blocks, angles in radians, counter-clockwise from +x and up from level.
frames: {{file: "{{episode}}.npz", array: image}}
actions: {{file: "{{episode}}.npz", columns: [action], classes: {walk.ACTIONS}}}
poses:
  file: "{{episode}}.npz"
  x: "pose[0]"
  y: "pose[1]"
  heading: "pose[2]"
  height: "pose[3]"
  pitch: "pose[4]"
"""
# Of worlds whose ground is known: its height in each block, NaN where nobody can stand. For pictures.
GROUND = """\
ground: {file: "{episode}.npz", array: ground}
"""


def check_size(size: int) -> None:
    """Raise `UserError` for a size of frames that no world of blocks is recorded with."""
    if not SIZES[0] <= size <= SIZES[1]:
        raise UserError(f"--size {size}: frames of this world have {SIZES[0]} to {SIZES[1]} pixels a side.")


def save_walk(
    path: Path, frames: NDArray[np.uint8], actions: NDArray[np.int64], poses: NDArray[np.float64],
    ground: NDArray[np.float64] | None = None,
) -> None:  # fmt: skip
    """Write frames [T, H, W, 3], actions [T] and poses [T, 5] as an episode that `LAYOUT` describes.

    With `ground` [X, Y], as one that `GROUND` describes as well.
    """
    arrays: dict[str, NDArray[Any]] = {"image": frames, "action": actions.astype(np.uint8), "pose": poses}
    save(path, arrays if ground is None else arrays | {"ground": ground.astype(np.float32)})
