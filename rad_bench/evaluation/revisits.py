"""Which generated frames need a memory to be right.

Each ray of a frame meets a surface. If no frame of the true context shows that surface, its colour cannot be known. If
one does, the colour must be remembered from its last sighting in the context to this frame. Attention can pass it on
while it stays in view, so memory must bridge the longest stretch between two consecutive sightings.

    seen       share of the frame's rays whose surface was met in the context
    gap        median of that longest stretch over the frame's rays, in frames; infinite for unseen rays
    novel      seen < 0.5
    recent     seen >= 0.9 and gap within attention's reach
    revisit    seen >= 0.9 and gap beyond attention's reach
    partial    all other frames

Without a map to cast rays in, a frame is one surface, which is met by every frame whose pose is within a given distance
and angle of its own. Without poses, all frames are of kind `unknown`.

Rays that meet nothing (-1) are left out. For an even number of rays, the median is the lower of the two middle
stretches, so that a gap is a number of frames, and is finite if half of the view was seen.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rad_bench.data.episodes import Episodes, wrap
from rad_bench.evaluation.tasks import Task

SEEN, UNSEEN = 0.9, 0.5


def classify_task(
    task: Task, reach: int, has_poses: bool, same_view: tuple[float, float] | None
) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Return kind and gap of each generated frame, both [B, H]: by a map, else by poses, else `unknown` and NaN."""
    if task.surfaces.shape[-1]:
        return classify(task.surfaces, task.context, reach)
    if has_poses and same_view is not None:
        return classify_poses(task.poses, task.context, reach, *same_view)
    shape = (len(task.truth), task.horizon)
    return np.full(shape, "unknown"), np.full(shape, np.nan)


def classify_poses(
    poses_BTP: Tensor, context: int, reach: int, distance: float, angle: float
) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Return kind and gap of each generated frame, both [B, H], by poses alone.

    Two frames show the same view if their poses differ by at most `distance` and `angle` (radians).
    """
    same_BTT = pose_difference(poses_BTP, distance, angle) <= 1
    B, T, _ = same_BTT.shape
    gap = np.full((B, T - context), np.inf)
    for b in range(B):
        for t in range(context, T):
            sightings = np.flatnonzero(same_BTT[b, t, : t + 1])  # of frame t's own view: similarity is not transitive
            known = np.count_nonzero(sightings < context)
            if known:
                gap[b, t - context] = np.diff(sightings[known - 1 :]).max()
    kind = np.select([np.isinf(gap), gap > reach], ["novel", "revisit"], "recent")
    return kind, np.where(np.isinf(gap), np.nan, gap)


def pose_difference(poses_BTP: Tensor, distance: float, angle: float) -> NDArray[np.float64]:
    """Return the difference of poses in units of `distance` or `angle`, whichever is larger, [B, T, T].

    With five columns, `distance` is for places in space, and `angle` for heading and for pitch.
    """
    place_BTK = torch.cat([poses_BTP[..., :2], poses_BTP[..., 3:4]], -1)
    far = torch.cdist(place_BTK, place_BTK) / distance
    angles_BTK = poses_BTP[..., 2::2]
    turn = wrap(angles_BTK[:, :, None] - angles_BTK[:, None]).abs().amax(-1) / angle
    difference: NDArray[np.float64] = torch.maximum(far, turn).numpy()
    return difference


def classify(surfaces: Tensor, context: int, reach: int) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Return the kind and the gap in frames (NaN for novel) of each generated frame, both [B, H].

    `surfaces` is [B, C + H, R], with identities that are unique within an episode and -1 where a ray meets nothing.
    A frame that meets no surface at all is recent, with gap 0.
    """
    ids_BTR = surfaces.cpu().numpy()
    B, T, _ = ids_BTR.shape
    stretch_BTR = longest_stretches(ids_BTR, context)[:, context:]
    met = ids_BTR[:, context:] >= 0
    count = met.sum(-1)
    seen = np.isfinite(stretch_BTR).sum(-1) / np.maximum(count, 1)
    ordered = np.sort(np.where(met, stretch_BTR, np.nan), -1)  # rays that meet nothing are last
    middle = np.maximum(count - 1, 0) // 2
    gap = (
        np.take_along_axis(ordered, middle[..., None], -1)[..., 0] if ordered.shape[-1] else np.zeros((B, T - context))
    )
    gap = np.where(count == 0, 0.0, np.where(seen < UNSEEN, np.nan, gap))
    known = (seen >= SEEN) | (count == 0)
    kind = np.select([known & (gap > reach), known, seen >= UNSEEN], ["revisit", "recent", "partial"], "novel")
    return kind, gap


def stretches_out_of_sight(clips: Episodes, same_view: tuple[float, float] | None) -> NDArray[np.float64]:
    """Return for how many frames the surface of each ray was out of sight, [B, T, R], given all earlier frames.

    It is infinite if the surface was never met, NaN if the ray meets nothing. Without a map, R is 1: the whole view.
    """
    if clips.surfaces.shape[-1]:
        return _last_stretches(clips.surfaces.cpu().numpy())
    assert same_view is not None
    same_BTT = np.tril(pose_difference(clips.poses, *same_view) <= 1, -1)
    T = same_BTT.shape[-1]
    last = T - 1 - same_BTT[:, :, ::-1].argmax(-1)
    return np.where(same_BTT.any(-1), np.arange(T) - last, np.inf)[..., None]


def _last_stretches(ids_BTR: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how long ago each ray's surface was last met, [B, T, R]; infinite if never, NaN if it meets nothing."""
    names, index = np.unique(ids_BTR, return_inverse=True)
    index = index.reshape(ids_BTR.shape)
    last_met = np.full((len(ids_BTR), len(names)), -np.inf)  # the latest frame that met each surface
    stretch_BTR = np.empty(ids_BTR.shape)
    for t in range(ids_BTR.shape[1]):
        stretch_BTR[:, t] = t - np.take_along_axis(last_met, index[:, t], 1)
        np.put_along_axis(last_met, index[:, t], float(t), 1)
    return np.where(ids_BTR < 0, np.nan, stretch_BTR)


def longest_stretches(ids_BTR: NDArray[np.int64], context: int) -> NDArray[np.float64]:
    """Return the longest time that each ray's surface was out of sight since it was last met in the context, [B, T, R].

    It is infinite if the context never met the surface, NaN if the ray meets nothing.
    """
    B, T, R = ids_BTR.shape
    names, index = np.unique(ids_BTR, return_inverse=True)
    index = index.reshape(B, T, R)
    last_met = np.zeros((B, len(names)))  # the latest frame that met each surface
    longest = np.full((B, len(names)), np.inf)
    stretch_BTR = np.empty((B, T, R))
    for t in range(T):
        met = index[:, t]
        before = np.take_along_axis(last_met, met, 1)
        stretch_BTR[:, t] = 0 if t < context else np.maximum(np.take_along_axis(longest, met, 1), t - before)
        np.put_along_axis(longest, met, stretch_BTR[:, t], 1)
        np.put_along_axis(last_met, met, float(t), 1)
    return np.where(ids_BTR < 0, np.nan, stretch_BTR)
