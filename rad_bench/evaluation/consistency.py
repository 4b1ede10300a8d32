"""Is a rollout consistent with itself when a view returns? (After the normalised memory revisit of R2M-Bench.)

Two frames of a rollout are a *revisit pair* if they show the same view, and the view was out of sight in between for
longer than attention reaches. The earlier frame is taken from the last visit before the latest such interval; it is the
frame of that visit with the largest overlap. The similarity of revisit pairs is compared with that of pairs of
different views that are as many frames apart, and with that of neighbouring frames of the same view:

    nmr = (revisit - other) / (neighbour - other)        0: no memory; 1: as consistent as neighbours

The truth is not used, so novel views count too. Standing still does not count, because no view is out of sight. If no
two neighbouring frames show the same view, there is no score.

Two views are the same if at least 90 % of the rays of each meet surfaces that the other shows. They are different, or
out of each other's sight, if it is at most 10 %. Without a map, poses decide: views are the same within data.same_place
and data.same_heading, and different at three times that. Similarity is SSIM.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rad_bench.evaluation.metrics import few_at_a_time, ssim
from rad_bench.evaluation.revisits import SEEN, pose_difference
from rad_bench.evaluation.tasks import Task

DIFFERENT = 0.1
APART = 3.0  # views are different at this many times the distance of the same view
OTHERS = 4  # pairs of different views for each revisit pair


def self_similarity(
    task: Task, frames: Tensor, reach: int, same_view: tuple[float, float] | None
) -> dict[str, NDArray[np.float64]]:
    """Return `self_revisit`, `self_other`, `self_neighbour` of each generated frame, [B, H], NaN where undefined.

    `frames` are the generated frames, uint8 [B, H, 3, h, w]. The first two are defined for the later frame of a revisit
    pair, if there are pairs of different views to compare it with. The third is defined if the previous frame shows the
    same view.
    """
    overlap_BHH = view_overlap(task, same_view)
    B, H = frames.shape[:2]
    revisits, others = _pairs(overlap_BHH, reach)
    scores = {name: np.full((B, H), np.nan) for name in ("self_revisit", "self_other", "self_neighbour")}
    if revisits:
        b, i, j = (np.array(indices) for indices in zip(*revisits, strict=True))
        scores["self_revisit"][b, j] = _similarity(frames, b, i, j)
        pair, b_other, i, j_other = (np.array(indices) for indices in zip(*others, strict=True))
        similarity = _similarity(frames, b_other, i, j_other)
        scores["self_other"][b, j] = np.bincount(pair, similarity) / np.bincount(pair)
    b, i = np.nonzero(np.diagonal(overlap_BHH, 1, axis1=1, axis2=2) >= SEEN)
    scores["self_neighbour"][b, i + 1] = _similarity(frames, b, i, i + 1)
    return scores


def view_overlap(task: Task, same_view: tuple[float, float] | None) -> NDArray[np.float64]:
    """Return the overlap of generated views, [B, H, H]: the share of each that the other shows, whichever is less."""
    C = task.context
    if not task.surfaces.shape[-1]:
        if same_view is None:
            return np.zeros((len(task.truth), task.horizon, task.horizon))
        return np.interp(pose_difference(task.poses[:, C:], *same_view), (0, 1, APART), (1, SEEN, DIFFERENT))
    ids_BHR = task.surfaces[:, C:].numpy()
    shared = np.empty((len(ids_BHR), task.horizon, task.horizon))
    for b, ids_HR in enumerate(ids_BHR):
        names, index = np.unique(ids_HR, return_inverse=True)
        index = index.reshape(ids_HR.shape)
        shows = np.zeros((len(ids_HR), len(names)), bool)
        np.put_along_axis(shows, index, True, 1)
        met = ids_HR >= 0
        known = (shows[:, index] & met).sum(-1)  # [j, i]: rays of view i whose surface view j shows
        shared[b] = (known / np.maximum(met.sum(-1), 1)).T
    return np.minimum(shared, shared.transpose(0, 2, 1))


def _pairs(
    overlap_BHH: NDArray[np.float64], reach: int
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int, int]]]:
    """Return revisit pairs (b, i, j), and their pairs of different views (number of the revisit pair, b, i, j)."""
    revisits: list[tuple[int, int, int]] = []
    others: list[tuple[int, int, int, int]] = []
    for b, overlap_HH in enumerate(overlap_BHH):
        for j in range(len(overlap_HH)):
            sighting = _sighting(overlap_HH[j, :j], reach)
            if sighting is None:
                continue
            gap = j - sighting
            apart = np.flatnonzero(np.diagonal(overlap_HH, gap) <= DIFFERENT)
            if len(apart):
                chosen = apart[np.linspace(0, len(apart) - 1, min(OTHERS, len(apart))).astype(int)]
                others += [(len(revisits), b, int(i), int(i) + gap) for i in chosen]
                revisits.append((b, sighting, j))
    return revisits, others


def _sighting(overlap: NDArray[np.float64], reach: int) -> int | None:
    """Return the best frame of the last visit to a view before it was last out of sight for more than `reach` frames.

    `overlap` is the overlap of the view with each earlier frame.
    """
    changes = np.flatnonzero(np.diff(overlap <= DIFFERENT, prepend=False, append=False))
    leaves, returns = changes[::2], changes[1::2]
    left = leaves[returns - leaves > reach]
    same = np.flatnonzero(overlap[: left[-1]] >= SEEN) if len(left) else left
    if not len(same):
        return None
    visit = np.split(same, np.flatnonzero(np.diff(same) > 1) + 1)[-1][::-1]  # of equal overlaps, the latest frame
    return int(visit[overlap[visit].argmax()])


def _similarity(
    frames: Tensor, b: NDArray[np.int64], i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    videos, first, second = torch.from_numpy(b), torch.from_numpy(i), torch.from_numpy(j)
    pairs = few_at_a_time(frames[videos, first], frames[videos, second], frames.device)
    values: NDArray[np.float64] = torch.cat([ssim(x, y) for x, y in pairs]).numpy()
    return values
