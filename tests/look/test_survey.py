"""`rad-bench data check`, `show` and `pack` as a user types them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rad_bench.cli import cli
from rad_bench.data import open_folder
from rad_bench.errors import UserError
from rad_bench.look.survey import survey


def episode(number: int, frames: int = 60) -> dict[str, Any]:
    """Walk ahead for the first half, and the same way back for the second."""
    rng, half = np.random.default_rng(number), frames // 2
    place = np.concatenate([np.arange(half), np.arange(half)[::-1]]) * 0.1
    facing = np.repeat([[1.0, 0.0], [-1.0, 0.0]], half, 0)
    return {
        "image": rng.integers(60, 200, (frames, 16, 16, 3), np.uint8),
        "action": np.eye(6)[np.ones(frames, int)],
        "agent_pos": np.column_stack([place + 0.5, np.full(frames, 0.5)]),
        "agent_dir": facing,
        "maze_layout": np.ones((5, 5), bool),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "maze"
    place.mkdir()
    for number in range(3):
        np.savez(place / f"{number}.npz", **episode(number))
    return place


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_good_folder_passes_and_its_numbers_are_those_of_its_files(folder: Path) -> None:
    found = survey(open_folder(folder), lambda done, of: None)
    assert (found.episodes, found.frames, found.lengths) == (3, 180, (60, 60.0, 60))
    assert found.sizes == {"16 x 16": 3} and found.pixels[0] == 60 and found.pixels[2] == 199
    assert found.actions == pytest.approx([0, 1, 0, 0, 0, 0])
    assert found.step == pytest.approx((0.1, 0.1))
    assert sum(found.kinds.values()) == pytest.approx(1)
    assert sum(found.gaps.values()) == pytest.approx(1 if found.kinds.get("revisit") else 0)
    result = run("data", "check", folder)
    assert result.exit_code == 0 and "3 good, 0 left out" in result.output


def test_bad_files_are_named_and_the_exit_status_tells(folder: Path) -> None:
    (folder / "torn.npz").write_bytes((folder / "0.npz").read_bytes()[:500])
    dark, jumping = episode(7), episode(8)
    dark["image"][5:8] = 0
    jumping["agent_pos"][40:, 1] += 3
    np.savez(folder / "dark.npz", **dark)
    np.savez(folder / "jumping.npz", **jumping)
    result = run("data", "check", folder)
    assert result.exit_code == 1
    assert "left out: torn.npz: File is not a zip file" in result.output
    assert "look at: dark.npz: 3 black frames" in result.output
    assert "look at: jumping.npz: jumps 3.00 at frame 40 (1 jumps)" in result.output


def corrupt(path: Path) -> None:
    """Change a byte in the middle of an archive, where the images are: its header stays right."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)


def test_all_files_that_cannot_be_read_to_their_end_are_named_at_once(folder: Path, tmp_path: Path) -> None:
    for number in range(3, 6):
        np.savez_compressed(folder / f"{number}.npz", **episode(number))
    corrupt(folder / "3.npz")
    corrupt(folder / "5.npz")
    result = run("data", "check", folder)
    assert result.exit_code == 1 and "4 good, 2 left out" in result.output
    assert "left out: 3.npz: cannot be read (" in result.output and "left out: 5.npz: " in result.output
    result = run("data", "show", folder, "--out", tmp_path / "sheet.png")
    assert result.exit_code == 0 and (tmp_path / "sheet.png").exists()
    assert "left out: 3.npz: " in result.output and "left out: 5.npz: " in result.output
    error = run("data", "pack", folder, tmp_path / "packed").exception
    assert isinstance(error, UserError) and "2 of 6 episodes cannot be packed: 3.npz: " in str(error)
    assert "5.npz: " in str(error) and not (tmp_path / "packed").exists()


def test_pack_and_show_name_what_is_left_out(folder: Path, tmp_path: Path) -> None:
    for name in ("torn", "worn"):
        (folder / f"{name}.npz").write_bytes((folder / "0.npz").read_bytes()[:500])
    for command in (("pack", folder, tmp_path / "packed"), ("show", folder, "--out", tmp_path / "sheet.png")):
        result = run("data", *command)
        assert result.exit_code == 0
        assert "left out: torn.npz: File is not a zip" in result.output and "left out: worn.npz" in result.output


def test_a_folder_of_which_nothing_can_be_read_is_one_paragraph(folder: Path) -> None:
    for number in range(3):
        np.savez_compressed(folder / f"{number}.npz", **episode(number))
        corrupt(folder / f"{number}.npz")
    error = run("data", "check", folder).exception
    assert isinstance(error, UserError) and "none of the episodes can be read: 0.npz: " in str(error)


def test_other_files_are_counted_and_names_are_printed_as_they_are(folder: Path) -> None:
    (folder / "notes [draft].txt").touch()
    (folder / "[red]").mkdir()
    (folder / "[red]" / "torn\nline.npz").write_text("")
    (folder / "preview.png").touch()
    result = run("data", "check", folder.rename(folder.with_name("[bold]maze")))
    assert "1 .txt file, 1 .png file" in result.output or "1 .png file, 1 .txt file" in result.output
    assert "[bold]" in result.output  # not taken for markup
    assert "left out: [red]/torn line.npz: " in result.output


def test_a_picture_that_cannot_be_written_is_one_paragraph(folder: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "nowhere" / "sheet.png", tmp_path / "sheet.xyz"):
        error = run("data", "show", folder, "--out", out).exception
        assert isinstance(error, UserError) and "cannot be written" in str(error)


def test_show_draws_a_picture_and_pack_makes_the_same_data(folder: Path, tmp_path: Path) -> None:
    assert run("data", "show", folder, "--out", tmp_path / "sheet.png").exit_code == 0
    assert Image.open(tmp_path / "sheet.png").width > 500
    assert run("data", "pack", folder, tmp_path / "packed", "--size", 8).exit_code == 0
    assert open_folder(tmp_path / "packed").identity == open_folder(folder, 8).identity
