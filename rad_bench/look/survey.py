"""Summarise a folder of recordings: statistics for `rad-bench data check`, a picture for `rad-bench data show`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rad_bench.config import EvaluationConfig
from rad_bench.data.episodes import Episodes, egomotion_from_poses
from rad_bench.data.files import count_by_suffix
from rad_bench.data.recordings import NAMED, Recordings
from rad_bench.data.source import Item, Recording
from rad_bench.errors import UserError
from rad_bench.look.plausible import OutOfStep, pose_faults

GAP_EDGES = (0, 6, 12, 25, 50, 100, 200, 400, 1000, 10_000)
JUMP = 10.0  # a step is a jump if it is this many times the data set's median step
DARK = 8.0  # mean grey level below which a frame is called black


@dataclass
class Survey:
    """Statistics of a data set."""

    episodes: int = 0
    frames: int = 0
    left_out: list[str] = field(default_factory=list)  # files, with reasons
    others: str = ""  # files of other kinds: numbers by suffix
    suspects: list[str] = field(default_factory=list)  # good files with suspicious content
    lengths: tuple[int, float, int] = (0, 0.0, 0)  # shortest, median, longest
    sizes: dict[str, int] = field(default_factory=dict)  # "height x width" -> episodes
    pixels: tuple[int, float, int] = (255, 0.0, 0)  # lowest, mean, highest value
    actions: list[float] = field(default_factory=list)  # mean of each column
    height: tuple[float, float] | None = None  # lowest and highest, where poses have five columns
    pitch: tuple[float, float] | None = None  # degrees
    step: tuple[float, float] = (0.0, 0.0)  # median and largest distance between neighbouring poses that differ
    kinds: dict[str, float] = field(default_factory=dict)  # share of frames of second halves, given first halves
    gaps: dict[str, float] = field(default_factory=dict)  # share of revisits by gap

    def lines(self) -> list[tuple[str, str]]:
        """Return the statistics as lines (name, text)."""

        def shares(share_of: dict[str, float]) -> str:
            return ", ".join(f"{name} {share:.0%}" for name, share in share_of.items())

        shortest, median, longest = self.lengths
        low, mean, high = self.pixels
        lines = [
            ("episodes", f"{self.episodes:,} good, {len(self.left_out)} left out"),
            ("frames", f"{self.frames:,}; an episode has {shortest} to {longest}, median {median:g}"),
            ("size", ", ".join(f"{size} ({count} episodes)" for size, count in self.sizes.items())),
            ("pixels", f"{low} to {high}, mean {mean:.1f}"),
            ("actions, mean of each column", ", ".join(f"{mean:.3f}" for mean in self.actions)),
        ]
        if self.others:
            lines.insert(1, ("not read", self.others))
        if not self.kinds:
            return [
                *lines,
                ("poses", "none: set trunk.motion to action; there is no retrieval task, and revisits are unknown"),
            ]
        if self.height is not None and self.pitch is not None:
            lines.append(("height", "{:.2f} to {:.2f}".format(*self.height)))
            lines.append(("pitch", "{:.1f} to {:.1f} degrees; up is positive".format(*self.pitch)))
        return [
            *lines,
            ("distance between poses", f"median {self.step[0]:.3f} when moving, largest {self.step[1]:.3f}"),
            ("second half, given the first", shares(self.kinds)),
            ("revisits, by frames out of sight", shares(self.gaps) or "none"),
        ]

    @property
    def clean(self) -> bool:
        """Return whether all files are good and none is suspicious."""
        return not self.left_out and not self.suspects


def survey(data: Recordings, report: Callable[[int, int], None]) -> Survey:
    """Read every frame of every item once; `report(done, of)` is called after each."""
    items = _items(data)
    result = Survey(left_out=list(data.left_out), others=count_by_suffix(data.source.listing.others))
    good: list[Item] = []
    out_of_step = OutOfStep()
    steps: list[NDArray[np.float64]] = []
    above: list[NDArray[np.float64]] = []
    kinds: list[NDArray[Any]] = []
    gaps: list[NDArray[np.float64]] = []
    means, actions, low, high = [], np.zeros(data.action_size), 255, 0
    for item, recording in data.read_through(items, result.left_out, report):
        good.append(item)
        size = f"{item.height} x {item.width}"
        result.sizes[size] = result.sizes.get(size, 0) + 1
        brightness = recording.frames.float().mean((1, 2, 3))
        low, high = min(low, int(recording.frames.min())), max(high, int(recording.frames.max()))
        means.append(float(brightness.mean()))
        if (black := int((brightness < DARK).sum())) > 0:
            result.suspects.append(f"{item.name}: {black} black frames")
        actions += recording.actions[1:].double().mean(0).numpy()
        if recording.poses is not None:
            steps.append(np.linalg.norm(egomotion_from_poses(recording.poses)[1:, :2].numpy(), axis=1))
            above.append(recording.poses[:, 3:].numpy())
            kind, gap = _revisits(data, item, recording)
            kinds.append(kind.ravel())
            gaps.append(gap.ravel()[kind.ravel() == "revisit"])
            faults = pose_faults(recording, degrees=data.source.in_degrees)
            result.suspects += [f"{item.name}: {fault}" for fault in faults]
            out_of_step.add(item.name, recording)
    if not good:
        raise UserError(f"none of the episodes can be read: {'; '.join(result.left_out[:NAMED])}.")
    lengths = [item.length for item in good]
    result.episodes, result.frames = len(good), sum(lengths)
    result.lengths = min(lengths), float(np.median(lengths)), max(lengths)
    result.pixels, result.actions = (low, float(np.mean(means)), high), (actions / len(good)).tolist()
    result.suspects += out_of_step.faults()
    if steps:
        if data.pose_size == 5:
            height, pitch = np.concatenate(above).T
            result.height = float(height.min()), float(height.max())
            result.pitch = float(np.rad2deg(pitch.min())), float(np.rad2deg(pitch.max()))
        _add_motion(result, good, steps)
        _add_revisits(result, np.concatenate(kinds), np.concatenate(gaps))
    return result


def _items(data: Recordings) -> list[Item]:
    return sorted([*data.training, *data.held_out_items], key=lambda item: item.name)


def _revisits(data: Recordings, item: Item, recording: Recording) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Classify the second half of an item, with the first as context and attention's default reach."""
    from rad_bench.evaluation.revisits import classify_task
    from rad_bench.evaluation.tasks import make_task

    half = item.length // 2
    config = EvaluationConfig(tasks=("continuation",), context=max(half, 2), horizon=max(item.length - half, 1))
    episodes: Episodes = data.as_episodes([(item, 0)], [recording], with_surfaces=True)
    return classify_task(make_task("continuation", episodes, config, 1), 6, data.has_poses, data.same_view)


def _add_motion(result: Survey, items: list[Item], steps: list[NDArray[np.float64]]) -> None:
    all_steps = np.concatenate(steps)
    moving = all_steps[all_steps > 1e-6]
    median = float(np.median(moving)) if len(moving) else 0.0
    result.step = median, float(all_steps.max())
    for item, item_steps in zip(items, steps, strict=True):
        jumps = np.flatnonzero(item_steps > JUMP * median)
        if len(jumps):
            result.suspects.append(
                f"{item.name}: jumps {item_steps[jumps[0]]:.2f} at frame {jumps[0] + 1} ({len(jumps)} jumps)"
            )


def _add_revisits(result: Survey, kinds: NDArray[Any], gaps: NDArray[np.float64]) -> None:
    names, counts = np.unique(kinds, return_counts=True)
    result.kinds = {str(name): float(count / len(kinds)) for name, count in zip(names, counts, strict=True)}
    counts, _ = np.histogram(gaps, GAP_EDGES)
    bins = zip(GAP_EDGES, GAP_EDGES[1:], counts, strict=False)
    result.gaps = {f"{low} to {high}": float(c / max(len(gaps), 1)) for low, high, c in bins if c}


def draw(data: Recordings, out: Path, episodes: int = 6, frames: int = 12) -> list[str]:
    """Write a PNG: a row an episode, with evenly spaced frames and, where there are poses, the path from above.

    Returns the episodes that cannot be read, with reasons. Raises `UserError` if the file cannot be written.
    """
    from rad_bench.drawing import Figure, settings

    items = _items(data)
    unread: list[str] = []
    items = [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(episodes, len(items))).round().astype(int))]
    with settings({"font.size": 7}):
        figure = Figure(figsize=(1.1 * frames + 2.6, 1.5 * len(items)), layout="constrained")
        grid = figure.add_gridspec(len(items), frames + 2)
        for row, (item, recording) in enumerate(data.read_through(items, unread)):
            shown = np.linspace(0, item.length - 1, min(frames, item.length)).round().astype(int)
            for column, number in enumerate(shown):
                axes = figure.add_subplot(grid[row, column])
                axes.imshow(recording.frames[number].permute(1, 2, 0).numpy(), interpolation="nearest")
                axes.set(xticks=[], yticks=[], title=f"{number}")
                if column == 0:
                    split = "held out" if item in data.held_out_items else "training"
                    axes.set_ylabel(f"{Path(item.name).stem[-18:]}\n{split}", rotation=0, ha="right", va="center")
            if recording.poses is not None:
                _draw_path(figure.add_subplot(grid[row, frames:]), recording, data.source.ground(item), shown)
        try:
            figure.savefig(out, dpi=110)
        except (OSError, ValueError) as error:
            raise UserError(f"--out {out}: cannot be written: {getattr(error, 'strerror', None) or error}.") from None
    return unread


def _draw_path(
    axes: Any, recording: Recording, ground: NDArray[np.float64] | None, shown: NDArray[np.int64]
) -> None:  # fmt: skip
    assert recording.poses is not None
    x, y, heading = recording.poses[:, :3].numpy().T
    if recording.layout is not None:
        height, width = recording.layout.shape
        axes.imshow(recording.layout, cmap="gray", vmin=-1, vmax=1, origin="lower", extent=(0, width, 0, height))
    if ground is not None and not np.isnan(ground).all():
        known = np.argwhere(~np.isnan(ground))
        (left, bottom), (right, top) = known.min(0), known.max(0) + 1
        heights = ground[left:right, bottom:top].T
        shades = {"cmap": "Greys_r", "vmin": np.nanmin(heights) - 1, "vmax": np.nanmax(heights) + 1}  # white: no ground
        axes.imshow(heights, **shades, alpha=0.6, origin="lower", extent=(left, right, bottom, top))
    axes.plot(x, y, color="#555555", linewidth=0.5, zorder=1)
    axes.scatter(x, y, c=np.arange(len(x)), s=3, cmap="viridis", zorder=2)
    axes.quiver(
        x[shown], y[shown], np.cos(heading[shown]), np.sin(heading[shown]), color="#D55E00", width=0.008, zorder=3
    )
    axes.margins(0.15)
    axes.set(
        aspect="equal",
        adjustable="datalim",
        xticks=[],
        yticks=[],
        title="path, dark to bright" if ground is None else "path over the ground's height",
    )
