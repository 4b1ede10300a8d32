"""What the data cannot serve is said by `plan` and `sweep`, for every kind of data, before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.run.execute import execute
from rad_bench.store.run_folder import RunFolder, save_run
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep
from tests.data.test_memory_maze import episode, save
from tests.data.test_minecraft import teco, vrag
from tests.sweep.tiny import TINY, run_here

LONG, SHORT = 30, 12  # frames of the recordings


def mazes(folder: Path, lengths: tuple[int, ...] = (LONG,) * 4) -> None:
    folder.mkdir(exist_ok=True)
    for number, length in enumerate(lengths):
        save(folder, f"e{number}.npz", **episode(number, length))


def packed(folder: Path) -> None:
    mazes(folder.with_name("unpacked"))
    run_here("data", "pack", folder.with_name("unpacked"), folder, cwd=folder.parent)


def write(folder: Path, kind: str, **sections: Any) -> Path:
    """Write a sweep over data of a kind, all of whose recordings have `LONG` frames."""
    data = folder / "data"
    if kind != "packed":
        data.mkdir()
    {"memory_maze": mazes, "packed": packed, "minecraft": vrag, "no poses": teco}[kind](data)
    tree = yaml.safe_load(TINY)
    run, name = tree["run"], {"packed": "memory_maze", "no poses": "minecraft"}.get(kind, kind)
    run["data"] = {"name": name, "path": str(data), "size": 16, "held_out": 0.5}
    if kind == "no poses":
        run["trunk"]["motion"], run["evaluation"]["tasks"] = "action", ["continuation"]
    run["evaluation"] |= {"episodes": 2, "horizon": 6, "probe": 0, "interventions": ["keep"]}
    for section, values in sections.items():
        run[section] |= values
    (folder / "s.yaml").write_text(yaml.safe_dump({**tree, "grid": {"memory": ["none"], "seed": [0]}}))
    return folder / "s.yaml"


KINDS = ["memory_maze", "packed", "minecraft", "no poses"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"evaluation": {"horizon": 80}}, ["evaluation.episodes", "the longest has 30", "evaluation.horizon"]),
        ({"training": {"frames": 31}}, ["training.frames 31", "at most 30"]),
    ],
    ids=["evaluation", "training"],
)
def test_recordings_that_are_too_short_are_refused_before_anything_is_trained(tmp_path, kind, sections, words):
    sweep = write(tmp_path, kind, **sections)
    for verb in (["plan", "--no-probe"], ["sweep", "--cluster", "debug"]):
        told = run_here(verb[0], sweep, *verb[1:], cwd=tmp_path, expect=2).stderr
        assert all(word in told for word in words), told
        assert "Ask for 0" not in told
    assert not list(tmp_path.rglob("*.safetensors"))


def test_more_episodes_than_fit_are_refused_with_their_number(tmp_path):
    sweep = write(tmp_path, "memory_maze", evaluation={"episodes": 9})
    assert "there is room for 4. Ask for 4 or fewer" in run_here("plan", sweep, cwd=tmp_path, expect=2).stderr


def notes(sweep: Path) -> str:
    lines = run_here("plan", sweep, "--no-probe", cwd=sweep.parent).stdout
    return " ".join(lines[lines.index("note:") :].split()) if "note:" in lines else ""


def test_a_swap_without_partners_is_announced(tmp_path):
    words = "no memory can be swapped, because all evaluated episodes come from one recording"
    sweep = write(tmp_path, "no poses", evaluation={"interventions": ["keep", "swap"]})
    assert words in notes(sweep)
    sweep.write_text(sweep.read_text().replace("- swap", "- reset"))
    assert words not in notes(sweep)


def test_training_recordings_that_are_too_short_to_be_used_are_counted(tmp_path):
    sweep = write(tmp_path, "memory_maze", evaluation={"probe": 4})
    words = "training recordings are shorter than training.frames 12"
    assert words not in notes(sweep)
    mazes(tmp_path / "data" / "train", (LONG, 11, 11))
    mazes(tmp_path / "data" / "test", (29, 28))
    for own in (tmp_path / "data").glob("*.npz"):
        own.unlink()
    assert f"2 of 3 {words}" in notes(sweep)


def test_a_run_whose_data_changed_after_it_was_planned_is_not_trained(tmp_path):
    (run,) = plan_runs(load_sweep(write(tmp_path, "memory_maze")))
    folder = RunFolder(tmp_path / run.name)
    save_run(run, folder.path)
    mazes(tmp_path / "data", (LONG,) * 5)
    with pytest.raises(UserError, match="the memory_maze data have changed since this run was planned"):
        execute(folder, LaunchConfig())
    assert not folder.checkpoint.exists()
