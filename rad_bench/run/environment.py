"""The environment of a run (packages, device, commit), stored beside its result."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rad_bench import __version__
from rad_bench.training.device import device_name


def environment(device: torch.device, threads: int, processes: int) -> dict[str, Any]:
    """Return the content of environment.json."""
    packages = (
        "torch", "numpy", "pandas", "scikit-image", "submitit", "lpips", "torchvision", "triton", "mamba-ssm",
        "causal-conv1d", "fla-core",
    )  # fmt: skip
    return {
        "rad_bench": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": threads,
        "processes": processes,
        "packages": {name: version(name) for name in packages},
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_nodes": os.environ.get("SLURM_JOB_NODELIST"),
    }


def version(package: str) -> str:
    """Return the installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str | None:
    """Return the commit of the checkout that this package is in; None without a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        git = ["git", "-C", str(root)]
        if not (root / ".git").exists():
            return None
        answer = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode("ascii").strip()[:12] + (" (dirty)" if dirty.stdout.strip() else "")
