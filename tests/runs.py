"""Tiny runs: finished ones on disk, and models that were never trained but remember."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.data import Dataset, open_dataset
from rad_bench.look.load import Trained
from rad_bench.model.budget import build_trunk
from rad_bench.model.codec import Pixels
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
        tree[key] = value if key == "memory" or "name" in value else {**tree[key], **value}
    config = RunConfig.model_validate({**tree, "seed": seed})
    return Run(f"{config.memory.name}-seed{seed}", config.memory.name, {}, config, "key")


def finished(folder: Path, seed: int = 0, **sections: Any) -> Path:
    """Finish a tiny run in a folder, and return it."""
    save_run(tiny_run(seed, **sections), folder)
    execute(RunFolder(folder), LaunchConfig())
    return folder


def shaken(dataset: Dataset | None = None, **sections: Any) -> Trained:
    """Return a run as if trained: its weights are shaken, for those that start at zero would hide its memory."""
    run = tiny_run(**sections)
    dataset = dataset or open_dataset(run.config.data)
    trunk, _ = build_trunk(run.config, dataset.frame_shape, dataset.action_size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    codec = Pixels(dataset.frame_shape)
    return Trained(RunFolder(Path(run.name)), run, trunk.eval(), dataset, codec, torch.device("cpu"))
