"""The folder of one run: what lies where, and how it is written so that a kill leaves nothing half done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from rad_bench.config import RunConfig
from rad_bench.errors import UserError
from rad_bench.store import strict_yaml
from rad_bench.store.atomic import write_atomically


@dataclass(frozen=True)
class Run:
    """One point of a sweep's grid."""

    name: str  # of its folder: <label>-seed<k>-<first 8 digits of the key>
    label: str  # the grid's axes but for the seed, as the report names them
    axes: dict[str, Any]  # grid path -> value
    config: RunConfig
    key: str  # hash of everything that decides the result
    block: str = ""  # identity of the memory block's code as it was planned; empty: not known


@dataclass(frozen=True)
class RunFolder:
    """Names within a run's folder, and the one door through which a run writes there. Done when `result` exists."""

    path: Path
    fence: Callable[[], None] = lambda: None  # raises if another attempt has taken over

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
    def checkpoint_before(self) -> Path:
        """The last checkpoint but one, for when the last cannot be read."""
        return self.path / "checkpoint.before.pt"

    @property
    def weights(self) -> Path:
        """Of the averaged trunk."""
        return self.path / "model.safetensors"

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
    def output(self) -> Path:
        """What its processes printed on this machine; those of SLURM print elsewhere."""
        return self.path / "output.txt"

    @property
    def start(self) -> Path:
        """Which start of a SLURM job was the first at the step that the run has come to."""
        return self.path / "start.json"

    @property
    def attempts(self) -> Path:
        """Claims on this run, one file an attempt."""
        return self.path / "attempts"

    @property
    def is_done(self) -> bool:
        return self.result.exists()

    def replace(self, target: Path, write: Callable[[BinaryIO], object]) -> None:
        """Write a file of this folder behind the fence: a reader, or a kill, sees the old content or the new."""
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, write, self.fence)

    def append(self, target: Path, line: str) -> None:
        """Add a line to a file of this folder behind the fence."""
        self.fence()
        with target.open("a") as file:
            file.write(line + "\n")


def save_run(run: Run, folder: Path) -> None:
    """Write `config.yaml` into the run's folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "label": run.label,
        "axes": run.axes,
        "key": run.key,
        "block": run.block,
        "config": run.config.model_dump(mode="json"),
    }
    write_atomically(RunFolder(folder).config, strict_yaml.dump(record).encode())


def load_run(folder: Path) -> Run:
    """Read a run back from its folder. Raises `UserError` if its config.yaml is missing or not one."""
    path = RunFolder(folder).config
    try:
        record = strict_yaml.load(path.read_text(encoding="utf-8"))
        config = RunConfig.model_validate(record["config"])
        return Run(folder.name, record["label"], record["axes"], config, record["key"], str(record.get("block", "")))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the config of a run: {error}") from None
