"""Who is at a folder: leases that expire, and a fence against those who lost theirs.

A claim is a numbered file, made exclusively; the highest number rules. Its holder touches it every few seconds. A claim
whose holder has let go, died or fallen silent may be followed by the next number, and from then on the fence of the old
holder raises. No lock of the file system is needed, which clusters' often lack or keep to one node.

Between the fence's look and the write after it, a holder may still lose its lease. What is written then was computed
from the same config, data and seed as its successor's, so it is whole and true, if it is late.
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

BEATS = 6  # heartbeats within the time after which a lease expires
WRITING_SECONDS = 10.0  # after which a claim without content was left by somebody who died
POLL_SECONDS = 0.5


class SupersededError(RuntimeError):
    """Another holder took over: nothing more may be written."""


class BusyError(RuntimeError):
    """Somebody else holds the lease."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(f"{claim.holder or 'a process'} is at it (last heard of {claim.silent:.0f} seconds ago)")
        self.claim = claim


@dataclass(frozen=True)
class Holder:
    """A process, as others may find out whether it lives."""

    host: str
    machine: str  # the same for processes that see each other's ids
    process: int
    started: str  # tells a process from a later one with its number
    job: str | None = None  # SLURM's id of the job, as squeue shows it: 7, or 7_2 for a task of an array
    restarts: int = 0  # how often SLURM started that job again

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
        """Return whether the process belongs to this machine."""
        return self.machine == _machine()

    def is_gone(self) -> bool:
        """Return whether the process is known to have ended; one of another machine is never known to."""
        return self.is_here and (not self.started or _started(self.process) != self.started)


@dataclass(frozen=True)
class Claim:
    """The ruling claim on a folder."""

    number: int
    holder: Holder | None  # None while the claim is being written
    silent: float  # seconds since the last heartbeat
    seconds: float  # of silence that end it

    def is_alive(self) -> bool:
        """Return whether the holder still counts as being at it."""
        return self.silent < self.seconds and not (self.holder is not None and self.holder.is_gone())

    def yields_to(self, other: Holder) -> bool:
        """Return whether SLURM has started the holder's job again as `other`: it never runs a job twice at once."""
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
        """Raise `SupersededError` if this is no longer the ruling claim. To be called before every write."""
        if _highest(self.folder) != self.number:
            raise SupersededError(f"{self.path}: another attempt has taken over")


def ruling_claim(folder: Path, now: float | None = None) -> Claim | None:
    """Return the ruling claim on a folder, dead or alive; None if nobody ever claimed it.

    `now` is the time by the clock that dates the files; this machine's is good enough for a look.
    """
    number = _highest(folder)
    if not number:
        return None
    try:
        with (folder / f"{number:04d}").open() as file:  # opening asks a network file system for fresh dates
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
    """Claim a folder, or raise `BusyError` if another is at it for longer than `wait`. Beats until the block ends.

    `seconds` without a heartbeat end a lease. Raises `OSError` where nothing can be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lease = _acquire(folder, seconds, wait)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(seconds / BEATS):
            with contextlib.suppress(OSError):  # a file system that is away for a while; the fence will tell
                os.utime(lease.path)

    heart = threading.Thread(target=beat, daemon=True, name="heartbeat")
    heart.start()
    try:
        yield lease
    finally:
        stop.set()
        heart.join()
        with contextlib.suppress(OSError):
            os.utime(lease.path, (0, 0))  # let go: silent since 1970


def _acquire(folder: Path, seconds: float, wait: float) -> Lease:
    me, deadline = Holder.this(), time.monotonic() + wait
    while True:
        claim = ruling_claim(folder, _clock(folder))
        if claim is None or not claim.is_alive() or claim.yields_to(me):
            lease = Lease(folder, (claim.number if claim else 0) + 1)
            try:
                with lease.path.open("x") as file:
                    json.dump({"seconds": seconds, "holder": asdict(me)}, file)
            except FileExistsError:
                continue  # somebody was faster
            except OSError:
                with contextlib.suppress(OSError):
                    lease.path.unlink(missing_ok=True)  # a full disk takes an empty file, which looks alive for a while
                raise
            if _clear_below(folder, lease.number):
                return lease
            lease.path.unlink()  # somebody was faster by more than one claim
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
    """Remove claims that a new one has ended; return whether the new one rules."""
    claims = _claims(folder)
    for old in claims:
        if old < number:
            (folder / f"{old:04d}").unlink(missing_ok=True)
    return max(claims) == number


def _clock(folder: Path) -> float:
    """Return the time by which the folder's files are dated; a file server has its own."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
        return os.fstat(file.fileno()).st_mtime


def _machine() -> str:
    """Name the set of processes that see each other's ids: a boot of a machine, and a container of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(process: int) -> str:
    """Return when a process started, in whatever form this system tells; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
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
