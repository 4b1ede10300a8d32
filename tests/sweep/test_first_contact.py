"""The script for the first minutes on a GPU: all steps run, one that fails stops no other, and a table says it."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.sweep.test_data_fits import mazes
from tests.sweep.tiny import ROOT, command

STEPS = ["memory", "check", "bench", "sweep"]
FEWER = """
import sys
from rad_bench.model import registry
if sys.argv[1] != "sweep":
    registry.block_names = lambda: ["none", "feedforward"]
    from rad_bench.bench import suite
    suite.KINDS = {"step": suite.KINDS["step"]}
from rad_bench.cli import main
main()
"""
SMALLER = {  # at which sizes the sweep is run
    "data.path": "mazes", "data.size": 16, "data.held_out": 0.5, "data.stride": 1, "autoencoder": "none",
    "trunk.width": 16, "trunk.heads": 2, "trunk.depth": 1, "trunk.patch": 8, "match.budget": 3000,
    "training.steps": 2, "training.batch": 2, "training.frames": 12, "training.loss_from": 6, "training.warmup": 1,
    "evaluation.episodes": 2, "evaluation.context": 10, "evaluation.horizon": 4, "evaluation.probe": 0,
    "evaluation.at": [], "evaluation.strips": 0,
}  # fmt: skip


def first_contact(folder, *arguments, program, expect=0, **variables):
    """Run the script, and return the rows of its table as lists of words."""
    environment = {**command()[1], "RAD_BENCH": program, **variables}
    told = subprocess.run(
        [ROOT / "sweeps" / "gpu" / "first_contact.sh", "out", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    outputs = [path.read_text() for path in sorted((folder / "out").glob("*.txt"))]
    assert told.returncode == expect, "\n".join([told.stdout, told.stderr, *outputs])
    lines = told.stdout.splitlines()
    return [line.split() for line in lines[lines.index(next(x for x in lines if x.startswith("step "))) + 1 :]]


@pytest.fixture
def program(tmp_path):
    """A program that says its arguments, and fails at `check`."""
    path = tmp_path / "program"
    path.write_text('#!/bin/sh\necho "$@"\n[ "$1" != check ] || exit 3\n[ "$1" != sweep ] || sleep "${SLEEP:-0}"\n')
    path.chmod(0o755)
    return str(path)


def test_a_step_that_fails_stops_no_other(tmp_path, program):
    rows = first_contact(tmp_path, "cpu", "--set", "run.trunk.width=16", program=program, expect=1)
    assert [(name, status) for name, status, *_ in rows] == [(name, "3" if name == "check" else "0") for name in STEPS]
    said = {name: (tmp_path / output).read_text().split() for name, _, _, output in rows}
    assert said["memory"][:4] == ["bench", "memory", "--device", "cpu"] and said["check"][1:3] == ["--device", "cpu"]
    assert said["sweep"][-4:] == ["--set", "launch.device=cpu", "--set", "run.trunk.width=16"]


def test_one_step_may_be_run_alone_on_a_gpu_as_long_as_its_limit(tmp_path, program):
    ((name, status, *_),) = first_contact(tmp_path, program=program, expect=1, STEPS="sweep", LIMIT="0.2", SLEEP="60")
    assert (name, status) == ("sweep", "124")
    assert "launch.device=cuda" in (tmp_path / "out" / "sweep.txt").read_text()


@pytest.mark.slow
def test_all_steps_run_at_toy_size(tmp_path):
    mazes(tmp_path / "mazes", (60,) * 4)
    (tmp_path / "fewer.py").write_text(FEWER)
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    sets = [part for path, value in SMALLER.items() for part in ("--set", f"run.{path}={value}")]
    rows = first_contact(
        tmp_path, "cpu", *sets, "--set", "grid.memory=[none, ttt]", "--set", "launch.calibrate=false",
        "--cluster", "debug",
        program=f"{sys.executable} {tmp_path / 'fewer.py'}",
    )  # fmt: skip
    assert [(name, status) for name, status, *_ in rows] == [(name, "0") for name in STEPS]
    out = tmp_path / "out"
    peaks = json.loads((out / "bench" / "memory-cpu.json").read_text())["peaks"]
    assert [peak["block"] for peak in peaks] == ["none", "feedforward"]
    assert json.loads((out / "bench" / "step-cpu.json").read_text())["comparisons"]
    assert os.listdir(out / "check")
    assert len(list(out.rglob("result.json"))) == 2
    assert (out / "gpu_first_contact" / "report" / "index.html").exists()
