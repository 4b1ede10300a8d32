"""Find the files below a folder of recordings. Links are followed; names are always valid text."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rad_bench.errors import UserError


@dataclass(frozen=True)
class Files:
    """The files below a folder by their names: paths relative to the folder, with /."""

    paths: dict[str, Path] = field(default_factory=dict)  # sorted by the parts of the names
    left_out: list[str] = field(default_factory=list)  # what cannot be reached, with reasons


def find_files(folder: Path) -> Files:
    """Find all files below `folder`, also behind links, without those whose names begin with a dot.

    A link that leads back to a folder above itself is not followed: its files have names already. Raises `UserError`
    if the folder cannot be read.
    """
    try:
        top = folder.stat()
        if not stat.S_ISDIR(top.st_mode):
            raise NotADirectoryError(20, "is not a folder")
        os.listdir(folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {reason}"
        raise UserError(f"data.path {folder} {what}; it should be a folder of recorded episodes.") from None
    found: list[tuple[str, Path]] = []
    left_out: list[str] = []

    def walk(place: Path, prefix: str, above: frozenset[tuple[int, int]]) -> None:
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
                    link = f"a link to {_text(os.readlink(path))}, " if entry.is_symlink() else ""
                    left_out.append(f"{name}: {link}which cannot be reached: {error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                if identity not in above:
                    walk(path, f"{name}/", above | {identity})
            elif stat.S_ISREG(status.st_mode) and not entry.name.startswith("."):
                found.append((name, path))

    walk(folder, "", frozenset({(top.st_dev, top.st_ino)}))
    return Files(dict(sorted(found, key=lambda pair: pair[0].split("/"))), sorted(left_out))


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
