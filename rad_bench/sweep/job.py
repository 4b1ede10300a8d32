"""What a process of a run executes: `python -m rad_bench.sweep.job FOLDER LAUNCH` here, `RunJob` in a SLURM job.

LAUNCH is a `LaunchConfig` as JSON. Several processes of one run find each other as `join` says.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import submitit

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.store.lease import SupersededError, hold
from rad_bench.store.run_folder import RunFolder

SUPERSEDED = "another attempt has taken this run over"

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

    def __call__(self, folder: Path, launch: LaunchConfig) -> str:
        """Return `done`, that another attempt took over, or what failed, which also stands in failure.txt."""
        from rad_bench.run.execute import execute
        from rad_bench.training.distributed import join

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
                return SUPERSEDED
            except Exception as error:
                text = str(error) if isinstance(error, UserError) else traceback.format_exc()
                if not paths.failure.exists():  # who failed first knows why; the others only miss it
                    with contextlib.suppress(OSError, SupersededError):  # the disk may be full, which is the failure
                        paths.replace(paths.failure, lambda file: file.write(text.encode()))
                if group.rank:
                    raise  # srun ends the job's other processes when one exits with an error
                return f"{type(error).__name__}: {error}"
        return "done"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the launcher's shell may have it ignored
    said = RunJob()(Path(sys.argv[1]), LaunchConfig.model_validate_json(sys.argv[2]))
    print(said)
    sys.exit(said not in ("done", SUPERSEDED))
