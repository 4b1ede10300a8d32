"""The same sweep on a real SLURM: same frames, detached launches, jobs that are cancelled."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from tests.sweep import faults
from tests.sweep.tiny import ON_SLURM, command, rad_bench, run_here, wait_for

pytestmark = pytest.mark.slow  # a real SLURM takes seconds to act


def test_slurm_gives_the_frames_that_this_machine_gives(tmp_path, slurm, tiny_sweep):
    (tmp_path / "tiny.yaml").write_text(ON_SLURM)
    # `auto` takes SLURM, since there is an sbatch and the sweep names a partition.
    there = run_here("sweep", "tiny.yaml", "--only", "seed=0", cwd=tmp_path, environment=slurm.environment)
    assert "left (slurm)" in there.stdout
    slurms, ours = (pd.read_parquet(at / "results" / "tiny" / "frames.parquet") for at in (tmp_path, tiny_sweep))
    pd.testing.assert_frame_equal(slurms, ours[ours["seed"] == 0].reset_index(drop=True))
    jobs = list((tmp_path / "results" / "tiny" / "submitit").glob("*/*_submitted.pkl"))
    assert len(jobs) == 2


def test_a_detached_sweep_goes_on_by_itself_and_is_reported_by_the_same_command(tmp_path, slurm):
    (tmp_path / "tiny.yaml").write_text(ON_SLURM)
    options = {"cwd": tmp_path, "environment": slurm.environment}
    which = ("sweep", "tiny.yaml", "--only", "memory=none", "--only", "seed=0")
    rad_bench(*which, "--detach", **options)
    sweep = tmp_path / "results" / "tiny"
    assert not (sweep / "frames.parquet").exists()
    wait_for(lambda: list(sweep.glob("runs/*/result.json")))
    assert run_here("status", "results/tiny", **options).stdout.endswith("\n1 done\n")
    assert "1 of 1 runs are done" in run_here(*which, **options).stdout
    assert (sweep / "report" / "index.html").exists()


def test_a_cancelled_job_is_named_and_the_same_command_goes_on_where_it_stopped(tmp_path, slurm):
    (tmp_path / "tiny.yaml").write_text(ON_SLURM.replace("steps: 30", "steps: 1000"))
    sweep = ("sweep", "tiny.yaml", "--only", "memory=none", "--only", "seed=0")
    argv, environment = command(*sweep, environment=slurm.environment)
    launcher = subprocess.Popen(argv, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    runs = tmp_path / "results" / "tiny" / "runs"
    wait_for(lambda: list(runs.glob("*/checkpoint.pt")))
    faults.cancel_job(slurm, tmp_path / "results" / "tiny")
    _, errors = launcher.communicate(timeout=240)
    assert launcher.returncode == 1
    assert "stopped" in errors and "1 of 1 runs are not done" in errors
    run_here(*sweep, cwd=tmp_path, environment=slurm.environment)
    (log,) = runs.glob("*/log.jsonl")
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"training"' in line]
    assert steps == list(range(10, 1001, 10))
    (result,) = runs.glob("*/result.json")
    assert json.loads(result.read_text())["training"]["steps"] == 1000


def test_one_run_on_two_nodes_learns_what_one_process_learns(tmp_path, slurm, tiny_sweep):
    (tmp_path / "tiny.yaml").write_text(ON_SLURM)
    which = ("--only", "memory=lstm", "--only", "seed=0")
    two_nodes = ("--set", "launch.slurm.nodes=2")
    run_here("sweep", "tiny.yaml", *which, *two_nodes, cwd=tmp_path, environment=slurm.environment)
    losses = []
    for at in (tmp_path, tiny_sweep):
        (log,) = at.glob("results/tiny/runs/lstm*-seed0-*/log.jsonl")
        losses.append([line["loss"] for line in map(json.loads, log.read_text().splitlines()) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 3
    (environment,) = tmp_path.glob("results/tiny/runs/*/environment.json")
    told = json.loads(environment.read_text())
    assert (told["processes"], told["slurm_nodes"]) == (2, "n[1-2]")


def test_setup_lines_and_a_python_of_its_own_are_used_by_jobs(tmp_path, slurm):
    """What modules and containers need: shell lines before the job, and another way to start Python."""
    contained = tmp_path / "contained"
    contained.write_text(f'#!/bin/sh\ntouch {tmp_path}/by-python-$PREPARED\nexec {sys.executable} "$@"\n')
    contained.chmod(0o755)
    extra = f"setup: [export PREPARED=by-setup], python: {contained}, "
    (tmp_path / "tiny.yaml").write_text(ON_SLURM.replace("slurm: {", f"slurm: {{{extra}"))
    which = ("--only", "memory=none", "--only", "seed=0")
    run_here("sweep", "tiny.yaml", *which, cwd=tmp_path, environment=slurm.environment)
    assert (tmp_path / "by-python-by-setup").exists()


def test_a_job_that_cannot_begin_is_named_with_its_last_words_and_not_tried_again(tmp_path, slurm):
    """Without a Python, or without what its setup asks for."""
    where = "where: {memory=none: {slurm: {python: /nope/python}}, memory=lstm: {slurm: {setup: [cd /nope/setup]}}}, "
    (tmp_path / "tiny.yaml").write_text(ON_SLURM.replace("slurm: {", f"{where}slurm: {{"))
    options = {"cwd": tmp_path, "environment": slurm.environment, "expect": 1}
    errors = run_here("sweep", "tiny.yaml", "--only", "seed=0", **options).stderr
    assert "2 of 2 runs are not done" in errors
    for block, place in {"none": "/nope/python", "lstm": "/nope/setup"}.items():
        (line,) = [line for line in errors.splitlines() if line.startswith(block)]
        assert "its job failed before the run began: " in line
        assert f"{place}: No such file or directory (" in line and line.endswith("_0_log.err)")
    assert len(list((tmp_path / "results" / "tiny" / "submitit").iterdir())) == 2  # one submission for each


def test_what_sbatch_refuses_is_told_in_its_own_words(tmp_path, slurm):
    (tmp_path / "tiny.yaml").write_text(ON_SLURM.replace("partition: debug", "partition: nowhere"))
    refused = rad_bench("sweep", "tiny.yaml", cwd=tmp_path, environment=slurm.environment, expect=2)
    *its_own, ours = refused.stderr.strip().splitlines()  # submitit lets what sbatch says through
    assert "nowhere" in its_own[0]
    assert "sbatch accepted no job" in ours and "Invalid partition name" in ours
    assert "Traceback" not in refused.stderr
