"""Every command and every piece of code in the README, run as it stands there, but for sizes."""

import ctypes.util
import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib

from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep
from tests.sweep import slurm as slurm_cluster
from tests.sweep.tiny import ROOT, command, wait_for

DRAWS_MAZES = importlib.util.find_spec("memory_maze") and ctypes.util.find_library("OSMesa")
README = (ROOT / "README.md").read_text()
FEW = (
    "--only seed=0 --set run.training.steps=4 --set run.training.batch=2 --set run.training.frames=10 --set "
    "run.training.loss_from=4 --set run.evaluation.episodes=2 --set run.evaluation.context=8 --set "
    "run.evaluation.horizon=4 --set run.evaluation.probe=0"
)
SHOWN = ("none", "mamba2", "attention")  # blocks that the README looks at
SMALLER = (  # what is asked for, and what is run instead
    (r"^(rad-bench sweep .*)$", rf"\1 {FEW}"),
    (r"(sweeps/memory_blocks.yaml) --only", rf"\1 {' '.join(f'--only memory={name}' for name in SHOWN)} --only"),
    (r"(sweeps/memory_maze.yaml)", r"\1 --only memory=none"),
    (r"(--set name=mine)", r"\1 --only memory=my_block.py:GRU"),
    (r"--episodes 40 --steps 500", "--episodes 3 --steps 40"),
    (
        r"slurm.partition=gpu",
        "slurm.partition=debug --set launch.slurm.memory_gb=2 --only memory=none --set name=there",
    ),
    (r"slurm.gpus=1", "slurm.gpus=0"),
    (r"^(rad-bench play .*)$", r"\1 --port 0"),
    (r"^python ", f"{sys.executable} "),
    (r"^(rad-bench plan .*)$", r"\1 --no-probe"),
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands():
    """The README's command lines, each part of an `a && b` by itself, without comments and leading assignments."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    parts = [part.split("   #")[0].strip() for line in lines for part in line.split(" && ")]
    return [re.sub(r"^(\w+=\S+ )+", "", part) for part in parts]


def test_what_the_readme_installs_is_there_to_be_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = (ROOT / "constraints.txt").read_text()
    installs = [line for line in commands() if line.startswith("pip ")]
    assert len(installs) >= 4
    for line in installs:
        extra = re.search(r"-e '?\.(?:\[(\w[\w-]*)\])?'?$", line)
        if extra:
            assert extra[1] is None or extra[1] in project["optional-dependencies"], line
        else:
            assert line.split()[-1] in pinned, f"{line}: not what CI installs and tests"
    # The test command itself is what CI runs, word for word.
    (tests,) = [line for block in blocks("sh") for line in block.splitlines() if "pytest" in line]
    assert f"\n{tests}\n" in (ROOT / ".ci" / "run").read_text()


def test_the_settings_that_the_readme_names_are_those_of_its_sweep():
    run = plan_runs(load_sweep(ROOT / "sweeps" / "memory_blocks.yaml"))[0].config
    rows = re.findall(r"^\| (`run\..*?) \|.*\| (.+) \|$", README, re.MULTILINE)
    assert len(rows) >= 4
    for paths, values in rows:
        first, *rest = re.findall(r"`([\w.]+)`", paths)
        section = first.rpartition(".")[0]
        names = [path if not path.startswith(".") else section + path for path in (first, *rest)]
        found = [functools.reduce(getattr, name.split(".")[1:], run) for name in names]
        assert [str(value) for value in found] == values.split(", "), names


def test_the_sweep_of_variants_in_the_readme_can_be_planned(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    (tmp_path / "my_block.py").write_text(next(code for code in blocks("python") if code.startswith("# my_block.py")))
    (variants,) = [code for code in blocks("yaml") if code.startswith("extends")]
    (tmp_path / "variants.yaml").write_text(variants)
    monkeypatch.chdir(tmp_path)
    runs = plan_runs(load_sweep(tmp_path / "variants.yaml"))
    assert {run.label: run.config.training.learning_rate for run in runs} == {
        "lstm / lstm": 4e-3, "GRU / gru": 4e-3, "GRU / slow gru": 1e-3,
    }  # fmt: skip


def test_every_other_command_of_the_readme_runs(tmp_path, request):
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    for code in blocks("python"):
        (tmp_path / re.match(r"# (\w+\.py)\n", code)[1]).write_text(code)
    argv, environment = command(environment=dict(os.environ))
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "rad-bench").write_text(f'#!/bin/sh\nexec {" ".join(argv)} "$@"\n')
    (tools / "rad-bench").chmod(0o755)
    ran = 0
    for line in commands():
        if line.startswith(("pip ", "pytest ")):
            continue
        assert line.startswith(("rad-bench ", "python ")), f"{line}: no test knows how to run this"
        shell = line
        for pattern, instead in SMALLER:
            shell = re.sub(pattern, instead, shell)
        if (re.search("memory[-_]maze", line) and not DRAWS_MAZES) or (
            "slurm" in line and not slurm_cluster.installed()
        ):
            continue
        around = request.getfixturevalue("slurm").environment if "slurm" in line else environment
        around = {**environment, **around, "PATH": f"{tools}{os.pathsep}{around['PATH']}", "MUJOCO_GL": "osmesa"}
        with subprocess.Popen(
            ["bash", "-c", shell], cwd=tmp_path, env=around, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        ) as process:  # fmt: skip
            if " play " in line:
                assert "http://127.0.0.1:" in wait_for(process.stdout.readline), line
                os.killpg(process.pid, signal.SIGINT)
            told = process.communicate(timeout=600)[0]
        assert process.returncode == 0, f"{shell}\n{told}"
        ran += 1
    assert ran >= 8
    for made in ("results/memory_blocks/report/index.html", "results/mine/report/index.html", "swap.mp4"):
        assert (tmp_path / made).stat().st_size > 1000
