"""Tiny runs: finished ones on disk, and models that were never trained but remember."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.data import Dataset
from rad_bench.look.load import Trained
from rad_bench.model.experiment import Experiment, open_experiment
from rad_bench.run.execute import execute
from rad_bench.store.run_folder import Run, RunFolder, save_run

TINY: dict[str, Any] = {
    "data": {"name": "rooms", "size": 16},
    "trunk": {"width": 16, "depth": 1, "patch": 8, "window": 2},
    "training": {"steps": 20, "batch": 2, "frames": 12, "loss_from": 4, "warmup": 2},
    "evaluation": {"episodes": 4, "context": 10, "horizon": 12, "strips": 2, "probe": 0, "batch": 3},
    "memory": {"name": "lstm", "hidden": 8},
}


def tiny_run(seed: int = 0, **sections: Any) -> Run:
    """Return a run whose sections are merged into `TINY`'s; a memory or data of another name replace."""
    tree = {key: dict(value) for key, value in TINY.items()}
    for key, value in sections.items():
        tree[key] = value if key == "memory" or "name" in value else {**tree.get(key, {}), **value}
    config = RunConfig.model_validate({**tree, "seed": seed})
    return Run(f"{config.memory.name}-seed{seed}", config.memory.name, {}, config, "key")


def finished(folder: Path, seed: int = 0, **sections: Any) -> Path:
    """Finish a tiny run in a folder, and return it."""
    save_run(tiny_run(seed, **sections), folder)
    execute(RunFolder(folder), LaunchConfig())
    return folder


def opened(config: RunConfig, perturbed: bool = False) -> Experiment:
    """Open an experiment on the CPU. Perturbed weights show what a memory does, which those that start at zero hide."""
    experiment = open_experiment(config, torch.device("cpu"))
    if perturbed:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in experiment.trunk.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return experiment


def shaken(dataset: Dataset | None = None, **sections: Any) -> Trained:
    """Return a run as if trained: its weights are perturbed."""
    run = tiny_run(**sections)
    experiment = opened(run.config, perturbed=True)
    experiment.trunk.eval()
    parts = {**vars(experiment), "dataset": dataset or experiment.dataset}
    return Trained(**parts, folder=RunFolder(Path(run.name)), run=run)
