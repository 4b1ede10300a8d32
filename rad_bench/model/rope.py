"""Rotary positions (Su et al. 2021, arXiv 2104.09864), in time and over a 2-D grid."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_1d(position_L: Tensor, head_dim: int, base: float = 10_000.0) -> Tensor:
    """Return the cosines and sines of rotations for `rotate`, [L, 1, head_dim / 2, 2].

    They are not complex numbers, because torch.compile generates no code for those.
    """
    frequency = base ** (-torch.arange(0, head_dim, 2, device=position_L.device).double() / head_dim)
    angle = position_L.double()[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()], -1)[:, None]


def rotation_2d(rows: int, columns: int, head_dim: int, device: torch.device) -> Tensor:
    """Return rotations for a grid in row-major order: half of the channels rotate by row, half by column."""
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    return torch.cat([rotation_1d(axis, head_dim // 2, base=100.0) for axis in (row, column)], -2)


def rotation_3d(frame_T: Tensor, rows: int, columns: int, head_dim: int) -> Tensor:
    """Rotations [N, T, 1, head_dim / 2, 2] for a grid of N tokens over time: half of the channels turn with time."""
    time = rotation_1d(frame_T, head_dim // 2)[None]
    space = rotation_2d(rows, columns, head_dim // 2, frame_T.device)[:, None]
    shape = (rows * columns, len(frame_T), -1, -1, -1)
    return torch.cat([time.expand(shape), space.expand(shape)], -2)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate pairs of channels of x [..., L, H, P] by the rotations [L, 1, P / 2, 2]."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = rotation.to(x.dtype).unbind(-1)
    rotated = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], -1)
    return rotated.flatten(-2)
