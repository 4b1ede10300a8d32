"""The same episodes as truth and as each block generated them: strips of frames, which the page also plays as films."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rad_bench.report.reading import Sweep

MOST_BYTES = 9_000_000  # of strips on a page, which a third more as text; what is left out stays in the run folders


@dataclass(frozen=True)
class Strip:
    """Frames side by side, a pixel between them."""

    label: str
    image: str  # data URI
    width: int
    height: int


@dataclass(frozen=True)
class StripGroup:
    """The same episode as truth and as every block generated it."""

    title: str
    kinds: list[tuple[int, str]]  # generated frame and its class, of the frames shown
    strips: list[Strip]  # truth first
    swapped: list[Strip]


def strip_groups(sweep: Sweep) -> tuple[list[StripGroup], int]:
    """Return the strips of each block's first seed, episode by episode, and how many there was no room for."""
    runs = {block: sweep.results_of(block)[0].run for block in sweep.blocks if sweep.results_of(block)}
    folders = {block: sweep.folder / "runs" / run / "strips" for block, run in runs.items()}
    found: dict[tuple[str, int], StripGroup] = {}
    shown: dict[str, tuple[list[int], list[int]]] = {}
    for result in sweep.results[:1]:
        for task, kept in result.strips.items():
            shown[task] = kept.episodes, kept.frames
    room, left = MOST_BYTES, 0
    # What is worth most first: each task's first episode, then what a swap makes of it, then the next episode.
    for number in range(max((len(episodes) for episodes, _ in shown.values()), default=0)):
        for what in ("keep", "swap"):
            for task, (episodes, frames) in shown.items():
                if number >= len(episodes):
                    continue
                episode = episodes[number]
                paths = {block: folder / f"{task}-{what}-{episode}.png" for block, folder in folders.items()}
                if what == "keep":
                    truth = [folder / f"{task}-truth-{episode}.png" for folder in folders.values()]
                    paths = {"truth": next((path for path in truth if path.exists()), Path()), **paths}
                strips = [strip for label, path in paths.items() if (strip := _strip(label, path)) is not None]
                size = sum(len(strip.image) for strip in strips) * 3 // 4
                if size > room:
                    left += len(strips)
                    continue
                room -= size
                if what == "keep":
                    title = f"{task}, episode {episode}"
                    found[task, episode] = StripGroup(title, _kinds(sweep, task, episode, frames), strips, [])
                elif (task, episode) in found:
                    found[task, episode].swapped.extend(strips)
    places = [(task, episode) for task, (episodes, _) in shown.items() for episode in episodes]
    return [found[place] for place in places if place in found and len(found[place].strips) > 1], left


def _strip(label: str, path: Path) -> Strip | None:
    """Read a strip; one that is missing, or no picture, is not shown."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.verify()
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return Strip(label, "data:image/png;base64," + base64.b64encode(content).decode(), width, height)


def _kinds(sweep: Sweep, task: str, episode: int, shown: list[int]) -> list[tuple[int, str]]:
    frames = sweep.frames[(sweep.frames["task"] == task) & (sweep.frames["episode"] == episode)]
    kinds = frames.drop_duplicates("frame").set_index("frame")["kind"]
    return [(frame, str(kinds.get(frame, "unknown"))) for frame in shown]
