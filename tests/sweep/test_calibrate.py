"""The models of a finished sweep are timed once, for the report's costs, and nothing else depends on it."""

import json
import shutil

import pytest
from rich.console import Console

from rad_bench.bench.calibration import Turns
from rad_bench.errors import UserError
from rad_bench.report.cost import cost_of
from rad_bench.report.reading import read_sweep
from rad_bench.store.result import Timing
from rad_bench.store.run_folder import RunFolder
from rad_bench.store.sweep_folder import CALIBRATION
from rad_bench.sweep import calibrate as calibration
from rad_bench.sweep.calibrate import calibrate
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep
from tests.sweep.tiny import run_here

TIMED = Timing(step=[0.2, 0.2], first_frames=[0.1, 0.1], last_frames=[0.1, 0.1])


@pytest.fixture
def folder(tiny_sweep, tmp_path):
    shutil.copytree(tiny_sweep, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def timed(monkeypatch):
    """Stand-in times; returns the labels that were timed, by call."""
    calls = []

    def take_turns(configs, launch, device):
        calls.append(list(configs))
        return Turns(dict.fromkeys(configs, TIMED), others=1.5)

    monkeypatch.setattr(calibration, "take_turns", take_turns)
    return calls


def run(folder, *changes, cluster="local", only=()):
    sweep = load_sweep(folder / "tiny.yaml", ("launch.calibrate=true", *changes))
    runs = plan_runs(sweep, only, "tiny.yaml")
    target = folder / "results" / "tiny"
    console = Console(record=True, width=400)
    calibrate(sweep, runs, target, cluster, console)
    path = target / CALIBRATION
    return (json.loads(path.read_text()) if path.exists() else None), console.export_text()


def test_a_finished_sweep_is_timed_once_until_its_models_change(folder, timed, monkeypatch):
    monkeypatch.setattr(calibration.os, "cpu_count", lambda: 2)
    written, said = run(folder)
    assert timed == [["none", "lstm(hidden=8)"]] and set(written["timings"]) == set(timed[0])
    assert (written["others"], written["cores"]) == (1.5, 2) and "1.5 of 2 cores busy" in said
    run(folder)
    run(folder, only=("memory=none",))
    run(folder, only=("seed=1",))
    assert len(timed) == 1
    run(folder, "launch.threads=2")
    assert len(timed) == 2
    (folder / "results" / "tiny" / CALIBRATION).write_text("cut o")
    run(folder)
    assert len(timed) == 3


def test_only_models_with_a_finished_run_are_timed_and_the_others_later(folder, timed):
    results = [RunFolder(path).result for path in (folder / "results/tiny/runs").glob("lstm*")]
    kept = [path.read_text() for path in results]
    for path in results:
        path.unlink()
    run(folder)
    for path, text in zip(results, kept, strict=True):
        path.write_text(text)
    run(folder)
    assert timed == [["none"], ["none", "lstm(hidden=8)"]]


def test_jobs_of_a_cluster_are_not_timed_here_and_the_page_says_so(folder, timed):
    written, _ = run(folder, cluster="slurm")
    assert not timed and written["absent"].startswith("the runs were jobs of a cluster") and not written["timings"]
    run(folder)  # here, later
    again, _ = run(folder, cluster="slurm")
    assert len(timed) == 1 and again["timings"]


def test_what_cannot_be_timed_has_a_reason_and_costs_no_report(folder, monkeypatch):
    def take_turns(*_):
        raise MemoryError("64 GB")

    monkeypatch.setattr(calibration, "take_turns", take_turns)
    written, said = run(folder)
    assert written["absent"] == "MemoryError: 64 GB" and "could not be timed: MemoryError" in said


def test_nothing_is_timed_without_a_finished_run_or_if_it_is_not_wanted(folder, timed):
    assert run(folder, "launch.calibrate=false")[0] is None
    for path in (folder / "results/tiny/runs").glob("*/result.json"):
        path.unlink()
    assert run(folder)[0] is None and not timed


@pytest.mark.slow
def test_a_sweep_ends_with_times_that_its_report_shows(folder):
    names = sorted(path.name for path in (folder / "results/tiny/runs").iterdir())
    run_here("sweep", "tiny.yaml", "--set", "launch.calibrate=true", cwd=folder)
    assert sorted(path.name for path in (folder / "results/tiny/runs").iterdir()) == names
    sweep = read_sweep(folder / "results/tiny")
    costs = cost_of(sweep, "lstm(hidden=8)")
    assert all(costs[f"{part}_ratio"] > 0 for part in ("step", "first_frames", "last_frames"))
    page = (folder / "results/tiny/report/index.html").read_text()
    assert "all blocks in turns in one process" in page and "training step, ratio" in page and "ms per" not in page


def test_a_file_that_is_no_calibration_is_named(folder):
    (folder / "results/tiny" / CALIBRATION).write_text('{"models": {}, "timings": {"none": {"step": []}}}')
    with pytest.raises(UserError, match=r"calibration\.json: is not the calibration of a sweep"):
        read_sweep(folder / "results/tiny")
