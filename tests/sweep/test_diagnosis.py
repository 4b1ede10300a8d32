"""Why a run has no result: one whole paragraph, the same everywhere, that names the cause; what fails is tried once."""

import os
import sys

import pytest

from rad_bench.config import LaunchConfig
from rad_bench.report.reading import _why_missing
from rad_bench.run import execute
from rad_bench.store.lease import Holder, hold
from rad_bench.store.run_folder import RunFolder
from rad_bench.sweep import cluster, local
from rad_bench.sweep.cluster import ClusterLaunch, Waiting
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.job import Missing, RunJob
from rad_bench.sweep.last_words import TRACEBACK, last_words
from rad_bench.sweep.load import load_sweep
from rad_bench.sweep.local import launch_here
from rad_bench.sweep.squeue import Task
from rad_bench.sweep.status import run_status
from tests.sweep.tiny import TINY, run_here

SHORT = TINY.replace("steps: 30", "steps: 2").replace("checkpoint_every: 5", "warmup: 1")
ONE = ("--only", "memory=none", "--only", "seed=0")
LONG = "The first of many words. " * 40 + "The remedy stands at the end."


@pytest.fixture
def run(tmp_path):
    return Missing(tmp_path / "run", LaunchConfig())


def test_a_reason_is_whole_and_the_same_everywhere(run, capsys):
    run.folder.mkdir()
    run.paths.write_failure(LONG, "Traceback\n  somewhere")
    told = {run.paths.read_failure(), run_status(run.folder).detail, _why_missing(run.folder)}
    assert told == {LONG}
    assert run.paths.failure.read_text(encoding="utf-8").splitlines() == ["Traceback", "  somewhere", LONG]


def test_the_console_and_status_show_whole_paragraphs(tmp_path, monkeypatch):
    """Of a message with several lines, too."""
    (tmp_path / "tiny.yaml").write_text(SHORT)
    folder = tmp_path / "results" / "tiny"

    def fail(*_):
        raise RuntimeError(LONG + "\n  and\n\tmore")

    monkeypatch.setattr(execute, "execute", fail)
    told = run_here("sweep", "tiny.yaml", "--cluster", "debug", *ONE, cwd=tmp_path, expect=1)
    status = run_here("status", folder, cwd=tmp_path)
    (run,) = (folder / "runs").iterdir()
    line = f"{run.name}: failed {RunFolder(run).read_failure()}"
    assert line.startswith(f"{run.name}: failed RuntimeError: {LONG}") and line.endswith("more")
    assert line in told.stderr.splitlines() and line in status.stdout.splitlines()
    assert status.stdout.endswith("\n1 failed\n")


# What fails before a run itself begins


def begins(monkeypatch):
    """Count the starts of processes."""
    numbers, really = [], local.start

    def start(attempt, gpus):
        numbers.append(attempt.number)
        really(attempt, gpus)

    monkeypatch.setattr(local, "start", start)
    return numbers


def missing_run(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SHORT)
    (planned,) = plan_runs(load_sweep(tmp_path / "tiny.yaml"), ["memory=none", "seed=0"])
    return tmp_path / "results" / "tiny" / "runs" / planned.name


@pytest.mark.parametrize(
    ("in_the_way", "words"),
    [("attempts", "FileExistsError"), ("output.txt", "Is a directory"), ("failure.txt", "directory")],
)
def test_a_folder_that_cannot_be_claimed_or_written_is_told_once(tmp_path, monkeypatch, in_the_way, words):
    folder = missing_run(tmp_path)
    folder.mkdir(parents=True)
    (folder / in_the_way).write_text("") if in_the_way == "attempts" else (folder / in_the_way).mkdir()
    numbers = begins(monkeypatch)
    notes = launch_here([Missing(folder, LaunchConfig())], 1, lambda: None)
    assert words in notes[folder.name] and "memory" not in notes[folder.name] and numbers == [1]


def test_a_run_whose_folder_is_bad_leaves_the_others_alone(tmp_path):
    folder = missing_run(tmp_path)
    (folder / "output.txt").mkdir(parents=True)
    told = run_here("sweep", "tiny.yaml", "--only", "memory=none", cwd=tmp_path, expect=1).stderr
    assert f"{folder.name}: missing" in told and "it cannot be started: Is a directory (" in told
    assert "1 of 2 runs are not done" in told


@pytest.mark.parametrize("error", [ImportError("no such thing"), SyntaxError("bad"), OSError(28, "No space left")])
def test_an_import_that_fails_in_the_job_is_a_failure_of_the_run(run, monkeypatch, error):
    """`execute` is imported by the job, with everything that training needs."""

    class Refuses:
        def find_spec(self, name, path=None, target=None):
            if name == "rad_bench.run.execute":
                raise error

    run.folder.mkdir()
    monkeypatch.delitem(sys.modules, "rad_bench.run.execute")
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    with pytest.raises(type(error)):  # so that other processes of the run are ended
        RunJob()(run.folder, run.launch)
    assert run_status(run.folder).detail == f"{type(error).__name__}: {error}"
    assert "Traceback" in run.paths.failure.read_text(encoding="utf-8")


def test_a_failure_that_cannot_be_written_ends_the_process_with_it(run, monkeypatch):
    """Else a job would end as if all were well, and be taken for lost."""

    def full(*_):
        raise OSError(28, "No space left on device")

    run.folder.mkdir()
    monkeypatch.setattr(RunFolder, "write_failure", full)
    monkeypatch.setattr(execute, "execute", full)
    with pytest.raises(OSError, match="No space left"):
        RunJob()(run.folder, run.launch)


def test_a_package_that_is_missing_in_the_job_is_named(tmp_path, monkeypatch):
    """Also one that is needed before anything else can be said."""
    folder = missing_run(tmp_path)
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "submitit.py").write_text("import no_such_package\n")
    monkeypatch.setenv("PYTHONPATH", f"{blocked}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    folder.mkdir(parents=True)
    numbers = begins(monkeypatch)
    notes = launch_here([Missing(folder, LaunchConfig())], 1, lambda: None)
    assert notes[folder.name].startswith("ModuleNotFoundError: No module named 'no_such_package' (")
    assert run_status(folder).detail == notes[folder.name] and numbers == [1]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        ("error: execve(): no\nsrun: error: n1: task 0: Exited\n", "error: execve(): no"),
        ("srun: error: only this\n", "srun: error: only this"),
        (f"{TRACEBACK}\n  File\n    x\nE: first\nline two\n  three\n", "E: first line two three"),
        (f"{TRACEBACK}\n  F\nA: a\n\nDuring:\n\n{TRACEBACK}\n  F\nB: b", "B: b"),
        ('  File "x.py", line 1\n    (\n    ^\nSyntaxError: never closed\n', "SyntaxError: never closed"),
    ],
)
def test_the_last_words_of_a_process_are_its_error(output, words):
    assert last_words(output) == words


# Which file is wrong


BASE = "name: base\nrun: {trunk: {window: 2}, training: {steps: 4}}\ngrid: {memory: [none], training.batch: [2]}\n"


@pytest.mark.parametrize(
    ("base", "child", "options", "place"),
    [
        ({"window: 2": "windw: 2"}, "", (), "base.yaml: run.trunk.windw"),
        ({}, "run: {trunk: {windw: 2}}", (), "child.yaml: run.trunk.windw"),
        ({"steps: 4": "steps: none"}, "", (), "base.yaml: run.training.steps"),
        ({"steps: 4": "steps: none"}, "run: {training: {steps: never}}", (), "child.yaml: run.training.steps"),
        ({}, "", ("--set", "run.trunk.window=wide"), "--set run.trunk.window=wide: run.trunk.window"),
        ({"[2]": "[two]"}, "", (), "base.yaml: run.training.batch"),
        ({}, "grid: {training.batch: [two]}", (), "child.yaml: run.training.batch"),
        ({}, "", ("--set", "grid.training.batch=[two]"), "--set grid.training.batch=[two]: run.training.batch"),
        ({"[none]": "[nune]"}, "", (), "base.yaml: run.memory: there is no block 'nune'"),
        ({}, "", ("--set", "grid.memory=[nune]"), "--set grid.memory=[nune]: run.memory: there is no block"),
        ({"name: base": "name: ../x"}, "", (), "base.yaml: name"),
        ({}, "launch: {threads: many}", (), "child.yaml: launch.threads"),
    ],
)
def test_a_mistake_is_put_down_to_the_file_or_option_that_makes_it(tmp_path, base, child, options, place):
    text = BASE
    for right, wrong in base.items():
        text = text.replace(right, wrong)
    (tmp_path / "base.yaml").write_text(text)
    (tmp_path / "child.yaml").write_text(f"extends: base.yaml\n{child}\n")
    told = run_here("plan", "child.yaml", "--no-probe", *options, cwd=tmp_path, expect=2).stderr
    assert told.startswith(f"error: {place}") and len(told.strip().splitlines()) == 1


# SLURM


@pytest.mark.parametrize(
    ("state", "begun", "reason", "failed"),
    [
        ("OUT_OF_MEMORY", True, "its job ran out of memory", True),
        ("CANCELLED", True, "its job was cancelled", False),
        ("FAILED", False, "its job failed before the run began: ValueError: why (", True),
        ("NODE_FAIL", True, "its job was lost 3 times; the last one: node fail: ValueError: why (", True),
        ("FAILED", True, "its job was lost 3 times; the last one: failed: ValueError: why (", True),
    ],
)
def test_what_slurm_says_of_a_job_is_the_reason_in_its_folder_too(tmp_path, monkeypatch, state, begun, reason, failed):
    missing = Missing(tmp_path / "runs" / "a", LaunchConfig())
    missing.folder.mkdir(parents=True)
    submission = cluster.new_submission(tmp_path, ["a"])
    log = submission.folder / "7_0_log.err"
    log.write_text("Traceback (most recent call last):\n  File\nValueError: why\n")
    if begun:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert Holder.this().job == ("7" if begun else None)
    with hold(missing.paths.attempts, 60):
        pass
    launch = ClusterLaunch(tmp_path, {"a": Waiting(missing, attempts=3)}, lambda: None, submissions=[submission])
    launch._handle_ended("a", Task("7", state, ""))
    assert launch.notes["a"].startswith(reason) and not launch.runs and not launch.to_submit
    assert missing.paths.read_failure() == (launch.notes["a"] if failed else None)
    assert ("memory" in launch.notes["a"]) is (state == "OUT_OF_MEMORY")


@pytest.mark.slow
def test_a_job_that_cannot_claim_its_run_says_so_on_slurm(tmp_path, slurm):
    folder = missing_run(tmp_path)
    folder.mkdir(parents=True)
    (folder / "attempts").write_text("")
    (tmp_path / "tiny.yaml").write_text(SHORT.replace("launch: {", "launch: {slurm: {partition: debug, poll: 1}, "))
    options = {"cwd": tmp_path, "environment": slurm.environment}
    told = run_here("sweep", "tiny.yaml", *ONE, **options, expect=1).stderr
    reason = RunFolder(folder).read_failure()
    assert reason.startswith("FileExistsError") and f"{folder.name}: failed {reason}" in told.splitlines()
    assert f"{folder.name}: failed {reason}" in run_here("status", "results/tiny", **options).stdout
    assert len(list((tmp_path / "results" / "tiny" / "submitit").iterdir())) == 1
