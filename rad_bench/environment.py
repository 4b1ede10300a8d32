"""What a run executes on and with, and how that is made to repeat itself."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rad_bench import __version__
from rad_bench.config import LaunchConfig
from rad_bench.distributed import Group
from rad_bench.errors import UserError, unwritten


def choose_device(name: str, group: Group) -> torch.device:
    """Return the device that `launch.device` names; auto takes a GPU where there is one, and each process its own.

    Raises `UserError` if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device '{name}': there is none of that name; auto, cpu, cuda and cuda:1 are names.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{name}': PyTorch {torch.__version__} sees no GPU here.")
    if name == "cuda" and group.world > 1:
        # A scheduler may show a process all GPUs of its node, or its own alone.
        return torch.device("cuda", group.local_rank % torch.cuda.device_count())
    return device


def check_gpus(device: torch.device, launch: LaunchConfig) -> None:
    """Raise `UserError` if this is a job of ours on SLURM that was given GPUs and would compute on the CPU instead."""
    on_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    if on_slurm and launch.slurm.gpus and launch.device == "auto" and device.type == "cpu":
        no_cuda = torch.version.cuda is None and torch.version.hip is None
        why = "it is a build for the CPU" if no_cuda else "a module was not loaded (launch.slurm.setup)"
        raise UserError(
            f"launch.slurm.gpus is {launch.slurm.gpus}, but PyTorch {torch.__version__} sees no GPU: {why}."
        )


def environment(device: torch.device, threads: int, processes: int) -> dict[str, Any]:
    """Return what the run ran on and with."""
    packages = ("torch", "numpy", "pandas", "scikit-image", "submitit", "lpips", "torchvision", "triton", "mamba-ssm")
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
    """Return which version of a package is installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def be_deterministic(threads: int, device: torch.device) -> None:
    """Make the same config on the same machine give the same bits."""
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    # PyTorch lets convolutions and cuDNN's recurrent layers round fp32 factors to TF32, unlike products: fp32 is fp32.
    torch.backends.cudnn.allow_tf32 = False
    # Filling memory before its first write only costs time: nothing here reads what was not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def device_name(device: torch.device) -> str:
    """Return what a device is called, such as `cpu (AMD EPYC 7763)`."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"cpu ({model})"


def commit() -> str | None:
    """Return the commit of the checkout that this package runs from, if it is one."""
    root = Path(__file__).resolve().parents[1]
    try:
        git = ["git", "-C", str(root)]
        if not (root / ".git").exists():
            return None
        answer = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()[:12] + (" (dirty)" if dirty.stdout.strip() else "")


def resident_peak() -> int:
    """Return the most bytes of memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON, their folder included. Raises `UserError` if that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise unwritten(error, path) from None
