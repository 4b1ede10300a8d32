"""What is made of SLURM's answers, also of those that a test cluster cannot be brought to give."""

import re

import pytest
from submitit.core.utils import FailedJobError

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.store.lease import hold
from rad_bench.store.run_folder import RunFolder
from rad_bench.sweep import squeue
from rad_bench.sweep.cluster import ClusterLaunch, Waiting
from rad_bench.sweep.job import Missing
from rad_bench.sweep.journal import Submission, new_submission, read_submissions


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Stand-ins for SLURM's commands: each prints the text of a file, or fails without one, and notes its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("squeue", "sacct", "scancel", "scontrol"):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.calls\ncat {folder}/{name}.txt\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def submission(name, *runs):
    return Submission(None, name, runs, submitted=True)


def test_tasks_are_found_by_name_and_place_and_the_latest_submission_counts(answers):
    (answers / "squeue.txt").write_text(
        "old|0|11_0|FAILED|NonZeroExitCode\nold|1|11_1|RUNNING|None\nnew|N/A|12|PENDING|Priority\n"
    )
    tasks = squeue.query([submission("old", "a", "b"), submission("new", "a")])
    assert {run: (task.id, task.is_live) for run, task in tasks.items()} == {"a": ("12", True), "b": ("11_1", True)}
    assert str(tasks["a"]) == "pending (Priority)"
    assert len((answers / "squeue.calls").read_text().splitlines()) == 1  # one question for all


def test_a_run_whose_latest_job_is_forgotten_is_not_told_of_by_an_older_one(answers):
    (answers / "squeue.txt").write_text("old|0|11_0|CANCELLED|None\n")
    assert squeue.query([submission("old", "a"), submission("new", "a")]) == {}


def test_silence_is_no_answer(answers):
    with pytest.raises(squeue.SilentError, match="squeue"):
        squeue.query([submission("old", "a")])
    assert squeue.query_accounting([submission("old", "a")]) == {}  # no accounting


def test_accounting_tells_of_what_the_queue_forgot(answers):
    (answers / "sacct.txt").write_text("old|11_0|CANCELLED by 1000\nold|11_1|OUT_OF_MEMORY\n")
    told = squeue.query_accounting([submission("old", "a", "b")])
    assert {run: (task.id, task.state) for run, task in told.items()} == {
        "a": ("11_0", "CANCELLED"), "b": ("11_1", "OUT_OF_MEMORY"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("state", "accounted", "told"),
    [
        ("OUT_OF_MEMORY", None, "ran out of memory; give it more"),
        ("CANCELLED", None, "its job was cancelled"),
        (None, "CANCELLED by 0", "its job was cancelled"),
        ("NODE_FAIL", None, None),
        ("TIMEOUT", None, None),
        ("PREEMPTED", None, None),
        ("COMPLETED", None, None),
        (None, None, None),
        ("SUSPENDED", None, "live"),
        ("REQUEUE_HOLD", None, "live"),
    ],
)
def test_what_was_lost_is_tried_again_and_what_would_end_the_same_is_not(answers, tmp_path, state, accounted, told):
    folder = tmp_path / "sweep" / "runs" / "a"
    folder.mkdir(parents=True)
    entry = new_submission(tmp_path / "sweep", ["a"])
    (answers / "squeue.txt").write_text(f"{entry.name}|N/A|5|{state}|None\n" if state else "")
    if accounted:
        (answers / "sacct.txt").write_text(f"{entry.name}|5|{accounted}\n")
    waiting = Waiting(Missing(folder, LaunchConfig()), attempts=1)
    launch = ClusterLaunch(tmp_path / "sweep", {"a": waiting}, lambda: None, submissions=[entry])
    tried = []
    launch._submit = lambda: tried.extend(launch.to_submit)
    for _ in range(2):
        launch._poll()
    if told is None:
        assert tried == ["a"] and not launch.notes
    elif told == "live":
        assert not tried and not launch.notes and launch.runs
    else:
        assert not tried and told in launch.notes["a"] and not launch.runs


@pytest.mark.parametrize("begun", [False, True])
def test_a_job_that_fails_before_its_run_began_is_not_tried_again_and_its_last_words_are_told(
    answers, tmp_path, monkeypatch, begun
):
    """A job that claimed its run and was killed is tried again; one without a Python would fail again."""
    run = Missing(tmp_path / "sweep" / "runs" / "b", LaunchConfig())
    entry = new_submission(tmp_path / "sweep", ["a", "b"])
    (answers / "squeue.txt").write_text(f"{entry.name}|1|5_1|FAILED|NonZeroExitCode\n")
    log = entry.folder / "5_1_0_log.err"
    log.write_text("error: execve(): /nope/python: No such file\nsrun: error: n1: task 0: Exited with exit code 2\n\n")
    for name, value in {"JOB_ID": "6", "ARRAY_JOB_ID": "5", "ARRAY_TASK_ID": "1" if begun else "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with hold(run.paths.attempts, 60):
        pass
    launch = ClusterLaunch(tmp_path / "sweep", {"b": Waiting(run, 1)}, lambda: None, submissions=[entry])
    launch._submit = lambda: None
    for _ in range(2):
        launch._poll()
    assert launch.to_submit == (["b"] if begun else [])
    why = f"its job failed before the run began: error: execve(): /nope/python: No such file ({log})"
    assert launch.notes == ({} if begun else {"b": why})


def test_attempts_have_an_end(answers, tmp_path):
    folder = tmp_path / "sweep" / "runs" / "a"
    folder.mkdir(parents=True)
    entry = new_submission(tmp_path / "sweep", ["a"])
    (answers / "squeue.txt").write_text(f"{entry.name}|N/A|5|NODE_FAIL|None\n")
    waiting = Waiting(Missing(folder, LaunchConfig(attempts=2)), attempts=2)
    launch = ClusterLaunch(tmp_path / "sweep", {"a": waiting}, lambda: None, submissions=[entry])
    for _ in range(2):
        launch._poll()
    assert launch.notes == {"a": "its job was lost 2 times; the last one: node fail"}
    assert RunFolder(folder).read_failure() == launch.notes["a"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("sbatch: unrecognized option '--x'\nTry \"sbatch --help\" for more", "sbatch: unrecognized option '--x'"),
        (
            "sbatch: error: no partition\nsbatch: error: submission failed: why\n",
            "sbatch: error: submission failed: why",
        ),
        ("first\nlast\n", "last"),
        ("", "FailedJobError"),
    ],
)
def test_what_sbatch_refuses_is_told_by_its_own_last_line(tmp_path, monkeypatch, answers, said, told):
    def refuse(launch, runs, config):
        raise FailedJobError(said)

    (answers / "scontrol.txt").write_text("MaxArraySize = 3\n")
    monkeypatch.setattr(ClusterLaunch, "_sbatch", refuse)
    run = Missing(tmp_path / "sweep" / "runs" / "a", LaunchConfig())
    with pytest.raises(UserError, match=re.escape(f"sbatch accepted no job: {told}")):
        ClusterLaunch(tmp_path / "sweep", {"a": Waiting(run)}, lambda: None).start()


def test_the_journal_reads_what_it_wrote_and_passes_over_what_it_did_not(tmp_path):
    first = new_submission(tmp_path, ["a", "b"])
    second = new_submission(tmp_path, ["c"])
    (tmp_path / "submitit" / "foreign").mkdir()
    (tmp_path / "submitit" / "foreign" / "journal.json").write_text("[]")
    assert {entry.name for entry in read_submissions(tmp_path)} == {first.name, second.name}
    assert first.name != second.name


def test_a_run_that_ends_while_it_waits_to_be_submitted_is_not_submitted(answers, tmp_path):
    (answers / "squeue.txt").write_text("")
    launch = ClusterLaunch(tmp_path / "sweep", {}, lambda: None, to_submit=["a"])
    launch._submit()
    assert not launch.to_submit and not launch.refused
