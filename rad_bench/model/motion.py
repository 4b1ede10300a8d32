"""Features of the agent's motion, which condition the trunk."""

from __future__ import annotations

import torch
from torch import Tensor

from rad_bench.data.episodes import poses_from_egomotion

HARMONICS = 4  # sin and cos of 1..4 times the heading
WAVELENGTHS = (2.0, 4.0, 8.0, 16.0)  # of the position code, in the world's unit of length


def motion_size(kind: str, action_size: int) -> int:
    """Return the number of motion features a frame."""
    pose = 2 + 2 * HARMONICS + 4 * len(WAVELENGTHS)
    return {"action": action_size, "egomotion": 4, "pose": 4 + pose}[kind]


def motion_features(kind: str, actions_BTA: Tensor, egomotion_BT3: Tensor) -> Tensor:
    """Return [B, T, motion_size] float32.

    action: the data's own actions. egomotion: forward, sideways, sine and cosine of the turn. pose: egomotion and the
    pose relative to the first frame (by dead reckoning), as x, y and periodic codes of heading and position. 1 is
    subtracted from cosines of turn and position: a constant offset would make the codes of different poses similar.
    """
    if kind == "action":
        return actions_BTA.float()
    forward, sideways, turn = egomotion_BT3.double().unbind(-1)
    features = [forward, sideways, turn.sin(), turn.cos() - 1]
    if kind == "pose":
        x, y, heading = poses_from_egomotion(egomotion_BT3).unbind(-1)
        features += [x, y]
        for k in range(1, HARMONICS + 1):
            features += [(k * heading).sin(), (k * heading).cos()]
        for wavelength in WAVELENGTHS:
            for coordinate in (x, y):
                phase = 2 * torch.pi / wavelength * coordinate
                features += [phase.sin(), phase.cos() - 1]
    return torch.stack(features, -1).float()
