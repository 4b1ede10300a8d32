"""Every command and every piece of code in README and docs, run as it stands there, but for sizes."""

import ctypes.util
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib

import click
import pytest
import yaml

from rad_bench.cli import cli
from rad_bench.config import TuneConfig
from rad_bench.data.collect.luanti.episodes import why_not
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep
from tests.sweep import slurm as slurm_cluster
from tests.sweep.tiny import ROOT, command, run_here, wait_for

MOST_LINES = 160  # of the README
DOCUMENTS = {  # in the order in which they are read: what an earlier one shows, a later one need not run
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md", "docs/own-block.md", "docs/report.md", "docs/score.md", "docs/data.md", "docs/cluster.md",
        "docs/gpu.md", "docs/cli.md", "docs/how-it-works.md", "results/README.md",
    )
}  # fmt: skip
SIZES = [
    "run.training.steps=4", "run.training.batch=2", "run.training.frames=10", "run.training.loss_from=4",
    "run.evaluation.episodes=2", "run.evaluation.context=8", "run.evaluation.horizon=4", "run.evaluation.probe=0",
    "run.evaluation.at=[]", "launch.calibrate=false",
]  # fmt: skip
FEW = "".join(f" --set {size}" for size in SIZES)
SWEPT = "rad-bench sweep sweeps/memory_blocks.yaml"  # the sweep whose results the documents look at
SHOWN = "".join(f" --only memory={name}" for name in ("none", "mamba2", "attention"))
SMALLER = (  # what is asked for, and what is run instead
    (r"steps=2000", "steps=6 --set run.evaluation.at=[]"),
    (r"horizon=160", "horizon=6"),
    (rf"^({SWEPT})(?!.*(name=|--out|slurm|horizon))", rf"\1{SHOWN}"),
    (r"(horizon=6|--set name=longer)", r"\1 --only memory=none"),
    (r"^(rad-bench sweep \S+)", rf"\1{FEW}"),
    (r"^(rad-bench sweep (?:(?!seed=).)*)$", r"\1 --only seed=0"),
    (r"--out (here|there)", r"--only memory=none --out \1"),
    (r"(sweeps/(?:memory_maze|voxels|luanti).yaml)", r"\1 --only memory=none"),
    (r"(--set name=mine)", r"\1 --only memory=examples/gru_block.py:GRU"),
    (r"--episodes 256 --steps 500", "--episodes 3 --steps 60"),
    (r"--episodes 40 --steps 500", "--episodes 2 --steps 20"),
    (r"--episodes 80 --steps 300", "--episodes 2 --steps 30"),
    (
        r"slurm.partition=gpu",
        "slurm.partition=debug --set launch.slurm.memory_gb=2 --only memory=none --set name=there",
    ),
    (r"slurm.gpus=1", "slurm.gpus=0"),
    (r"^(rad-bench sweep (?:(?!slurm).)*)$", r"\1 --cluster debug"),  # so that no run is a process
    (r"^(rad-bench play .*)$", r"\1 --port 0"),
    (r"^python (examples/\S+)$", rf"{sys.executable} \1 {' '.join(SIZES)}"),
    (r"^(rad-bench plan .*)$", r"\1 --no-probe"),
    (r"^(rad-bench autoencoder train .*)$", r"\1 --steps 3 --threads 1"),
    (r"^(rad-bench tasks \S+)", rf"\1{FEW}"),
    (r"^python (examples/outside_model.py .*)$", rf"{sys.executable} \1"),
)
MADE = {  # by the commands of a document
    "README.md": "results/mine/report/index.html",
    "docs/report.md": "swap.gif",
    "docs/own-block.md": "results/from_python/report/index.html",
    "docs/score.md": "joined/report/index.html",
    "docs/data.md": "results/own/report/index.html",
    "docs/cluster.md": "joined/report/index.html",
}
WITHOUT_LUANTI = why_not()  # the engine is asked for its version: once, not for each line
APART = (" play ", " data collect ", "slurm")  # what is run by a shell, as it stands there
NOT_RUN = ("pip ", "pytest ", "python3 -m venv", ". .venv")


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENTS[document], re.DOTALL | re.MULTILINE)


def commands(document):
    """Return a document's command lines, each part of an `a && b` by itself, without leading assignments."""
    lines = [line for block in blocks(document, "sh") for line in block.splitlines() if line.strip()]
    parts = [part.strip() for line in lines for part in line.split(" && ")]
    return [re.sub(r"^(\w+=\S+ )+", "", part) for part in parts]


def to_run(document):
    """Return the commands of a document that no earlier one runs, and that need no more than this machine has."""
    seen = {shrunken(SWEPT)}  # by the fixture `desk`
    for name in DOCUMENTS:
        lines = [line for line in commands(name) if not line.startswith(NOT_RUN) and shrunken(line) not in seen]
        if name == document:
            break
        seen |= {shrunken(line) for line in lines}
    draws_mazes = importlib.util.find_spec("memory_maze") and ctypes.util.find_library("OSMesa")
    lines = [line for line in lines if draws_mazes or not re.search("memory[-_]maze", line)]
    lines = [line for line in lines if not WITHOUT_LUANTI or "luanti" not in line]
    return [line for line in dict.fromkeys(lines) if slurm_cluster.installed() or "slurm" not in line]


def shrunken(line):
    for pattern, instead in SMALLER:
        line = re.sub(pattern, instead, line)
    return line


def run(line, folder, environment):
    """Run a command line in a folder that has `bin/rad-bench`; what serves a page is interrupted once it does.

    Most commands are split by a shell and run in this process, which need not import everything for each.
    """
    if line.startswith("rad-bench ") and not any(words in line for words in APART):
        split = ["bash", "-c", f"printf '%s\\0' {shrunken(line)}"]
        words = subprocess.run(split, cwd=folder, capture_output=True, text=True, check=True).stdout.split("\0")
        run_here(*words[1:-1], cwd=folder, environment=environment)
        return
    environment = {
        **environment, "PATH": f"{folder / 'bin'}{os.pathsep}{environment['PATH']}", "MUJOCO_GL": "osmesa",
    }  # fmt: skip
    with subprocess.Popen(
        ["bash", "-c", shrunken(line)], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        if " play " in line:
            assert "http://127.0.0.1:" in wait_for(process.stdout.readline), line
            os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, f"{shrunken(line)}\n{output}"


@pytest.fixture
def desk(once, tmp_path):
    """A folder with sweeps, examples, `bin/rad-bench` and the results of the sweep that the documents look at."""

    def fill(folder):
        shutil.copytree(ROOT / "sweeps", folder / "sweeps")
        shutil.copytree(ROOT / "examples", folder / "examples")
        for world in ("memory_maze", "voxels", "luanti"):
            autoencoder = f"results/reference/{world}/autoencoder"
            shutil.copytree(ROOT / autoencoder, folder / autoencoder)
        argv, environment = command()
        (folder / "bin").mkdir()
        (folder / "bin" / "rad-bench").write_text(f'#!/bin/sh\nexec {" ".join(argv)} "$@"\n')
        (folder / "bin" / "rad-bench").chmod(0o755)
        run(SWEPT, folder, environment)

    return shutil.copytree(once("documents", fill), tmp_path / "desk")


@pytest.mark.slow
@pytest.mark.parametrize(
    "document",
    [name for name in DOCUMENTS if to_run(name)],
)
def test_every_command_of_a_document_runs(document, desk, request):
    for line in to_run(document):
        assert line.startswith(("rad-bench ", "python ")), f"{line}: no test knows how to run this"
        around = request.getfixturevalue("slurm").environment if "slurm" in line else None
        run(line, desk, command(environment=around)[1])
    if document in MADE:
        assert (desk / MADE[document]).stat().st_size > 1000


def test_every_example_is_run_by_a_document():
    shown = " ".join(line for document in DOCUMENTS for line in commands(document))
    assert [path.name for path in (ROOT / "examples").glob("*.py") if f"examples/{path.name}" not in shown] == []


def test_the_block_of_the_readme_is_the_example():
    assert blocks("README.md", "python") == [(ROOT / "examples" / "gru_block.py").read_text()]


def test_the_readme_is_one_reading():
    assert len(DOCUMENTS["README.md"].splitlines()) <= MOST_LINES


def test_what_the_documents_install_is_there_to_be_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = (ROOT / "constraints.txt").read_text()
    installs = [line for document in DOCUMENTS for line in commands(document) if line.startswith("pip ")]
    assert len(installs) >= 4
    for line in installs:
        extra = re.search(r"-e '?\.(?:\[(\w[\w-]*)\])?'?$", line)
        if extra:
            assert extra[1] is None or extra[1] in project["optional-dependencies"], line
        else:
            assert line == "pip install wheel" or line.split()[-1] in pinned, f"{line}: not what CI installs and tests"
    # The test command itself is what CI runs, word for word.
    (tests,) = [line for block in blocks("README.md", "sh") for line in block.splitlines() if "pytest" in line]
    (kernels,) = [line for block in blocks("docs/gpu.md", "sh") for line in block.splitlines() if "mamba-ssm" in line]
    for line in (tests, kernels):
        assert f"\n{line}\n" in (ROOT / ".ci" / "run").read_text()
    assert "pip install wheel &&" in kernels  # it is built without isolation, and old virtual environments lack it


def test_every_link_leads_somewhere():
    for document, text in DOCUMENTS.items():
        for target in re.findall(r"\]\((?!https:)([^)#]*)", text):
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"


def test_every_interval_in_the_results_is_in_a_published_table():
    def intervals(text):
        number = r"([+-]?\d+\.\d+)"
        found = re.findall(rf"{number}(?: dB)? \[{number}, {number}\]", text)
        return {tuple(map(float, triple)) for triple in found}

    tables = (ROOT / "results" / "reference").glob("*/tables/*.md")
    published = {triple for path in tables for triple in intervals(path.read_text(encoding="utf-8"))}
    published |= {(-mean, -high, -low) for mean, low, high in published}  # a gain, told as a loss
    for document in ("README.md", "results/README.md"):
        for told in intervals(DOCUMENTS[document]):
            near = (all(abs(a - b) < 0.051 for a, b in zip(told, triple, strict=True)) for triple in published)
            assert any(near), f"{document}: {told}"


def test_the_launches_in_the_documents_are_those_that_were_counted():
    counted = json.loads((ROOT / "results/reference/bench/launches-cpu.json").read_text())["launches"]
    (table,) = re.findall(r"launches of a layer.*\n\|-.*\n((?:\|.*\n)+)", DOCUMENTS["docs/gpu.md"])
    told = [re.findall(r"[\w,]+", row) for row in table.splitlines()]
    rows = [(each["block"], each["forward"] + each["backward"], each["step"]) for each in counted]
    assert sorted(told) == sorted(
        [block, f"{layer:,}", f"{step:,}", f"{step * 0.005:,.0f}"] for block, layer, step in rows
    )


def test_the_table_of_commands_has_every_command_and_names_their_options():
    shown = set()
    for words, options in re.findall(r"^\| `rad-bench ([a-z ]+).*?\|.*\| (.*) ?\|$", DOCUMENTS["docs/cli.md"], re.M):
        verb = cli
        for word in words.split():
            assert isinstance(verb, click.Group)
            verb = verb.commands[word]
        known = {option for parameter in verb.params for option in parameter.opts}
        assert set(re.findall(r"`(--[\w-]+)`", options)) <= known, words
        shown.add(verb)
    groups = [verb for verb in cli.commands.values() if isinstance(verb, click.Group)]
    inner = {verb for group in groups for verb in group.commands.values()}
    assert shown == ({*cli.commands.values()} | inner) - {group for group in groups if not group.invoke_without_command}


def test_the_settings_in_the_documents_are_those_of_the_sweep():
    settings = plan_runs(load_sweep(ROOT / "sweeps" / "memory_blocks.yaml"))[0].config
    rows = re.findall(r"^\| (`run\..*?) \|.*\| (.+) \|$", DOCUMENTS["docs/cli.md"], re.MULTILINE)
    assert len(rows) >= 4
    for paths, values in rows:
        first, *rest = re.findall(r"`([\w.]+)`", paths)
        section = first.rpartition(".")[0]
        names = [path if not path.startswith(".") else section + path for path in (first, *rest)]
        actual = [functools.reduce(getattr, name.split(".")[1:], settings) for name in names]
        assert ", ".join(map(str, actual)) == values, names


def test_every_sweep_is_in_the_table_of_sweeps():
    table = DOCUMENTS["docs/cli.md"].partition("## The sweeps")[2]
    assert {path.stem for path in (ROOT / "sweeps").glob("*.yaml")} <= set(re.findall(r"`(\w+)`", table))


def test_the_sweep_of_variants_can_be_planned(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (variants,) = blocks("docs/own-block.md", "yaml")
    (tmp_path / "variants.yaml").write_text(variants)
    monkeypatch.chdir(tmp_path)
    runs = plan_runs(load_sweep(tmp_path / "variants.yaml"))
    assert {run.label: run.config.training.learning_rate for run in runs} == {
        "lstm / lstm": 4e-3, "GRU / gru": 4e-3, "GRU / slow gru": 1e-3,
    }  # fmt: skip


def test_the_launch_of_the_cluster_page_can_be_planned(tmp_path):
    (launch,) = blocks("docs/cluster.md", "yaml")
    sweep = {"extends": str(ROOT / "sweeps" / "memory_blocks.yaml"), "name": "there", **yaml.safe_load(launch)}
    (tmp_path / "there.yaml").write_text(yaml.safe_dump(sweep))
    assert plan_runs(load_sweep(tmp_path / "there.yaml"))


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["repository-code"] == project["urls"]["Repository"]


def test_the_tuning_in_the_documents_is_that_of_the_sweep():
    (tune,) = blocks("docs/cli.md", "yaml")
    shipped = load_sweep(ROOT / "sweeps" / "more_memories.yaml").tune
    assert shipped == TuneConfig.model_validate(yaml.safe_load(tune)["tune"])
