"""Which generated frames only memory can get right.

A ray of a frame meets a surface. If that surface was never met in the true context, nobody can know its looks. If it
was, the knowledge has to be carried from its last sighting in the context through all later sightings to this frame,
and the longest stretch between two of them is what memory had to bridge: attention can carry what stays in view.

    seen     share of the frame's rays whose surface was met in the context
    gap      median over the frame's rays of that longest stretch, in frames; unseen rays count as infinite
    kind     novel: seen < 0.5. recent, revisit: seen >= 0.9 and gap within, beyond attention's reach. partial: the rest

Rays that meet nothing (-1) are left out. Of an even number of rays the lower of the two middle stretches is the
median, so that a gap is a number of frames, and finite wherever half of a view was seen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SEEN, UNSEEN = 0.9, 0.5


def classify(surfaces: Tensor, context: int, reach: int) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Return the kind and the gap in frames (NaN for novel) of each generated frame, both [B, H].

    `surfaces` is [B, C + H, R], with identities that are unique within an episode and -1 where a ray meets nothing.
    A frame that meets no surface at all is recent, with gap 0.
    """
    ids_BTR = surfaces.cpu().numpy()
    B, T, _ = ids_BTR.shape
    stretch_BTR = _longest_stretches(ids_BTR, context)[:, context:]
    met = ids_BTR[:, context:] >= 0
    count = met.sum(-1)
    seen = np.isfinite(stretch_BTR).sum(-1) / np.maximum(count, 1)
    ordered = np.sort(np.where(met, stretch_BTR, np.nan), -1)  # rays that meet nothing go last
    middle = np.maximum(count - 1, 0) // 2
    gap = (
        np.take_along_axis(ordered, middle[..., None], -1)[..., 0] if ordered.shape[-1] else np.zeros((B, T - context))
    )
    gap = np.where(count == 0, 0.0, np.where(seen < UNSEEN, np.nan, gap))
    settled = (seen >= SEEN) | (count == 0)
    kind = np.select([settled & (gap > reach), settled, seen >= UNSEEN], ["revisit", "recent", "partial"], "novel")
    return kind, gap


def _longest_stretches(ids_BTR: NDArray[np.int64], context: int) -> NDArray[np.float64]:
    """The longest stretch each ray's surface was out of sight since its last sighting in the context. [B, T, R]

    Infinite where the context never met it; NaN where the ray meets nothing.
    """
    B, T, R = ids_BTR.shape
    names, index = np.unique(ids_BTR, return_inverse=True)
    index = index.reshape(B, T, R)
    sighted = np.zeros((B, len(names)))  # the latest frame that met each surface
    longest = np.full((B, len(names)), np.inf)
    stretch_BTR = np.empty((B, T, R))
    for t in range(T):
        here = index[:, t]
        before = np.take_along_axis(sighted, here, 1)
        stretch_BTR[:, t] = 0 if t < context else np.maximum(np.take_along_axis(longest, here, 1), t - before)
        np.put_along_axis(longest, here, stretch_BTR[:, t], 1)
        np.put_along_axis(sighted, here, float(t), 1)
    return np.where(ids_BTR < 0, np.nan, stretch_BTR)
