"""What the tests of sweeps share: a sweep of seconds, blocks a user might write, and the command line."""

import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

from rad_bench.cli import main

ROOT = Path(__file__).parents[2]
LAUNCH = "launch: {parallel: 2, calibrate: false}"
TINY = f"""
name: tiny
run:
  data: {{name: rooms, size: 16}}
  trunk: {{width: 16, depth: 1, patch: 8, window: 2}}
  training: {{steps: 30, batch: 2, frames: 12, loss_from: 4, checkpoint_every: 5}}
  evaluation: {{episodes: 4, context: 9, horizon: 8, strips: 1}}
grid:
  memory: [none, {{name: lstm, hidden: 8}}]
  seed: [0, 1]
{LAUNCH}
"""
ON_SLURM = TINY.replace("calibrate: false", "slurm: {partition: debug, memory_gb: 2, poll: 2}")
GRU = """
import torch
from torch import nn
from rad_bench.blocks.memory import MemoryBlock

class GRU(MemoryBlock):
    def __init__(self, dim: int, hidden: int = 8) -> None:
        super().__init__(dim)
        self.cell, self.output = nn.GRUCell(dim, hidden), nn.Linear(hidden, dim)

    def initial_state(self, sequences):
        return (self.zeros(sequences, self.cell.hidden_size),)

    def step(self, x_SKD, state):
        (h,), outputs = state, []
        for x in x_SKD.unbind(1):
            h = self.cell(x, h)
            outputs.append(self.output(h))
        return torch.stack(outputs, 1), (h,)

class LooksAhead(GRU):
    def prefetch(self, x_STKD, state):
        return super().prefetch(x_STKD + x_STKD.mean(1, keepdim=True), state)

class Raises(GRU):
    def step(self, x_SKD, state):
        if torch.is_grad_enabled() and len(x_SKD) == 8:  # in training on 2 clips, not when it is checked
            raise RuntimeError("no such luck")
        return super().step(x_SKD, state)

class NeverWorks(GRU):
    def step(self, x_SKD, state):
        raise RuntimeError("no such luck")
"""


def command(*arguments, environment=None):
    """Return the command line of `rad-bench ARGUMENTS` and its environment, the given one or this process's."""
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return [sys.executable, "-m", "rad_bench", *map(str, arguments)], {**(environment or os.environ), **ours}


def rad_bench(*arguments, cwd, expect=0, environment=None):
    """Run `rad-bench ARGUMENTS` in the folder `cwd` and expect its exit status."""
    argv, environment = command(*arguments, environment=environment)
    result = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == expect, result.stdout + result.stderr
    return result


def run_here(*arguments, cwd, expect=0, environment=None):
    """As `rad_bench`, but in this process, which need not import everything first."""
    environment = command(environment=environment)[1]
    before, status, out, err = sys.argv, 0, io.StringIO(), io.StringIO()
    sys.argv = ["rad-bench", *map(str, arguments)]
    with (
        patch.dict(os.environ, environment, clear=True), contextlib.chdir(cwd),
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
    ):  # fmt: skip
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
            if isinstance(status, str):  # Python prints such a text and exits with 1
                status = 1
                err.write(f"{ended.code}\n")
        finally:
            sys.argv = before
    assert status == expect, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def wait_for(condition, seconds=240):
    """Wait until `condition()` is true, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found
