"""The estimated cost of a run: seconds, from finished runs or a probe (`timing`), and bytes, from tensor sizes."""

from __future__ import annotations

import heapq
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rad_bench.errors import UserError
from rad_bench.evaluation.strips import shown
from rad_bench.model.experiment import Experiment
from rad_bench.store.result import read_result
from rad_bench.store.run_folder import RunFolder
from rad_bench.training.loop import LOG_EVERY

STORED = 270  # bytes that a checkpoint's archive adds to a tensor: headers, names, alignment
NAMED = 85  # bytes of a tensor's entry in a safetensors header
POINT = 8  # bytes of a row of a learning curve
TABLE, ROW = 10_000, 32  # bytes of an empty parquet file, and of a row: four numbers do not compress, the rest does
PNG = 0.4  # of the raw bytes of a strip: what generated frames of 32 x 32 pixels came to
LINE, TEXT = 100, 4_000  # bytes of a line of the log; of config, environment and result


@dataclass(frozen=True)
class Cost:
    """The estimated seconds of a run, and their source."""

    step: float  # a step of training
    steps: int
    evaluation: float
    source: str
    trained: int = 0  # runs that reuse weights and only evaluate

    @property
    def training(self) -> float:
        return self.step * self.steps

    @property
    def run(self) -> float:
        """Training and evaluation, without the start of the process."""
        return self.training + self.evaluation

    def runs(self, count: int, start: float) -> list[float]:
        """Return the seconds of each of `count` runs, those that train first; `start` is the start of a process."""
        return [self.run + start] * (count - self.trained) + [self.evaluation + start] * self.trained


@dataclass(frozen=True)
class Disk:
    """Bytes of a finished run, and of a checkpoint. A run in progress has two checkpoints."""

    checkpoint: int
    weights: int
    frames: int
    strips: int
    texts: int
    curve: int  # snapshots, and the table of their frames

    @property
    def total(self) -> int:
        """All files of a finished run, which has no checkpoint."""
        return self.weights + self.frames + self.strips + self.texts + self.curve


def measured(folders: Iterable[Path], steps: int, device: str, threads: int) -> Cost | None:
    """Return the mean cost of the finished runs in `folders` on this device and number of threads, if there are any."""
    step, evaluation = [], []
    for folder in folders:
        try:
            result = read_result(RunFolder(folder).result)
        except UserError:  # not finished, or damaged
            continue
        if (result.device, result.threads) == (device, threads) and result.evaluation is not None:
            step.append(result.training.seconds_per_step)
            evaluation.append(result.evaluation.seconds)
    if not step:
        return None
    return Cost(mean(step), steps, mean(evaluation), f"{len(step)} finished run{'s' if len(step) > 1 else ''}")


def start_seconds() -> float:
    """Return how many seconds a run's process takes to start."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", "import rad_bench.run.execute"], check=True, capture_output=True)
    return time.perf_counter() - began


def wall_seconds(runs: Sequence[float], parallel: int) -> float:
    """Return when the last of `runs` (seconds each) ends if each begins as soon as one of `parallel` places is free."""
    free = [0.0] * parallel
    for seconds in runs:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def disk(experiment: Experiment) -> Disk:
    """Return the bytes that a run needs on disk."""
    run, trunk = experiment.config, experiment.trunk
    state, parameters = trunk.state_dict().values(), list(trunk.parameters())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in state)
    moments = 2 * sum(p.numel() * p.element_size() for p in parameters)  # of AdamW, and a count of steps for each
    stored = 2 * len(state) + 3 * len(parameters)
    config, (channels, height, width) = run.evaluation, experiment.dataset.frame_shape
    F = run.trunk.frames_per_step
    horizons = [config.horizon if name == "continuation" else (config.context - 1) // F * F for name in config.tasks]
    controls = 1 + (run.autoencoder.name != "none")
    strip = channels * height * (width + 1) * PNG
    frames = sum(len(shown(horizon)) for horizon in horizons)
    snapshot, rows = weights + len(state) * NAMED, sum(horizons) * config.episodes
    return Disk(
        checkpoint=2 * weights + moments + stored * STORED,
        weights=snapshot,
        frames=TABLE + ROW * rows * (len(config.interventions) + controls),
        strips=int(strip * frames * config.strips * (len(config.interventions) + 1)),
        texts=TEXT + LINE * run.training.steps // LOG_EVERY,
        curve=len(config.at) * snapshot + TABLE + POINT * rows * (len(config.at) + 1) if config.at else 0,
    )
