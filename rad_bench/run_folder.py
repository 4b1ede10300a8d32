"""The folder of one run: what lies where, and how it is written so that a kill leaves nothing half done."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rad_bench import strict_yaml
from rad_bench.config import RunConfig
from rad_bench.errors import UserError


@dataclass(frozen=True)
class Run:
    """One point of a sweep's grid."""

    name: str  # of its folder: <label>-seed<k>-<first 8 digits of the key>
    label: str  # the grid's axes but for the seed, as the report names them
    axes: dict[str, Any]  # grid path -> value
    config: RunConfig
    key: str  # hash of everything that decides the result


@dataclass(frozen=True)
class RunFolder:
    """Names within a run's folder. A run is done when `result` exists."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def frames(self) -> Path:
        return self.path / "frames.parquet"

    @property
    def strips(self) -> Path:
        return self.path / "strips"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def failure(self) -> Path:
        return self.path / "failure.txt"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def is_done(self) -> bool:
        return self.result.exists()


def save_run(run: Run, folder: Path) -> None:
    """Write `config.yaml` into the run's folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"label": run.label, "axes": run.axes, "key": run.key, "config": run.config.model_dump(mode="json")}
    write_atomically(RunFolder(folder).config, yaml.safe_dump(record, sort_keys=False).encode())


def load_run(folder: Path) -> Run:
    """Read a run back from its folder. Raises `UserError` if its config.yaml is missing or not one."""
    path = RunFolder(folder).config
    try:
        record = strict_yaml.load(path.read_text(encoding="utf-8"))
        config = RunConfig.model_validate(record["config"])
        return Run(folder.name, record["label"], record["axes"], config, record["key"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the config of a run: {error}") from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, waiting for it. The lock ends with the process, however that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Return whether some process holds the file's lock."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
