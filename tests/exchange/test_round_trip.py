"""A model trained here, exported as frames and scored from outside, gives its own numbers to the last digit."""

import shutil

import pandas as pd
import pytest
import torch

from rad_bench.evaluation import perceptual
from rad_bench.evaluation.evaluate import evaluate
from rad_bench.evaluation.weights import fetched_path
from rad_bench.exchange.folder import read_keys, write_truth
from rad_bench.exchange.score import Model, score
from rad_bench.exchange.tasks import write_tasks
from rad_bench.look.load import load_trained
from rad_bench.report.reading import read_sweep
from rad_bench.store import strict_yaml
from rad_bench.store.run_folder import load_run
from tests.exchange.outside import rollouts, tasks, write
from tests.runs import shaken
from tests.sweep.tiny import run_here

ROW = ["block", "seed", "task", "intervention", "episode", "frame"]


def rows(folder):
    """Return the frames that both ways of scoring have, in one order."""
    frames = pd.read_parquet(folder / "frames.parquet")
    return frames[frames["intervention"] != "reset"].sort_values(ROW, ignore_index=True)


@pytest.fixture
def scored(tiny_sweep, tmp_path):
    """Score the frames of the tiny sweep's four runs from outside: two as arrays, two as pictures."""
    where = tasks(tmp_path)
    options = []
    for path in sorted((tiny_sweep / "results" / "tiny" / "runs").iterdir()):
        run, form = load_run(path), "npz" if "lstm" in path.name else "png"
        name = f"{run.label}:{run.config.seed}"
        for intervention, frames in rollouts(load_trained(path)).items():
            if intervention != "reset":
                folder = write(tmp_path / intervention / path.name, frames, form)
                options += ["--rollouts" if intervention == "keep" else "--swapped", f"{name}={folder}"]
    told = run_here("score", where, *(o.replace("lstm(hidden=8)", "lstm") for o in options), cwd=tmp_path)
    assert "note" not in told.stderr and "nothing was" not in told.stderr
    return tmp_path / "results" / "tiny_scored"


def test_every_row_is_the_sweeps_own(tiny_sweep, scored):
    own, outside = rows(tiny_sweep / "results" / "tiny"), rows(scored)
    own["block"] = own["block"].replace("lstm(hidden=8)", "lstm")
    assert len(own) == 4 * 2 * 2 * 4 * 8 + 2 * 2 * 4 * 8  # and the control's
    pd.testing.assert_frame_equal(outside.drop(columns="run"), own.drop(columns="run"), check_exact=True)
    assert {"ssim", "recall", "items", "self_neighbour"} <= set(outside)


def test_the_summary_is_the_sweeps_own(tiny_sweep, scored):
    own, outside = (
        pd.read_csv(folder / "summary.csv").replace("lstm(hidden=8)", "lstm").set_index(["block", "task"])
        for folder in (tiny_sweep / "results" / "tiny", scored)
    )
    same = [c for c in outside if c != "verdict"]
    assert {"revisit_psnr_low", "revisit_recall", "swap_drop", "over_none", "bits"} <= set(same)
    pd.testing.assert_frame_equal(outside[same], own[same], check_exact=True)
    # What a memory costs, and whether there is one, is known of a model trained here alone.
    assert set(own) - set(outside) >= {"memory_parameters", "state_bytes_end", "reset_drop"}
    assert own.loc[("none", "continuation"), "verdict"] == "carries none"
    assert outside.loc[("none", "continuation"), "verdict"] == "not shown to use its memory"


def test_both_can_be_merged_into_one_report(tiny_sweep, scored, tmp_path):
    sweep = tiny_sweep / "results" / "tiny"
    told = run_here("merge", tmp_path / "joined", sweep, scored, cwd=tmp_path, expect=2).stderr
    assert "two runs of 'none' with seed 0" in told
    plan = strict_yaml.load((scored / "sweep.yaml").read_text())
    plan["planned"] = [name for name in plan["planned"] if name.startswith("lstm")]
    (scored / "sweep.yaml").write_text(strict_yaml.dump(plan))
    run_here("report", scored, cwd=tmp_path)
    run_here("merge", tmp_path / "joined", sweep, scored, cwd=tmp_path)
    joined = read_sweep(tmp_path / "joined")
    assert joined.blocks == ["none", "lstm(hidden=8)", "lstm", "copy-last"]
    for task in joined.tasks:
        own, outside = (joined.revisits(task, block) for block in ("lstm(hidden=8)", "lstm"))
        assert len(own) and (own == outside).all()


@pytest.fixture
def with_lpips(lpips_weights, tmp_path, monkeypatch):
    """Put the weights into a cache that is used, and forget that there were none."""
    cached = perceptual.lpips_unavailable, perceptual._backbone, perceptual._network
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fetched_path(perceptual.NETWORK).parent.mkdir(parents=True)
    shutil.copy(lpips_weights, fetched_path(perceptual.NETWORK))
    for function in cached:
        function.cache_clear()
    yield
    monkeypatch.undo()
    for function in cached:
        function.cache_clear()


def test_perceptual_distances_are_the_same_too(with_lpips, tmp_path):
    model = shaken(data={"name": "rooms", "size": 32}, evaluation={"tasks": ["continuation"], "strips": 0})
    own = evaluate(model, lambda done, of: None).frames
    text = strict_yaml.dump({"name": "one", "run": model.config.model_dump(mode="json")})
    where = tasks(tmp_path, text)
    frames = rollouts(model)
    folders = [write(tmp_path / intervention, frames[intervention]) for intervention in ("keep", "swap")]
    score(where, [Model("lstm", 0, *folders)], tmp_path / "scored", "cpu", lambda done, of: None)
    outside, own = rows(tmp_path / "scored"), own[own["intervention"] != "reset"]
    own = own.assign(block=own["block"].fillna("lstm"), seed=0).sort_values(ROW, ignore_index=True)
    assert outside["lpips"].notna().all()
    pd.testing.assert_frame_equal(outside[list(own)], own, check_exact=True)


def test_truth_is_read_as_it_was_written_also_behind_an_autoencoder(tmp_path):
    (tmp_path / "asked.yaml").write_text("name: asked\nrun: {data: {name: rooms, size: 16}}\n")
    small = ["run.evaluation.episodes=2", "run.evaluation.context=4", "run.evaluation.horizon=6"]
    index = write_tasks(tmp_path / "asked.yaml", tmp_path / "tasks", small, (), lambda done, of: None)
    config, keys = read_keys(tmp_path / "tasks", index)
    for key in keys:
        object.__setattr__(key, "decoded", 255 - key.truth)
    write_truth(tmp_path / "tasks", config, keys)
    again, same = read_keys(tmp_path / "tasks", index)
    assert again == config
    for key, other in zip(keys, same, strict=True):
        for name, value in {**vars(key.task), **vars(key)}.items():
            read = getattr(other, name, None) if name in vars(key) else getattr(other.task, name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, read) and value.dtype == read.dtype, name
        assert key.task.palette.rows == other.task.palette.rows
        assert torch.equal(key.task.palette.colours, other.task.palette.colours)
        assert (key.kinds == other.kinds).all() and key.reach == other.reach and key.same_view == other.same_view
