"""List a folder of recordings. Each item is inspected once; the result is cached until one of its files changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rad_bench.data.files import Files
from rad_bench.data.source import UNREADABLE, Item, Listing
from rad_bench.store.atomic import write_atomically


def list_items(
    folder: Path,
    files: Files,
    names: Iterable[str],
    inspect: Callable[[Path, str], Item],
    kind: str,
    beside: Callable[[Path], list[Path]] = lambda path: [],
) -> Listing:
    """Inspect the files `names`, each of which is an item.

    `inspect(path, name)` returns an item or raises one of `UNREADABLE`. `kind` is its name and version. `beside(path)`
    returns the other files that an item is read from: a change of any of them is a change of the item.
    """
    cache_file = _cache_file(folder, kind)
    cached = _load(cache_file)
    items, left_out, changed = [], list(files.left_out), False
    try:
        for name in names:
            path = files.paths[name]
            try:
                stamp = [_stamp(file) for file in (path, *beside(path))]
                if cached.get(name, {}).get("stamp") != stamp:
                    cached[name] = {"stamp": stamp, "item": vars(inspect(path, name))}
                    changed = True
                items.append(Item(**cached[name]["item"]))
            except UNREADABLE as error:
                left_out.append(f"{name}: {error or type(error).__name__}")
    finally:  # also after Ctrl-C: inspection of videos takes long
        if changed:
            with contextlib.suppress(OSError):  # without a cache, the next call is slower
                cache_file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(cache_file, json.dumps(cached).encode())
    return Listing(items, left_out)


def _stamp(path: Path) -> list[int] | None:
    """Return what changes when a file does: also when it is replaced by one of equal size and time."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def cache_folder() -> Path:
    """Return the user's cache folder, for files that can be computed again."""
    for folder in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(folder):  # not without a home; a relative one is to be ignored, says XDG
            return Path(folder) / "rad-bench"
    return Path(tempfile.gettempdir()) / f"rad-bench-{os.getuid()}"


def _cache_file(folder: Path, kind: str) -> Path:
    digest = hashlib.sha256(os.fsencode(f"{kind} {folder.resolve()}")).hexdigest()
    return cache_folder() / "folders" / f"{digest[:32]}.json"


def _load(path: Path) -> dict[str, Any]:
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
        return cached if isinstance(cached, dict) else {}
    except (OSError, ValueError):
        return {}
