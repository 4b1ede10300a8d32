"""Run what is missing, here or on a cluster, through submitit. Result files alone say what is done."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
import torch

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.store.atomic import write_atomically
from rad_bench.store.lease import SupersededError, hold
from rad_bench.store.run_folder import RunFolder

POLL_SECONDS = 0.5
FOREVER_MINUTES = 60 * 24 * 365

Notes = dict[str, str]  # run -> why it has no result, as far as its folder does not say


@dataclass(frozen=True)
class Missing:
    """A run that is to be brought to its end."""

    folder: Path
    launch: LaunchConfig

    @property
    def paths(self) -> RunFolder:
        return RunFolder(self.folder)


class RunJob(submitit.helpers.Checkpointable):
    """What a job executes: one run. On preemption or time-out submitit submits it again, and the run resumes."""

    def __call__(self, folder: Path, launch: LaunchConfig, gpus: tuple[str, ...] | None = None) -> str:
        """Return `done`, `superseded`, or the last line of a failure, which also stands in failure.txt.

        `gpus` are those to use of this machine's; None: those that the scheduler shows.
        """
        from rad_bench.run.execute import execute
        from rad_bench.training.distributed import join

        if gpus is not None:  # submitit's local executor hides them all
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        paths, group = RunFolder(folder), join()
        with contextlib.ExitStack() as stack:
            if group.rank == 0:
                # A job whose launcher was killed goes on by itself. Whoever comes second waits here, and finds it done.
                lease = stack.enter_context(hold(paths.attempts, launch.lease, wait=math.inf))
                paths = RunFolder(folder, lease.fence)
                paths.failure.unlink(missing_ok=True)  # it tells of an earlier attempt
            try:
                execute(paths, launch, group)
            except SupersededError:
                return "superseded"
            except Exception as error:
                text = str(error) if isinstance(error, UserError) else traceback.format_exc()
                if not paths.failure.exists():  # who failed first knows why; the others only miss it
                    with contextlib.suppress(OSError, SupersededError):  # the disk may be full, which is the failure
                        paths.replace(paths.failure, lambda file: file.write(text.encode()))
                if group.rank:
                    raise  # srun ends the job's other processes when one exits with an error
                return f"{type(error).__name__}: {error}"
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


def launch_here(missing: list[Missing], logs: Path, parallel: int, watch: Callable[[], None]) -> Notes:
    """Execute runs on this machine, `parallel` at a time, and return when all have ended.

    submitit's local executor has no cap of its own, so threads are one. `watch()` is called about twice a second.
    """
    stop, submitting = threading.Event(), threading.Lock()
    jobs: list[Any] = []
    notes: Notes = {}
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(parallel):
        places.put(place)

    def attempt(run: Missing, place: int) -> str | None:
        """Start a process and wait for it. Return what it said; None if it died."""
        with submitting:
            if stop.is_set():
                return "stopped"
            executor = make_executor("local", logs, run.launch, logs.parent.name)
            with _threads(run.launch.threads):
                job = executor.submit(RunJob(), run.folder, run.launch, gpus_of(place, run.launch, visible_gpus()))
            jobs.append(job)
        try:
            return str(job.results()[0])
        except submitit.core.utils.UncompletedJobError:
            return None
        except submitit.core.utils.FailedJobError as error:
            return str(error)

    def run_one(run: Missing) -> None:
        place = places.get()
        try:
            outcomes = (attempt(run, place) for _ in range(run.launch.attempts))
            said = next((said for said in outcomes if said is not None), None)
        finally:
            places.put(place)
        if said is not None:
            if said != "done":
                notes[run.folder.name] = said.strip().splitlines()[-1]
            return
        text = f"its process was killed {run.launch.attempts} times; was there too little memory?"
        notes[run.folder.name] = text
        with contextlib.suppress(OSError):
            write_atomically(run.paths.failure, text.encode())

    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(run_one, run) for run in missing]
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
    watch()
    return notes


def launch_in_process(missing: list[Missing], watch: Callable[[], None]) -> Notes:
    """Execute runs one after the other in this very process, for a debugger."""
    notes = {}
    for run in missing:
        said = RunJob()(run.folder, run.launch)
        if said != "done":
            notes[run.folder.name] = said
        watch()
    return notes


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives or would give them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    return tuple(map(str, range(torch.cuda.device_count())))


def gpus_of(place: int, launch: LaunchConfig, visible: tuple[str, ...]) -> tuple[str, ...]:
    """Return the GPUs of the run in one of `parallel` places: one for each process, shared if there are too few.

    `device: cuda:1` means the second that is visible here, so such a run sees all.
    """
    if launch.device == "cpu" or not visible:
        return ()
    if ":" in launch.device:
        return visible
    first = place * launch.processes
    return tuple(dict.fromkeys(visible[(first + k) % len(visible)] for k in range(launch.processes)))


def make_executor(cluster: str, logs: Path, launch: LaunchConfig, name: str) -> submitit.AutoExecutor:
    """Return submitit's executor for jobs called `name`, which leave their files in `logs`."""
    slurm = launch.slurm
    python = {"slurm_python": slurm.python} if slurm.python else {}
    executor = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=1000, **python)
    named = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos, "constraint": slurm.constraint}
    options: dict[str, Any] = {f"slurm_{key}": value for key, value in named.items() if value is not None}
    if slurm.gpus:
        options["slurm_gpus_per_node"] = slurm.gpus
    nodes, tasks = launch.tasks(cluster)
    if nodes * tasks > 1:  # end all with one that fails, and none because another has left after training
        options["slurm_srun_args"] = ["--kill-on-bad-exit=1", "--wait=0"]
    executor.update_parameters(
        name=name,
        timeout_min=slurm.minutes if cluster == "slurm" else FOREVER_MINUTES,
        nodes=nodes,
        tasks_per_node=tasks,
        cpus_per_task=slurm.cpus,
        mem_gb=slurm.memory_gb,
        slurm_array_parallelism=launch.parallel,
        slurm_setup=[
            f"export OMP_NUM_THREADS={launch.threads} MKL_NUM_THREADS={launch.threads}",
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",  # srun stopped inheriting it in SLURM 22.05
            "set -e",  # a module that cannot be loaded ends the job
            *slurm.setup,
            "set +e",
        ],
        # A node that fails gives its jobs back to the queue, whatever the cluster's default.
        slurm_additional_parameters={"requeue": True, **slurm.extra},
        **options,
    )
    return executor


@contextlib.contextmanager
def _threads(count: int) -> Any:
    """Set what children read before they import torch."""
    kept = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(kept, str(count)))
    try:
        yield
    finally:
        for key, value in kept.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value
