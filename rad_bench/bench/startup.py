"""Start-up: processes, from their start, against one that imports PyTorch and nothing else.

`--help` must not import it. A run cannot do without; the log's first line says that it has taken a step.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rad_bench.bench.race import Race
from rad_bench.bench.step_speed import BUDGET
from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.store.run_folder import Run, RunFolder, save_run

MEMORY = "mamba2"
POLL_SECONDS = 0.005


def races(device: torch.device) -> Iterator[Race]:
    """Yield `--help` and a run up to its first optimiser step, at the preset of memory_blocks.yaml."""
    bare = functools.partial(_python, "-c", "import torch")
    yield Race("rad-bench --help", "import torch", functools.partial(_python, "-m", "rad_bench", "--help"), bare,
               None, "ours under 500 ms")  # fmt: skip
    yield Race(f"a run of {MEMORY} to its first step", "import torch", functools.partial(_first_step, device), bare,
               None, "ours under 10,000 ms")  # fmt: skip


def _python(*arguments: str) -> Sequence[Tensor]:
    subprocess.run([sys.executable, *arguments], env=_environment(), check=True, stdout=subprocess.DEVNULL)
    return []


def _first_step(device: torch.device) -> Sequence[Tensor]:
    """Start a run as a launcher does, end it once it has logged a step, and return that step's loss."""
    config = {"memory": MEMORY, "match": {"by": "parameters", "budget": BUDGET}, "training": {"steps": 1}}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        save_run(Run("startup", MEMORY, {}, RunConfig.model_validate(config), ""), Path(folder))
        launch = LaunchConfig(device=device.type, threads=1).model_dump_json()
        command = [sys.executable, "-m", "rad_bench.sweep.job", folder, launch]
        with subprocess.Popen(command, env=_environment(), stdout=said, stderr=said) as process:
            log = RunFolder(Path(folder)).log
            while process.poll() is None and not (log.exists() and log.stat().st_size):
                time.sleep(POLL_SECONDS)
            process.kill()
        if not log.exists():
            said.seek(0)
            raise RuntimeError(f"the run took no step: {said.read().decode(errors='replace')}")
        return [torch.tensor(json.loads(log.read_text().splitlines()[0])["loss"])]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
