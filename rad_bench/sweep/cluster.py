"""Execute runs on SLURM: write the journal, submit, wait, and submit lost jobs again.

Result files say which runs are done, the journal says which were submitted, and squeue, called at intervals, says which
still run.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import submitit

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.store.lease import ruling_claim
from rad_bench.sweep import inherited, squeue
from rad_bench.sweep.job import Missing, Notes, RunJob
from rad_bench.sweep.journal import Submission, new_submission, read_submissions
from rad_bench.sweep.last_words import last_words
from rad_bench.sweep.squeue import SilentError, Task

CONFIRM_SECONDS = 3.0  # until SLURM is asked again about a job that seems to have ended without a result
REFUSED_SECONDS = 60.0  # until sbatch is called again
NOT_RETRIED = {
    "CANCELLED": "its job was cancelled",
    "OUT_OF_MEMORY": "its job ran out of memory; give it more by launch.slurm.memory_gb or launch.where",
}


@dataclass
class Waiting:
    """The state of one run in this launch."""

    run: Missing
    attempts: int = 0  # submissions by this command
    absences: int = 0  # consecutive answers of SLURM without a live job for it


@dataclass
class ClusterLaunch:
    """The launch of runs on SLURM by one command."""

    sweep_folder: Path
    runs: dict[str, Waiting]  # those without a result, by name
    watch: Callable[[], None]
    pause: float = 10.0  # seconds between calls of squeue
    notes: Notes = field(default_factory=dict)
    submissions: list[Submission] = field(default_factory=list)
    to_submit: list[str] = field(default_factory=list)
    refused: str = ""  # the last error of sbatch, if it refused jobs

    def start(self) -> None:
        """Keep the jobs of earlier commands that are in the queue, and submit the other runs. Raises `UserError`."""
        if "%" in str(self.sweep_folder.absolute()):
            raise UserError(f"{self.sweep_folder}: SLURM replaces % and a letter in paths; use a folder without %.")
        self.submissions = read_submissions(self.sweep_folder)
        try:
            tasks = squeue.query(self.submissions)
            squeue.cancel(self._orphans(tasks))
        except SilentError as error:
            raise UserError(f"SLURM does not answer, and jobs of this sweep may be in its queue: {error}.") from None
        self.to_submit = [name for name in self.runs if not (name in tasks and tasks[name].is_live)]
        self._submit()
        if self.refused and len(self.to_submit) == len(self.runs):
            raise UserError(f"sbatch accepted no job: {self.refused}")

    def follow(self) -> None:
        """Wait until each run has a result, has failed, or is given up with a note."""
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
            # With many folders, look less often: a shared file system has other users.
            time.sleep(max(0.5, len(self.runs) / 200))

    def _poll(self) -> float:
        """Ask SLURM about all runs. Return the seconds until the next call."""
        try:
            tasks = squeue.query(self.submissions)
        except SilentError:
            return self.pause  # the controller may be down for hours while jobs keep running
        gone = []
        for name, waiting in self.runs.items():
            if name in self.to_submit:
                continue
            task = tasks.get(name)
            waiting.absences = 0 if task is not None and task.is_live else waiting.absences + 1
            if waiting.absences >= 2:  # the queue lags, and so may a shared file system
                gone.append(name)
        ended = squeue.query_accounting(self.submissions) if any(name not in tasks for name in gone) else {}
        for name in gone:
            self._handle_ended(name, tasks.get(name) or ended.get(name))
        self._submit()
        if self.refused and not any(task.is_live for task in tasks.values()):
            raise UserError(f"sbatch accepts no jobs, and this sweep has none in the queue: {self.refused}")
        if self.refused:
            return REFUSED_SECONDS
        unconfirmed = any(waiting.absences for waiting in self.runs.values())
        return min(CONFIRM_SECONDS, self.pause) if unconfirmed else self.pause

    def _handle_ended(self, name: str, task: Task | None) -> None:
        """Give up a run whose job has ended, or list it to be submitted again."""
        waiting = self.runs[name]
        state = task.state if task else ""
        if waiting.run.paths.is_done:
            return
        if waiting.run.paths.failure.exists():  # deleted at submission, so this failure is new
            del self.runs[name]
        elif state in NOT_RETRIED:
            self._give_up(name, NOT_RETRIED[state], failed=state != "CANCELLED")
        elif task and state == "FAILED" and not _has_begun(waiting.run, task):
            # Not a lost node, but a missing command or module: it would be missing the next time too.
            self._give_up(name, f"its job failed before the run began{self._last_error(name, task)}")
        elif waiting.attempts >= waiting.run.launch.attempts:
            ended = state.lower().replace("_", " ") or "gone from the queue"
            error = self._last_error(name, task)
            self._give_up(name, f"its job was lost {waiting.attempts} times; the last one: {ended}{error}")
        else:
            self.to_submit.append(name)

    def _give_up(self, name: str, reason: str, failed: bool = True) -> None:
        """Wait no longer for a run, and say why: also in its folder, unless somebody stopped it."""
        self.notes[name] = reason
        run = self.runs.pop(name).run
        if failed:
            with contextlib.suppress(OSError):
                run.paths.write_failure(reason)

    def _last_error(self, name: str, task: Task | None) -> str:
        """Return the last words of a job's error log and the log's path; empty if there are none."""
        folder = next(entry.folder for entry in reversed(self.submissions) if name in entry.runs)
        for log in sorted(folder.glob(f"{task.id}_*_log.err")) if task else ():
            with contextlib.suppress(OSError):
                if words := last_words(log.read_text(encoding="utf-8", errors="replace")):
                    return f": {words} ({log})"
        return ""

    def _submit(self) -> None:
        """Submit the listed runs: an array for each set of resources, in chunks that SLURM accepts."""
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
        executor = make_executor(submission.folder.absolute(), launch, submission.name)
        with inherited.replaced_by(inherited.elsewhere()), executor.batch():
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
        """Remove from `tasks`, and return, the live tasks that cannot run, because their launcher died too early.

        submitit writes what a task executes to a file named after the job's id, once it knows the id. Without that file
        the task waits a minute and fails.
        """
        orphans = []
        for submission in self.submissions:
            for run in submission.runs if not submission.submitted else ():
                task = tasks.get(run)
                if task and task.is_live and not (submission.folder / f"{task.id}_submitted.pkl").exists():
                    orphans.append(tasks.pop(run))
        return orphans


def make_executor(logs: Path, launch: LaunchConfig, name: str) -> submitit.AutoExecutor:
    """Return submitit's executor for jobs called `name`, whose files go to `logs`."""
    slurm = launch.slurm
    # -P: a user's module in the working directory must not shadow one of Python's or ours.
    python = f"{slurm.python or shlex.quote(sys.executable)} -P"
    executor = submitit.AutoExecutor(folder=logs, cluster="slurm", slurm_max_num_timeout=1000, slurm_python=python)
    named = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos, "constraint": slurm.constraint}
    options: dict[str, Any] = {f"slurm_{key}": value for key, value in named.items() if value is not None}
    if slurm.gpus:
        options["slurm_gpus_per_node"] = slurm.gpus
    nodes, tasks = launch.tasks("slurm")
    if nodes * tasks > 1:  # one that fails ends the others; one that finishes after training does not
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
        # Jobs of a failed node are queued again, whatever the cluster's default.
        slurm_additional_parameters={"requeue": True, **slurm.extra},
        **options,
    )
    return executor


def _reason(error: Exception) -> str:
    """Return the last error of sbatch. The lines after it are advice, such as to try --help."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in reversed(lines) if line.startswith("sbatch: ")), lines[-1])


def _has_begun(run: Missing, task: Task) -> bool:
    """Return whether a job has claimed its run."""
    claim = ruling_claim(run.paths.attempts)
    return claim is not None and claim.holder is not None and claim.holder.job == task.id
