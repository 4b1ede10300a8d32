"""What the processes of a sweep inherit from the launcher: its environment, without what describes a job around it.

A launcher may itself run in a SLURM job, an interactive one for instance, or under torchrun. Their variables would give
the sweep's jobs the resources, ranks and GPUs of the launcher.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

OF_JOBS = (  # beginnings of names
    "SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SALLOC_", "SQUEUE_", "SACCT_", "SCANCEL_", "SUBMITIT_", "PMI_", "PMIX_",
    "OMPI_", "TORCHELASTIC_",
)  # fmt: skip
OF_PROCESSES = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
}  # fmt: skip
OF_GPUS = {"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"}
TO_SLURM = {"SLURM_CONF", "SLURM_JWT"}  # how its commands reach the controller


def here() -> dict[str, str]:
    """Return the environment of runs on this machine, which may use the launcher's GPUs, and of SLURM's commands.

    Jobs print in UTF-8, and import nothing from the working directory: an empty entry of PYTHONPATH stands for it.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in TO_SLURM or not (name.startswith(OF_JOBS) or name in OF_PROCESSES)
    }
    kept["PYTHONIOENCODING"] = "utf-8:backslashreplace"
    if "PYTHONPATH" in kept:
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, kept["PYTHONPATH"].split(os.pathsep)))
    return kept


def elsewhere() -> dict[str, str]:
    """Return the environment of SLURM jobs, which get GPUs of their own."""
    return {name: value for name, value in here().items() if name not in OF_GPUS}


@contextlib.contextmanager
def replaced_by(environment: dict[str, str]) -> Iterator[None]:
    """Make this environment the process's own, for code that has no argument for it."""
    before = dict(os.environ)
    try:
        for name in before.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
