"""Which files below a folder are found: behind links, with any name, and what is said of those that are not read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from rad_bench.data import open_folder
from rad_bench.data.files import count_by_suffix, find_files
from rad_bench.errors import UserError
from tests.data.test_memory_maze import episode, save


def maze(folder: Path, numbers: range) -> Path:
    folder.mkdir(parents=True)
    for number in numbers:
        save(folder, f"episode{number}.npz", **episode(number))
    return folder


def names(folder: Path) -> list[str]:
    return list(find_files(folder).paths)


def test_linked_folders_are_the_split(tmp_path: Path) -> None:
    train, test = maze(tmp_path / "disk1" / "a", range(3)), maze(tmp_path / "disk2" / "b", range(3, 5))
    (tmp_path / "plain").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "plain")
    (tmp_path / "plain" / "train").symlink_to(train)
    (tmp_path / "plain" / "test").symlink_to(test)
    for place in (tmp_path / "plain", tmp_path / "linked"):
        data = open_folder(place)
        assert not data.left_out
        assert {item.name for item in data.held_out_items} == {"test/episode3.npz", "test/episode4.npz"}
    train.rename(tmp_path / "half" / "train")
    (tmp_path / "half" / "test").symlink_to(test)
    assert open_folder(tmp_path / "half").identity == data.identity


def test_linked_files_and_links_to_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    (tmp_path / "data" / "inner").mkdir(parents=True)
    (tmp_path / "one.npz").touch()
    (tmp_path / "other.npz").symlink_to("one.npz")
    (tmp_path / "data" / "a.npz").symlink_to(tmp_path / "other.npz")
    (tmp_path / "data" / "inner" / "up").symlink_to("..")
    (tmp_path / "data" / "self").symlink_to(".")
    (tmp_path / "data" / "inner" / "b.npz").touch()
    (tmp_path / "data" / "twice").symlink_to("inner")
    files = find_files(tmp_path / "data")
    assert list(files.paths) == ["a.npz", "inner/b.npz"] and not files.left_out


def test_a_file_with_several_names_has_that_of_the_split(tmp_path: Path) -> None:
    for place in ("pool/a", "pool/b", "test"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "e.npz").touch()
    (tmp_path / "latest").symlink_to("test")
    (tmp_path / "train").symlink_to("pool/a")
    (tmp_path / "again").symlink_to("pool")
    assert names(tmp_path) == ["pool/b/e.npz", "test/e.npz", "train/e.npz"]
    (tmp_path / "train").unlink()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "f.npz").symlink_to("../pool/b/e.npz")  # files may be linked one by one
    assert names(tmp_path) == ["pool/a/e.npz", "test/e.npz", "train/f.npz"]
    (tmp_path / "train" / "f.npz").unlink()
    (tmp_path / "train").rmdir()
    (tmp_path / "train").symlink_to("test")  # a mistake: both names stay, and one will be left out as a copy
    assert names(tmp_path) == ["pool/a/e.npz", "pool/b/e.npz", "test/e.npz", "train/e.npz"]


def test_what_cannot_be_reached_is_named(tmp_path: Path) -> None:
    folder = maze(tmp_path / "data", range(2))
    (folder / "test").symlink_to(tmp_path / "gone")
    (folder / "x.npz").symlink_to("x.npz")
    (folder / ".#lock").symlink_to("user@host.1234")  # as editors make them
    data = open_folder(folder)
    assert len(data.left_out) == 2
    assert f"test: a link to {tmp_path / 'gone'} that cannot be reached: No such file" in data.left_out[0]
    assert "x.npz: a link to x.npz that cannot be reached: Too many levels" in data.left_out[1]


def test_names_that_are_not_utf8_are_read_and_written_as_text(tmp_path: Path) -> None:
    folder = maze(tmp_path / "data", range(2))
    os.rename(folder / "episode1.npz", os.fsencode(folder) + b"/\xe9pisode.npz")
    os.mkdir(os.fsencode(folder) + b"/caf\xe9")
    np.savez(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9/d\xe9j\xe0.npz")), **episode(7))  # type: ignore[arg-type]
    maze(folder / "naïve", range(8, 9))
    for _ in range(2):  # inspected, and from the cache
        data = open_folder(folder)
        assert not data.left_out
        items = [*data.training, *data.held_out_items]
        assert {item.name.encode().decode() for item in items} == {
            "episode0.npz", "\\xe9pisode.npz", "caf\\xe9/d\\xe9j\\xe0.npz", "naïve/episode8.npz",
        }  # fmt: skip
        assert all(data.clip(item, 0, 3).frames.shape[0] == 3 for item in items)


def test_a_folder_without_recordings_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "clip0").mkdir()
    for number in range(300):
        (tmp_path / "clip0" / f"{number:05d}.png").touch()
    (tmp_path / "README").touch()
    with pytest.raises(UserError, match=r"holds 300 \.png files, 1 file without a suffix, and no recordings\. .*video"):
        open_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no files, and no recordings"):
        open_folder(tmp_path / "empty")
    save(tmp_path, "only.npz", **episode(0))
    with pytest.raises(UserError, match=r"holds 1 good episode, .* 300 \.png files, .* besides; memory_maze reads"):
        open_folder(tmp_path)


def test_files_are_counted_by_suffix() -> None:
    text = count_by_suffix(["a.PNG", "b.png", "c.tar.gz", "d", "e"])
    assert text == "2 .png files, 2 files without a suffix, 1 .gz file"
    assert count_by_suffix([]) == ""


def test_a_hidden_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "._c0.npz").touch()  # written by macOS on other disks
    assert names(tmp_path) == []
