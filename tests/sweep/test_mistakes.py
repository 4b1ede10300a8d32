"""A user's mistake gets one clear paragraph and a non-zero exit; nothing is launched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rad_bench.errors import UserError
from rad_bench.store import strict_yaml
from rad_bench.training.device import choose_device
from rad_bench.training.distributed import Group
from tests.sweep.tiny import run_here

GOOD = """
name: tiny
run:
  data: {name: rooms, size: 16}
  trunk: {width: 16, depth: 1, patch: 8, window: 2}
grid:
  memory: [none, lstm]
  seed: [0, 1]
"""

MISTAKES = {
    "typo in a key": (GOOD.replace("window", "windw"), "run.trunk.windw", "did you mean 'window'"),
    "typo in a data key": (GOOD.replace("size", "siez"), "run.data.siez", "did you mean 'size'"),
    "typo in an axis": (GOOD.replace("seed:", "sead:"), "grid.sead", "did you mean 'seed'"),
    "unknown block": (GOOD.replace("lstm", "lstn"), "no block 'lstn'", "did you mean 'lstm'"),
    "unknown option": (GOOD.replace("lstm", "{name: lstm, hiden: 3}"), "no option 'hiden'", "did you mean 'hidden'"),
    "option of a wrong type": (GOOD.replace("lstm", "{name: lstm, hidden: many}"), "'hidden' is 'many'", "integer"),
    "impossible option": (GOOD.replace("lstm", "{name: lstm, hidden: 0}"), "lstm", "hidden >= 1"),
    "value of a wrong type": (GOOD.replace("width: 16", "width: wide"), "run.trunk.width", "integer"),
    "impossible value": (GOOD.replace("width: 16", "width: 18"), "run.trunk", "multiple of 4"),
    "impossible patch": (GOOD.replace("patch: 8", "patch: 7"), "trunk.patch 7", "16 x 16"),
    "unknown data": (GOOD.replace("rooms", "room"), "run.data", "'rooms', 'voxels', 'memory_maze'"),
    "missing data": (GOOD.replace("rooms, size: 16", "memory_maze, path: nowhere"), "nowhere", "does not exist"),
    "broken YAML": (GOOD + "launch: {a: [}\n", "line 9", "not valid YAML"),
    "key given twice": (GOOD + "name: other\n", "line 9", "given twice"),
    "alias": ("name: &a x\nrun: *a\n", "line 2", "aliases"),
    "binary file": (b"\x00\x9f\xff\xfe" * 50, "bad.yaml", "not a text file"),
    "empty file": ("", "bad.yaml", "empty"),
    "a list": ("- none\n- lstm\n", "bad.yaml", "mapping"),
    "name that leaves the folder": (GOOD.replace("name: tiny", "name: ../tiny"), "name", "'../tiny'"),
    "the same run twice": (GOOD.replace("[0, 1]", "[0, 0]"), "twice", "seed 0"),
    "extends itself": (GOOD + "extends: bad.yaml\n", "extends", "circle"),
    "missing file of a block": (GOOD.replace("lstm", "mine.py:GRU"), "mine.py", "no file"),
    "batch that cannot be shared out": (GOOD + "launch: {processes: 3}\n", "run.training.batch: 8", "launch.processes"),
    "where of no axis": (GOOD + "launch: {where: {memroy=lstm: {}}}\n", "launch.where memroy", "did you mean 'memory'"),
    "typo in a where": (GOOD + "launch: {where: {memory=lstm: {thread: 2}}}\n", "where.thread", "'threads'"),
    "time in words": (
        GOOD + "launch: {slurm: {timeout: 4 hours}}\n",
        "launch.slurm.timeout: is '4 hours'",
        "30m, 4h or 2d",
    ),
    "time without a unit": (GOOD + "launch: {slurm: {timeout: 90}}\n", "launch.slurm.timeout: is 90", "30m, 4h or 2d"),
    "one GPU for two": (GOOD + "launch: {device: 'cuda:1', processes: 2}\n", "launch", "one GPU"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_and_nothing_is_launched(tmp_path, mistake):
    content, *words = MISTAKES[mistake]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (line,) = run_here("sweep", "bad.yaml", cwd=tmp_path, expect=2).stderr.strip().splitlines()
    for word in words:
        assert word in line
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_mistakes_on_the_command_line_are_named(tmp_path):
    good = tmp_path / "good.yaml"
    good.write_text(GOOD)
    for arguments, *words in (
        (("sweep", "nothere.yaml"), "nothere.yaml", "No such file"),
        (("sweep", good, "--set", "run.trunk.windw=3"), "did you mean 'window'"),
        (("sweep", good, "--set", "training.steps=3"), "did you mean 'run.training.steps'?"),
        (("sweep", good, "--only", "memory=gru"), "no value 'gru'", "lstm"),
        (("swep", good), "did you mean 'sweep'"),
        (("status", tmp_path), "not the folder of a sweep"),
    ):
        (line,) = run_here(*arguments, cwd=tmp_path, expect=2).stderr.strip().splitlines()
        for word in words:
            assert word in line
    assert [p.name for p in tmp_path.iterdir()] == ["good.yaml"]


def test_what_is_written_is_read_back_as_it_was():
    tree = {
        "key": "9e0bdde6a66d",
        "text": "1e5",
        "number": 1e5,
        "small": 1e-7,
        "whole": 10,
        "also text": "1.5",
        "no": "no",
    }
    assert strict_yaml.load(strict_yaml.dump(tree)) == tree
    assert strict_yaml.load("[1e-3, 2E+4, -1e3, 9e0bd, 1.5e3]") == [1e-3, 2e4, -1e3, "9e0bd", 1.5e3]


@pytest.mark.parametrize(("device", "reason"), [("gpu", "none of that name"), ("cuda", "sees no GPU")])
def test_a_device_that_is_not_there_is_named(monkeypatch, device, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"device '{device}'.*{reason}"):
        choose_device(device, Group())


def test_help_answers_without_loading_torch(tmp_path):
    probe = (
        "import sys; from rad_bench.cli import main; sys.argv = ['rad-bench', '--help']\n"
        "try: main()\nfinally: print('loaded', {'torch', 'pandas', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    answer = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True)
    assert "sweep" in answer.stdout
    assert "loaded set()" in answer.stdout
