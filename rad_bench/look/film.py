"""A video of trained runs next to the truth, with the same frames that the evaluation scored.

Each episode is a row: the truth, then each run, with another episode's memory too where that is asked for. Above them
stand the names, a line of text, and a bar over all frames, coloured by kind.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rad_bench.errors import UserError, did_you_mean
from rad_bench.evaluation.evaluate import held_out, reach
from rad_bench.evaluation.interventions import partners, roll_out
from rad_bench.evaluation.revisits import classify_task
from rad_bench.evaluation.tasks import Task, make_task
from rad_bench.look.load import Trained
from rad_bench.store.atomic import write_atomically

# The colours of kinds of frames, as in the report. Context frames have a colour that differs from all others.
COLOURS = {
    "context": "#333333", "recent": "#BBBBBB", "revisit": "#0072B2", "partial": "#E69F00", "novel": "#CC79A7",
    "unknown": "#DDDDDD",
}  # fmt: skip
MEMORY = {"keep": "", "reset": ", memory reset after the context", "swap": ", another episode's memory"}
TILE = 128  # smallest side of an enlarged frame, in pixels
GAP, BAR = 8, 8  # pixels: between tiles, height of the bar
TEXT, LINE = 14, 19  # pixels: font size, line height


@dataclass(frozen=True)
class Film:
    """Episodes as true frames and as each run generated them. T = context + horizon."""

    task: str
    context: int
    episodes: list[int]
    kinds: list[list[str]]  # [B][T], `context` first; by the first run's reach
    gaps: list[list[float]]  # [B][T] frames out of sight, NaN where undefined
    columns: dict[str, Tensor]  # name -> uint8 [B, T, 3, h, w], the truth first


def film(runs: Sequence[Trained], task_name: str | None, interventions: Sequence[str], episodes: Sequence[int]) -> Film:
    """Roll the runs out on held-out episodes, by default the one with most revisits, with each of the interventions.

    A run without a memory has nothing to intervene on, and is shown once. Raises `UserError` for a task or episode that
    was not evaluated, and for runs with different truths.
    """
    first = runs[0]
    name = task_name or first.run.config.evaluation.tasks[0]
    tasks: list[tuple[Trained, Task]] = [(trained, _task(trained, name, interventions)) for trained in runs]
    truth = tasks[0][1]
    kinds, gaps = classify_task(truth, reach(first.run.config), first.dataset.has_poses, first.dataset.same_view)
    shown = list(episodes) or [int((kinds == "revisit").sum(1).argmax())]
    for trained, task in tasks:
        if len(task.truth) <= max(shown):
            raise UserError(
                f"--episode {max(shown)}: {trained.folder.path} was evaluated on {len(task.truth)} episodes, numbered "
                f"from 0 to {len(task.truth) - 1}."
            )
        if task.context != truth.context or not torch.equal(task.truth, truth.truth):
            raise UserError(
                f"{trained.folder.path} and {first.folder.path} were evaluated on different episodes, contexts or "
                "horizons, so they have no common truth. Make a video of each."
            )
    C = truth.context
    columns = {"truth": truth.truth[shown]}
    for number, intervention in enumerate(interventions):
        for trained, task in tasks:
            if number and not trained.has_memory:
                continue
            frames = roll_out(trained, task, only={intervention: shown}).frames[intervention]
            label = _label(trained, runs) + MEMORY[intervention]
            while label in columns:
                label += "'"
            columns[label] = torch.cat([truth.truth[shown, :C], frames], 1)
    return Film(
        name, C, shown,
        [["context"] * C + kinds[e].tolist() for e in shown],
        [[math.nan] * C + gaps[e].tolist() for e in shown],
        columns,
    )  # fmt: skip


def _task(trained: Trained, name: str, interventions: Sequence[str]) -> Task:
    config = trained.run.config
    known = config.evaluation
    for option, value, evaluated in (
        ("task", name, known.tasks), *(("intervention", each, known.interventions) for each in interventions),
    ):  # fmt: skip
        if value not in evaluated:
            hint = did_you_mean(value, evaluated)
            raise UserError(f"--{option} {value}: {trained.folder.path} was not evaluated with this {option}{hint}")
    task = make_task(name, held_out(config, trained.dataset), config.evaluation, config.trunk.frames_per_step)
    if "swap" in interventions and partners(task.origins) is None:
        raise UserError(
            f"--intervention swap: all episodes that {trained.folder.path} was evaluated on are clips of one "
            "recording, so there is no other memory to swap theirs with."
        )
    return task


def _label(trained: Trained, runs: Sequence[Trained]) -> str:
    unique = [other.run.label for other in runs].count(trained.run.label) == 1
    return trained.run.label if unique else trained.name


def draw(film: Film) -> list[Image.Image]:
    """Return the pictures of the film, one a frame, all of the same size with even sides."""
    _, T, _, h, w = film.columns["truth"].shape
    scale = math.ceil(TILE / min(h, w))
    width, height = w * scale, h * scale
    font = ImageFont.load_default(TEXT)
    names = [_wrap(label, font, width) for label in film.columns]
    top = 2 * GAP + LINE * (1 + max(name.count("\n") + 1 for name in names))
    band = 2 * LINE + BAR + GAP + height + GAP  # of an episode
    across = GAP + len(names) * (width + GAP)
    size = across, top + len(film.episodes) * band
    empty = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), "white")
    pen = ImageDraw.Draw(empty)
    pen.text((GAP, GAP), film.task, "black", font)
    lefts = [GAP + column * (width + GAP) for column in range(len(names))]
    for left, name in zip(lefts, names, strict=True):
        pen.text((left, GAP + LINE), name, "black", font)
    bar = GAP, across - 2 * GAP  # left, width
    for b, kinds in enumerate(film.kinds):
        for t, kind in enumerate(kinds):
            pen.rectangle(_segment(*bar, top + b * band + 2 * LINE, t, T), COLOURS[kind])
    pictures = []
    for t in range(T):
        picture = empty.copy()
        pen = ImageDraw.Draw(picture)
        for b, episode in enumerate(film.episodes):
            y = top + b * band
            text = f"episode {episode}, frame {t + 1} of {T}: {_caption(film, b, t)}"
            pen.text((GAP, y), text, "black", font)
            x, line, right, _ = _segment(*bar, y + 2 * LINE, t, T)
            middle = (x + right) / 2
            pen.polygon([(middle - 4, line - 5), (middle + 4, line - 5), (middle, line + 1)], "black")
            for left, frames in zip(lefts, film.columns.values(), strict=True):
                tile = Image.fromarray(frames[b, t].permute(1, 2, 0).numpy()).resize(
                    (width, height), Image.Resampling.NEAREST
                )
                corner = left, y + 2 * LINE + BAR + GAP
                picture.paste(tile, corner)
                edge = (corner[0] - 3, corner[1] - 3, corner[0] + width + 2, corner[1] + height + 2)
                pen.rectangle(edge, outline=COLOURS[film.kinds[b][t]], width=3)
        pictures.append(picture)
    return pictures


def _segment(left: int, width: int, y: int, t: int, frames: int) -> tuple[int, int, int, int]:
    """Return frame t's part of an episode's bar, as left, top, right, bottom (inclusive)."""
    return left + t * width // frames, y, max(left + t * width // frames, left + (t + 1) * width // frames - 1), y + BAR


def _caption(film: Film, b: int, t: int) -> str:
    kind, gap = film.kinds[b][t], film.gaps[b][t]
    if kind == "context":
        return "context (given)"
    return f"{kind}, {gap:g} frames out of sight" if math.isfinite(gap) and gap > 0 and kind != "recent" else kind


def _wrap(text: str, font: Any, width: int) -> str:
    """Wrap a name into lines of at most `width` pixels, at a space or underscore where there is one."""
    lines: list[str] = []
    while text:
        fits = max((n for n in range(1, len(text) + 1) if font.getlength(text[:n].rstrip()) <= width), default=1)
        if fits < len(text):
            fits = max(text.rfind(" ", 1, fits + 1), text.rfind("_", 1, fits) + 1) or fits
        lines, text = [*lines, text[:fits].rstrip()], text[fits:].lstrip()
    return "\n".join(lines)


def write_video(pictures: Sequence[Image.Image], path: Path, fps: int) -> None:
    """Write pictures as .gif or as .mp4 (H.264; needs PyAV). Raises `UserError` if that fails."""
    encode = _encoder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, encode(pictures, fps))
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {error.strerror or error}.") from None


def _encoder(path: Path) -> Callable[[Sequence[Image.Image], int], bytes]:
    encoders = {".gif": _gif, ".mp4": _mp4}
    if path.suffix.lower() not in encoders:
        raise UserError(f"--out {path}: unknown video format{did_you_mean(path.suffix, encoders)}")
    if path.suffix.lower() == ".mp4":
        _pyav()
    return encoders[path.suffix.lower()]


def check_format(path: Path) -> None:
    """Raise `UserError` if the suffix is no video format; called before anything is computed."""
    _encoder(path)


def _gif(pictures: Sequence[Image.Image], fps: int) -> bytes:
    file = io.BytesIO()
    # Each picture has its own palette of 256 colours; the frames have few.
    indexed = [picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) for picture in pictures]
    indexed[0].save(file, "GIF", save_all=True, append_images=indexed[1:], duration=1000 // fps, loop=0)
    return file.getvalue()


def _mp4(pictures: Sequence[Image.Image], fps: int) -> bytes:
    av, file = _pyav(), io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12"})
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            pixels: NDArray[np.uint8] = np.asarray(picture)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(f"an .mp4 needs PyAV ({error}): pip install 'rad-bench[video]'. A .gif does not.") from None
    return av
