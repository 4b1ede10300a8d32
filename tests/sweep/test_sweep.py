"""A sweep: the grid in order, a true cap on parallel runs, kills that cost nothing, failures that stay alone."""

import json
import os
import shutil
import signal
import subprocess
import time

import pandas as pd
import pytest

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.look.load import load_trained
from rad_bench.run.execute import execute
from rad_bench.store.run_folder import RunFolder, save_run
from rad_bench.sweep.grid import cut_to, plan_runs
from rad_bench.sweep.load import load_sweep
from tests.sweep.tiny import GRU, LAUNCH, ROOT, TINY, command, run_here


@pytest.fixture
def undisturbed(tiny_sweep, tmp_path_factory):
    return shutil.copytree(tiny_sweep, tmp_path_factory.mktemp("undisturbed"), dirs_exist_ok=True)


def test_the_grid_is_a_product_with_the_last_axis_fastest(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    runs = plan_runs(load_sweep(tmp_path / "tiny.yaml"))
    assert [(run.label, run.config.seed) for run in runs] == [
        ("none", 0), ("none", 1), ("lstm(hidden=8)", 0), ("lstm(hidden=8)", 1),
    ]  # fmt: skip
    assert len({run.key for run in runs}) == 4


def test_set_only_and_extends_change_the_plan_as_they_say(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    child = tmp_path / "child.yaml"
    child.write_text("name: child\nextends: tiny.yaml\nrun: {trunk: {window: 3}}\ngrid: {trunk.depth: [1, 2]}\n")
    runs = plan_runs(load_sweep(child, ["run.seed=7", "run.training.steps=40"]), ["memory=lstm"])
    assert [run.label for run in runs] == ["lstm(hidden=8) / depth=1", "lstm(hidden=8) / depth=2"]
    for run in runs:
        assert (run.config.seed, run.config.training.steps, run.config.trunk.window) == (7, 40, 3)
        assert run.config.trunk.width == 16


def test_the_command_line_and_extends_reach_every_part_of_a_grid(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "child.yaml").write_text("name: child\nextends: tiny.yaml\ngrid: {memory: null}\n")
    points = "grid.variant={slow: {memory: lstm, training.learning_rate: 1e-4}, fast: {memory: lstm}}"
    runs = plan_runs(load_sweep(tmp_path / "child.yaml", [points, "run.training.steps=3"]))
    assert [(run.axes["variant"], run.config.seed) for run in runs] == [
        ("slow", 0), ("fast", 0), ("slow", 1), ("fast", 1),
    ]  # fmt: skip
    assert runs[0].config.training.learning_rate == 1e-4


def test_what_only_leaves_of_a_sweep_is_a_sweep_of_its_own(tmp_path):
    where = "launch: {where: {memory=none: {threads: 2}, memory=lstm: {threads: 3}}}"
    yaml = TINY.replace(LAUNCH, where)
    yaml = yaml.replace("grid:", "grid:\n  at: {a: {trunk.depth: 1}, b: {trunk.depth: 2}}")
    (tmp_path / "tiny.yaml").write_text(yaml)
    sweep = load_sweep(tmp_path / "tiny.yaml")
    runs = plan_runs(sweep, ["memory=lstm", "seed=1", "at=a"])
    left = cut_to(sweep, runs)
    assert [run.key for run in plan_runs(left)] == [run.key for run in runs] and len(runs) == 1
    assert list(left.launch.where) == ["memory=lstm"]
    assert cut_to(sweep, plan_runs(sweep)) == sweep


def test_identity_is_made_of_science_and_not_of_resources(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)

    def keys(*overrides):
        return [run.key for run in plan_runs(load_sweep(tmp_path / "tiny.yaml", overrides))]

    assert keys() == keys(
        "run.evaluation.batch=1", "launch.parallel=1", "run.training.checkpoint_every=9", "name=other"
    )
    assert not set(keys()) & set(keys("run.training.steps=31"))
    assert not set(keys()) & set(keys("run.data.panels=3"))


def test_a_duplicate_run_is_refused(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.replace("[0, 1]", "[0, 0]"))
    with pytest.raises(UserError, match="twice"):
        plan_runs(load_sweep(tmp_path / "tiny.yaml"))


def test_a_sweep_ends_with_frames_summary_and_report(undisturbed):
    sweep = undisturbed / "results" / "tiny"
    frames = pd.read_parquet(sweep / "frames.parquet")
    assert set(frames["block"]) == {"none", "lstm(hidden=8)", "copy-last"}
    assert not frames.duplicated(["block", "seed", "task", "intervention", "episode", "frame"]).any()
    assert set(pd.read_csv(sweep / "summary.csv")["block"]) == set(frames["block"])
    assert (sweep / "report" / "index.html").stat().st_size > 1000
    hashes = {}
    for path in sweep.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        hashes.setdefault(result["seed"], set()).add(result["trunk_hash"])
    assert sorted(map(len, hashes.values())) == [1, 1]  # the same trunk for every block of a seed


@pytest.mark.usefixtures("without_plots")
def test_the_same_command_again_redoes_nothing(undisturbed):
    runs = undisturbed / "results" / "tiny" / "runs"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert "4 of 4 runs are done" in run_here("sweep", "tiny.yaml", cwd=undisturbed).stdout
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def kill_everything(launcher, runs):
    """SIGKILL the launcher and every process of its session: nothing gets to clean up."""
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
def test_three_kills_and_the_same_command_give_the_frames_of_an_undisturbed_sweep(tmp_path, undisturbed):
    (tmp_path / "tiny.yaml").write_text(TINY)
    argv, environment = command("sweep", "tiny.yaml", "--only", "seed=0")
    runs = tmp_path / "results" / "tiny" / "runs"
    kills = 0
    for wanted in (5, 10, 15):  # logged steps over both runs, by which the sweep is under way
        launcher = subprocess.Popen(
            argv,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while launcher.poll() is None:
            lines = [line for log in runs.glob("*/log.jsonl") for line in log.read_text().splitlines()]
            if 10 * len(lines) >= wanted * (kills + 1):
                kill_everything(launcher, runs)
                kills += 1
                break
            time.sleep(0.01)
    assert kills >= 2
    run_here("sweep", "tiny.yaml", "--only", "seed=0", cwd=tmp_path)
    ours, theirs = (pd.read_parquet(f / "results" / "tiny" / "frames.parquet") for f in (tmp_path, undisturbed))
    theirs = theirs[theirs["seed"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, theirs)


@pytest.mark.slow
def test_a_strangers_block_in_one_file_is_checked_and_swept(tmp_path):
    (tmp_path / "my_block.py").write_text(GRU)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("{name: lstm, hidden: 8}", "my_block.py:GRU"))
    refused = run_here("check", "my_block.py:LooksAhead", cwd=tmp_path, expect=1)
    assert "FAIL" in refused.stdout
    assert "must not be compared" in refused.stderr
    run_here("sweep", "tiny.yaml", "--only", "seed=0", "--cluster", "debug", cwd=tmp_path)
    assert "GRU" in set(pd.read_parquet(tmp_path / "results" / "tiny" / "frames.parquet")["block"])


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_a_failing_run_leaves_the_others_alone_and_is_named(tmp_path, cluster):
    (tmp_path / "my_block.py").write_text(GRU)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("{name: lstm, hidden: 8}", "my_block.py:Raises"))
    result = run_here("sweep", "tiny.yaml", "--only", "seed=0", "--cluster", cluster, cwd=tmp_path, expect=1)
    assert "1 of 2 runs are not done" in result.stderr
    assert "no such luck" in result.stderr
    sweep = tmp_path / "results" / "tiny"
    assert set(pd.read_parquet(sweep / "frames.parquet")["block"]) == {"none", "copy-last"}
    assert (sweep / "report" / "index.html").exists()


def test_a_block_that_cannot_step_is_refused_before_anything_is_launched(tmp_path):
    (tmp_path / "my_block.py").write_text(GRU)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("{name: lstm, hidden: 8}", "my_block.py:NeverWorks"))
    refused = run_here("sweep", "tiny.yaml", cwd=tmp_path, expect=2)
    assert "no such luck" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "results").exists()


def test_a_block_that_breaks_the_contract_is_refused_before_anything_is_launched(tmp_path):
    (tmp_path / "my_block.py").write_text(GRU)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("{name: lstm, hidden: 8}", "my_block.py:LooksAhead"))
    refused = run_here("sweep", "tiny.yaml", cwd=tmp_path, expect=2)
    assert "breaks the contract" in refused.stderr and "causality" in refused.stderr
    assert not (tmp_path / "results").exists()


def test_a_block_edited_after_it_was_planned_is_not_run_under_its_old_name(tmp_path, monkeypatch):
    """Nor is it loaded with the weights of what it was; what was run is kept with the run."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "scale_of_mine.py").write_text("SCALE = 1.0\n")
    (tmp_path / "my_block.py").write_text("import scale_of_mine\n" + GRU)
    block = f"{tmp_path}/my_block.py:GRU"
    (tmp_path / "tiny.yaml").write_text(TINY.replace("{name: lstm, hidden: 8}", f"'{block}'"))
    sweep = load_sweep(tmp_path / "tiny.yaml", ["run.training.steps=2"])
    (planned,) = plan_runs(sweep, [f"memory={block}", "seed=0"])
    run = tmp_path / "run"
    save_run(planned, run)
    execute(RunFolder(run), LaunchConfig())
    assert sorted(path.name for path in (run / "block").iterdir()) == ["my_block.py", "scale_of_mine.py"]
    load_trained(run)
    (tmp_path / "scale_of_mine.py").write_text("SCALE = 2.0\n")
    with pytest.raises(UserError, match=r"the block that its config\.yaml names has changed since training"):
        load_trained(run)
    (run / "result.json").unlink()  # as if its job had waited in a queue
    with pytest.raises(UserError, match="has changed since this run was planned"):
        execute(RunFolder(run), LaunchConfig())
    assert plan_runs(sweep, [f"memory={block}", "seed=0"])[0].key != planned.key


def test_no_more_runs_at_a_time_than_asked_for(undisturbed):
    """A run begins with its environment and ends with its result: at no moment are there more than two between."""
    spans = []
    for folder in (undisturbed / "results" / "tiny" / "runs").iterdir():
        spans += [((folder / "environment.json").stat().st_mtime, 1), ((folder / "result.json").stat().st_mtime, -1)]
    running, most = 0, 0
    for _, change in sorted(spans):
        running += change
        most = max(most, running)
    assert most <= 2


def test_an_axis_may_have_named_points_that_set_several_paths(tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        TINY.replace("  seed: [0, 1]", "  regime:\n    frames: {trunk.window: 2}\n"
                     "    chunks: {trunk.window: 0, trunk.frames_per_step: 2, training.frames: 12,"
                     " evaluation.context: 8}\n  seed: [0]")
    )  # fmt: skip
    sweep = load_sweep(tmp_path / "tiny.yaml", ["run.evaluation.reach=4"])
    runs = plan_runs(sweep)
    assert [run.label for run in runs][:2] == ["none / frames", "none / chunks"]
    assert [(r.config.trunk.window, r.config.trunk.frames_per_step) for r in runs[:2]] == [(2, 1), (0, 2)]
    assert [run.label for run in plan_runs(sweep, ["regime=chunks", "memory=none"])] == ["none / chunks"]
    with pytest.raises(UserError, match=r"regime has no value 'chunk'; did you mean 'chunks'"):
        plan_runs(sweep, ["regime=chunk"])
    with pytest.raises(UserError, match=r"evaluation.reach 1 is less than attention reaches, 2 frames"):
        plan_runs(load_sweep(tmp_path / "tiny.yaml", ["run.evaluation.reach=1"]))


def test_named_points_of_the_memory_have_their_name_instead_of_the_block(tmp_path):
    points = "  memory:\n    none: {memory: none}\n    lstm(1 kB): {memory: lstm, match: {by: state, budget: 1024}}\n"
    (tmp_path / "tiny.yaml").write_text(TINY.replace("  memory: [none, {name: lstm, hidden: 8}]\n", points))
    sweep = load_sweep(tmp_path / "tiny.yaml")
    runs = plan_runs(sweep, ["memory=lstm(1 kB)"])
    assert {run.label for run in runs} == {"lstm(1 kB)"} and runs[0].axes["memory"] == "lstm(1 kB)"
    assert runs[0].config.memory.name == "lstm" and runs[0].config.match.budget == 1024
    assert [run.label for run in plan_runs(sweep, ["seed=0"])] == ["none", "lstm(1 kB)"]


PUBLISHED = [file for file in sorted((ROOT / "sweeps").rglob("*.yaml")) if file.stem != "scale"]


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: "/".join(file.parts[-2:]))
def test_every_published_sweep_can_be_planned(file):
    """Those on recorded data need a folder of them, some an autoencoder; the embedded world's pixels stand in."""
    on_files = file.stem in ("memory_maze", "luanti") or file.parent.name == "gpu"
    overrides = ["run.data={name: rooms, size: 64}", "run.autoencoder=none"] if on_files else []
    runs = plan_runs(load_sweep(file, overrides))
    assert len({run.key for run in runs}) == len(runs) >= 5
