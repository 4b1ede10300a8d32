"""Does a rollout agree with itself when it comes back? (After the normalised memory revisit of R2M-Bench.)

A generated frame and an earlier one of its rollout are a *revisit pair* if they show the same view, and the view was
out of sight for more than attention's reach in between. The earlier one is of the last visit before the latest such
stretch, and of that visit the frame whose view overlaps most. The similarity of these pairs is compared with that of
pairs as far apart whose views differ, and with neighbouring frames that show the same view:

    nmr = (revisit - other) / (neighbour - other)        0: no memory; 1: as consistent as neighbours

Truth does not enter, so novel views count too; and standing still earns nothing, for then nothing is out of sight.
Where a camera never shows a view twice in a row, there is nothing to be as consistent as, and no score.

Views are the same if at least 90 % of the rays of either meet surfaces that the other shows, and different (the one is
out of the other's sight) up to 10 %. Without a map poses stand in: the same within data.same_place and
data.same_heading, different from three times as far on. Similarity is SSIM.
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
APART = 3.0  # times as far as poses that just show the same view: different
OTHERS = 4  # pairs of different views that a revisit pair is compared with


def self_similarity(
    task: Task, frames: Tensor, reach: int, same_view: tuple[float, float] | None
) -> dict[str, NDArray[np.float64]]:
    """Return `self_revisit`, `self_other`, `self_neighbour` of each generated frame, [B, H], NaN where undefined.

    `frames` are the generated ones, uint8 [B, H, 3, h, w]. The first two are defined for the later frame of a revisit
    pair that has pairs of different views to be compared with, the third where the frame before shows the same view.
    """
    overlap_BHH = view_overlap(task, same_view)
    B, H = frames.shape[:2]
    revisits, others = _pairs(overlap_BHH, reach)
    found = {name: np.full((B, H), np.nan) for name in ("self_revisit", "self_other", "self_neighbour")}
    if revisits:
        b, i, j = (np.array(part) for part in zip(*revisits, strict=True))
        found["self_revisit"][b, j] = _similarity(frames, b, i, j)
        pair, b_other, i, j_other = (np.array(part) for part in zip(*others, strict=True))
        similar = _similarity(frames, b_other, i, j_other)
        found["self_other"][b, j] = np.bincount(pair, similar) / np.bincount(pair)
    b, i = np.nonzero(np.diagonal(overlap_BHH, 1, axis1=1, axis2=2) >= SEEN)
    found["self_neighbour"][b, i + 1] = _similarity(frames, b, i, i + 1)
    return found


def view_overlap(task: Task, same_view: tuple[float, float] | None) -> NDArray[np.float64]:
    """Return how much of each generated view every other one shows, the lesser of both ways, [B, H, H]."""
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
    """Return revisit pairs (b, i, j), and pairs of different views (number of the revisit pair, b, i, j)."""
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
    """Return the best frame of a view's last visit before it was last out of sight for more than `reach` frames.

    `overlap` tells how much of the view each earlier frame shows.
    """
    turning = np.flatnonzero(np.diff(overlap <= DIFFERENT, prepend=False, append=False))
    leaves, returns = turning[::2], turning[1::2]
    left = leaves[returns - leaves > reach]
    same = np.flatnonzero(overlap[: left[-1]] >= SEEN) if len(left) else left
    if not len(same):
        return None
    visit = np.split(same, np.flatnonzero(np.diff(same) > 1) + 1)[-1][::-1]  # the latest frame comes first
    return int(visit[overlap[visit].argmax()])


def _similarity(
    frames: Tensor, b: NDArray[np.int64], i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    videos, first, second = torch.from_numpy(b), torch.from_numpy(i), torch.from_numpy(j)
    pairs = few_at_a_time(frames[videos, first], frames[videos, second], frames.device)
    values: NDArray[np.float64] = torch.cat([ssim(x, y) for x, y in pairs]).numpy()
    return values
