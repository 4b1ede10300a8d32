"""Strips: a few frames of a video side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

FRAMES = 20  # in a strip, evenly spaced over the horizon


def shown(horizon: int) -> list[int]:
    """Return which generated frames a strip shows."""
    return torch.linspace(0, horizon - 1, min(FRAMES, horizon)).round().int().tolist()


def strip(*videos: Tensor) -> Image.Image:
    """Draw videos, uint8 [H, 3, h, w], as rows of frames with a white pixel between them."""
    rows = []
    for frames in videos:
        padded = F.pad(frames[shown(len(frames))], (0, 1, 0, 1), value=255)
        rows.append(torch.cat(list(padded), -1))
    return Image.fromarray(torch.cat(rows, 1)[:, :-1, :-1].permute(1, 2, 0).numpy())
