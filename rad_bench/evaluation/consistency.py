"""Does a rollout agree with itself when it comes back? (After the normalised memory revisit of R2M-Bench.)

Two generated frames of one rollout are a *revisit pair* if they show the same view, more than attention's reach apart,
and the view was out of sight in between. Their similarity is compared with that of pairs as far apart whose views
differ, and with neighbouring frames:

    nmr = (revisit - other) / (neighbour - other)        0: no memory; 1: as consistent as neighbours

Truth does not enter, so novel views count too; and standing still earns nothing, for then nothing is out of sight.
Views are the same if at least 90 % of the rays of either meet surfaces that the other shows, different below 10 %;
without a map, the same if their poses are. Similarity is SSIM.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rad_bench.evaluation.metrics import few_at_a_time, ssim
from rad_bench.evaluation.revisits import SEEN, same_poses
from rad_bench.evaluation.tasks import Task

DIFFERENT = 0.1
OTHERS = 4  # pairs of different views that a revisit pair is compared with


def self_similarity(
    task: Task, frames: Tensor, reach: int, same_view: tuple[float, float] | None
) -> dict[str, NDArray[np.float64]]:
    """Return `self_revisit`, `self_other`, `self_neighbour` of each generated frame, [B, H], NaN where undefined.

    `frames` are the generated ones, uint8 [B, H, 3, h, w]. The first two are defined for the later frame of a revisit
    pair that has pairs of different views to be compared with.
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
    b, j = (part.ravel() for part in np.meshgrid(np.arange(B), np.arange(1, H), indexing="ij"))
    found["self_neighbour"][b, j] = _similarity(frames, b, j - 1, j)
    return found


def view_overlap(task: Task, same_view: tuple[float, float] | None) -> NDArray[np.float64]:
    """Return how much of each generated view every other one shows, the lesser of both ways, [B, H, H]."""
    C = task.context
    if not task.surfaces.shape[-1]:
        if same_view is None:
            return np.zeros((len(task.truth), task.horizon, task.horizon))
        return same_poses(task.poses[:, C:], *same_view).astype(float)
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
            same = np.flatnonzero(overlap_HH[j, :j] >= SEEN)
            if not len(same) or j - same[-1] <= reach:
                continue
            gap = int(j - same[-1])
            apart = np.flatnonzero(np.diagonal(overlap_HH, gap) <= DIFFERENT)
            if len(apart):
                chosen = apart[np.linspace(0, len(apart) - 1, min(OTHERS, len(apart))).astype(int)]
                others += [(len(revisits), b, int(i), int(i) + gap) for i in chosen]
                revisits.append((b, int(same[-1]), j))
    return revisits, others


def _similarity(
    frames: Tensor, b: NDArray[np.int64], i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    videos, first, second = torch.from_numpy(b), torch.from_numpy(i), torch.from_numpy(j)
    pairs = few_at_a_time(frames[videos, first], frames[videos, second], frames.device)
    values: NDArray[np.float64] = torch.cat([ssim(x, y) for x, y in pairs]).numpy()
    return values
