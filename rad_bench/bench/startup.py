"""Start-up: whole processes against one that only imports PyTorch.

`--help` must not import PyTorch. A run does; it is timed until the first line of its log, which follows its first step.
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

from rad_bench.bench.comparison import Comparison
from rad_bench.bench.step_speed import BUDGET
from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.store.run_folder import Run, RunFolder, save_run

MEMORY = "mamba2"
POLL_SECONDS = 0.005


def comparisons(device: torch.device) -> Iterator[Comparison]:
    """Yield `--help` and a run up to its first optimiser step, at the default config."""
    bare = functools.partial(_python, "-c", "import torch")
    show_help = functools.partial(_python, "-m", "rad_bench", "--help")
    yield Comparison("rad-bench --help", "import torch", show_help, bare, None, "ours under 500 ms")
    first_step = functools.partial(_first_step, device)
    name, goal = f"a run of {MEMORY} to its first step", "ours under 10,000 ms"
    yield Comparison(name, "import torch", first_step, bare, None, goal)


def _python(*arguments: str) -> Sequence[Tensor]:
    subprocess.run([sys.executable, "-P", *arguments], env=_environment(), check=True, stdout=subprocess.DEVNULL)
    return []


def _first_step(device: torch.device) -> Sequence[Tensor]:
    """Start a run as a launcher does, kill it once it has logged a step, and return that step's loss."""
    config = {"memory": MEMORY, "match": {"by": "parameters", "budget": BUDGET}, "training": {"steps": 1}}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        save_run(Run("startup", MEMORY, {}, RunConfig.model_validate(config), ""), Path(folder))
        launch = LaunchConfig(device=device.type, threads=1).model_dump_json()
        command = [sys.executable, "-P", "-m", "rad_bench.sweep.job", folder, launch]
        with subprocess.Popen(command, env=_environment(), stdout=output, stderr=output) as process:
            log = RunFolder(Path(folder)).log
            while process.poll() is None and not (log.exists() and log.stat().st_size):
                time.sleep(POLL_SECONDS)
            process.kill()
        if not log.exists():
            output.seek(0)
            raise RuntimeError(f"the run took no step: {output.read().decode(errors='replace')}")
        return [torch.tensor(json.loads(log.read_text(encoding="utf-8").splitlines()[0])["loss"])]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
