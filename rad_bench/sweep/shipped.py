"""The sweeps that come with rad-bench, found by name; a file of the user's always goes first."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import rad_bench
from rad_bench.errors import UserError, did_you_mean

FOLDER = Path(rad_bench.__file__).parent / "sweeps"
MOST_FILES = 100  # of the user's, among which the nearest name is suggested


def names() -> list[str]:
    """Return the names, such as `memory_blocks` and `gpu/window`, those in folders last."""
    files = [path.relative_to(FOLDER) for pattern in ("*.yaml", "*/*.yaml") for path in FOLDER.glob(pattern)]
    return [path.with_suffix("").as_posix() for path in sorted(files, key=lambda path: (len(path.parts), path))]


def file_of(name: str) -> Path:
    """Return the file of a sweep of this name. Raises `UserError` if there is none."""
    if name not in names():
        raise UserError(f"'{name:.200}': no sweep of this name comes with rad-bench{did_you_mean(name, names())}")
    return FOLDER / f"{name}.yaml"


def find(path: Path, folder: Path = Path()) -> Path:
    """Return the sweep file that a user means: their own below `folder`, with or without `.yaml`, or one of ours.

    Raises `UserError` if there is neither. `sweeps/NAME.yaml` finds ours too, as the documents write it.
    """
    own = folder / path
    for candidate in (own, own.with_name(f"{own.name}.yaml")) if own.name else ():
        if os.path.isfile(candidate):
            return candidate
    name = path.with_suffix("").as_posix() if path.suffix == ".yaml" else path.as_posix()
    name = name.removeprefix("sweeps/")
    if name in names():
        return file_of(name)
    if os.path.lexists(own):
        return own  # a folder, or a broken link: reading it says so
    files = itertools.islice(own.parent.glob("*.yaml"), MOST_FILES)
    near = did_you_mean(name, [*names(), *(file.with_suffix("").as_posix() for file in files)])
    raise UserError(f"{own}: No such file, and no sweep of this name comes with rad-bench{near}")


def summary(name: str) -> str:
    """Return the first sentence of a sweep's comment."""
    lines = file_of(name).read_text(encoding="utf-8").splitlines()
    text = " ".join(line.removeprefix("#").strip() for line in itertools.takewhile(lambda x: x.startswith("#"), lines))
    ends = [text.find(mark) + 1 for mark in (". ", "? ") if mark in text]
    return text[: min(ends, default=len(text))]
