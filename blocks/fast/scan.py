"""A linear recurrence over many tokens, channel by channel, computed in parallel."""

from __future__ import annotations

import torch
from torch import Tensor


def scan(keep_SLE: Tensor, write_SLE: Tensor, h_SE: Tensor) -> Tensor:
    """Return all h_l = keep_l h_{l-1} + write_l in log2(L) rounds (Hillis & Steele 1986), without divisions."""
    write_SLE = torch.cat([write_SLE[:, :1] + keep_SLE[:, :1] * h_SE[:, None], write_SLE[:, 1:]], 1)
    distance = 1
    while distance < keep_SLE.shape[1]:
        reached = write_SLE[:, distance:] + keep_SLE[:, distance:] * write_SLE[:, :-distance]
        write_SLE = torch.cat([write_SLE[:, :distance], reached], 1)
        keep_SLE = torch.cat([keep_SLE[:, :distance], keep_SLE[:, distance:] * keep_SLE[:, :-distance]], 1)
        distance *= 2
    return write_SLE
