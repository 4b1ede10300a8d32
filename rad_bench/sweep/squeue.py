"""The state of a sweep's jobs in SLURM, with one call for all of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from rad_bench.sweep import inherited
from rad_bench.sweep.journal import Submission

TIMEOUT_SECONDS = 60  # of one SLURM command
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip


class SilentError(RuntimeError):
    """SLURM did not answer."""


@dataclass(frozen=True)
class Task:
    """One job, or one task of an array, as SLURM reports it."""

    id: str
    state: str
    reason: str

    @property
    def is_live(self) -> bool:
        """Return whether it runs, or will run."""
        return self.state not in ENDED

    def __str__(self) -> str:
        has_reason = self.reason not in ("None", "") and self.state != "RUNNING"
        return self.state.lower().replace("_", " ") + (f" ({self.reason})" if has_reason else "")


def query(submissions: Iterable[Submission]) -> dict[str, Task]:
    """Return the task of each run that SLURM knows, by one call of squeue. Raises `SilentError`.

    `submissions` are sorted, the oldest first; a run's latest submission counts. SLURM knows a job for a while after it
    has ended (MinJobAge, five minutes on most clusters); `query_accounting` finds older ones.
    """
    submissions = list(submissions)
    if not submissions:
        return {}
    names = ",".join(submission.name for submission in submissions)
    lines = _call("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), f"--name={names}", "-o", "%j|%K|%i|%T|%r")
    known: dict[tuple[str, int], Task] = {}
    for line in lines:
        name, index, number, state, reason = line.split("|", 4)
        known[name, int(index) if index.isdigit() else 0] = Task(number, state, reason)
    tasks: dict[str, Task] = {}
    for submission in submissions:
        for place, run in enumerate(submission.runs):
            task = known.get((submission.name, place))
            if task is not None:
                tasks[run] = task
            else:
                tasks.pop(run, None)  # the latest submission counts, and SLURM has forgotten it
    return tasks


def query_accounting(submissions: Iterable[Submission]) -> dict[str, Task]:
    """Return the task of each run from SLURM's accounting, by one call of sacct; empty if there is none."""
    submissions = list(submissions)
    names = ",".join(submission.name for submission in submissions)
    command = ("sacct", "-n", "-P", "-X", "-S", "now-30days", f"--name={names}", "-o", "JobName,JobID,State")
    try:
        lines = _call(*command) if submissions else []
    except SilentError:
        return {}
    known = {}
    for line in lines:
        name, number, state = line.split("|", 2)
        index = number.partition("_")[2]
        task = Task(number, state.split(" ")[0], "")  # "CANCELLED by 0"
        known[name, int(index) if index.isdigit() else 0] = task
    tasks = {}
    for submission in submissions:
        for place, run in enumerate(submission.runs):
            if (submission.name, place) in known:
                tasks[run] = known[submission.name, place]
    return tasks


def cancel(tasks: Iterable[Task]) -> None:
    """Cancel jobs. Raises `SilentError`."""
    ids = [task.id for task in tasks]
    for first in range(0, len(ids), 500):  # the length of a command line is limited
        _call("scancel", *ids[first : first + 500])


def largest_array() -> int:
    """Return how many tasks an array may have. Raises `SilentError`."""
    for line in _call("scontrol", "show", "config"):
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(int(value), 1)
    return 1000


def _call(*command: str) -> list[str]:
    try:
        answer = subprocess.run(
            command, env=inherited.here(), capture_output=True, encoding="utf-8", errors="replace",
            timeout=TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SilentError(f"{command[0]} did not answer: {error}") from None
    if answer.returncode:
        raise SilentError(f"{command[0]}: {answer.stderr.strip() or f'exit status {answer.returncode}'}")
    return [line for line in answer.stdout.splitlines() if line.strip()]
