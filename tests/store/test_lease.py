"""Leases: one holder at a time, silence and death end them, and who lost one writes nothing more."""

import dataclasses
import json
import multiprocessing
import os
import time

import pytest

from rad_bench.store.lease import BusyError, Holder, SupersededError, hold, ruling_claim
from rad_bench.store.run_folder import RunFolder

ELSEWHERE = Holder("far", "another machine", 1, "1")


def claim_by(folder, holder, seconds=60.0, silent=0.0):
    """Write the first claim on a folder in another's name."""
    folder.mkdir(exist_ok=True)
    path = folder / "0001"
    path.write_text(json.dumps({"seconds": seconds, "holder": dataclasses.asdict(holder)}))
    then = time.time() - silent
    os.utime(path, (then, then))


def test_a_held_folder_is_busy_and_a_freed_one_is_not(tmp_path):
    with hold(tmp_path, 60) as first:
        with pytest.raises(BusyError, match=rf"process {os.getpid()} .* is at it"), hold(tmp_path, 60):
            pass
        first.fence()
    with hold(tmp_path, 60) as second:
        assert second.number == first.number + 1
        with pytest.raises(SupersededError):
            first.fence()


def test_a_claim_that_a_full_disk_did_not_take_is_none(tmp_path, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(json, "dump", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        with pytest.raises(OSError, match="No space left"), hold(tmp_path, 60):
            pass
    assert ruling_claim(tmp_path) is None
    with hold(tmp_path, 60):
        pass


def test_a_silent_holder_elsewhere_is_followed_only_after_its_time(tmp_path):
    claim_by(tmp_path, ELSEWHERE, silent=50)
    with pytest.raises(BusyError, match="process 1 on far"), hold(tmp_path, 60):
        pass
    claim_by(tmp_path, ELSEWHERE, silent=70)
    with hold(tmp_path, 60) as lease:
        assert lease.number == 2


def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path):
    me = Holder.this()
    for dead in (dataclasses.replace(me, process=2**22 + 1), dataclasses.replace(me, started="before the boot")):
        claim_by(tmp_path / dead.started, dead)
        with hold(tmp_path / dead.started, 60) as lease:
            assert lease.number == 2


def test_slurm_starting_a_job_again_supersedes_its_first_attempt(tmp_path, monkeypatch):
    claim_by(tmp_path, dataclasses.replace(ELSEWHERE, job="7"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(BusyError), hold(tmp_path, 60):  # the same start of the job: a job of an earlier cluster
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with hold(tmp_path, 60) as lease:
        assert lease.number == 2


def test_heartbeats_keep_a_lease_beyond_its_time(tmp_path):
    with hold(tmp_path, 1.2) as lease:
        before = lease.path.stat().st_mtime
        deadline = time.monotonic() + 60
        while lease.path.stat().st_mtime < before + 1.2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        claim = ruling_claim(tmp_path)
        assert claim is not None and claim.number == lease.number


def test_a_claim_left_empty_by_a_death_does_not_block_for_ever(tmp_path):
    (tmp_path / "0001").write_text("")
    with pytest.raises(BusyError, match="a process is at it"), hold(tmp_path, 60):
        pass
    os.utime(tmp_path / "0001", (0, 0))
    with hold(tmp_path, 60) as lease:
        assert lease.number == 2


def count_up(folder, rounds):
    """Add to a number in a file, which only comes out right if nobody else is at it meanwhile."""
    for _ in range(rounds):
        with hold(folder / "claims", 60, wait=120):
            value = int((folder / "value").read_text())
            time.sleep(0.001)
            (folder / "value").write_text(str(value + 1))


def test_many_processes_hold_it_one_after_the_other(tmp_path):
    (tmp_path / "value").write_text("0")
    workers = [multiprocessing.get_context("spawn").Process(target=count_up, args=(tmp_path, 5)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert (tmp_path / "value").read_text() == "20"


def test_a_superseded_attempt_writes_nothing(tmp_path):
    with hold(tmp_path / "attempts", 60) as lease:
        paths = RunFolder(tmp_path, lease.fence)
        paths.replace(paths.result, lambda file: file.write(b"old"))
        claim_by(tmp_path / "attempts", ELSEWHERE)
        (tmp_path / "attempts" / "0001").rename(tmp_path / "attempts" / "0002")
        with pytest.raises(SupersededError):
            paths.replace(paths.result, lambda file: file.write(b"new"))
        with pytest.raises(SupersededError):
            paths.append(paths.log, "a line")
    assert paths.result.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempts", "result.json"]


def test_a_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path):
    paths = RunFolder(tmp_path)
    paths.replace(paths.result, lambda file: file.write(b"old"))

    def fails(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        paths.replace(paths.result, fails)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("result.json", b"old")]
