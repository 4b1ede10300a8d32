"""How many surfaces' colours are right? Blur cannot raise it, and decibels of a blurred wall are not memory.

In a world whose surfaces have one of Q plain colours, a picture answers a question for each surface it shows: which
colour? An answer needs a memory if the true context has shown the surface and attention cannot have passed it on.

Letters: B episodes, H generated frames, W columns of a frame, P surfaces, Q colours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rad_bench.evaluation.revisits import longest_stretches
from rad_bench.evaluation.tasks import Task

COLUMNS = 4  # fewest that must meet a surface, because those at its edges mix colours


def recall(task: Task, frames: Tensor, reach: int) -> dict[str, NDArray[np.float64]]:
    """Return `recall`, `items` and `choices` of each generated frame, [B, H]; nothing without a palette.

    `frames` are the generated frames, uint8 [B, H, 3, h, W]. `recall` is the share of right answers, NaN without a
    question; `items` the number of surfaces asked for in the frame's episode; `choices` is Q.
    """
    if task.palette is None:
        return {}
    candidates, C = task.palette.candidates.float(), task.context
    P, Q = candidates.shape[:2]
    ids_BHW = task.surfaces[:, C:]
    stretch_BHW = torch.from_numpy(longest_stretches(task.surfaces.numpy(), C))[:, C:]
    asked_BHW = torch.isfinite(stretch_BHW) & (stretch_BHW > reach)
    meets_BHWP = F.one_hot(ids_BHW.clamp(min=0), P) * asked_BHW[..., None]
    columns_BHP = meets_BHWP.sum(2)
    shown_BHWC = frames[..., task.palette.rows, :].float().mean(-2).transpose(-1, -2)
    colour_BHPC = torch.einsum("bhwp,bhwc->bhpc", meets_BHWP.float(), shown_BHWC) / columns_BHP.clamp(min=1)[..., None]
    distance_BHPQ = (colour_BHPC[..., None, :] - candidates).square().sum(-1)
    right_BHP = distance_BHPQ.argmin(-1) == task.palette.colours[:, None]
    asked_BHP = columns_BHP >= COLUMNS
    questions_BH = asked_BHP.sum(-1)
    share_BH = (right_BHP & asked_BHP).sum(-1) / questions_BH  # NaN for 0 / 0
    items_B1 = asked_BHP.any(1).sum(-1)[:, None]
    return {
        "recall": share_BH.double().numpy(),
        "items": items_B1.expand_as(share_BH).double().numpy(),
        "choices": np.full(tuple(share_BH.shape), float(Q)),
    }
