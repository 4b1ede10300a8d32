"""Choose a run's device and make its computation deterministic."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path

import torch

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.training.distributed import Group


def choose_device(name: str, group: Group) -> torch.device:
    """Return the device that `launch.device` names; auto is a GPU if there is one, another for each process.

    Raises `UserError` if this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device '{name}': there is none of that name; use auto, cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{name}': PyTorch {torch.__version__} sees no GPU here.")
    if name == "cuda" and group.world > 1:
        # A scheduler may show a process all GPUs of its node, or only one.
        return torch.device("cuda", group.local_rank % torch.cuda.device_count())
    return device


def check_gpus(device: torch.device, launch: LaunchConfig) -> None:
    """Raise `UserError` if this is a SLURM job with GPUs that would compute on the CPU."""
    on_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    if on_slurm and launch.slurm.gpus and launch.device == "auto" and device.type == "cpu":
        no_cuda = torch.version.cuda is None and torch.version.hip is None
        why = "it is a build for the CPU" if no_cuda else "a module was not loaded (launch.slurm.setup)"
        raise UserError(
            f"launch.slurm.gpus is {launch.slurm.gpus}, but PyTorch {torch.__version__} sees no GPU: {why}."
        )


def be_deterministic(threads: int, device: torch.device) -> None:
    """Make the same config on the same machine give the same results, bit for bit."""
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Where CUDA has no deterministic form, as of cumsum, PyTorch warns and goes on.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    # Then the backward passes of fused attention are not deterministic on CUDA, and those of matrix products are.
    fused = device.type != "cuda"
    for enable in (
        torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.enable_mem_efficient_sdp,
        torch.backends.cuda.enable_cudnn_sdp,
    ):  # fmt: skip
        enable(fused)
    # By default PyTorch lets cuDNN's convolutions and recurrent layers round fp32 factors to TF32.
    torch.backends.cudnn.allow_tf32 = False
    # Nothing here reads uninitialised memory, so filling it would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def device_name(device: torch.device) -> str:
    """Return a device's name, such as `cpu (AMD EPYC 7763)`."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"cpu ({model})"


def resident_peak() -> int:
    """Return the peak memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
