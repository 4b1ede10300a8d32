"""List a folder of recordings. Each file is inspected once; the result is cached until the file changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rad_bench.data.source import UNREADABLE, Item, Listing
from rad_bench.errors import UserError
from rad_bench.store.atomic import write_atomically


def list_files(folder: Path, patterns: Iterable[str], inspect: Callable[[Path, str], Item], kind: str) -> Listing:
    """Inspect the files below `folder` that match a pattern. Raises `UserError` if the folder cannot be read.

    `inspect(path, name)` returns an item or raises one of `UNREADABLE`. `kind` is its name and version.
    """
    try:
        paths = sorted({path for pattern in patterns for path in _walk(folder, pattern)})
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise UserError(f"data.path {folder} {what}; it should be a folder of recorded episodes.") from None
    cache_file = _cache_file(folder, kind)
    cached = _load(cache_file)
    items, left_out, changed = [], [], False
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            status = path.stat()
            stamp = [status.st_size, status.st_mtime_ns]
            if cached.get(name, {}).get("stamp") != stamp:
                cached[name] = {"stamp": stamp, "item": vars(inspect(path, name))}
                changed = True
            items.append(Item(**cached[name]["item"]))
        except UNREADABLE as error:
            left_out.append(f"{name}: {error or type(error).__name__}")
    if changed:
        with contextlib.suppress(OSError):  # without a cache, the next call is slower
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cache_file, json.dumps(cached).encode())
    return Listing(items, left_out)


def _walk(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise NotADirectoryError(20, "is not a folder") if folder.exists() else FileNotFoundError(folder)
    os.listdir(folder)  # raises without permission, where rglob would find nothing
    return [path for path in folder.rglob(pattern) if not path.name.startswith(".")]


def cache_folder() -> Path:
    """Return the user's cache folder, for files that can be computed again."""
    for folder in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(folder):  # not without a home; a relative one is to be ignored, says XDG
            return Path(folder) / "rad-bench"
    return Path(tempfile.gettempdir()) / f"rad-bench-{os.getuid()}"


def _cache_file(folder: Path, kind: str) -> Path:
    place = hashlib.sha256(os.fsencode(f"{kind} {folder.resolve()}")).hexdigest()[:32]
    return cache_folder() / "folders" / f"{place}.json"


def _load(path: Path) -> dict[str, Any]:
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
        return cached if isinstance(cached, dict) else {}
    except (OSError, ValueError):
        return {}
