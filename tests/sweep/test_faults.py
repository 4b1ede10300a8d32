"""Faults of a cluster, injected on a real one: nothing finished is lost or redone, the frames stay the same bits."""

import json
import os
import signal
import subprocess

import pandas as pd
import pytest

from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep
from tests.sweep import faults
from tests.sweep import slurm as slurm_cluster
from tests.sweep.tiny import GRU, ON_SLURM, command, run_here, wait_for

pytestmark = pytest.mark.slow  # a real SLURM takes seconds to act

LONGER = ON_SLURM.replace("steps: 30", "steps: 400").replace("checkpoint_every: 5", "checkpoint_every: 20")
# SLURM takes seconds to act, and on an idle machine a run must not have ended by then.
ENOUGH = 1200  # steps
LONG_ENOUGH = LONGER.replace("steps: 400", f"steps: {ENOUGH}")
ONE = ("--only", "memory=none", "--only", "seed=0")


def frames_of(once, name, yaml, *options):
    def fill(folder):
        (folder / "tiny.yaml").write_text(yaml)
        run_here("sweep", "tiny.yaml", "--cluster", "local", *options, cwd=folder)

    return pd.read_parquet(once(name, fill) / "results" / "tiny" / "frames.parquet")


@pytest.fixture(scope="module")
def undisturbed(once):
    """The frames of a sweep of which each part below disturbs a run or more."""
    return frames_of(once, "undisturbed-longer", LONGER, "--only", "seed=0")


@pytest.fixture(scope="module")
def undisturbed_short(tiny_sweep):
    """The same of a sweep of a few steps, for faults that do not depend on how far a run is."""
    frames = pd.read_parquet(tiny_sweep / "results" / "tiny" / "frames.parquet")
    return frames[frames["seed"] == 0]


@pytest.fixture(scope="module")
def undisturbed_one(once):
    return frames_of(once, "undisturbed-one", LONG_ENOUGH, *ONE)


def start(folder, slurm, *options, yaml=LONGER, environment=None):
    (folder / "tiny.yaml").write_text(yaml)
    argv, environment = command("sweep", "tiny.yaml", *options, environment=environment or slurm.environment)
    launcher = subprocess.Popen(
        argv, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    return launcher, folder / "results" / "tiny"


def assert_undisturbed(sweep, undisturbed, steps=400, **which):
    """The sweep has the frames of the undisturbed one, and its logs tell of each step once."""
    expected = undisturbed
    for column, value in which.items():
        expected = expected[expected[column].isin([value, "copy-last"])]
    frames = pd.read_parquet(sweep / "frames.parquet")
    order = ["block", "seed", "task", "intervention", "episode", "frame"]
    if which:  # the controls are taken from any run
        expected = expected[expected["block"] != "copy-last"]
        frames = frames[frames["block"] != "copy-last"]
    pd.testing.assert_frame_equal(*(f.sort_values(order).reset_index(drop=True) for f in (frames, expected)))
    for log in sweep.glob("runs/*/log.jsonl"):
        logged = [json.loads(line).get("step") for line in log.read_text().splitlines()]
        assert [step for step in logged if step] == list(range(10, steps + 1, 10))


# Spoilt checkpoints are tests/test_run.py's, without a SLURM; the soak has them on one.
@pytest.mark.parametrize(
    "fault",
    [fault for fault in faults.IN_A_JOB if fault not in faults.TO_CHECKPOINTS],
    ids=lambda fault: fault.__name__,
)
def test_a_disturbed_job_goes_on_and_ends_with_the_same_frames(tmp_path, slurm, undisturbed_one, fault):
    launcher, sweep = start(tmp_path, slurm, *ONE, yaml=LONG_ENOUGH)
    wait_for(lambda: list(sweep.glob("runs/*/checkpoint.before.pt")))
    fault(slurm, sweep)
    out, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, out + errors
    assert_undisturbed(sweep, undisturbed_one, steps=ENOUGH, block="none", seed=0)
    (attempt,) = sweep.glob("runs/*/attempts/*")
    assert int(attempt.name) > 1  # the fault did happen


SBATCH = """#!/bin/sh
# An sbatch whose caller is killed {moment}.
{before}
answer=$({real} "$@") || exit 1
{between}
echo "$answer"
{after}
"""
KILL = "kill -9 $PPID; sleep 0.2"


@pytest.mark.parametrize("moment", ["before sbatch", "before its answer", "after its answer"])
def test_a_launcher_killed_about_sbatch_loses_and_doubles_nothing(tmp_path, slurm, undisturbed_short, moment):
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    real = subprocess.run(
        ["which", "sbatch"], env=slurm.environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    kills = {"before": "before sbatch", "between": "before its answer", "after": "after its answer"}
    parts = {part: KILL if when == moment else "" for part, when in kills.items()}
    if moment == "after its answer":
        parts["after"] = "(sleep 0.3; kill -9 $PPID) &"  # between the journal's two entries, or soon after them
    fake.write_text(SBATCH.format(moment=moment, real=real, **parts))
    fake.chmod(0o755)
    environment = {**slurm.environment, "PATH": f"{fake.parent}:{slurm.environment['PATH']}"}
    launcher, sweep = start(tmp_path, slurm, "--only", "seed=0", yaml=ON_SLURM, environment=environment)
    launcher.wait(timeout=120)
    assert launcher.returncode == -signal.SIGKILL
    assert len(list(sweep.glob("submitit/*/journal.json"))) == 1  # whatever happened, it was announced
    run_here("sweep", "tiny.yaml", "--only", "seed=0", cwd=tmp_path, environment=slurm.environment)
    assert_undisturbed(sweep, undisturbed_short, steps=30, seed=0)
    attempts = [int(path.name) for path in sweep.glob("runs/*/attempts/*")]
    assert attempts == [1, 1]  # no run was begun twice


def test_a_sweep_goes_on_after_a_launcher_was_killed_while_its_jobs_ran(tmp_path, slurm, undisturbed):
    launcher, sweep = start(tmp_path, slurm, "--only", "seed=0")
    wait_for(lambda: list(sweep.glob("runs/*/checkpoint.pt")))
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    run_here("sweep", "tiny.yaml", "--only", "seed=0", cwd=tmp_path, environment=slurm.environment)
    assert_undisturbed(sweep, undisturbed, seed=0)
    assert len(list(sweep.glob("submitit/*/journal.json"))) == 1  # its jobs were waited for, not doubled
    assert [path.name for path in sweep.glob("runs/*/attempts/*")] == ["0001", "0001"]


def test_a_second_launcher_is_refused_and_the_first_goes_on(tmp_path, slurm, undisturbed_short):
    slurm.run("scontrol", "update", "partitionname=debug", "state=down")  # so that the first cannot end meanwhile
    try:
        launcher, sweep = start(tmp_path, slurm, "--only", "seed=0", yaml=ON_SLURM)
        wait_for(lambda: slurm.run("squeue", "-h").strip())
        refuse_second(tmp_path, slurm, launcher)
    finally:
        slurm.run("scontrol", "update", "partitionname=debug", "state=up")
    assert launcher.wait(timeout=300) == 0
    assert_undisturbed(sweep, undisturbed_short, steps=30, seed=0)


def refuse_second(tmp_path, slurm, launcher):
    refused = run_here("sweep", "tiny.yaml", cwd=tmp_path, environment=slurm.environment, expect=2)
    assert "another rad-bench is launching this sweep" in refused.stderr
    assert f"process {launcher.pid}" in refused.stderr


def test_job_ids_that_come_again_on_a_rebuilt_cluster_are_not_mistaken(tmp_path, tmp_path_factory, slurm, undisturbed):
    """On a new controller ids start over; results and jobs are known by names that never come again."""
    launcher, sweep = start(tmp_path, slurm, *ONE)
    wait_for(lambda: list(sweep.glob("runs/*/checkpoint.pt")))
    os.killpg(launcher.pid, signal.SIGKILL)
    faults.cancel_job(slurm, sweep)
    wait_for(lambda: not slurm.run("squeue", "-h").strip())
    rebuilt = slurm_cluster.Slurm(tmp_path_factory.mktemp("rebuilt"))
    try:
        rebuilt.start()
        for _ in range(3):  # strangers' jobs under ids of ours
            rebuilt.run("sbatch", "-o", "/dev/null", "--wrap", "sleep 1")
        run_here("sweep", "tiny.yaml", "--only", "seed=0", cwd=tmp_path, environment=rebuilt.environment)
    finally:
        rebuilt.stop()
    assert_undisturbed(sweep, undisturbed, seed=0)


FAILING = """
class Greedy(GRU):
    def step(self, x_SKD, state):
        if torch.is_grad_enabled() and len(x_SKD) == 8:
            torch.empty(1 << 60)
        return super().step(x_SKD, state)

class Explodes(GRU):
    def step(self, x_SKD, state):
        y, state = super().step(x_SKD, state)
        return (y * torch.inf if torch.is_grad_enabled() and len(x_SKD) == 8 else y), state
"""


def test_failures_of_runs_are_named_and_leave_the_others_alone(tmp_path, slurm):
    """A block that raises, one that asks for more memory than there is, and one whose loss is no number."""
    (tmp_path / "my_block.py").write_text(GRU + FAILING)
    blocks = "none, 'my_block.py:Raises', 'my_block.py:Greedy', 'my_block.py:Explodes'"
    yaml = ON_SLURM.replace("none, {name: lstm, hidden: 8}", blocks).replace("parallel: 2", "parallel: 4")
    (tmp_path / "tiny.yaml").write_text(yaml)
    options = {"cwd": tmp_path, "environment": slurm.environment, "expect": 1}
    errors = run_here("sweep", "tiny.yaml", "--only", "seed=0", **options).stderr
    assert "3 of 4 runs are not done" in errors
    page = (tmp_path / "results" / "tiny" / "report" / "index.html").read_text()
    assert "3 planned runs are missing" in page
    for block, reason in {"Raises": "no such luck", "Greedy": "memory", "Explodes": "loss is nan"}.items():
        (line,) = [line for line in errors.splitlines() if line.startswith(block)]
        assert "failed" in line and reason in line
        assert reason in page


@pytest.fixture
def mount():
    """Mount a file system of a megabyte on a folder."""
    mounted = []

    def mount(folder):
        folder.mkdir(parents=True)
        call = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        if subprocess.run(call, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_fails_its_run_and_spoils_none(tmp_path, slurm, undisturbed_short, mount):
    """One run's folder lies on a disk that fills; the other ends. With room again, the same command ends both."""
    (tmp_path / "tiny.yaml").write_text(ON_SLURM)
    (run,) = plan_runs(load_sweep(tmp_path / "tiny.yaml"), ["seed=0", "memory=lstm"])
    filler = mount(tmp_path / "results" / "tiny" / "runs" / run.name) / "filler"
    filler.write_bytes(bytes((1 << 20) - 100_000))
    options = {"cwd": tmp_path, "environment": slurm.environment}
    errors = run_here("sweep", "tiny.yaml", "--only", "seed=0", **options, expect=1).stderr
    assert "1 of 2 runs are not done" in errors
    assert "No space left" in errors
    filler.unlink()
    run_here("sweep", "tiny.yaml", "--only", "seed=0", **options)
    assert_undisturbed(tmp_path / "results" / "tiny", undisturbed_short, steps=30, seed=0)


def test_a_read_only_folder_is_named_before_anything_is_launched(tmp_path, slurm, mount):
    disk = mount(tmp_path / "disk")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    (tmp_path / "tiny.yaml").write_text(ON_SLURM)
    refused = run_here("sweep", "tiny.yaml", "--out", disk, cwd=tmp_path, environment=slurm.environment, expect=2)
    assert "cannot be written: Read-only file system" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_arrays_are_cut_to_what_slurm_takes_and_resources_go_by_block(tmp_path, tmp_path_factory):
    if not slurm_cluster.installed():
        pytest.skip("SLURM is not installed (Debian: slurm-wlm)")
    small = slurm_cluster.Slurm(tmp_path_factory.mktemp("small"), largest_array=3)
    yaml = LONGER.replace("seed: [0, 1]", "seed: [0, 1, 2, 3]").replace("steps: 400", "steps: 10").replace(
        "slurm: {", "where: {memory=none: {slurm: {timeout: 7m, cpus: 2}}}, slurm: {"
    )  # fmt: skip
    try:
        small.start()
        small.run("scontrol", "update", "partitionname=debug", "state=down")  # jobs wait, so that they can be read
        (tmp_path / "tiny.yaml").write_text(yaml)
        run_here("sweep", "tiny.yaml", "--detach", cwd=tmp_path, environment=small.environment)
        queued = small.run("squeue", "-h", "-r", "-o", "%F %l %c").splitlines()
        status = run_here("status", "results/tiny", cwd=tmp_path, environment=small.environment).stdout
        assert status.endswith("\n8 queued\n")
        assert "PartitionDown" in status
        cancelled = run_here("cancel", "results/tiny", cwd=tmp_path, environment=small.environment).stdout
        assert "cancelled 8 jobs" in cancelled
        wait_for(lambda: not small.run("squeue", "-h", "-r").strip())
    finally:
        small.stop()
    arrays = {}
    for line in queued:
        array, *resources = line.split()
        arrays.setdefault((array, *resources), []).append(line)
    assert sorted((limit, cpus, len(tasks)) for (_, limit, cpus), tasks in arrays.items()) == [
        ("4:00:00", "1", 1), ("4:00:00", "1", 3), ("7:00", "2", 1), ("7:00", "2", 3),
    ]  # fmt: skip
