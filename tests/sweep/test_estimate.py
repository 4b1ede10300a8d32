"""What a plan promises: real sizes on disk, time that was measured or probed and says so, and nothing left behind."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from rad_bench.data.rooms import Rooms
from rad_bench.evaluation.evaluate import evaluate
from rad_bench.run import execute
from rad_bench.store.run_folder import RunFolder, save_run
from rad_bench.sweep import plan, timing
from rad_bench.sweep.estimate import Cost, measured, wall_seconds
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep
from rad_bench.training.trainer import Trainer
from tests.sweep.tiny import GRU, TINY, run_here


def planned(folder, *overrides):
    (folder / "tiny.yaml").write_text(TINY)
    sweep = load_sweep(folder / "tiny.yaml", overrides)
    return sweep, plan.plan_sweep(plan_runs(sweep), folder / "results" / "tiny")


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """The tiny sweep with seed 0 of both its models finished; beside it the checkpoints they had before that."""
    folder = tmp_path_factory.mktemp("half-done")
    sweep, models = planned(folder)
    for model in models:
        at = folder / "results" / "tiny" / "runs" / model.runs[0].name
        save_run(model.runs[0], at)

        def keep(*given, at=at):
            shutil.copy(at / "checkpoint.pt", folder / f"{at.name}.pt")
            return evaluate(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(execute, "evaluate", keep)
            execute.execute(RunFolder(at), sweep.launch)
    return folder


def test_a_run_leaves_on_disk_what_was_estimated(half_done):
    _, models = planned(half_done)
    for model in models:
        folder = half_done / "results" / "tiny" / "runs" / model.runs[0].name
        sizes = {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        assert model.disk.total == pytest.approx(sum(sizes.values()), rel=0.2)
        assert model.disk.checkpoint == pytest.approx((half_done / f"{folder.name}.pt").stat().st_size, rel=0.1)
        assert not list(folder.glob("checkpoint*"))  # they served to go on from
        assert model.disk.weights == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.1)


def test_a_learning_curve_leaves_on_disk_and_costs_what_was_estimated(tmp_path, monkeypatch):
    sweep, models = planned(tmp_path, "run.evaluation.at=[5, 20]", "run.evaluation.episodes=12")
    model = models[1]
    folder = tmp_path / "results" / "tiny" / "runs" / model.runs[0].name
    save_run(model.runs[0], folder)
    execute.execute(RunFolder(folder), sweep.launch)
    curve = [folder / "curve.parquet", *(folder / "snapshots").iterdir()]
    assert len(curve) == 3
    assert model.disk.curve == pytest.approx(sum(path.stat().st_size for path in curve), rel=0.1)
    assert planned(tmp_path)[1][1].disk.curve == 0
    monkeypatch.setattr(timing, "evaluate", lambda *_: None)
    monkeypatch.setattr(timing, "probe", lambda _: {})
    monkeypatch.setattr(timing, "_step_seconds", lambda *_: 0.1)
    costs = {}
    for at in ("[]", "[5, 20]"):
        _, models = planned(tmp_path, f"run.evaluation.at={at}", "run.evaluation.tasks=[continuation]")
        with pytest.MonkeyPatch.context() as patch:
            ticks = iter([0.0, 9.0, 0.0, 2.0, 0.0, 5.0, 0.0, 0.0])  # warm-up; 1 frame; 4 frames; probe
            patch.setattr(timing.time, "perf_counter", ticks.__next__)
            costs[at] = plan._probed(models[1], torch.device("cpu"), sweep.launch).evaluation
    reading = 9 / (9 + (8 - 4) // 2)  # of 9 frames of context; timed with 11
    assert costs["[]"] == pytest.approx(reading + 8)
    assert costs["[5, 20]"] == pytest.approx(3 * reading + 8 * (1 + 2 / 3))  # keep is one of three interventions


def test_one_row_a_model_says_which_seeds_are_done(half_done):
    _, models = planned(half_done)
    assert [(model.label, model.done) for model in models] == [
        ("none", (True, False)), ("lstm(hidden=8)", (True, False)),
    ]  # fmt: skip


def test_training_costs_in_proportion_to_its_steps_and_places_are_filled_as_they_come_free():
    cost = Cost(step=0.5, steps=30, evaluation=2.0, source="")
    assert replace(cost, steps=60).training == 2 * cost.training == 30
    assert cost.run == 17
    assert wall_seconds([], 3) == 0
    assert wall_seconds([4, 1, 1, 2], 2) == 4
    assert wall_seconds([1, 1, 4], 2) == 5


def test_more_steps_do_not_make_the_probe_do_more(tmp_path, monkeypatch):
    """By construction: what is timed is a step, whatever their number."""
    done, real = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *given: done.append(1) or real(*given))
    monkeypatch.setattr(timing, "ENOUGH", 0.0)  # as many times, however fast the machine
    counts = []
    for steps in (30, 30_000):
        done.clear()
        sweep, models = planned(tmp_path, f"run.training.steps={steps}")
        (cost, _) = plan.estimate_costs(models, sweep.launch, tmp_path)
        assert cost.training == pytest.approx(cost.step * steps)
        counts.append(len(done))
    assert counts[0] == counts[1] < 30


def test_finished_runs_take_the_place_of_the_probe(half_done, monkeypatch):
    sweep, models = planned(half_done)
    monkeypatch.setattr(plan, "probe_cost", lambda *_: pytest.fail("probed what has been measured"))
    costs = plan.estimate_costs(models, sweep.launch, half_done / "results" / "tiny")
    for model, cost in zip(models, costs, strict=True):
        result = json.loads((half_done / "results" / "tiny" / "runs" / model.runs[0].name / "result.json").read_text())
        assert cost.training == pytest.approx(result["training"]["seconds"])
        assert cost.evaluation == result["evaluation"]["seconds"] > 0
        assert cost.source == "1 finished run"
        folder = half_done / "results" / "tiny" / "runs" / model.runs[0].name
        assert measured([folder], 30, "cuda (another)", 1) is None
        assert measured([folder], 30, result["device"], 64) is None


def test_runs_whose_weights_stand_are_counted_without_their_training(half_done, monkeypatch):
    monkeypatch.setattr(plan, "probe_cost", lambda *_: Cost(0.1, 30, 2.0, "timed"))
    for override, trained in (("run.evaluation.horizon=12", 1), ("run.training.steps=31", 0)):
        sweep, models = planned(half_done, override)
        costs = plan.estimate_costs(models, sweep.launch, half_done / "results" / "tiny")
        assert [cost.trained for cost in costs] == [trained, trained]  # of two seeds, one is finished
    sweep, models = planned(half_done, "run.evaluation.horizon=12")
    costs = plan.estimate_costs(models, sweep.launch, half_done / "results" / "tiny")
    assert costs[0].runs(2, 1.0) == pytest.approx([6.0, 3.0])
    text = run_here("plan", "tiny.yaml", "--set", "run.evaluation.horizon=12", cwd=half_done).stdout
    assert text.count("1 trained already") == 2 and max(map(len, text.splitlines())) <= 120


def test_plan_shows_models_time_and_disk_and_leaves_no_file(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    text = run_here("plan", "tiny.yaml", cwd=tmp_path).stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("lstm(hidden=8)") == 2  # sizes and costs: a row of each, whatever the number of seeds
    text = " ".join(text.split())
    for words in ("an estimate, on cpu", "4 missing runs", "machine-hours", "at 2 at a time", "timed", "are free"):
        assert words in text


def test_runs_longer_than_their_jobs_may_take_are_named(tmp_path, monkeypatch):
    where = "launch.where={memory=lstm: {slurm: {timeout: 30m}}}"
    sweep, models = planned(tmp_path, "launch.slurm.partition=gpu", where)
    costs = [Cost(step=100.0, steps=30, evaluation=60.0, source="")] * 2
    named, where = plan.limit_line(models, costs, 1.0, sweep).splitlines()
    assert named == "longer than launch.slurm.timeout: lstm(hidden=8) (51 min of 30m); runs resume in another job"
    assert where == "times were measured on this machine, not on the nodes of partition gpu"
    costs = [Cost(step=1.0, steps=30, evaluation=2000.0, source=""), ValueError("no such luck")]
    assert len(plan.limit_line(models, costs, 1.0, sweep).splitlines()) == 1  # 4h for none, and nothing known of lstm
    assert "an evaluation cannot be resumed" in plan.limit_line(models, costs[:1] * 2, 1.0, sweep)
    monkeypatch.setenv("PATH", "")
    assert (
        plan.limit_line(models, costs[:1] * 2, 1.0, planned(tmp_path, "launch.slurm.timeout=1m")[0]) == ""
    )  # no SLURM


def test_no_probe_and_sweeps_run_nothing_to_plan(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr(plan, "estimate_costs", lambda *_: pytest.fail("probed"))
    for arguments in (("plan", "tiny.yaml", "--no-probe"), ("sweep", "tiny.yaml", "--dry-run")):
        text = run_here(*arguments, cwd=tmp_path).stdout
        assert "0 of 2" in text and "disk, about" in text and "estimate for" not in text


def test_a_model_that_fails_says_so_in_its_row(tmp_path):
    (tmp_path / "my_block.py").write_text(GRU)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("{name: lstm, hidden: 8}", "my_block.py:Raises"))
    text = " ".join(run_here("plan", "tiny.yaml", cwd=tmp_path).stdout.split())
    assert "fails: RuntimeError: no such luck" in text
    assert "the 2 missing runs (not counting 2 that fail)" in text
    assert plan._reason(torch.OutOfMemoryError("CUDA out of memory")) == "does not fit into memory"


def test_what_is_too_large_for_a_cpu_is_timed_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "LARGEST_CPU", 0.0)
    sweep, models = planned(tmp_path)
    drawn, real = [], Rooms.training_batch
    monkeypatch.setattr(Rooms, "training_batch", lambda *given: drawn.append(given[3]) or real(*given))
    cost = plan.estimate_costs(models[:1], sweep.launch, tmp_path)[0]
    assert set(drawn) == {1}  # clips of a step, of two
    assert cost.source == "timed in part"
    assert cost.step > 0 < cost.evaluation
