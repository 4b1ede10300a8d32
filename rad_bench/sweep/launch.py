"""Run what is missing, here or on a cluster, through submitit. Result files alone say what is done."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import submitit

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.run_folder import RunFolder, locked, write_atomically

POLL_SECONDS = 0.5
QUEUE_SECONDS = 10.0  # between questions to SLURM, one for all jobs
FOREVER_MINUTES = 60 * 24 * 365


class RunJob(submitit.helpers.Checkpointable):
    """What a job executes: one run. On preemption or time-out submitit submits it again, and the run resumes."""

    def __call__(self, folder: Path, launch: LaunchConfig) -> str:
        """Return `done` or `failed`; a failure's traceback goes to failure.txt, so that others are left alone."""
        from rad_bench.distributed import join
        from rad_bench.run import execute

        paths, group = RunFolder(folder), join()
        # A job whose launcher was killed goes on by itself. Whoever comes second waits here, and finds it done.
        with locked(paths.lock) if group.rank == 0 else contextlib.nullcontext():
            try:
                execute(folder, launch, group)
            except Exception:
                if not paths.failure.exists():  # who failed first knows why; the others only miss it
                    write_atomically(paths.failure, traceback.format_exc().encode())
                if group.rank:
                    raise  # srun ends the job's other processes when one exits with an error
                return "failed"
        return "done"


def choose_cluster(cluster: str, launch: LaunchConfig) -> str:
    """Resolve `auto`: SLURM where `sbatch` exists and the sweep names a partition, else this machine."""
    has_slurm = shutil.which("sbatch") is not None
    if cluster == "auto":
        return "slurm" if has_slurm and launch.slurm.partition is not None else "local"
    if cluster == "slurm" and not has_slurm:
        raise UserError(
            "--cluster slurm: there is no sbatch on this machine; use --cluster local, or log in where SLURM is."
        )
    return cluster


def launch_runs(
    folders: list[Path],
    sweep_folder: Path,
    launch: LaunchConfig,
    cluster: str,
    watch: Callable[[], None],
    detach: bool = False,
) -> None:
    """Execute the runs in `folders` and return when none is running. `watch()` is called about twice a second."""
    if not folders:
        return
    # A fresh folder a submission: job ids come again after a cluster is rebuilt, and with them old results.
    logs = sweep_folder / "submitit" / uuid.uuid4().hex[:8]
    executor = _make_executor(cluster, logs, launch, sweep_folder.name)
    if cluster == "slurm":
        with executor.batch():
            jobs = [executor.submit(RunJob(), folder, launch) for folder in folders]
        if not detach:
            _wait_for_slurm(jobs, folders, watch)
    elif cluster == "debug":
        for folder in folders:
            executor.submit(RunJob(), folder, launch).result()
            watch()
    else:
        _run_here(executor, folders, launch, watch)


def _make_executor(cluster: str, logs: Path, launch: LaunchConfig, name: str) -> submitit.AutoExecutor:
    slurm = launch.slurm
    executor = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=1000)
    named = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos, "constraint": slurm.constraint}
    options: dict[str, Any] = {f"slurm_{key}": value for key, value in named.items() if value is not None}
    if slurm.gpus:
        options["slurm_gpus_per_node"] = slurm.gpus
    nodes, tasks = launch.tasks(cluster)
    if nodes * tasks > 1:  # end all with one that fails, and none because another has left after training
        options["slurm_srun_args"] = ["--kill-on-bad-exit=1", "--wait=0"]
    executor.update_parameters(
        name=f"rad-bench-{name}",
        timeout_min=_minutes(slurm.timeout) if cluster == "slurm" else FOREVER_MINUTES,
        nodes=nodes,
        tasks_per_node=tasks,
        cpus_per_task=slurm.cpus,
        mem_gb=slurm.memory_gb,
        slurm_array_parallelism=launch.parallel,
        slurm_setup=[
            f"export OMP_NUM_THREADS={launch.threads} MKL_NUM_THREADS={launch.threads}",
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",  # srun stopped inheriting it in SLURM 22.05
            *slurm.setup,
        ],
        slurm_additional_parameters=dict(slurm.extra),
        **options,
    )
    return executor


def _minutes(text: str) -> int:
    number, unit = float(text[:-1]), text[-1]
    return max(1, round(number * {"m": 1, "h": 60, "d": 1440}[unit]))


def _run_here(executor: Any, folders: list[Path], launch: LaunchConfig, watch: Callable[[], None]) -> None:
    """Keep `launch.parallel` processes busy. submitit's local executor has no cap of its own, so threads are one."""
    stop, submitting = threading.Event(), threading.Lock()
    jobs: list[Any] = []

    def run(folder: Path) -> None:
        with submitting:
            if stop.is_set():
                return
            job = executor.submit(RunJob(), folder, launch)
            jobs.append(job)
        error = job.exception()  # waits
        if error is not None and not stop.is_set():
            write_atomically(RunFolder(folder).failure, f"the process ended without a result: {error}\n".encode())

    kept = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(kept, str(launch.threads)))  # children read it before they import torch
    try:
        with ThreadPoolExecutor(launch.parallel) as pool:
            futures = [pool.submit(run, folder) for folder in folders]
            try:
                while not all(future.done() for future in futures):
                    watch()
                    time.sleep(POLL_SECONDS)
            except BaseException:
                stop.set()
                for job in jobs:
                    job.cancel(check=False)
                raise
            for future in futures:
                future.result()
    finally:
        for key, value in kept.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value
    watch()


def _wait_for_slurm(jobs: list[Any], folders: list[Path], watch: Callable[[], None]) -> None:
    """Wait until every run has a result or its job has left the queue (seen absent twice: the queue lags)."""
    absences = dict.fromkeys(range(len(jobs)), 0)
    asked = 0.0
    while True:
        watch()
        open_runs = [i for i in absences if not RunFolder(folders[i]).is_done and absences[i] < 2]
        if not open_runs:
            return
        if time.monotonic() - asked > QUEUE_SECONDS:
            asked = time.monotonic()
            queued = _queued(jobs)
            for i in open_runs if queued is not None else []:
                absences[i] = 0 if jobs[i].job_id in queued else absences[i] + 1  # type: ignore[operator]
        time.sleep(POLL_SECONDS)


def _queued(jobs: Iterable[Any]) -> set[str] | None:
    """Return the ids, of these jobs, that SLURM still holds, from one call; None if it did not answer."""
    arrays = ",".join(sorted({job.job_id.split("_")[0] for job in jobs}))
    command = ["squeue", "-h", "-r", "-j", arrays, "-o", "%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    return set(answer.stdout.split())
