"""Listing a folder of recordings. A file is inspected once; what was found is remembered while it is unchanged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rad_bench.data.source import UNREADABLE, Item, Listing
from rad_bench.errors import UserError
from rad_bench.store.atomic import write_atomically


def list_files(folder: Path, patterns: Iterable[str], inspect: Callable[[Path, str], Item], kind: str) -> Listing:
    """Inspect the files below `folder` that match. Raises `UserError` if the folder is missing or closed to us.

    `inspect(path, name)` returns an item or raises one of `UNREADABLE`. `kind` names the inspection, with its version.
    """
    try:
        found = sorted({path for pattern in patterns for path in _walk(folder, pattern)})
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise UserError(f"data.path {folder} {what}; it should be a folder of recorded episodes.") from None
    memory = _memory(folder, kind)
    known = _load(memory)
    items, left_out, fresh = [], [], False
    for path in found:
        name = path.relative_to(folder).as_posix()
        try:
            state = path.stat()
            stamp = [state.st_size, state.st_mtime_ns]
            if known.get(name, {}).get("stamp") != stamp:
                known[name] = {"stamp": stamp, "item": vars(inspect(path, name))}
                fresh = True
            items.append(Item(**known[name]["item"]))
        except UNREADABLE as error:
            left_out.append(f"{name}: {error or type(error).__name__}")
    if fresh:
        with contextlib.suppress(OSError):  # only speed is lost
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memory, json.dumps(known).encode())
    return Listing(items, left_out)


def _walk(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise NotADirectoryError(20, "is not a folder") if folder.exists() else FileNotFoundError(folder)
    os.listdir(folder)  # raises where there is no permission, which glob would pass over
    return [path for path in folder.rglob(pattern) if not path.name.startswith(".")]


def cache_folder() -> Path:
    """Return the user's folder for what can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rad-bench"


def _memory(folder: Path, kind: str) -> Path:
    return cache_folder() / "folders" / f"{hashlib.sha256(f'{kind} {folder.resolve()}'.encode()).hexdigest()[:32]}.json"


def _load(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
        return known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        return {}
