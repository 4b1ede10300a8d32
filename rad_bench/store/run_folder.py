"""The folder of one run: its files, and how they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from rad_bench.config import RunConfig
from rad_bench.errors import UserError, one_line
from rad_bench.store import strict_yaml
from rad_bench.store.atomic import write_atomically

DIVERGED = "DivergedError"  # how the reason of a run begins whose loss was not finite


@dataclass(frozen=True)
class Run:
    """One point of a sweep's grid."""

    name: str  # name of its folder: <label>-seed<k>-<first 8 digits of the key>
    label: str  # values of the grid's axes without the seed, as the report shows them
    axes: dict[str, Any]  # grid path -> value
    config: RunConfig
    key: str  # hash of everything that decides the result
    block: str = ""  # identity of the memory block's code when the run was planned; empty: not known
    data: str = ""  # identity of the data then; empty: not known


@dataclass(frozen=True)
class RunFolder:
    """The paths in a run's folder, and the functions that write there. A run is done when `result` exists."""

    path: Path
    fence: Callable[[], None] = lambda: None  # raises if another attempt has taken over the run

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
        """The previous checkpoint, used if the last cannot be read."""
        return self.path / "checkpoint.before.pt"

    @property
    def weights(self) -> Path:
        """The weights of the averaged trunk."""
        return self.path / "model.safetensors"

    def snapshot(self, step: int) -> Path:
        """The weights of the averaged trunk after a step of training, one of `evaluation.at`."""
        return self.path / "snapshots" / f"{step}.safetensors"

    @property
    def training(self) -> Path:
        """The record of the training that made `weights`; missing while a run trains."""
        return self.path / "training.json"

    @property
    def frames(self) -> Path:
        return self.path / "frames.parquet"

    @property
    def curve(self) -> Path:
        """The learning curve: the frames of the snapshots and of the final weights; only with `evaluation.at`."""
        return self.path / "curve.parquet"

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
        """The output of the run's processes on this machine. The output of SLURM jobs is elsewhere."""
        return self.path / "output.txt"

    @property
    def start(self) -> Path:
        """The first start of a SLURM job at the run's current step."""
        return self.path / "start.json"

    @property
    def attempts(self) -> Path:
        """Claims on this run, one file per attempt."""
        return self.path / "attempts"

    @property
    def is_done(self) -> bool:
        return self.result.exists()

    def replace(self, target: Path, write: Callable[[BinaryIO], object]) -> None:
        """Write a file of this folder atomically, if the fence allows."""
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, write, self.fence)

    def append(self, target: Path, line: str) -> None:
        """Add a line to a file of this folder, if the fence allows."""
        self.fence()
        with target.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def write_failure(self, reason: str, details: str = "") -> None:
        """Write why the run failed, if the fence allows: the details, and as the last line the reason."""
        text = f"{details.rstrip()}\n{one_line(reason)}".lstrip()
        self.replace(self.failure, lambda file: file.write(text.encode(errors="backslashreplace")))

    def read_failure(self) -> str | None:
        """Return the reason in failure.txt; None if there is no such file."""
        try:
            lines = self.failure.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return None
        return one_line(lines[-1]) if lines else "unknown"

    @property
    def has_diverged(self) -> bool:
        """True if the run failed because its loss was not finite: it would fail again."""
        return (self.read_failure() or "").startswith(DIVERGED)


def save_run(run: Run, folder: Path) -> None:
    """Write `config.yaml` into the run's folder; make the folder if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "label": run.label,
        "axes": run.axes,
        "key": run.key,
        "block": run.block,
        "data": run.data,
        "config": run.config.model_dump(mode="json"),
    }
    write_atomically(RunFolder(folder).config, strict_yaml.dump(record).encode())


def load_run(folder: Path) -> Run:
    """Read a run from its folder. Raises `UserError` if its config.yaml is missing or invalid."""
    path = RunFolder(folder).config
    try:
        record = strict_yaml.load(path.read_text(encoding="utf-8"))
        config = RunConfig.model_validate(record["config"])
        identities = (str(record.get(name, "")) for name in ("block", "data"))
        return Run(folder.name, record["label"], record["axes"], config, record["key"], *identities)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the config of a run: {error}") from None
