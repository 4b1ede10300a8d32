"""What every data set returns: frames, actions, egomotion and poses, and the surface that each ray of a view meets.

Letters: B episodes, T frames, C colour channels, H height, W width, A action size, R rays across a view, P columns of
a pose.

A data set's poses have P = 3 or 5 columns: (x, y, heading) or (x, y, heading, height, pitch). Places are in the world's
unit of length, angles in radians; heading 0 is along +x and grows counter-clockwise, a positive pitch looks up.
Egomotion has as many columns. Its row t is the motion from frame t-1 to frame t in the body frame of t-1: (forward,
sideways to the left, turn), and (up, change of pitch). Row 0 is zero. The body frame is turned by the heading alone, so
forward is level at any pitch, and a way back undoes the way there exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hidden:
    """Targets of a linear probe: what a memory should hold at the end of an episode."""

    values: Tensor  # [B, Q] float64
    known: Tensor  # [B, Q] bool: whether the frames have shown it


@dataclass(frozen=True)
class Palette:
    """The colours of B worlds' surfaces, each one of Q, and where a frame shows them.

    P surfaces, whose numbers are the identities in `Episodes.surfaces`; a frame has one ray a column.
    """

    candidates: Tensor  # [P, Q, 3] in 0..255: a surface in each of its possible colours
    colours: Tensor  # [B, P] int64: which of them it has
    rows: slice  # pixel rows in which a column shows nothing but the surface that its ray meets

    def __getitem__(self, index: slice) -> Palette:
        return replace(self, colours=self.colours[index])


@dataclass(frozen=True)
class Episodes:
    """B episodes (or clips) of T frames each."""

    frames: Tensor  # [B, T, C, H, W] uint8
    actions: Tensor  # [B, T, A] float32; row t is the action that led to frame t
    egomotion: Tensor  # [B, T, P] float32
    poses: Tensor  # [B, T, P] float64
    surfaces: Tensor  # [B, T, R] int64: identity of the surface each ray meets, -1 for none; R = 0 if unknown
    names: tuple[str, ...]  # [B] origin of each
    latents: Tensor | None = None  # [B, T, c, h, w] float32: the encoded frames, with an autoencoder
    hidden: dict[str, Hidden] | None = None  # probe targets by name; only probe clips have them
    recordings: tuple[str, ...] | None = None  # [B] recording of each; None if each has its own world
    palette: Palette | None = None  # of B worlds, where surfaces have one of a few colours

    def __len__(self) -> int:
        return len(self.names)

    def select(self, index: slice) -> Episodes:
        """Return the episodes under `index`, as views, without `hidden`."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "hidden"}
        selected: dict[str, Any] = {name: None if value is None else value[index] for name, value in values.items()}
        return Episodes(**selected)


class Dataset(Protocol):
    """A source of training clips and held-out episodes."""

    frame_shape: tuple[int, int, int]  # C, H, W
    action_size: int
    has_poses: bool  # False: no egomotion, no retrieval task, no revisits
    pose_size: int  # P, columns of poses and egomotion
    same_view: tuple[float, float] | None  # without a map: poses this close show the same view; radians
    identity: str  # hash of everything that decides its content

    def training_batch(
        self, seed: int, step: int, batch: int, frames: int, rows: slice = slice(None), with_surfaces: bool = False
    ) -> Episodes:
        """Return the given rows of the `batch` clips of one training step: a pure function of its arguments."""
        ...

    def held_out(self, episodes: int, frames: int, context: int) -> Episodes:
        """Return evaluation episodes with `surfaces`: the same for every run, and never trained on."""
        ...

    def probe_clips(self, training: bool, count: int, frames: int) -> Episodes:
        """Return training or held-out clips, with probe targets (`hidden`) where the data set knows any."""
        ...


def wrap(angle: Tensor) -> Tensor:
    """Map angles in radians to [-pi, pi)."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi


def egomotion_from_poses(poses: Tensor) -> Tensor:
    """[..., T, P] poses -> [..., T, P] egomotion in the body frame, row 0 zero."""
    before, after = poses[..., :-1, :], poses[..., 1:, :]
    delta, heading = after[..., :2] - before[..., :2], before[..., 2]
    forward = delta[..., 0] * heading.cos() + delta[..., 1] * heading.sin()
    sideways = delta[..., 1] * heading.cos() - delta[..., 0] * heading.sin()
    columns = [forward, sideways, wrap(after[..., 2] - before[..., 2])]
    if poses.shape[-1] == 5:
        columns += [after[..., 3] - before[..., 3], wrap(after[..., 4] - before[..., 4])]
    motion = torch.stack(columns, -1)
    return torch.cat([torch.zeros_like(motion[..., :1, :]), motion], -2)


def poses_from_egomotion(egomotion: Tensor) -> Tensor:
    """Dead reckoning: [..., T, P] egomotion -> [..., T, P] poses relative to the first frame's, angles unwrapped.

    Row 0 of the result is zero: the first frame's egomotion happened before the clip and is ignored.
    """
    motion = egomotion.double().clone()
    motion[..., 0, :] = 0
    heading = motion[..., 2].cumsum(-1)
    start = heading - motion[..., 2]  # the heading in which each motion began
    dx = motion[..., 0] * start.cos() - motion[..., 1] * start.sin()
    dy = motion[..., 0] * start.sin() + motion[..., 1] * start.cos()
    level = torch.stack([dx.cumsum(-1), dy.cumsum(-1), heading], -1)
    return torch.cat([level, motion[..., 3:].cumsum(-2)], -1)


def invert_egomotion(egomotion: Tensor) -> Tensor:
    """Return the motion that undoes each given motion, in the body frame where that ends. [..., P] -> [..., P]."""
    forward, sideways, turn, *others = egomotion.unbind(-1)
    return torch.stack(
        [
            -(forward * turn.cos() + sideways * turn.sin()),
            forward * turn.sin() - sideways * turn.cos(),
            -turn,
            *(-other for other in others),
        ],
        -1,
    )
