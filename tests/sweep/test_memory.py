"""What `plan` says of a GPU's memory."""

import pytest
import torch

from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.model.budget import build_trunk
from rad_bench.run.footprint import Footprint, Model
from rad_bench.sweep import memory
from rad_bench.sweep.load import load_sweep, validate
from tests.sweep.tiny import ROOT

GB = 10**9
MODEL = Model(RunConfig.model_validate({"memory": "lstm", "training": {"batch": 8}}), {}, (3, 32, 32), 4, 3)
LEAN = 0.3  # of what a micro-batch needs, with checkpointing; and half of that in bf16


@pytest.fixture
def foreseen(monkeypatch):
    """Say what a micro-batch of eight clips and rollouts need, in GB; weights have 1."""

    def foresee(gradient, rollout=1):
        def footprint(model, clips, checkpointing=False):
            lean = LEAN if checkpointing else 1
            rounded = 0.5 if model.run.training.precision == "bf16" else 1
            return Footprint(GB, GB + int(gradient * GB * clips / 8 * lean * rounded), rollout * GB, GB)

        monkeypatch.setattr(memory, "footprint", footprint)

    return foresee


@pytest.mark.parametrize(
    ("gradient", "rollout", "said"),
    [
        (60, 1, "65 GB in training, 3.0 GB in evaluation: fits 80 GB"),
        (100, 1, "launch.accumulate=2 would"),
        (500, 1, "launch.accumulate=8 would"),
        (1000, 1, "launch.activation_checkpointing=true with launch.accumulate=8 would"),
        (3000, 1, "run.training.precision=bf16 with launch.accumulate=8 would"),
        (9000, 1, "a smaller trunk or shorter clips would"),
        (60, 140, "run.evaluation.batch=48 would"),
        (100, 140, "launch.accumulate=2 and run.evaluation.batch=48 would"),
    ],
)
def test_plan_says_what_makes_a_model_fit(foreseen, gradient, rollout, said):
    foreseen(gradient, rollout)
    line = memory.memory_line(MODEL, LaunchConfig(), 80 * GB)
    assert line.endswith(said) and ("DOES NOT FIT 80 GB" in line) == ("fits" not in said)


def test_the_gpu_is_the_one_that_is_named_or_that_is_here(monkeypatch):
    assert memory.gpu_bytes(LaunchConfig(gpu_memory_gb=40)) == 40 * GB
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 85 * GB))
    assert memory.gpu_bytes(LaunchConfig()) == 85 * GB
    assert memory.gpu_bytes(LaunchConfig(device="cpu")) is None


FRAMES = {"come": ((8, 8, 8), 6)}  # of the autoencoder it names
# Of the models in each file, those that need most in training or in evaluation, if they are predicted in seconds.
LARGEST = {
    "scale": ["mamba2", "attention", "kda"],
    "come": ["mamba2"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "block"), [(name, block) for name, blocks in LARGEST.items() for block in blocks])
def test_the_largest_models_of_a_gpu_sweep_fit_its_gpu(name, block):
    sweep = load_sweep(ROOT / "sweeps" / "gpu" / f"{name}.yaml")
    tree = {**sweep.run, "memory": block, "seed": 0}
    longest = max(sweep.grid.get("training.frames", [tree["training"]["frames"]]))
    run = validate(RunConfig, {**tree, "training": {**tree["training"], "frames": longest}}, name, "run")
    shape, actions = FRAMES.get(name, ((3, 64, 64), 6))
    _, plan = build_trunk(run, shape, actions)
    model = Model(run, plan.options, shape, actions, 3)
    line = memory.memory_line(model, sweep.launch, memory.gpu_bytes(sweep.launch))
    assert "fits 80 GB" in line, line
