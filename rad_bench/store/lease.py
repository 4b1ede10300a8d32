"""Leases on a folder, which expire, and a fence that stops a process whose lease was taken over.

A claim is a numbered file, created exclusively. The highest number is the current claim. Its holder touches the file
every few seconds (heartbeat). If the holder released the claim, died or sent no heartbeat for too long, another process
may claim the next number; then the old holder's fence raises. No file locks are needed: file systems of clusters often
lack them, or lock on one node only.

A holder may lose its lease between the fence and the write after it. This is harmless: its successor writes the same
content, computed from the same config, data and seed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

BEATS = 6  # heartbeats in the time after which a lease expires
WRITING_SECONDS = 10.0  # after this time, the writer of an empty claim counts as dead
POLL_SECONDS = 0.5


class SupersededError(RuntimeError):
    """Another process took over the lease. This one must not write any more."""


class BusyError(RuntimeError):
    """Another process holds the lease."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(f"{claim.holder or 'a process'} is at it (last heartbeat {claim.silent:.0f} seconds ago)")
        self.claim = claim


@dataclass(frozen=True)
class Holder:
    """A process, described so that others can check whether it is alive."""

    host: str
    machine: str  # equal for processes that see each other's process ids
    process: int
    started: str  # start time; a later process may get the same id
    job: str | None = None  # SLURM's job id as squeue shows it: 7, or 7_2 for a task of an array
    restarts: int = 0  # how often SLURM restarted the job

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}" + (f" (job {self.job})" if self.job else "")

    @classmethod
    def this(cls) -> Holder:
        """Return this process."""
        job, array = (os.environ.get(f"SLURM_{name}JOB_ID") for name in ("", "ARRAY_"))
        if array is not None:
            job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        host, process = socket.gethostname(), os.getpid()
        return cls(host, _machine(), process, _started(process), job, restarts)

    @property
    def is_here(self) -> bool:
        """Return whether the process runs on this machine."""
        return self.machine == _machine()

    def is_gone(self) -> bool:
        """Return whether the process has ended; False for a process of another machine, which cannot be checked."""
        return self.is_here and (not self.started or _started(self.process) != self.started)


@dataclass(frozen=True)
class Claim:
    """The current claim on a folder."""

    number: int
    holder: Holder | None  # None while the claim is being written
    silent: float  # seconds since the last heartbeat
    seconds: float  # without a heartbeat, after which it expires

    def is_alive(self) -> bool:
        """Return whether the claim is still held."""
        return self.silent < self.seconds and not (self.holder is not None and self.holder.is_gone())

    def yields_to(self, other: Holder) -> bool:
        """Return whether `other` is a restart of the holder's SLURM job, which ended the earlier start."""
        mine = self.holder
        return mine is not None and mine.job is not None and mine.job == other.job and mine.restarts < other.restarts


class Lease:
    """A claim of this process."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number

    @property
    def path(self) -> Path:
        return self.folder / f"{self.number:04d}"

    def fence(self) -> None:
        """Raise `SupersededError` if this is no longer the current claim. Call it before every write."""
        if _highest(self.folder) != self.number:
            raise SupersededError(f"{self.path}: another attempt has taken over")


def ruling_claim(folder: Path, now: float | None = None) -> Claim | None:
    """Return the current claim on a folder, alive or expired; None if there is none.

    `now` is the time on the file server's clock. The default, this machine's clock, is good enough for a status.
    """
    number = _highest(folder)
    if not number:
        return None
    try:
        with (folder / f"{number:04d}").open(
            encoding="utf-8"
        ) as file:  # opening makes a network file system refresh the time
            beat = os.fstat(file.fileno()).st_mtime
            text = file.read()
    except OSError:
        return None
    silent = max((time.time() if now is None else now) - beat, 0.0)
    try:
        record = json.loads(text)
        return Claim(number, Holder(**record["holder"]), silent, float(record["seconds"]))
    except (ValueError, TypeError, KeyError):
        return Claim(number, None, silent, WRITING_SECONDS)


@contextlib.contextmanager
def hold(folder: Path, seconds: float, wait: float = 0.0) -> Iterator[Lease]:
    """Hold a lease on a folder, with heartbeats, until the block ends.

    The lease expires after `seconds` without a heartbeat. Raises `BusyError` if another process still holds the lease
    after `wait` seconds, and `OSError` if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lease = _acquire(folder, seconds, wait)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(seconds / BEATS):
            with contextlib.suppress(OSError):  # file system unavailable; the fence finds a lost lease
                os.utime(lease.path)

    heart = threading.Thread(target=beat, daemon=True, name="heartbeat")
    heart.start()
    try:
        yield lease
    finally:
        stop.set()
        heart.join()
        with contextlib.suppress(OSError):
            os.utime(lease.path, (0, 0))  # release: the last heartbeat is in 1970


def _acquire(folder: Path, seconds: float, wait: float) -> Lease:
    me, deadline = Holder.this(), time.monotonic() + wait
    while True:
        claim = ruling_claim(folder, _clock(folder))
        if claim is None or not claim.is_alive() or claim.yields_to(me):
            lease = Lease(folder, (claim.number if claim else 0) + 1)
            try:
                with lease.path.open("x", encoding="utf-8") as file:
                    json.dump({"seconds": seconds, "holder": asdict(me)}, file)
            except FileExistsError:
                continue  # another process was faster
            except OSError:
                with contextlib.suppress(OSError):
                    lease.path.unlink(missing_ok=True)  # on a full disk an empty claim remains, which would look alive
                raise
            if _clear_below(folder, lease.number):
                return lease
            lease.path.unlink()  # other processes have claimed higher numbers
            continue
        if time.monotonic() > deadline:
            raise BusyError(claim)
        time.sleep(POLL_SECONDS)


def _claims(folder: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(folder) if name.isdigit()]
    except OSError:
        return []


def _highest(folder: Path) -> int:
    return max(_claims(folder), default=0)


def _clear_below(folder: Path, number: int) -> bool:
    """Remove the claims below `number`; return whether `number` is the current claim."""
    claims = _claims(folder)
    for old in claims:
        if old < number:
            (folder / f"{old:04d}").unlink(missing_ok=True)
    return max(claims) == number


def _clock(folder: Path) -> float:
    """Return the time on the clock that dates the folder's files; a file server has its own clock."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
        return os.fstat(file.fileno()).st_mtime


def _machine() -> str:
    """Identify the processes that see each other's ids: one boot of a machine and one PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(process: int) -> str:
    """Return when a process started, in the system's own format; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        state, *rest = stat.rpartition(")")[2].split()
        return "" if state == "Z" else rest[18]  # field 22, starttime; a zombie has ended
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(process, 0)
    except PermissionError:
        return "alive"
    except OSError:
        return ""
    return "alive"
