"""The memory of a step is measured as PyTorch allocates it; what does not fit is said, and no reason to stop."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

from rad_bench.bench import step_memory, suite
from rad_bench.bench.step_memory import StepMemory
from rad_bench.cli import cli
from rad_bench.model.experiment import open_experiment
from rad_bench.training.trainer import Trainer

CPU = torch.device("cpu")


def test_the_peak_is_that_of_what_lives_together():
    def work():
        kept = torch.zeros(1000, dtype=torch.uint8)
        for _ in range(5):
            torch.zeros(3000, dtype=torch.uint8)  # one after the other
        return kept

    assert step_memory._cpu_peak(work) == pytest.approx(4000, abs=200)  # the allocator rounds up


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_weights_and_moments_are_those_of_the_trainer(memory):
    run, _ = step_memory._size(memory, CPU)
    trunk = open_experiment(run, CPU).trunk
    found = step_memory.step_memory(memory, CPU)
    assert found.resident == 4 * sum(p.nbytes for p in trunk.parameters())  # with their average and two moments
    assert found.resident < found.measured == pytest.approx(found.predicted, rel=0.05)


def test_a_gpu_measures_the_size_of_the_gpu_sweeps():
    run, launch = step_memory._size("lstm", torch.device("cuda"))
    assert (run.trunk.width, run.training.frames, launch.accumulate) == (256, 96, 2)


def test_what_does_not_fit_is_said_and_stored(tmp_path, monkeypatch):
    def step(self, clips, number):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(Trainer, "step", step)
    few = dataclasses.replace(suite.BLOCK_KINDS["memory"], blocks=lambda: ["none"])
    monkeypatch.setitem(suite.BLOCK_KINDS, "memory", few)
    told = CliRunner().invoke(cli, ["bench", "memory", "--device", "cpu", "--out", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert "did not fit" in told.output
    (found,) = json.loads((tmp_path / "memory-cpu.json").read_text())["peaks"]
    assert found["measured"] is None and found["predicted"] > found["resident"] > 0


def test_the_table_has_the_ratio():
    found = StepMemory("lstm", {}, 8, resident=10**9, predicted=4 * 10**9, measured=5 * 10**9)
    cells = [next(iter(column.cells)) for column in step_memory.table([found]).columns]
    assert cells == ["lstm", "8", "1,000", "4,000", "5,000", "1.25"]
