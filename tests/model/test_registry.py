"""A block that cannot be imported is reported with the import that is right."""

import sys
from pathlib import Path

import pytest

from rad_bench.errors import UserError
from rad_bench.model.registry import find_block

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
