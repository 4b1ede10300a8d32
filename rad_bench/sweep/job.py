"""What a process of a run executes: `python -m rad_bench.sweep.job FOLDER LAUNCH` here, `RunJob` in a SLURM job.

LAUNCH is a `LaunchConfig` as JSON. Several processes of one run find each other as `join` says.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

import submitit

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.store.lease import SupersededError, hold
from rad_bench.store.run_folder import RunFolder

SUPERSEDED = "another attempt has taken this run over"

INTERRUPTED = threading.Event()  # set by SIGINT

Notes = dict[str, str]  # run -> why it has no result, if its folder does not say


@dataclass(frozen=True)
class Missing:
    """A run without a result, which is to be executed."""

    folder: Path
    launch: LaunchConfig

    @property
    def paths(self) -> RunFolder:
        return RunFolder(self.folder)


class RunJob(submitit.helpers.Checkpointable):
    """What a job executes: one run. On preemption or time-out submitit submits it again, and the run resumes."""

    def __call__(self, folder: Path, launch: LaunchConfig) -> str:
        """Return `done`, `SUPERSEDED`, or the error, which is also in failure.txt."""
        paths, rank = RunFolder(folder), None
        with contextlib.ExitStack() as stack:
            try:
                from rad_bench.run.execute import execute
                from rad_bench.training.distributed import join

                group = join()
                rank = group.rank
                if rank == 0:
                    # A job whose launcher was killed keeps running. A second job waits, and then finds the run done.
                    lease = stack.enter_context(hold(paths.attempts, launch.lease, wait=math.inf))
                    paths = RunFolder(folder, lease.fence)
                    paths.failure.unlink(missing_ok=True)  # it is from an earlier attempt
                execute(paths, launch, group)
            except SupersededError:
                return SUPERSEDED
            except Exception as error:
                if INTERRUPTED.is_set():  # a library caught KeyboardInterrupt, and this error is what it made of it
                    raise KeyboardInterrupt from error
                if not _write_failure(paths, error) or rank != 0:
                    raise  # srun ends the job's other processes when one exits with an error
                return _reason(error)
        return "done"


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _write_failure(paths: RunFolder, error: Exception) -> bool:
    """Write why the run failed, and return whether that could be done: the disk may be full."""
    details = "" if isinstance(error, UserError) else traceback.format_exc()
    try:
        if not paths.failure.exists():  # the first process to fail has the cause
            paths.write_failure(_reason(error), details)
    except SupersededError:
        pass
    except OSError:
        return False
    return True


def interrupt(*_: object) -> None:
    """Handle SIGINT: also where a shell started this process in the background, with SIGINT ignored."""
    INTERRUPTED.set()
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    outcome = RunJob()(Path(sys.argv[1]), LaunchConfig.model_validate_json(sys.argv[2]))
    print(outcome)
    sys.exit(outcome not in ("done", SUPERSEDED))
