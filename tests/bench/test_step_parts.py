"""Where a training step's time goes: each part is charged with what it computes, forward and backward."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

from rad_bench.bench import step_parts
from rad_bench.bench import suite as report
from rad_bench.bench.step_speed import stepping
from rad_bench.cli import cli

CPU = torch.device("cpu")
FORWARD, BACKWARD = 1.0, 100.0


class Ticking(step_parts.Clock):
    """Time passes by a module's call and by its gradient, and otherwise not at all."""

    time = 0.0

    def _now(self):
        return self.time

    def watch(self, module):
        module.register_forward_hook(lambda module, inputs, output: Tick.apply(output, self))


class Tick(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output, clock):
        ctx.clock = clock
        clock.time += FORWARD
        return output.view_as(output)

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.time += BACKWARD
        return gradient, None


@pytest.mark.parametrize(
    ("module", "part", "calls"),
    [
        ("layers.1.spatial.qkv", "attention in space", 1),
        ("layers.0.spatial.output", "attention in space", 1),
        ("layers.0.temporal.qkv", "attention in time", 1),
        ("layers.1.temporal.output", "attention in time", 1),
        ("layers.0.memory.output", "memory", 2),  # for clean and for noisy frames
        ("layers.1.memory.input", "memory", 2),
        ("layers.0.mlp.1", "feed-forward", 1),
        ("layers.1.modulation", step_parts.TRUNK, 1),
        ("embed", step_parts.TRUNK, 1),
        ("head", step_parts.TRUNK, 1),
    ],
)
def test_a_part_is_charged_with_its_modules_forward_and_backward(module, part, calls):
    steps, clock = stepping("lstm", CPU), Ticking(CPU)
    trainer = step_parts._Timed(**vars(steps.trainer), clock=clock)
    step_parts._time_parts(trainer.trunk, clock)
    trainer.step(steps.clips, 0)  # the head is zero before, and so are gradients of what lies below
    clock.watch(trainer.trunk.get_submodule(module))
    trainer.step(steps.clips, 0)
    clock.switch("")
    assert {name: time for name, time in clock.seconds.items() if time} == {part: calls * (FORWARD + BACKWARD)}


@pytest.mark.parametrize("memory", ["none", "mamba2"])
def test_a_timed_step_is_the_step(memory):
    plain, timed = stepping(memory, CPU), stepping(memory, CPU)
    clock = step_parts.Clock(CPU)
    trainer = step_parts._Timed(**vars(timed.trainer), clock=clock)
    step_parts._time_parts(trainer.trunk, clock)
    for _ in range(2):
        assert torch.equal(plain()[0], trainer.step(timed.clips, 0))
    assert clock.seconds[step_parts.NOISE] > 0


def test_profiles_are_told_and_stored(tmp_path, monkeypatch):
    few = dataclasses.replace(report.BLOCK_KINDS["profile"], blocks=lambda: ["none", "lstm"])
    monkeypatch.setitem(report.BLOCK_KINDS, "profile", few)
    told = CliRunner().invoke(cli, ["bench", "profile", "--seconds", "0.01", "--device", "cpu", "--out", str(tmp_path)])
    assert told.exit_code == 0, told.output
    none, lstm = json.loads((tmp_path / "profile-cpu.json").read_text())["profiles"]
    assert set(lstm["shares"]) == set(step_parts.PARTS)
    assert sum(lstm["shares"].values()) == pytest.approx(1)
    assert none["memory_flops"] == 0 < lstm["memory_flops"] < 1
