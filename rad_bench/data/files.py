"""Find the files below a folder of recordings. Links are followed; names are always valid text."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rad_bench.errors import UserError

TRAINING_FOLDERS, HELD_OUT_FOLDERS = {"train", "training"}, {"test", "validation", "eval"}
FileId = tuple[int | str, ...]  # device and number, or the real path


class Name(NamedTuple):
    """One of the names of a file."""

    text: str
    path: Path
    in_linked_folder: bool
    is_link: bool


@dataclass(frozen=True)
class Files:
    """The files below a folder by their names: paths relative to the folder, with /."""

    paths: dict[str, Path] = field(default_factory=dict)  # sorted by the parts of the names
    left_out: list[str] = field(default_factory=list)  # what cannot be reached, with reasons


def check_folder(folder: Path) -> os.stat_result:
    """Return what the file system says of a folder of recordings. Raises `UserError` if it cannot be read."""
    try:
        top = folder.stat()
        if not stat.S_ISDIR(top.st_mode):
            raise NotADirectoryError(20, "is not a folder")
        os.listdir(folder)
        return top
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {reason}"
        raise UserError(f"data.path {folder} {what}; it should be a folder of recorded episodes.") from None


def find_files(folder: Path) -> Files:
    """Find all files below `folder`, also behind links, without those whose names begin with a dot.

    A link that leads back to a folder above itself is not followed. A file that a linked folder gives a second name has
    the name in a folder of a split, or else the one without a link. Raises `UserError` if the folder cannot be read.
    """
    top = check_folder(folder)
    names: dict[FileId, list[Name]] = {}
    left_out: list[str] = []

    def walk(place: Path, prefix: str, above: frozenset[FileId], linked: bool) -> None:
        try:
            entries = list(os.scandir(place))
        except OSError as error:
            left_out.append(f"{prefix}: the folder cannot be read: {error.strerror}")
            return
        for entry in entries:
            name = prefix + _text(entry.name)
            path = place / entry.name
            try:
                status = entry.stat()
            except OSError as error:
                if not entry.name.startswith("."):
                    link = f"a link to {_text(os.readlink(path))} that " if entry.is_symlink() else ""
                    left_out.append(f"{name}: {link}cannot be reached: {error.strerror}")
                continue
            identity = _identity(path, status)
            if stat.S_ISDIR(status.st_mode):
                if identity not in above:
                    walk(path, f"{name}/", above | {identity}, linked or entry.is_symlink())
            elif stat.S_ISREG(status.st_mode) and not entry.name.startswith("."):
                names.setdefault(identity, []).append(Name(name, path, linked, entry.is_symlink()))

    walk(folder, "", frozenset({_identity(folder, top)}), linked=False)
    chosen = [pair for same in names.values() for pair in _chosen(same)]
    return Files(dict(sorted(chosen, key=lambda pair: pair[0].split("/"))), sorted(left_out))


def _identity(path: Path, status: os.stat_result) -> FileId:
    """Return what tells whether two names are of one file; some file systems have no numbers."""
    return (status.st_dev, status.st_ino) if status.st_ino else (os.path.realpath(path),)


def _chosen(names: list[Name]) -> list[tuple[str, Path]]:
    """Choose among the names of one file; several that are equally good stay, and will be named as copies."""
    ranks = [
        (top_folder(name.text) not in TRAINING_FOLDERS | HELD_OUT_FOLDERS, name.in_linked_folder) for name in names
    ]
    linked = any(name.in_linked_folder or name.is_link for name in names)
    best = min(ranks)
    # A split may name a file twice, by mistake: that has to be seen.
    keep = [not linked or rank == best or not (rank[0] or best[0]) for rank in ranks]
    return [(name.text, name.path) for name, kept in zip(names, keep, strict=True) if kept]


def top_folder(name: str) -> str:
    """Return the folder directly below the data set's in which a file is; empty if there is none."""
    return name.split("/")[0] if "/" in name else ""


def suffix(name: str) -> str:
    """Return what follows the last dot of a name, with the dot, in lower case."""
    return os.path.splitext(name)[1].lower()


def count_by_suffix(names: Iterable[str]) -> str:
    """Say which files these are: `300 .png files, 1 .json file`. The most frequent come first."""
    counts = Counter(suffix(name) for name in names).most_common()
    return ", ".join(
        f"{count:,} {f'{end} ' if end else ''}file{'s' * (count > 1)}{'' if end else ' without a suffix'}"
        for end, count in counts
    )


def _text(name: str) -> str:
    """Return a file name as text: bytes that are not UTF-8 are shown as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
