"""Execute runs on this machine: several processes at a time, each on its own GPUs if there are enough."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from rad_bench.config import LaunchConfig
from rad_bench.sweep import inherited
from rad_bench.sweep.job import Missing, Notes, RunJob
from rad_bench.sweep.last_words import last_words

POLL_SECONDS = 0.5
TAIL_BYTES = 1 << 14  # at the end of a run's output, searched for its error
INTERRUPT_SECONDS = 10.0  # for interrupted processes to release their runs; then they are killed

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Attempt:
    """The processes that execute a run."""

    run: Missing
    number: int
    processes: list[Process]

    def ended(self) -> int | None:
        """Return the run's exit status, a signal as a negative number, or None while it runs.

        If one process fails, the others are ended: they would wait for it.
        """
        codes = [process.poll() for process in self.processes]
        broken = [code for code in codes if code]
        if not broken:
            return None if None in codes else 0
        end(self.processes)
        return min(broken)  # a signal first: a killed process makes the others fail


def launch_here(missing: list[Missing], parallel: int, watch: Callable[[], None]) -> Notes:
    """Execute runs, `parallel` at a time, and return when all have ended; `watch()` is called about twice a second.

    A run whose process was killed is tried again. One that fails by itself is not: it would fail again.
    """
    waiting = deque((run, 1) for run in missing)
    places: dict[int, Attempt] = {}
    notes: Notes = {}
    try:
        while waiting or places:
            for place in range(parallel):
                if waiting and place not in places:
                    run, number = waiting.popleft()
                    places[place] = Attempt(run, number, [])
                    try:
                        start(places[place], gpus_of(place, run.launch, visible_gpus()))
                    except OSError as error:
                        end(places.pop(place).processes)
                        place_of = error.filename or run.folder
                        notes[run.folder.name] = f"it cannot be started: {error.strerror or error} ({place_of})"
            watch()
            time.sleep(POLL_SECONDS)
            for place, attempt in list(places.items()):
                status = attempt.ended()
                if status is None:
                    continue
                del places[place]
                if status < 0 and attempt.number < attempt.run.launch.attempts:
                    waiting.appendleft((attempt.run, attempt.number + 1))
                elif not attempt.run.paths.is_done:
                    notes[attempt.run.folder.name] = _reason(attempt, status)
    finally:
        end(process for attempt in places.values() for process in attempt.processes)
    watch()
    return notes


def start(attempt: Attempt, gpus: tuple[str, ...]) -> None:
    """Start the processes of a run; what they print is added to its `output.txt`."""
    run, count = attempt.run, attempt.run.launch.processes
    run.paths.failure.unlink(missing_ok=True)  # it is from an earlier attempt
    # -P: a user's module in the working directory must not shadow one of Python's or ours.
    command = [sys.executable, "-P", "-u", "-m", "rad_bench.sweep.job", str(run.folder), run.launch.model_dump_json()]
    threads = str(run.launch.threads)
    environment = inherited.here() | {
        "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port()),
    }  # fmt: skip
    with run.paths.output.open("ab") as output:
        for rank in map(str, range(count)):
            attempt.processes.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    env=environment | {"RANK": rank, "LOCAL_RANK": rank},
                )
            )  # fmt: skip


def end(processes: Iterable[Process]) -> None:
    """Interrupt processes, so that they release their runs, and kill those that do not exit in time."""
    alive = [process for process in processes if process.poll() is None]
    try:
        for process in alive:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + INTERRUPT_SECONDS
        for process in alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))
    finally:
        for process in alive:
            process.kill()
            process.wait()


def _reason(attempt: Attempt, status: int) -> str:
    """Return why a run has no result, and write it to failure.txt, unless the run did that itself."""
    paths = attempt.run.paths
    own = paths.read_failure()
    if own is not None and status >= 0:
        return own
    reason = f"{_last_words(attempt)} ({paths.output})"
    if status < 0:
        memory = "; perhaps there was too little memory" if -status == signal.SIGKILL else f": {reason}"
        reason = f"its process was killed {attempt.number} times by {signal.Signals(-status).name}{memory}"
    if status:
        with contextlib.suppress(OSError):
            paths.write_failure(reason)
    return reason


def _last_words(attempt: Attempt) -> str:
    with attempt.run.paths.output.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return last_words(file.read().decode(errors="replace")) or "it ended without output"


def launch_in_process(missing: list[Missing], watch: Callable[[], None]) -> Notes:
    """Execute runs one after the other in this process, for a debugger."""
    notes = {}
    for run in missing:
        with inherited.replaced_by(inherited.here()):
            outcome = RunJob()(run.folder, run.launch)
        if outcome != "done":
            notes[run.folder.name] = outcome
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


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])
