"""Bring runs to their end on SLURM: journal, submit, watch, and submit again what was lost.

Result files say what is done, the journal says what was submitted, one squeue call a while says what still runs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import submitit

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.store.lease import ruling_claim
from rad_bench.sweep import squeue
from rad_bench.sweep.job import Missing, Notes, RunJob
from rad_bench.sweep.journal import Submission, new_submission, read_submissions
from rad_bench.sweep.squeue import SilentError, Task

CONFIRM_SECONDS = 3.0  # before a job that has ended without a result is believed to have none
REFUSED_SECONDS = 60.0  # before sbatch is asked again
NOT_RETRIED = {
    "CANCELLED": "its job was cancelled",
    "OUT_OF_MEMORY": "its job ran out of memory; give it more by launch.slurm.memory_gb or launch.where",
}


@dataclass
class Waiting:
    """Where one run stands in this launch."""

    run: Missing
    attempts: int = 0  # submissions by this command
    absences: int = 0  # times in a row that SLURM had no live job for it


@dataclass
class ClusterLaunch:
    """One command's work on SLURM."""

    sweep_folder: Path
    runs: dict[str, Waiting]  # those without a result, by name
    watch: Callable[[], None]
    pause: float = 10.0  # seconds between questions to SLURM
    notes: Notes = field(default_factory=dict)
    submissions: list[Submission] = field(default_factory=list)
    to_submit: list[str] = field(default_factory=list)
    refused: str = ""  # what sbatch last said, if it took nothing

    def start(self) -> None:
        """Take over what earlier commands left in the queue, and submit the rest. Raises `UserError`."""
        if "%" in str(self.sweep_folder.absolute()):
            raise UserError(f"{self.sweep_folder}: SLURM replaces % and a letter in paths; take a folder without %.")
        self.submissions = read_submissions(self.sweep_folder)
        try:
            tasks = squeue.ask(self.submissions)
            squeue.cancel(self._orphans(tasks))
        except SilentError as error:
            raise UserError(f"SLURM does not answer, and jobs of this sweep may be in its queue: {error}.") from None
        self.to_submit = [name for name in self.runs if not (name in tasks and tasks[name].is_live)]
        self._submit()
        if self.refused and len(self.to_submit) == len(self.runs):
            raise UserError(f"sbatch took nothing: {self.refused}")

    def follow(self) -> None:
        """Return when no run is open: each has a result, has failed, or is given up with a note."""
        asked, pause = time.monotonic(), self.pause
        while True:
            self.watch()
            for name in [name for name, waiting in self.runs.items() if waiting.run.paths.is_done]:
                del self.runs[name]
            if not self.runs:
                return
            if time.monotonic() - asked > pause:
                pause = self._poll()
                asked = time.monotonic()
            # Many folders are looked at less often: a shared file system has other users.
            time.sleep(max(0.5, len(self.runs) / 200))

    def _poll(self) -> float:
        """Ask SLURM for all runs; return in how many seconds to ask again."""
        try:
            tasks = squeue.ask(self.submissions)
        except SilentError:
            return self.pause  # a controller may be away for hours, while its jobs run on
        gone = []
        for name, waiting in self.runs.items():
            if name in self.to_submit:
                continue
            task = tasks.get(name)
            waiting.absences = 0 if task is not None and task.is_live else waiting.absences + 1
            if waiting.absences >= 2:  # the queue lags, and so may a shared file system
                gone.append(name)
        told = squeue.forgotten(self.submissions) if any(name not in tasks for name in gone) else {}
        for name in gone:
            self._ended(name, tasks.get(name) or told.get(name))
        self._submit()
        if self.refused and not any(task.is_live for task in tasks.values()):
            raise UserError(f"sbatch takes no more jobs, and none of this sweep is left: {self.refused}")
        if self.refused:
            return REFUSED_SECONDS
        unsure = any(waiting.absences for waiting in self.runs.values())
        return min(CONFIRM_SECONDS, self.pause) if unsure else self.pause

    def _ended(self, name: str, task: Task | None) -> None:
        """Decide on a run whose job has left the queue."""
        waiting = self.runs[name]
        state = task.state if task else ""
        if waiting.run.paths.is_done:
            return
        if waiting.run.paths.failure.exists():  # removed when it was submitted, so it is new
            del self.runs[name]
        elif state in NOT_RETRIED:
            self.notes[name] = NOT_RETRIED[state]
            del self.runs[name]
        elif task and state == "FAILED" and not _has_begun(waiting.run, task):
            # No lost node but a command that is not there, or a module: it would be missing the next time too.
            self.notes[name] = f"its job failed before the run began{self._last_words(name, task)}"
            del self.runs[name]
        elif waiting.attempts >= waiting.run.launch.attempts:
            ended = state.lower().replace("_", " ") or "gone from the queue"
            words = self._last_words(name, task)
            self.notes[name] = f"its job was lost {waiting.attempts} times; the last is {ended}{words}"
            del self.runs[name]
        else:
            self.to_submit.append(name)

    def _last_words(self, name: str, task: Task | None) -> str:
        """Return what a run's job wrote last to its errors, and where; empty if that is nothing."""
        folder = next(entry.folder for entry in reversed(self.submissions) if name in entry.runs)
        for log in sorted(folder.glob(f"{task.id}_*_log.err")) if task else ():
            with contextlib.suppress(OSError):
                lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
                # srun adds that a task has exited, which is known.
                if told := [line for line in lines if not line.startswith("srun: error")] or lines:
                    return f": {told[-1]} ({log})"
        return ""

    def _submit(self) -> None:
        """Submit what is due: an array for each set of resources, in chunks that SLURM accepts."""
        groups: dict[str, list[Missing]] = {}
        self.to_submit = [name for name in self.to_submit if name in self.runs]  # one may have ended meanwhile
        for name in self.to_submit:
            run = self.runs[name].run
            groups.setdefault(run.launch.model_dump_json(), []).append(run)
        self.refused = ""
        if not groups:
            return
        try:
            largest = squeue.largest_array()
        except SilentError as error:
            self.refused = str(error)
            return
        for runs in groups.values():
            for first in range(0, len(runs), largest):
                chunk = runs[first : first + largest]
                share = max(1, runs[0].launch.parallel * len(chunk) // len(runs))
                try:
                    self._sbatch(chunk, runs[0].launch.model_copy(update={"parallel": share}))
                except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                    self.refused = _reason(error)
                    return

    def _sbatch(self, runs: list[Missing], launch: LaunchConfig) -> None:
        names = [run.folder.name for run in runs]
        for run in runs:
            run.paths.failure.unlink(missing_ok=True)
        submission = new_submission(self.sweep_folder, names)
        executor = make_executor(submission.folder, launch, submission.name)
        with executor.batch():
            for run in runs:
                executor.submit(RunJob(), run.folder, run.launch)
        submission = replace(submission, submitted=True)
        submission.write()
        self.submissions.append(submission)
        for name in names:
            self.runs[name].attempts += 1
            self.runs[name].absences = 0
            self.to_submit.remove(name)

    def _orphans(self, tasks: dict[str, Task]) -> list[Task]:
        """Return live tasks that will never run: their launcher died before it gave them their work.

        They are taken out of `tasks`. submitit hands a task its work in a file named after the job's id, once it knows
        that; without the file the task waits a minute and fails.
        """
        found = []
        for submission in self.submissions:
            for run in submission.runs if not submission.submitted else ():
                task = tasks.get(run)
                if task and task.is_live and not (submission.folder / f"{task.id}_submitted.pkl").exists():
                    found.append(tasks.pop(run))
        return found


def make_executor(logs: Path, launch: LaunchConfig, name: str) -> submitit.AutoExecutor:
    """Return submitit's executor for jobs called `name`, which leave their files in `logs`."""
    slurm = launch.slurm
    python = {"slurm_python": slurm.python} if slurm.python else {}
    executor = submitit.AutoExecutor(folder=logs, cluster="slurm", slurm_max_num_timeout=1000, **python)
    named = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos, "constraint": slurm.constraint}
    options: dict[str, Any] = {f"slurm_{key}": value for key, value in named.items() if value is not None}
    if slurm.gpus:
        options["slurm_gpus_per_node"] = slurm.gpus
    nodes, tasks = launch.tasks("slurm")
    if nodes * tasks > 1:  # end all with one that fails, and none because another has left after training
        options["slurm_srun_args"] = ["--kill-on-bad-exit=1", "--wait=0"]
    executor.update_parameters(
        name=name,
        timeout_min=slurm.minutes,
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


def _reason(error: Exception) -> str:
    """Return what sbatch said last for itself; what follows that is advice, such as to try --help."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in reversed(lines) if line.startswith("sbatch: ")), lines[-1])


def _has_begun(run: Missing, task: Task) -> bool:
    """Return whether a job came as far as to claim its run."""
    claim = ruling_claim(run.paths.attempts)
    return claim is not None and claim.holder is not None and claim.holder.job == task.id
