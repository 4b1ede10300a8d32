"""Features of the agent's motion, which condition the trunk."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rad_bench.data.episodes import poses_from_egomotion

HARMONICS = 4  # sin and cos of 1..4 times the heading
WAVELENGTHS = (1.0, 2.0, 4.0, 8.0)  # of the waves over place and heading, in the world's unit of length
DIRECTIONS = 8  # of these waves


def motion_size(kind: str, action_size: int) -> int:
    """Return the number of motion features a frame."""
    pose = 2 * HARMONICS + 2 * len(WAVELENGTHS) * DIRECTIONS
    return {"action": action_size, "egomotion": 4, "pose": 4 + pose}[kind]


def motion_features(kind: str, actions_BTA: Tensor, egomotion_BT3: Tensor) -> Tensor:
    """Return [B, T, motion_size] float32.

    action: the data's own actions. egomotion: forward, sideways, sine and cosine of the turn. pose: egomotion, and a
    code of the pose relative to the first frame (by dead reckoning): harmonics of the heading, and waves over place and
    heading together. A memory whose keys are a linear function of the code tells two poses apart by a sum over the
    code's parts. With parts for place and for heading alone, equal headings make all places similar, so a linear memory
    mixes them up; waves over both are equal only where both are (random features of a product kernel: Rahimi & Recht
    2007).
    """
    if kind == "action":
        return actions_BTA.float()
    forward, sideways, turn = egomotion_BT3.double().unbind(-1)
    features = [forward, sideways, turn.sin(), turn.cos() - 1]
    if kind == "pose":
        x, y, heading = poses_from_egomotion(egomotion_BT3).unbind(-1)
        for k in range(1, HARMONICS + 1):
            features += [(k * heading).sin(), (k * heading).cos()]
        for number, wavelength in enumerate(WAVELENGTHS):
            for direction in range(DIRECTIONS):
                angle = 2 * math.pi * direction / DIRECTIONS
                along = math.cos(angle) * x + math.sin(angle) * y
                turns = 1 + (direction + number) % HARMONICS
                phase = 2 * math.pi / wavelength * along + turns * heading
                features += [phase.sin(), phase.cos()]
    return torch.stack(features, -1).float()
