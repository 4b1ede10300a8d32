"""Features of the agent's motion, which condition the trunk."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rad_bench.data.episodes import poses_from_egomotion

HARMONICS = 4  # sin and cos of 1..4 times the heading
WAVELENGTHS = (1.0, 2.0, 4.0, 8.0)  # of the waves over place and heading, in the world's unit of length
DIRECTIONS = 8  # of these waves
RISES = (1.0, -0.62, 0.62, -1.0)  # how fast they go up, relative to how fast they go along their direction


def motion_size(kind: str, action_size: int, pose_size: int = 3) -> int:
    """Return the number of motion features a frame, for poses of 3 or 5 columns."""
    angles = pose_size // 2  # heading, and pitch
    egomotion = pose_size + angles
    code = 2 * HARMONICS * angles + 2 * len(WAVELENGTHS) * DIRECTIONS
    return {"action": action_size, "egomotion": egomotion, "pose": egomotion + code}[kind]


def motion_features(kind: str, actions_BTA: Tensor, egomotion_BTP: Tensor) -> Tensor:
    """Return [B, T, motion_size] float32, for egomotion of P = 3 or 5 columns.

    action: the data's own actions. egomotion: forward, sideways, sine and cosine of the turn; with five columns also
    up, sine and cosine of the change of pitch. pose: egomotion, and a code of the pose relative to the first frame (by
    dead reckoning): harmonics of the heading, and of the pitch, and waves over place and heading together. A memory
    whose keys are a linear function of the code tells two poses apart by a sum over the code's parts. With parts for
    place and for heading alone, equal headings make all places similar, so a linear memory mixes them up; waves over
    both are equal only where both are (random features of a product kernel: Rahimi & Recht 2007). With five columns the
    same waves go over height and pitch too: each has a wave number for every length and a whole number for every angle,
    in combinations that differ from wave to wave. On the level of the first frame they are the waves of three columns.
    """
    if kind == "action":
        return actions_BTA.float()
    forward, sideways, turn, *above = egomotion_BTP.double().unbind(-1)
    features = [forward, sideways, turn.sin(), turn.cos() - 1]
    if above:
        up, tilt = above
        features += [up, tilt.sin(), tilt.cos() - 1]
    if kind == "pose":
        x, y, heading, *above = poses_from_egomotion(egomotion_BTP).unbind(-1)
        for turned in (heading, *above[1:]):
            for k in range(1, HARMONICS + 1):
                features += [(k * turned).sin(), (k * turned).cos()]
        for number, wavelength in enumerate(WAVELENGTHS):
            for direction in range(DIRECTIONS):
                angle = 2 * math.pi * direction / DIRECTIONS
                along = math.cos(angle) * x + math.sin(angle) * y
                turns = 1 + (direction + number) % HARMONICS
                phase = 2 * math.pi / wavelength * along + turns * heading
                if above:
                    height, pitch = above
                    step = (direction // 2 + number) % HARMONICS
                    tilts = 1 + step if direction % 2 else -1 - step
                    phase = phase + 2 * math.pi / wavelength * RISES[step] * height + tilts * pitch
                features += [phase.sin(), phase.cos()]
    return torch.stack(features, -1).float()
