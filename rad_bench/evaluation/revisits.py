"""Which generated frames only memory can get right.

A ray of a frame meets a surface. If that surface was never met in the true context, nobody can know its looks. If it
was, the knowledge has to be carried from its last sighting in the context through all later sightings to this frame,
and the longest stretch between two of them is what memory had to bridge: attention can carry what stays in view.

    gap      median over the frame's rays of that longest stretch, in frames; unseen rays count as infinite
    seen     share of the frame's rays whose surface was met in the context
    kind     novel: seen < 0.5. recent, revisit: seen >= 0.9, gap within or beyond attention's reach. partial: the rest
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SEEN, UNSEEN = 0.9, 0.5


def classify(surfaces: Tensor, context: int, reach: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return kind (str) and gap (frames; NaN for novel) of each generated frame, both [B, H].

    `surfaces` is [B, C + H, R], -1 where a ray meets nothing; such rays are left out, and a frame of nothing else
    is recent with gap 0.
    """
    ids = surfaces.numpy()
    B, T, _ = ids.shape
    kinds = np.empty((B, T - context), dtype="<U7")
    gaps = np.full((B, T - context), np.nan)
    for b in range(B):
        names, index = np.unique(ids[b], return_inverse=True)
        index = index.reshape(ids[b].shape)
        sighted = np.full(len(names), -1)  # last frame in which each surface was met
        bridged = np.full(len(names), np.inf)  # longest stretch since its last true sighting; inf: never truly seen
        for t in range(T):
            here = np.unique(index[t])
            if t < context:
                bridged[here] = 0
            else:
                bridged[here] = np.maximum(bridged[here], t - sighted[here])
            sighted[here] = t
            if t >= context:
                stretches = bridged[index[t][ids[b, t] >= 0]]
                kinds[b, t - context], gaps[b, t - context] = _classify_frame(stretches, reach)
    return kinds, gaps


def _classify_frame(stretches: NDArray[np.float64], reach: int) -> tuple[str, float]:
    if not len(stretches):
        return "recent", 0.0
    seen, gap = np.isfinite(stretches).mean(), float(np.median(stretches))
    if seen < UNSEEN or not np.isfinite(gap):
        return "novel", float("nan")
    if seen < SEEN:
        return "partial", gap
    return ("revisit" if gap > reach else "recent"), gap
