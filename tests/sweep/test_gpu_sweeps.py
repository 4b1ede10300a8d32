"""The settings of peers: what they say is what is planned, and they run, at toy width."""

import shutil

import pytest

from rad_bench.config import RunConfig
from rad_bench.model.budget import plan_model
from rad_bench.run.autoencoder import make_autoencoder
from rad_bench.sweep.load import load_sweep, validate
from rad_bench.training.autoencoder import Settings
from tests.model.test_autoencoder import CPU
from tests.sweep.test_data_fits import mazes
from tests.sweep.tiny import ROOT, run_here

GPU = ROOT / "sweeps" / "gpu"


def config(name, memory):
    sweep = load_sweep(GPU / f"{name}.yaml")
    return validate(RunConfig, {**sweep.run, "memory": memory, "seed": 0}, name, "run")


def test_come_is_the_setting_that_its_authors_published():
    run = config("come", "mamba2")
    assert (run.trunk.width, run.trunk.depth, run.trunk.heads, run.trunk.mlp_ratio) == (512, 12, 8, 4)
    assert (run.diffusion.prediction, run.diffusion.shift, run.diffusion.sampler_steps) == ("v", 0.125, 50)
    assert (run.data.size, run.data.stride, run.evaluation.context, run.evaluation.horizon) == (64, 2, 200, 17)
    assert run.training.frames == 217 and run.training.learning_rate == 1e-4 and run.training.precision == "bf16"
    assert run.evaluation.context > run.trunk.reach  # so that the context needs a memory


@pytest.mark.slow
@pytest.mark.parametrize(("name", "frame"), [("come", (8, 8, 8)), ("minecraft_latents", (4, 16, 16))])
def test_plans_sizes_are_those_of_the_config(name, frame):
    run = config(name, "mamba2")
    plan, D = plan_model(run, frame, action_size=12), run.trunk.width
    # Query, key, value and output of two attentions, six modulations, and the MLP; embeddings are few beside them.
    layers = run.trunk.depth * D**2 * (8 + 6 + 2 * run.trunk.mlp_ratio)
    assert plan.trunk_parameters == pytest.approx(layers, rel=0.35)
    assert plan.memory_parameters == pytest.approx(run.match.budget, rel=0.02)
    tokens = frame[1] * frame[2] // run.trunk.patch**2
    assert plan.trunk_flops > 2 * tokens * (layers - run.trunk.depth * 6 * D**2)  # a product a weight and token


@pytest.mark.slow
def test_come_runs_two_steps_at_toy_width(tmp_path):
    from rad_bench.data import open_folder

    data = tmp_path / "mazes"
    mazes(data, (60,) * 5)
    make_autoencoder(open_folder(data, 16), Settings(16, 4, 8, steps=2, batch=4), tmp_path / "ae", CPU, lambda *_: None)
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    smaller = {
        "data.path": data, "data.size": 16, "data.held_out": 0.5, "autoencoder.path": tmp_path / "ae",
        "trunk.width": 32, "trunk.depth": 1, "trunk.heads": 2, "trunk.window": 2, "match.budget": 20000,
        "training.steps": 2, "training.batch": 2, "training.frames": 12, "training.loss_from": 6, "training.warmup": 1,
        "evaluation.at": "[1]", "evaluation.episodes": 2, "evaluation.context": 10, "evaluation.horizon": 4,
        "evaluation.probe": 0, "diffusion.sampler_steps": 3,
    }  # fmt: skip
    sets = [part for path, value in smaller.items() for part in ("--set", f"run.{path}={value}")]
    told = run_here(
        "sweep", "sweeps/gpu/come.yaml", *sets, "--set", "launch.device=cpu", "--set", "launch.parallel=2",
        "--set", "launch.accumulate=1", "--only", "seed=0", "--only", "memory=none", "--only", "memory=mamba2",
        "--cluster", "debug", cwd=tmp_path,
    )  # fmt: skip
    assert "report:" in told.stdout
    assert len(list((tmp_path / "results" / "come").rglob("result.json"))) == 2
