"""The size of the sweeps for GPUs, on frames that are drawn: no recordings are needed."""

from __future__ import annotations

from pathlib import Path

import rad_bench
from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.store import strict_yaml

FILE = Path(rad_bench.__file__).parent / "sweeps" / "gpu" / "scale.yaml"


def gpu_size(memory: str) -> tuple[RunConfig, LaunchConfig]:
    """Return the config that `sweeps/gpu/scale.yaml` gives a run of the named block, but with rooms as its data."""
    tree = strict_yaml.load(FILE.read_text(encoding="utf-8"))
    run, size = tree["run"], tree["run"]["data"]["size"]
    config = RunConfig.model_validate({**run, "data": {"name": "rooms", "size": size}, "memory": memory})
    return config, LaunchConfig.model_validate(tree["launch"])
