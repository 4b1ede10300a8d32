"""Fill a folder with episodes, each of which is one file that is written completely or not at all.

An episode is decided by the collection's settings and the episode's number, so an interrupted collection can be
continued. The folder's manifest holds settings, versions and checksums.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rad_bench.data.layout import OWN
from rad_bench.errors import UserError
from rad_bench.store.atomic import write_atomically
from rad_bench.store.lease import BusyError, hold

MANIFEST, CLAIMS = "manifest.json", ".claims"
EPISODES = "*-s*-[0-9]*.npz"
LEASE_SECONDS = 60.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Collection:
    """What the episodes of a folder have in common."""

    world: str  # begins the names of files
    seed: int
    settings: Mapping[str, Any]  # what else decides an episode, with its number
    versions: Mapping[str, str]  # of the software that decides it too
    collect_one: Callable[[int, Path], None]  # write the episode of a number to a file; called in another process
    about: Mapping[str, Any] = field(default_factory=dict)  # what else the manifest tells
    layout: str | None = None  # content of the folder's layout file

    @property
    def prefix(self) -> str:
        return f"{self.world}-s{self.seed}-"

    def file(self, folder: Path, number: int) -> Path:
        """Return the file of an episode."""
        return folder / f"{self.prefix}{number:05d}.npz"


@dataclass(frozen=True)
class Collected:
    """How many episodes a call added, and how many were there before."""

    collected: int
    kept: int


def fill(
    out: Path, collection: Collection, episodes: int, workers: int = 1,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Collected:  # fmt: skip
    """Bring a folder to a number of episodes. Existing ones are kept. Raises `UserError`.

    `report(done, of)` is called after each episode.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with hold(out / CLAIMS, LEASE_SECONDS):
            manifest = _open_manifest(out, collection)
            if collection.layout is not None:
                write_atomically(out / OWN, collection.layout.encode())
            return _collect_missing(out, collection, episodes, manifest, workers, report)
    except BusyError as error:
        raise UserError(
            f"{out}: another command is collecting here: {error}. Let it finish, or collect into another folder."
        ) from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}.") from None


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an episode's arrays to its file."""
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def scratch(path: Path) -> Path:
    """Return the folder that an episode may use while it is collected; what is left of it is removed at the end."""
    return path.with_name(f".{path.stem}.tmp")


def _collect_missing(
    out: Path, collection: Collection, episodes: int, manifest: dict[str, Any], workers: int,
    report: Callable[[int, int], None],
) -> Collected:  # fmt: skip
    files = {number: collection.file(out, number) for number in range(episodes)}
    missing = [number for number, path in files.items() if not path.exists()]
    kept, why = len(files) - len(missing), ""
    _remove_leftovers(out, collection)  # of a call that was killed
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, max(len(missing), 1)), context, initializer=_prepare)
    try:
        futures = [pool.submit(collection.collect_one, number, files[number]) for number in missing]
        for done, future in enumerate(as_completed(futures), start=kept + 1):
            future.result()
            report(done, len(files))
    except OSError as error:
        why = "the disk is full" if error.errno in FULL else f"{error.strerror or error}"
    except BrokenProcessPool:
        why = "a worker process was killed"
    finally:
        _terminate(pool)
        _remove_leftovers(out, collection)
        _finish_manifest(out, collection, manifest)
    if why:
        complete = sum(path.exists() for path in files.values())
        raise UserError(
            f"{out}: {why}. {complete} of {len(files)} episodes are complete and kept; "
            "the same command continues from there."
        )
    return Collected(len(missing), kept)


def _remove_leftovers(out: Path, collection: Collection) -> None:
    """Remove partly written files, and folders of unfinished episodes."""
    for leftover in out.glob(f".{collection.prefix}*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _open_manifest(out: Path, collection: Collection) -> dict[str, Any]:
    """Read the folder's manifest, or write a new one. Raises `UserError` if it has other settings."""
    path, settings = out / MANIFEST, {**collection.settings, "seed": collection.seed}
    if path.exists():
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            recorded = {**manifest, **manifest["versions"]}
            if not isinstance(manifest["files"], dict):
                raise TypeError("files is not a mapping")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}: is not the manifest of a collection ({type(error).__name__}: {error}); remove it, and the "
                "same command writes a new one."
            ) from None
        if any(out.glob(EPISODES)):
            for key, value in {**settings, **collection.versions}.items():
                if recorded.get(key) != value:
                    raise UserError(
                        f"{out}: was started with {key} {recorded.get(key)}, but this command has {value}. "
                        "Collect into another folder."
                    )
            return manifest
    versions = {**collection.versions, "numpy": np.__version__}
    manifest = {**collection.about, **settings, "versions": versions, "files": {}}
    write_atomically(path, _json(manifest))
    return manifest


def _finish_manifest(out: Path, collection: Collection, manifest: dict[str, Any]) -> None:
    """Add the checksums of this collection's files; other files in the folder are ignored."""
    known = manifest["files"]
    for path in sorted(out.glob(f"{collection.prefix}*.npz")):
        if path.name not in known:
            with path.open("rb") as file:
                known[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # the disk is full: the next call adds the missing checksums
        write_atomically(out / MANIFEST, _json(manifest))


def _prepare() -> None:
    """Set up a worker process."""
    import signal
    import threading

    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops it


def _exit_with_parent() -> None:
    """Exit when the parent process has ended, even if it was killed. An idle worker would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _terminate(pool: ProcessPoolExecutor) -> None:
    """Terminate all workers and wait for them, so that none is left and none writes a file any more."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
