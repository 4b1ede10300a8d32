"""Joining and comparing sweeps: what is the same is kept once, and nothing mixes that was scored differently."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import yaml

from rad_bench.errors import UserError
from rad_bench.store.run_folder import load_run, save_run
from rad_bench.sweep.merge import compare, merge
from tests.report.synthetic import write_sweep
from tests.sweep.tiny import TINY, run_here

pytestmark = pytest.mark.slow  # sweeps that run in parts and whole


@pytest.fixture(scope="module")
def halves(once, tmp_path_factory):
    """One sweep whose seeds ran in two places."""

    def fill(folder):
        (folder / "tiny.yaml").write_text(TINY)
        for seed in (0, 1):
            which = ("--only", f"seed={seed}", "--out", f"part{seed}", "--cluster", "debug")
            run_here("sweep", "tiny.yaml", *which, cwd=folder)

    return shutil.copytree(once("halves", fill), tmp_path_factory.mktemp("halves"), dirs_exist_ok=True)


def test_parts_of_a_sweep_merge_into_the_whole(halves):
    times = {"models": {}, "absent": "it was a test"}
    (halves / "part1" / "tiny" / "calibration.json").write_text(json.dumps(times))
    run_here("merge", "whole", "part0/tiny", "part1/tiny", "part0/tiny", cwd=halves)
    assert json.loads((halves / "whole" / "calibration.json").read_text())["absent"] == "it was a test"
    frames = pd.read_parquet(halves / "whole" / "frames.parquet")
    assert set(frames["seed"]) == {0, 1}
    assert len(list((halves / "whole" / "runs").iterdir())) == 4
    assert not frames.duplicated(["block", "seed", "task", "intervention", "episode", "frame"]).any()
    assert (halves / "whole" / "report" / "index.html").exists()
    assert "exists already" in run_here("merge", "whole", "part0/tiny", cwd=halves, expect=2).stderr


def test_a_sweep_compared_with_itself_differs_by_nothing(halves):
    output = run_here("compare", "part0/tiny", "part0/tiny", cwd=halves).stdout
    assert output.count(" 0.00 [0.00, 0.00]") == 4  # two blocks on two tasks


def test_other_metric_definitions_and_other_data_are_refused(halves):
    other = halves / "other"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(halves / "part1" / "tiny", other)
    frames = pd.read_parquet(other / "frames.parquet")
    frames.assign(card="another").to_parquet(other / "frames.parquet")
    for verb in (("compare", "part0/tiny", "other"), ("merge", "mixed", "part0/tiny", "other")):
        refused = run_here(*verb, cwd=halves, expect=2)
        assert "different metric definitions" in refused.stderr and "Traceback" not in refused.stderr
    assert not (halves / "mixed").exists()
    frames.to_parquet(other / "frames.parquet")
    for path in other.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps({**result, "data": {**result["data"], "identity": "elsewhere"}}))
    assert "ran on different data" in run_here("compare", "part0/tiny", "other", cwd=halves, expect=2).stderr


@pytest.mark.parametrize("verb", [("report", "part"), ("sweep", "tiny.yaml", "--out", ".", "--only", "seed=0")])
def test_what_cannot_be_written_is_told_after_the_runs_that_are_missing(halves, tmp_path, verb):
    """A file where a folder must be stands in for a full disk."""
    (tmp_path / "tiny.yaml").write_text(TINY.replace("tiny", "part"))
    folder = shutil.copytree(halves / "part0" / "tiny", tmp_path / "part")
    shutil.rmtree(folder / "report")
    (folder / "report").touch()
    first, _ = sorted((folder / "runs").iterdir())
    if verb[0] == "report":
        (first / "result.json").unlink()
    *missing, error = run_here(*verb, cwd=tmp_path, expect=2).stderr.strip().splitlines()
    assert error.startswith("error: part/report") and error.endswith(": cannot be written: Not a directory.")
    assert verb[0] == "sweep" or missing[0].startswith(first.name)
    assert not any(path.stat().st_mtime for path in folder.glob("launchers/*"))  # let go


def test_a_folder_that_is_no_sweep_is_named(halves):
    (halves / "empty").mkdir(exist_ok=True)
    assert "has no frames.parquet" in run_here("compare", "part0/tiny", "empty", cwd=halves, expect=2).stderr


def test_models_that_only_share_a_name_do_not_merge(halves, tmp_path):
    """Two seeds of one name, made by other settings, would pass for one model's."""
    for seed, said in (
        (0, "are two runs of 'none' with seed 0"),
        (1, "both are called 'none', and differ in training"),
    ):
        other = shutil.copytree(halves / f"part{seed}" / "tiny", tmp_path / f"other{seed}")
        plan = yaml.safe_load((other / "sweep.yaml").read_text())
        (own,) = (name for name in plan["planned"] if name.startswith("none"))
        run = load_run(other / "runs" / own)
        training = run.config.training.model_copy(update={"steps": 31})
        longer = replace(
            run, name=f"none-seed{seed}-longer", config=run.config.model_copy(update={"training": training})
        )
        save_run(longer, other / "runs" / longer.name)
        (other / "sweep.yaml").write_text(yaml.safe_dump({**plan, "planned": [longer.name]}))
        with pytest.raises(UserError, match=said):
            merge(tmp_path / "mixed", [halves / "part0" / "tiny", other])
    assert not (tmp_path / "mixed").exists()


def test_sweeps_of_other_lengths_are_compared_over_what_both_have(tmp_path):
    first, second = write_sweep(tmp_path / "a"), write_sweep(tmp_path / "b")
    frames = pd.read_parquet(second / "frames.parquet")
    frames[frames["frame"] < 6].to_parquet(second / "frames.parquet")
    assert all(abs(value.mean) < 1e-9 and value.seeds == 3 for *_, value in compare(first, second))
