"""A run: resumed = undisturbed to the bit, evaluation independent of block and batch, results complete."""

import contextlib
import json
import re
import threading

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.data import open_dataset
from rad_bench.evaluation.evaluate import evaluate
from rad_bench.evaluation.tasks import make_task
from rad_bench.model.budget import build_trunk, plan_model
from rad_bench.model.registry import block_names, find_block
from rad_bench.run.execute import execute
from rad_bench.run.parity import ParityError
from rad_bench.store.run_folder import Run, RunFolder, save_run
from rad_bench.sweep.job import RunJob, interrupt
from rad_bench.training.device import check_gpus
from rad_bench.training.trainer import Trainer
from tests.runs import opened
from tests.sweep.faults import corrupted, truncated

TINY = {
    "data": {"name": "rooms", "size": 16},
    "trunk": {"width": 16, "depth": 1, "patch": 8, "window": 2},
    "training": {"steps": 25, "batch": 2, "frames": 12, "loss_from": 4, "checkpoint_every": 7},
    "evaluation": {"episodes": 4, "context": 9, "horizon": 8, "batch": 4, "strips": 1},
    "memory": {"name": "lstm", "hidden": 8},
}


def tiny(**sections):
    tree = {key: dict(value) for key, value in TINY.items()}
    for key, value in sections.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) and key != "memory" else value
    return RunConfig.model_validate(tree)


def start(folder, config):
    save_run(Run(folder.name, "lstm", {}, config, "key"), folder)
    return folder


@pytest.fixture(scope="module")
def finished(once):
    def fill(folder):
        execute(RunFolder(start(folder / "lstm-seed0", tiny())), LaunchConfig())

    return once("finished", fill) / "lstm-seed0"


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("at", "spoilt", "names"),
    [
        (3, None, []),
        (7, None, []),
        (18, None, []),
        (18, truncated, ["checkpoint.pt"]),
        (18, corrupted, ["checkpoint.pt"]),
        (18, truncated, ["checkpoint.pt", "checkpoint.before.pt"]),  # then from the start
    ],
)
def test_a_run_killed_in_training_and_resumed_ends_with_the_same_bits(
    tmp_path, monkeypatch, finished, at, spoilt, names, capsys
):
    folder, real = start(tmp_path / "lstm-seed0", tiny()), Trainer.step

    def dies(trainer, episodes, number):
        if number == at:
            raise Killed
        return real(trainer, episodes, number)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(Killed):
        execute(RunFolder(folder), LaunchConfig(loaders=2))
    assert not RunFolder(folder).is_done
    monkeypatch.undo()
    for name in names:
        spoilt(folder / name)
    execute(RunFolder(folder), LaunchConfig(loaders=0))  # who prepares the clips does not matter either
    assert capsys.readouterr().err.count("is skipped") == len(names)
    for name, weight in load_file(finished / "model.safetensors").items():
        assert torch.equal(weight, load_file(folder / "model.safetensors")[name]), name
    pd.testing.assert_frame_equal(
        pd.read_parquet(finished / "frames.parquet"), pd.read_parquet(folder / "frames.parquet")
    )
    losses = [
        [
            (line["step"], line["loss"])
            for line in map(json.loads, (f / "log.jsonl").read_text().splitlines())
            if "loss" in line
        ]
        for f in (finished, folder)
    ]
    assert losses[0] == losses[1]


def dying_at(step, real=Trainer.step):
    def dies(trainer, episodes, number):
        if number == step:
            raise Killed
        return real(trainer, episodes, number)

    return dies


def started_by_slurm(folder, job, restarts):
    """Start a run as SLURM starts its job for the nth time; return what its failure says."""
    with pytest.MonkeyPatch.context() as environment, contextlib.suppress(Killed):
        environment.setenv("SLURM_JOB_ID", job)
        environment.setenv("SLURM_RESTART_COUNT", str(restarts))
        RunJob()(folder, LaunchConfig(attempts=2))
    failure = RunFolder(folder).failure
    return failure.read_text() if failure.exists() else None


def test_a_job_that_slurm_starts_without_end_fails_unless_it_gets_further(tmp_path, monkeypatch, finished):
    folder = start(tmp_path / "lstm-seed0", tiny())
    for restarts, at in enumerate((3, 8, 9, 15, 16, 22, 23, 24)):  # twice from the start and from each checkpoint
        monkeypatch.setattr(Trainer, "step", dying_at(at))
        assert started_by_slurm(folder, "7", restarts) is None
    told = started_by_slurm(folder, "7", 8)
    assert told.startswith("started 2 times at step 21 without progress; its time limit (launch.slurm.timeout:")
    assert "training.checkpoint_every" in told and len(told) < 200
    monkeypatch.setattr(Trainer, "step", dying_at(None))
    monkeypatch.setattr("rad_bench.run.execute.evaluate", lambda *_: dying_at(0)(None, None, 0))
    assert started_by_slurm(folder, "8", 0) is None  # ends its training: evaluation has nothing to go on from
    for job in ("9", "10"):  # the same command again submits another job, which has tries of its own
        assert [started_by_slurm(folder, job, restarts) for restarts in (0, 1)] == [None, None]
        told = started_by_slurm(folder, job, 2)
        assert told.startswith("started 2 times in evaluation, which cannot be resumed, without") and len(told) < 200
    monkeypatch.undo()
    RunJob()(folder, LaunchConfig())
    pd.testing.assert_frame_equal(
        pd.read_parquet(finished / "frames.parquet"), pd.read_parquet(folder / "frames.parquet")
    )


def test_a_job_that_was_given_gpus_and_sees_none_says_so_and_does_not_train(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder, launch = start(tmp_path / "lstm-seed0", tiny()), LaunchConfig.model_validate({"slurm": {"gpus": 1}})
    for executor, device in (("slurm", "cpu"), ("local", "auto")):  # meant, or not about SLURM's GPUs
        monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
        check_gpus(torch.device("cpu"), launch.model_copy(update={"device": device}))
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for version, why in ((None, "it is a build for the CPU."), ("12.4", "a module was not loaded")):
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(torch.version, "hip", None)
        RunJob()(folder, launch)
        told = RunFolder(folder).failure.read_text()
        assert told.startswith("launch.slurm.gpus is 1, but PyTorch") and why in told and "\n" not in told
    assert not RunFolder(folder).log.exists()


def test_an_error_that_a_library_makes_of_an_interrupt_is_no_failure(tmp_path, monkeypatch):
    def interrupted_inside_a_library(*_):
        try:
            interrupt()
        except KeyboardInterrupt as error:
            raise RuntimeError("loading stopped") from error

    monkeypatch.setattr("rad_bench.sweep.job.INTERRUPTED", threading.Event())
    monkeypatch.setattr("rad_bench.run.execute.execute", interrupted_inside_a_library)
    folder = start(tmp_path / "lstm-seed0", tiny())
    with pytest.raises(KeyboardInterrupt):
        RunJob()(folder, LaunchConfig())
    assert not RunFolder(folder).failure.exists()


def test_a_finished_run_is_not_touched(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    execute(RunFolder(finished), LaunchConfig())
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_frames_have_the_contract_columns_and_every_task_and_intervention(finished):
    frames = pd.read_parquet(finished / "frames.parquet")
    columns = {
        "run",
        "block",
        "seed",
        "task",
        "intervention",
        "episode",
        "frame",
        "kind",
        "gap",
        "psnr",
        "ssim",
        "mse",
        "card",
        "truth",
        "self_revisit",
        "self_other",
        "self_neighbour",
        "recall",
        "items",
        "choices",
    }
    assert set(frames.columns) == columns  # no LPIPS column without its weights
    counts = frames.groupby(["block", "task", "intervention"]).size().to_dict()
    assert counts == {
        **{("lstm", "continuation", i): 4 * 8 for i in ("keep", "reset", "swap")},
        **{("lstm", "retrieval", i): 4 * 8 for i in ("keep", "reset", "swap")},
        ("copy-last", "continuation", "keep"): 4 * 8,
        ("copy-last", "retrieval", "keep"): 4 * 8,
    }
    for task, shown in json.loads((finished / "result.json").read_text())["strips"].items():
        for name in ("truth", "keep", "reset", "swap"):
            assert [
                (finished / "strips" / f"{task}-{name}-{episode}.png").exists() for episode in shown["episodes"]
            ] == [True]


def evaluated(experiment):
    return evaluate(experiment, lambda done, of: None).frames


def test_evaluation_does_not_depend_on_the_batch():
    tables = []
    for batch in (4, 3, 1):
        config = tiny(evaluation={"batch": batch})
        tables.append(evaluated(opened(config, perturbed=True)))
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], atol=1e-2, rtol=1e-3)  # 8-bit frames may round apart


def test_interventions_change_what_memory_gave_and_nothing_without_memory():
    for block, changes in (("attention", True), ("none", False)):
        config = tiny(memory={"name": block})
        frames = evaluated(opened(config, perturbed=True))
        frames = frames[frames["block"].isna()].set_index(["task", "episode", "frame"])
        kept = frames[frames["intervention"] == "keep"]["mse"]
        for intervention in ("reset", "swap"):
            other = frames[frames["intervention"] == intervention]["mse"]
            assert ((other - kept).abs().max() > 0) == changes


def test_retrieval_walks_back_to_where_it_came_from():
    from rad_bench.data.episodes import poses_from_egomotion

    config = tiny(data={"preset": "walking"})
    episodes = open_dataset(config.data).held_out(4, 17, 9)
    task = make_task("retrieval", episodes, config.evaluation, 1)
    poses = poses_from_egomotion(task.egomotion)
    assert task.horizon == 8
    for h in range(8):
        assert torch.equal(task.truth[:, 9 + h], episodes.frames[:, 7 - h])
        torch.testing.assert_close(poses[:, 9 + h], poses[:, 7 - h], atol=1e-5, rtol=0)


SIZED = [name for name in block_names() if find_block(name).size_option]


@pytest.mark.parametrize("block", SIZED)
@pytest.mark.parametrize(("by", "budget"), [("parameters", 70_000), ("state", 240_000), ("flops", 600_000)])
def test_every_budget_is_met_within_two_percent(block, by, budget):
    if by == "state" and (find_block(block).memoryless or block in ("lstm", "minlstm")):
        pytest.skip("a vector of that many bytes has millions of weights, and no memory has no bytes")
    config = RunConfig.model_validate({"memory": block, "match": {"by": by, "budget": budget}})
    plan = plan_model(config, (3, 32, 32), 4)
    spent = {
        "parameters": plan.memory_parameters,
        "state": list(plan.state_bytes.values())[-1],
        "flops": plan.memory_flops,
    }[by]
    assert abs(spent - budget) <= 0.02 * budget
    assert plan.residual == pytest.approx((spent - budget) / budget)


def test_flops_are_counted_and_not_formulas():
    """A case that can be worked out: the control's two matrix products, on every token of both streams."""
    config = RunConfig.model_validate({"memory": {"name": "feedforward", "hidden": 100}})
    plan = plan_model(config, (3, 32, 32), 4)
    tokens = 4 * (config.training.frames + config.training.frames - config.training.loss_from)
    a_layer = tokens * 2 * (2 * 64 * 100) // config.training.frames
    assert plan.memory_flops == pytest.approx(2 * a_layer, abs=2)
    others = {plan_model(RunConfig.model_validate({"memory": name}), (3, 32, 32), 4).trunk_flops for name in SIZED}
    assert (
        max(others) - min(others) <= 4
    )  # frames that do not divide; else the trunk costs the same whatever it carries


def test_memory_in_some_layers_leaves_the_same_trunk():
    counts, hashes = [], set()
    for layers in ("all", "alternate", "last"):
        run = RunConfig.model_validate(
            {"memory": "lstm", "trunk": {"depth": 4, "memory_layers": layers, "width": 16, "patch": 16}}
        )
        trunk, plan = build_trunk(run, (3, 32, 32), 4)
        counts.append(plan.memory_parameters)
        hashes.add(trunk.trunk_hash())
    assert counts[0] == 2 * counts[1] == 4 * counts[2]
    assert len(hashes) == 1


def test_state_is_constant_for_recurrent_blocks_and_grows_for_attention():
    sizes = {
        block: list(plan_model(RunConfig.model_validate({"memory": block}), (3, 32, 32), 4).state_bytes.values())
        for block in ("none", "lstm", "mamba2", "ttt", "attention")
    }
    assert set(sizes["none"]) == {0}
    for block in ("lstm", "mamba2", "ttt"):
        assert len(set(sizes[block])) == 1
    assert sizes["lstm"][0] == 2 * 128 * 4 * 4 * 2  # h and c, floats, locations, layers
    assert sizes["attention"] == [sizes["attention"][0] * frames for frames in (1, 20, 100)]


def test_a_run_says_what_computed_its_memory_and_how_exactly(finished):
    parity = json.loads((finished / "result.json").read_text())["parity"]
    assert set(parity) == {"path", "why", "max_error", "device"}
    assert parity["path"] == "PyTorch, own prefetch"
    assert parity["device"].startswith("cpu")
    assert 0 <= parity["max_error"] < 2e-4


def test_a_run_whose_block_computes_something_else_by_its_fast_path_is_not_made(tmp_path):
    name = "tests.blocks.test_contract:WrongDecay"
    folder = start(tmp_path / "wrong-seed0", tiny(memory={"name": name, "hidden": 8}))
    with pytest.raises(ParityError, match=re.escape(f"block '{name}'")) as told:
        execute(RunFolder(folder), LaunchConfig())
    assert "\n" not in str(told.value)
    assert not RunFolder(folder).checkpoint.exists() and not RunFolder(folder).is_done
