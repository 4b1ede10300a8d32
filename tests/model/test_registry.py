"""A user's block is loaded with what lies beside it; one that cannot be is reported with what would be right."""

import sys
from pathlib import Path

import pytest
import torch

from rad_bench.config import MemoryConfig
from rad_bench.errors import UserError
from rad_bench.model.registry import block_files, find_block

OLD = "from blocks.memory import MemoryBlock\n\nclass Mine(MemoryBlock):\n    pass\n"
NEW = "from rad_bench.blocks.memory import MemoryBlock"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, from which the top-level `blocks/` of this repository cannot be imported."""
    monkeypatch.chdir(tmp_path)
    elsewhere = [path for path in sys.path if not (Path(path) / "blocks").is_dir()]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *elsewhere])
    yield tmp_path
    sys.modules.pop("blocks", None)


@pytest.mark.parametrize("name", ["old_import.py:Mine", "old_import:Mine"])
@pytest.mark.parametrize("own", [False, True])
def test_an_import_from_blocks_is_answered_with_the_new_one(folder, name, own):
    (folder / "old_import.py").write_text(OLD)
    if own:
        (folder / "blocks.py").touch()  # the user's own module of that name
    with pytest.raises(UserError, match=f"No module named 'blocks.*{NEW}"):
        find_block(name)


def test_another_missing_module_is_not_answered_with_it(folder):
    (folder / "other_import.py").write_text("import blocksy\n")
    with pytest.raises(UserError, match="No module named 'blocksy'") as caught:
        find_block("other_import.py:Mine")
    assert NEW not in str(caught.value)


BASE = """
import torch
from torch import nn
from rad_bench.blocks.memory import MemoryBlock

class Mine(MemoryBlock):
    def initial_state(self, sequences):
        return ()

    def step(self, x_SKD, state):
        return x_SKD * SCALE, state
"""


def test_a_block_may_import_files_beside_it(folder):
    (folder / "scales.py").write_text("SCALE = 3\n\ndef scale():\n    return SCALE\n")
    (folder / "beside.py").write_text("from scales import SCALE, scale\n" + BASE)
    before = list(sys.path)
    block = find_block(f"{folder / 'beside.py'}:Mine")
    assert block(8).step(torch.ones(1, 1, 8), ())[0].max() == 3
    assert sys.path == before
    files = {path.name for path in block_files(MemoryConfig(name=f"{folder / 'beside.py'}:Mine"))}
    assert files == {"beside.py", "scales.py"}


def test_blocks_of_two_folders_do_not_share_a_file_by_its_name(folder):
    for number, place in enumerate(("one", "two")):
        (folder / place).mkdir()
        (folder / place / f"shared_{folder.name}.py").write_text(f"SCALE = {number + 2}\n")
        (folder / place / "mine.py").write_text(f"from shared_{folder.name} import SCALE\n" + BASE)
    assert find_block(f"{folder / 'one' / 'mine.py'}:Mine")(8).step(torch.ones(1, 1, 8), ())[0].max() == 2
    with pytest.raises(UserError, match=r"would be taken for .*one.*rename one of the two"):
        find_block(f"{folder / 'two' / 'mine.py'}:Mine")


def test_a_block_may_be_part_of_a_package(folder):
    package = folder / "my_memories" / "fast"
    package.mkdir(parents=True)
    (folder / "my_memories" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (folder / "my_memories" / "scales.py").write_text("SCALE = 5\n")
    (package / "mine.py").write_text("from ..scales import SCALE\n" + BASE)
    block = find_block(f"{package / 'mine.py'}:Mine")
    assert block(8).step(torch.ones(1, 1, 8), ())[0].max() == 5


def test_files_beside_a_block_shadow_nothing(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[1:])  # the folder itself, which no job has there
    for name in ("random", "torch", "yaml", "blocks"):
        (folder / f"{name}.py").write_text("raise RuntimeError('not me')\n")
    (folder / "shadow.py").write_text("import random, yaml\nSCALE = random.Random(0).randint(7, 7)\n" + BASE)
    assert find_block(f"{folder / 'shadow.py'}:Mine")(8).step(torch.ones(1, 1, 8), ())[0].max() == 7


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = (\n", "SyntaxError"),
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("class Mine:\n    pass\n", "not a subclass of rad_bench.blocks.memory.MemoryBlock"),
        ("Mine = 3\n", "not a subclass"),
        ("class Mein:\n    pass\n", "no class 'Mine'"),
    ],
)
def test_a_block_that_cannot_be_loaded_is_named_with_its_file(folder, code, words):
    (folder / "bad.py").write_text(code)
    with pytest.raises(UserError, match=r"bad\.py") as caught:
        find_block(f"{folder / 'bad.py'}:Mine")
    assert words in str(caught.value)
