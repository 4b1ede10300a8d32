"""Whether the poses of recordings can be right: units, axes, maps, and frames that are out of step with their poses.

Letters: T frames, C colour channels, W width, D displacements. Each check returns sentences with numbers as evidence.
Thresholds were set on Memory Maze episodes, as they are and spoilt: all of them pass, and all spoilt ones are named.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rad_bench.data.source import Recording

Array = NDArray[np.float64]
EDGE = 0.02  # cells that a place may reach into a wall
MOVING = 20  # steps from which the direction of motion is judged
FITS, BETTER = 0.8, 0.25  # mean cosine of the angle between motion and heading, and by how much it is better
TURN, OFTEN = 60, 0.1  # degrees a frame; share of the frames
STEEPEST = 90.5  # degrees of pitch, with a margin for rounding
LAGS, SIXTH = 30, 6  # frames by which frames and poses may be out of step: at most 30, or a sixth of all
RELATED, UNRELATED = -0.3, -0.1  # log residuals of pictures that change with the poses, and that do not
AGAINST, FEWEST = 0.75, 20  # share of turns in which pictures move the wrong way, and of how many
GAIN, EVIDENCE = 0.05, 40  # by which the logarithm of the residual falls: a frame, and in all


def pose_faults(recording: Recording, degrees: bool) -> list[str]:
    """Return what cannot be right in a recording's poses; `degrees`: the files hold a yaw in degrees."""
    assert recording.poses is not None
    poses = recording.poses.numpy()
    faults = _places(poses, recording.layout) + _directions(poses, degrees) + _turns(poses) + _pitches(poses)
    return faults + (_unit_of_yaw(poses, recording.frames) if degrees else [])


def _places(poses: Array, layout: NDArray[np.bool_] | None) -> list[str]:
    if layout is None:
        return []
    x, y = poses[:, :2].T
    wrong = _not_free(x, y, layout)
    if not wrong:
        return []
    text = (
        f"{wrong} of {len(x)} places lie in walls or outside the map of {layout.shape[1]} x {layout.shape[0]} cells "
        f"(x {x.min():.2f} to {x.max():.2f}, y {y.min():.2f} to {y.max():.2f})"
    )
    others = {
        "x and y swapped": layout.T,
        "the map's rows in reverse order": layout[::-1],
        "its columns in reverse order": layout[:, ::-1],
    }
    better = {name: _not_free(x, y, other) for name, other in others.items()}
    best = min(better, key=lambda name: better[name])
    return [text + (f"; with {best}, {better[best]} do" if better[best] <= wrong / 4 else "")]


def _not_free(x: Array, y: Array, layout: NDArray[np.bool_]) -> int:
    free = np.zeros(len(x), bool)
    padded = np.pad(layout, 1)
    for dx, dy in ((0, 0), (EDGE, 0), (-EDGE, 0), (0, EDGE), (0, -EDGE)):
        column = np.clip(np.floor(x + dx) + 1, 0, padded.shape[1] - 1).astype(int)
        row = np.clip(np.floor(y + dy) + 1, 0, padded.shape[0] - 1).astype(int)
        free |= padded[row, column]
    return int((~free).sum())


def _directions(poses: Array, degrees: bool) -> list[str]:
    """Compare the direction of motion with the heading, as read and as it would be in other units and axes."""
    steps = np.diff(poses[:, :2], axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    moves = lengths[lengths > 1e-6]
    if len(moves) < MOVING:
        return []
    moving = lengths > 0.2 * np.median(moves)
    motion, heading = np.arctan2(steps[:, 1], steps[:, 0])[moving], poses[:-1, 2][moving]

    others = {
        f"the heading turned by {angle} degrees": (motion, heading + np.deg2rad(angle)) for angle in (90, -90, 180)
    }
    if abs(np.exp(2j * motion).mean()) < 0.7:  # motion along one line would fit too much
        others["x and y swapped"] = np.pi / 2 - motion, heading
        others["the heading mirrored"] = motion, -heading
        if degrees:
            others["yaw in radians"] = motion, np.rad2deg(heading)
            others["yaw converted to degrees once, not twice"] = motion, np.deg2rad(heading)
    for times, angle in ((1, "the angle"), (2, "twice the angle")):  # forward; forward or backward
        read = _cosine(motion, heading, times)
        fits = {name: _cosine(*pair, times) for name, pair in others.items()}
        best = max(fits, key=lambda name: fits[name])
        if fits[best] >= max(FITS, read + BETTER):
            return [
                f"the direction of motion does not fit the heading (mean cosine of {angle} {read:.2f} in {len(motion)} "
                f"steps), but would with {best} ({fits[best]:.2f})"
            ]
    return []


def _cosine(motion: Array, heading: Array, times: int) -> float:
    return float(np.cos(times * (motion - heading)).mean())


def _turns(poses: Array) -> list[str]:
    turns = np.abs(np.rad2deg(_turn(poses)))
    large = int((turns > TURN).sum())
    if large <= max(1, OFTEN * len(turns)):
        return []
    return [f"turns by more than {TURN} degrees in {large} of {len(turns)} frames: is the heading in the right unit?"]


def _pitches(poses: Array) -> list[str]:
    pitch = np.rad2deg(np.remainder(poses[:, 4:] + np.pi, 2 * np.pi) - np.pi)
    beyond = int((np.abs(pitch) > STEEPEST).sum())
    if not beyond:
        return []
    return [f"looks beyond straight up or down in {beyond} of {len(pitch)} frames: is the pitch in the right unit?"]


def _unit_of_yaw(poses: Array, frames: Tensor) -> list[str]:
    """Judge the unit by the range of yaw, and by how far the picture moves when the camera turns."""
    yaw = -np.rad2deg(poses[:, 2])
    low, high = float(yaw.min()), float(yaw.max())
    if high - low < 0.1:
        return []
    if max(-low, high) <= 2 * np.pi + 0.01:
        return [f"yaw stays between {low:.2f} and {high:.2f} degrees over {len(yaw)} frames: is it in radians?"]
    turn, moved = np.rad2deg(_turn(poses)), _displacement(frames)
    if turn.std() == 0 or moved.std() == 0 or abs(np.corrcoef(turn, moved)[0, 1]) < FITS:
        return []
    view = frames.shape[-1] / abs(np.polyfit(turn, moved, 1)[0])  # degrees across the picture
    if 5 < view < 720:
        return []
    unit = "in radians" if view < 5 else "converted to degrees twice"
    return [f"by how the picture moves, the camera sees {view:.1f} degrees of yaw: is it {unit}?"]


@dataclass
class OutOfStep:
    """Finds whether the pictures change when and as the poses do: some frames earlier or later, or the other way."""

    names: list[str] = field(default_factory=list)
    residuals: list[Array] = field(default_factory=list)  # of each recording, by lag: sum of log(residual / variance)
    rows: list[int] = field(default_factory=list)
    turns: int = 0  # frames in which the camera turns and the picture moves to one side
    against: int = 0  # those of them in which a turn to the left moves the picture to the left
    turning: list[bool] = field(default_factory=list)  # whether the camera turns often enough to judge a single one

    def add(self, name: str, recording: Recording) -> None:
        """Compare a recording's frames and poses at all lags."""
        assert recording.poses is not None
        poses, pictures = recording.poses.numpy(), recording.frames
        turn, moved = _turn(poses), _displacement(pictures)
        most = pictures.shape[-1] // 2  # which is also what blank pictures give
        sideways = (np.abs(turn) > 1e-3) & (moved != 0) & (np.abs(moved) < most)
        self.turns += int(sideways.sum())
        self.against += int((turn[sideways] * moved[sideways] < 0).sum())
        lags = min(LAGS, len(poses) // SIXTH)
        rows = len(poses) - 1 - 2 * lags
        if rows < MOVING:
            return
        step = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1)
        one = np.ones_like(turn)
        rise = np.abs(np.diff(poses[:, 3:], axis=0))  # of height and pitch, if they are recorded
        size = np.column_stack([np.abs(turn), step, np.abs(turn) > 1e-3, step > 1e-3, one, rise])
        change = (pictures[1:].float() - pictures[:-1].float()).abs().mean((1, 2, 3)).double().numpy()
        pairs = ((change, size), (moved, np.column_stack([turn, one])))
        self.names.append(name)
        self.rows.append(rows)
        self.turning.append(bool((np.abs(turn) > 1e-3).mean() > 0.25 and rows >= 5 * MOVING))
        residuals = np.full(2 * LAGS + 1, np.inf)
        for lag in range(-lags, lags + 1):
            residuals[LAGS + lag] = sum(_residual(y[lags : lags + rows], X[lags - lag :][:rows]) for y, X in pairs)
        self.residuals.append(residuals)

    def faults(self) -> list[str]:
        """Return a sentence for each recording that is out of step, or one for all of them together."""
        faults = []
        as_read = [float(residual[LAGS]) for residual in self.residuals]
        usual = float(np.median(as_read)) if as_read else 0.0
        for i, name in enumerate(self.names):
            if text := _lag(self.residuals[i], self.rows[i]):
                faults.append(f"{name}: {text}")
            elif usual < RELATED and as_read[i] > UNRELATED and self.turning[i]:
                faults.append(
                    f"{name}: pictures do not change when its poses do (log residual {as_read[i]:.2f}, median of all "
                    f"episodes {usual:.2f}): are they of another recording?"
                )
        if not faults and self.rows:
            weights = np.array(self.rows, float)
            if text := _lag(np.average(self.residuals, axis=0, weights=weights), int(weights.sum())):
                faults.append(f"all {len(self.names)} episodes together: {text}")
        if self.turns >= FEWEST and self.against > AGAINST * self.turns:
            faults.append(
                f"all episodes together: pictures move as if the camera turned the other way, in {self.against} of "
                f"{self.turns} turns: does the heading grow clockwise, or are left and right exchanged?"
            )
        return faults


def _lag(residual: Array, rows: int) -> str:
    best = int(residual.argmin())
    gain = float(residual[LAGS] - residual[best])
    if gain < GAIN or gain * rows < EVIDENCE:
        return ""
    lag = best - LAGS
    return (
        f"frames are out of step with poses: pictures change {abs(lag)} frames {'after' if lag > 0 else 'before'} "
        f"poses do (log residual {residual[best]:.2f} there, {residual[LAGS]:.2f} as read, {rows} frames)"
    )


def _residual(y: Array, X: Array) -> float:
    """Return log(residual / variance) of a linear fit of y by X."""
    weights, *_ = np.linalg.lstsq(X, y, rcond=None)
    variance = float(((y - y.mean()) ** 2).sum()) + 1e-9
    return float(np.log(float(((y - X @ weights) ** 2).sum()) / variance + 1e-3))


def _turn(poses: Array) -> Array:
    turn: Array = np.remainder(np.diff(poses[:, 2]) + np.pi, 2 * np.pi) - np.pi
    return turn


def _displacement(frames: Tensor) -> Array:
    """Return by how many pixels each picture lies to the right of the one before, [T-1], from their column means."""
    profile_TCW = frames.float().mean(2)
    profile_TCW = profile_TCW - profile_TCW.mean(-1, keepdim=True)
    W = profile_TCW.shape[-1]
    spectrum = torch.fft.rfft(profile_TCW, 2 * W)
    products = torch.fft.irfft((spectrum[:-1].conj() * spectrum[1:]).sum(1), 2 * W)
    shift_D = torch.arange(-(W // 2), W // 2 + 1)
    energy = torch.nn.functional.pad((profile_TCW**2).sum(1).cumsum(-1), (1, 0))
    first, last = (-shift_D).clamp(min=0), (W - shift_D).clamp(max=W)  # columns of the picture before that both show
    before = energy[:-1][:, last] - energy[:-1][:, first]
    after = energy[1:][:, last + shift_D] - energy[1:][:, first + shift_D]
    likeness_TD = products[:, shift_D % (2 * W)] / (before * after).clamp(min=1e-3).sqrt()
    moved: Array = shift_D[likeness_TD.argmax(1)].double().numpy()
    return moved
