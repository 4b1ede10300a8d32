"""Equal tuning: each block's trials choose its setting on episodes that are never scored; killed is not chosen anew."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from rad_bench.config import RoomsData, RunConfig
from rad_bench.data import open_dataset
from rad_bench.errors import UserError
from rad_bench.report.reading import read_sweep
from rad_bench.report.tuning import Tuned, read_tuning, tuning_sentences
from rad_bench.store.run_folder import DIVERGED, RunFolder, load_run
from rad_bench.store.sweep_folder import planned_runs, planned_trials
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep
from rad_bench.sweep.merge import merge
from rad_bench.sweep.tuning import choose, plan_trials, waiting
from rad_bench.training.loop import DivergedError
from tests.data.test_memory_maze import episode, save
from tests.sweep.tiny import ON_SLURM, ROOT, TINY, run_here, wait_for

pytestmark = pytest.mark.usefixtures("without_plots")

TUNE = "tune: {axis: training.learning_rate, values: [1e-3, 1e-2, 1000], steps: 0.5, seeds: [7]}\n"
TUNED = TINY.replace("steps: 30,", "steps: 20, warmup: 2,") + TUNE
COMMAND = ("sweep", "tiny.yaml", "--cluster", "debug")
BLOCKS = ("none", "lstm(hidden=8)")


@pytest.fixture(scope="module")
def finished(once):
    """The folder of a tuned sweep that ran undisturbed. It is to be read only."""

    def fill(folder):
        (folder / "tiny.yaml").write_text(TUNED)
        run_here(*COMMAND, cwd=folder)

    return once("tuned-sweep", fill)


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copied")


def results(folder):
    return folder / "results" / "tiny"


def planned(folder, *overrides):
    sweep = load_sweep(folder / "tiny.yaml", overrides)
    runs = plan_runs(sweep)
    return sweep, runs, plan_trials(sweep, runs)


def rates(folder):
    return {(run.label, run.config.seed): run.config.training.learning_rate for run in planned_runs(results(folder))}


def revisit_psnr(run):
    frames = pd.read_parquet(run / "frames.parquet")
    own = frames[(frames["kind"] == "revisit") & (frames["block"] != "copy-last")]
    return own.groupby("episode")["psnr"].mean().mean()


def test_every_block_gets_the_same_trials_and_its_runs_the_best_value(finished):
    trials, chosen = planned_trials(results(finished)), rates(finished)
    assert tuple(trials) == BLOCKS and len(chosen) == 4
    for block, own in trials.items():
        assert [run.config.training.learning_rate for run in own] == [1e-3, 1e-2, 1000]
        assert {run.config.training.steps for run in own} == {10} and {run.config.seed for run in own} == {7}
        folders = [results(finished) / "runs" / run.name for run in own]
        assert RunFolder(folders[2]).has_diverged and not RunFolder(folders[2]).is_done
        scores = [revisit_psnr(folder) for folder in folders[:2]]
        best = (1e-3, 1e-2)[int(np.argmax(scores))]
        assert scores[0] != scores[1] and {chosen[block, seed] for seed in (0, 1)} == {best}


def test_a_chosen_value_makes_the_run_that_the_same_value_by_hand_makes(finished):
    for run in planned_runs(results(finished)):
        sweep = load_sweep(finished / "tiny.yaml", [f"run.training.learning_rate={run.config.training.learning_rate}"])
        by_hand = plan_runs(sweep.model_copy(update={"tune": None}))
        assert (run.name, run.key) in {(other.name, other.key) for other in by_hand}


def test_no_validation_episode_is_scored_or_probed_and_no_scored_one_is_validated(finished):
    """Not one true frame of a trial is among those of the results: these worlds' colours are all different."""
    folder = results(finished)
    for own in planned_trials(folder).values():
        assert {run.config.data.split for run in own} == {"validation"}
        assert {run.config.evaluation.probe for run in own} == {0}
    assert {run.config.data.split for run in planned_runs(folder)} == {"held_out"}
    scored = pd.read_parquet(folder / "frames.parquet")
    assert set(scored["run"]) == {run.name for run in planned_runs(folder)}
    trials = [run.name for own in planned_trials(folder).values() for run in own]
    tables = [pd.read_parquet(path) for name in trials for path in (folder / "runs" / name).glob("frames.parquet")]
    validated = pd.concat(tables)
    assert len(tables) == 4 and set(validated["truth"]).isdisjoint(scored["truth"])


def test_the_same_command_again_repeats_neither_runs_nor_trials_not_even_those_that_diverged(copied):
    before = {path: path.stat().st_mtime_ns for path in results(copied).glob("runs/*/*.*")}
    assert "4 of 4 runs are done, 0 left" in run_here(*COMMAND, cwd=copied).stdout
    after = {path: path.stat().st_mtime_ns for path in results(copied).glob("runs/*/*.*")}
    changed = {path.name for path in before if before[path] != after.pop(path)}
    assert changed <= {"config.yaml"} and not after


def test_a_sweep_killed_among_its_trials_makes_the_same_choice(copied, finished):
    """Before that, the runs of a block whose trials are not all done are neither planned nor launched."""
    sweep, runs, trials = planned(copied)
    lost = trials["none"][0].name
    (results(copied) / "runs" / lost / "result.json").unlink()
    for run in planned_runs(results(copied)):
        shutil.rmtree(results(copied) / "runs" / run.name)
    choice = choose(sweep, runs, trials, results(copied))
    assert [run.name for run in choice.unfinished(trials)] == [lost]
    assert {run.label for run in choice.undecided} == {"none"} and {run.label for run in choice.runs} == {BLOCKS[1]}
    assert next(status.name for status in waiting(choice, results(copied))) == lost
    shown = run_here("plan", "tiny.yaml", "--no-probe", cwd=copied).stdout
    assert "2 of 3" in shown and "0 of 2" in shown
    assert "5 of 6 trials are done, 1 left" in run_here(*COMMAND, cwd=copied).stdout
    assert rates(copied) == rates(finished)
    pd.testing.assert_frame_equal(*(pd.read_parquet(results(at) / "frames.parquet") for at in (copied, finished)))


def test_a_trial_that_failed_otherwise_keeps_only_its_block_waiting(copied):
    sweep, runs, trials = planned(copied)
    failed = RunFolder(results(copied) / "runs" / trials["none"][2].name)
    failed.write_failure("RuntimeError: no such luck")
    choice = choose(sweep, runs, trials, results(copied))
    assert {run.label for run in choice.undecided} == {"none"} and len(choice.runs) == 2
    first, *others = waiting(choice, results(copied))
    assert (first.name, first.state) == (failed.path.name, "failed") and "no such luck" in first.detail
    assert [other.name for other in others] == ["none-seed0-undecided", "none-seed1-undecided"]


def test_a_block_whose_trials_all_diverged_has_no_runs_and_is_named(copied):
    sweep, runs, trials = planned(copied)
    for trial in trials["none"]:
        folder = RunFolder(results(copied) / "runs" / trial.name)
        folder.result.unlink(missing_ok=True)
        folder.write_failure(f"{DIVERGED}: loss is nan")
    refused = run_here(*COMMAND, cwd=copied, expect=1)
    assert "2 of 4 runs are not done" in refused.stderr and "all trials of its block diverged" in refused.stderr
    assert "none has no runs: all its trials diverged" in (results(copied) / "report" / "index.html").read_text()
    assert choose(sweep, runs, trials, results(copied)).unfinished(trials) == []


def test_divergence_is_known_by_its_name():
    assert DivergedError.__name__ == DIVERGED


def test_status_and_plan_show_trials_and_runs(finished):
    shown = run_here("status", "results/tiny", cwd=finished).stdout
    trials = [run.name for own in planned_trials(results(finished)).values() for run in own]
    assert all(name in shown for name in trials) and "8 done, 2 failed" in shown
    shown = run_here("plan", "tiny.yaml", "--no-probe", cwd=finished).stdout
    assert "none: trials" in shown and "3 of 3" in shown and "2 of 2" in shown and "all runs are done" in shown


def test_the_page_shows_trials_choices_and_what_another_value_loses(finished):
    folder = results(finished)
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    headline, table = ((folder / "report" / "tables" / f"{name}.md").read_text() for name in ("headline", "tuning"))
    assert "tuned: training.learning\\_rate chosen for each block by 3 trials" in headline.replace("ng_", "ng\\_")
    for own in read_tuning(read_sweep(folder)):
        assert own.choice in (1e-3, 1e-2) and own.at_edge == (own.choice == 1e-3)
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {own.block}")]
        assert f"**{own.scores[own.choice]:.2f}**" in line and "diverged" in line
    assert "Equal tuning" in page and "trials:" not in page.partition('id="command"')[2]
    assert "tune:" in page.partition('id="command"')[2]


def test_a_sweep_that_was_not_tuned_says_so(tiny_sweep):
    headline = (results(tiny_sweep) / "report" / "tables" / "headline.md").read_text()
    assert "not tuned" in headline
    assert "tune" not in yaml.safe_load((results(tiny_sweep) / "sweep.yaml").read_text())


def test_tuned_sweeps_merge_with_their_trials(finished, tmp_path):
    parts = []
    for seed in (0, 1):
        part = shutil.copytree(results(finished), tmp_path / f"part{seed}")
        plan = yaml.safe_load((part / "sweep.yaml").read_text())
        plan["planned"] = [name for name in plan["planned"] if f"seed{seed}" in name]
        (part / "sweep.yaml").write_text(yaml.safe_dump(plan))
        parts.append(part)
    merge(tmp_path / "joined", parts)
    assert planned_trials(tmp_path / "joined") == planned_trials(results(finished))
    assert (tmp_path / "joined" / "report" / "tables" / "tuning.md").read_text() == (
        results(finished) / "report" / "tables" / "tuning.md"
    ).read_text()
    plan["tune"]["values"] = [1.0, 2.0]
    (parts[1] / "sweep.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(UserError, match="were tuned differently"):
        merge(tmp_path / "again", parts)


# What a choice is


def of(scores, unfinished=()):
    return Tuned("lstm", scores, list(unfinished), len(scores), "continuation")


def test_a_choice_is_the_best_score_and_of_equal_ones_the_first():
    assert of({1.0: 3.0, 2.0: 5.0, 3.0: 4.0}).choice == 2.0 and not of({1.0: 3.0, 2.0: 5.0, 3.0: 4.0}).at_edge
    assert of({2.0: 5.0, 1.0: 5.0}).choice == 2.0
    assert of({1.0: np.nan, 2.0: 5.0, 3.0: np.nan}).choice == 2.0
    assert of({1.0: np.nan, 2.0: np.nan}).choice is None and not of({1.0: np.nan, 2.0: np.nan}).at_edge
    assert of({1.0: 3.0, 2.0: np.nan}, ["a"]).choice is None
    assert of({1.0: 3.0, 2.0: 5.0}).loss(1.0) == 2.0 and np.isnan(of({1.0: 3.0, 2.0: 5.0}).loss(7.0))


def test_several_seeds_of_a_trial_count_together(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TUNED.replace("seeds: [7]", "seeds: [7, 8]"))
    _, _, trials = planned(tmp_path)
    assert [(run.config.seed, run.config.training.learning_rate) for run in trials["none"]] == [
        (seed, rate) for rate in (1e-3, 1e-2, 1000) for seed in (7, 8)
    ]


def test_an_edge_and_a_costly_shared_value_are_said(finished):
    sweep = read_sweep(results(finished))
    tuning = [of({1e-3: 10.0, 4e-3: 11.0, 1e-2: 12.5}), Tuned("none", {1e-3: 1.0, 4e-3: 2.0, 1e-2: 0.0}, [], 3, "")]
    first, edge = tuning_sentences(sweep, tuning)
    assert "With 0.004 for all, at most 1.5 dB (lstm) would have been lost there." in first
    assert "The order of blocks there is the same with 0.004 for all." in first
    assert "lstm is the smallest or largest of the values tried" in edge and "none" not in edge


def test_an_order_that_depends_on_tuning_is_said(finished):
    tuning = [of({1e-3: 10.0, 4e-3: 11.0, 1e-2: 10.5}), Tuned("none", {1e-3: 12.0, 4e-3: 10.0}, [], 2, "")]
    first, _ = tuning_sentences(read_sweep(results(finished)), tuning)
    assert "best first, is none, lstm; with 0.004 for all it is lstm, none." in first


# Without it, nothing changes


def test_without_tune_a_sweep_is_what_it_was_before_there_was_any(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    sweep, runs, trials = planned(tmp_path)
    assert trials == {} and "tune" not in sweep.model_dump()
    assert choose(sweep, runs, trials, tmp_path).runs == runs
    for data in (runs[0].config.data.model_dump(), json.loads(RunConfig().model_dump_json())["data"]):
        assert "split" not in data
    published = (ROOT / "results" / "reference" / "memory_blocks" / "index.html").read_text(encoding="utf-8")
    assert f"rooms {open_dataset(RoomsData()).identity}" in published


def test_the_runs_of_a_block_share_what_they_had_before_except_the_tuned_setting(finished):
    before = {(run.label, run.config.seed): run.config for run in planned(finished)[1]}
    for run in planned_runs(results(finished)):
        old = before[run.label, run.config.seed]
        training = old.training.model_copy(update={"learning_rate": run.config.training.learning_rate})
        assert old.model_copy(update={"training": training}) == run.config
        assert load_run(results(finished) / "runs" / run.name).config == run.config


# Mistakes

MISTAKES = {
    "unknown axis": ("axis: training.learning_rate", "axis: training.learnig_rate", "'training.learning_rate'"),
    "axis of what a block is": ("axis: training.learning_rate", "axis: trunk.width", "training.learning_rate"),
    "steps": ("axis: training.learning_rate", "axis: training.steps", "no setting that trials can choose"),
    "value of a wrong type": ("[1e-3, 1e-2, 1000]", "[fast, slow]", "tune.values"),
    "impossible value": ("[1e-3, 1e-2, 1000]", "[0, 1e-2]", "tune.values"),
    "one value": ("[1e-3, 1e-2, 1000]", "[1e-3]", "tune.values"),
    "the same value twice": ("[1e-3, 1e-2, 1000]", "[1e-3, 0.001]", "equal"),
    "unknown key": ("steps: 0.5", "step: 0.5", "did you mean 'steps'"),
    "too few steps for the schedule": ("steps: 0.5", "steps: 2", "training.warmup 2"),
    "half a step": ("steps: 0.5", "steps: 2.5", "whole number"),
    "a seed of the sweep": ("seeds: [7]", "seeds: [1]", "1 is a seed of the sweep itself"),
    "an axis of the grid": ("grid:", "grid:\n  training.learning_rate: [1e-3, 4e-3]", "grid.training.learning_rate"),
    "an axis of named points": (
        "grid:", "grid:\n  how: {a: {training.learning_rate: 1e-3}, b: {}}", "grid.how",
    ),
    "scored on validation": ("name: rooms,", "name: rooms, split: validation,", "run.data.split"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_paragraph_and_nothing_is_launched(tmp_path, mistake):
    old, new, word = MISTAKES[mistake]
    assert old in TUNED
    (tmp_path / "bad.yaml").write_text(TUNED.replace(old, new))
    (line,) = run_here("sweep", "bad.yaml", cwd=tmp_path, expect=2).stderr.strip().splitlines()
    assert word in line and "bad.yaml: " in line and "tune" in line
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_recordings_that_are_too_few_for_validation_are_refused_with_what_they_have_room_for(tmp_path):
    """Four recordings are trained on; one of them has room for two validation episodes of 17 frames."""
    (tmp_path / "recordings").mkdir()
    for number in range(5):
        save(tmp_path / "recordings", f"episode{number}.npz", **episode(number))
    text = TUNED.replace("{name: rooms, size: 16}", "{name: memory_maze, path: recordings}")
    (tmp_path / "bad.yaml").write_text(text.replace("episodes: 4", "episodes: 2, probe: 0"))
    plan = ("plan", "bad.yaml", "--no-probe", "--set", "grid.memory=[none]")
    assert "none: trials" in run_here(*plan, cwd=tmp_path).stdout
    (line,) = run_here(*plan, "--set", "tune.episodes=3", cwd=tmp_path, expect=2).stderr.strip().splitlines()
    assert "tune.episodes" in line and "1 validation episodes" in line and "there is room for 2" in line
    for number in (1, 2, 3):
        (tmp_path / "recordings" / f"episode{number}.npz").unlink()
    (line,) = run_here(*plan, cwd=tmp_path, expect=2).stderr.strip().splitlines()
    assert "tune: " in line and "only one training recording" in line


def test_a_folder_whose_trials_are_none_is_refused_with_its_reason(copied):
    path = results(copied) / "sweep.yaml"
    plan = yaml.safe_load(path.read_text())
    for trials in ([], {"none": "all"}, {"none": ["../../x"]}):
        path.write_text(yaml.safe_dump({**plan, "trials": trials or ["none"]}))
        with pytest.raises(UserError, match=r"sweep.yaml"):
            planned_trials(results(copied))
    path.write_text(yaml.safe_dump({**plan, "trials": {"none": plan["planned"][:1]}}))
    with pytest.raises(UserError, match=r"no trial of tune.axis training.learning_rate"):
        read_tuning(read_sweep(results(copied)))


@pytest.mark.slow
def test_on_slurm_the_same_command_submits_first_the_trials_then_the_runs(tmp_path, slurm, finished):
    text = ON_SLURM.replace("steps: 30,", "steps: 20, warmup: 2,") + TUNE
    (tmp_path / "tiny.yaml").write_text(text)
    options = {"cwd": tmp_path, "environment": slurm.environment}
    which = ("sweep", "tiny.yaml", "--only", "memory=none", "--only", "seed=0")
    runs: Path = results(tmp_path) / "runs"
    assert "1 more, which wait for trials" in run_here(*which, "--detach", **options).stdout
    wait_for(lambda: len([*runs.glob("*/result.json"), *runs.glob("*/failure.txt")]) == 3)
    assert "write the report" in run_here(*which, "--detach", **options).stdout
    wait_for(lambda: list(runs.glob("none-seed0-*/result.json")))
    assert "1 of 1 runs are done" in run_here(*which, **options).stdout
    assert rates(tmp_path).items() <= rates(finished).items()
