"""Comparisons of `rad-bench bench`: void unless both ways agree; those that are published do."""

import functools
import itertools
import json

import pytest
import torch
from click.testing import CliRunner

from rad_bench.bench import (
    block_speed,
    comparison,
    rollout_speed,
    scoring_speed,
    startup,
    step_speed,
)
from rad_bench.bench import (
    suite as report,
)
from rad_bench.bench.comparison import Comparison
from rad_bench.blocks.lstm import LSTM
from rad_bench.blocks.memory import Path, kernels_are_off
from rad_bench.cli import cli
from rad_bench.errors import UserError
from tests.model.tape import Tape

CPU = torch.device("cpu")


def made(ours, other, tolerance=1e-3):
    return Comparison("ours", "other", lambda: [torch.tensor(ours)], lambda: [torch.tensor(other)], tolerance)


@pytest.mark.parametrize(
    ("ours", "other", "tolerance", "valid"),
    [
        ([1.0, 2.0], [1.0, 2.0], 1e-3, True),
        ([1.0, 2.0], [1.0, 2.001], 1e-3, True),
        ([1.0, 2.0], [1.0, 2.1], 1e-3, False),
        ([1.0, 2.0], [1.0, 2.0, 3.0], 1e-3, False),
        ([1.0, float("nan")], [1.0, 2.0], 1e-3, False),
        ([1.0], [5.0], None, True),  # not meant to agree
    ],
)
def test_a_comparison_whose_outputs_differ_is_void(ours, other, tolerance, valid):
    outcome = comparison.compare(made(ours, other, tolerance), CPU, seconds=0.0)
    assert outcome.valid is valid
    (row,) = report.table("kind", [outcome]).columns[4].cells
    assert (row == "void: outputs differ") is not valid


@pytest.mark.parametrize(
    "found",
    [
        *block_speed.comparisons(CPU),
        *(each for kind in (rollout_speed, scoring_speed) for each in itertools.islice(kind.comparisons(CPU), 2)),
    ],
    ids=lambda found: found.name,
)
def test_both_ways_of_the_published_comparisons_agree(found):
    assert comparison._difference(found.ours(), found.other()) <= found.tolerance


class Kernel(LSTM):
    """A block that would have a kernel here."""

    def path(self, device, dtype):
        return Path("PyTorch") if kernels_are_off() else Path("a kernel")

    def prefetch(self, x_STKD, state):
        self.with_kernel = not kernels_are_off()
        return super().prefetch(x_STKD, state)


def test_kernels_are_compared_with_pytorch_alone(monkeypatch):
    monkeypatch.setattr(block_speed, "block_names", lambda: ["lstm"])
    monkeypatch.setattr(block_speed, "find_block", lambda name: Kernel)
    found = next(each for each in block_speed.comparisons(CPU) if each.name == "lstm, 1 token a frame, by kernels")
    assert found.other_name == "PyTorch"
    layer = found.ours.args[0]
    for way, with_kernel in ((found.ours, True), (found.other, False), (found.other, False), (found.ours, True)):
        way()
        assert layer.with_kernel is with_kernel


@pytest.mark.parametrize("block", ["none", "lstm", "attention"])
def test_only_a_memory_that_grows_grows(block, monkeypatch):
    monkeypatch.setattr(rollout_speed, "VIDEOS", 2)
    notes = rollout_speed._early_and_late(
        block, rollout_speed._generating(block, CPU, rollout_speed.EARLY, rollout_speed.LATE)
    ).notes
    assert (notes["cache_growth"] > 2) is (notes["times_the_flops"] > 1.5) is (block == "attention")
    if block != "attention":
        assert notes["cache_growth"] == notes["times_the_flops"] == 1


def test_figures_are_stored_with_what_they_were_measured_on(tmp_path, monkeypatch):
    monkeypatch.setitem(report.KINDS, "metrics", lambda device: iter([made([1.0], [1.0])]))
    told = CliRunner().invoke(cli, ["bench", "metrics", "--seconds", "0.01", "--device", "cpu", "--out", str(tmp_path)])
    assert told.exit_code == 0, told.output
    record = json.loads((tmp_path / "metrics-cpu.json").read_text())
    assert record["environment"]["device"].startswith("cpu")
    assert record["comparisons"][0]["ratio"] > 0


def test_steps_with_and_without_memory_train_and_tell_their_flops():
    for found in itertools.islice(step_speed.comparisons(CPU), 2):
        first, second = float(found.other()[0]), float(found.other()[0])
        assert second < first  # the same clips once more
        assert found.notes["times_the_flops"] > 1


@pytest.mark.parametrize("compare", [step_speed.recorded, functools.partial(rollout_speed.recorded, horizon=5)])
def test_what_is_recorded_is_compared_with_the_same_without(compare):
    tape = Tape()
    found = compare("none", CPU, tape)
    for _ in range(3):  # of a step, the first is called, the second recorded, the third compared
        assert comparison._difference(found.ours(), found.other()) <= found.tolerance
    assert tape.repetitions >= 2


def test_a_process_counts_with_the_cpu_time_that_it_took():
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    assert comparison.work_seconds(lambda: startup._python("-c", burn), CPU) >= 0.3


@pytest.mark.slow
def test_a_run_is_timed_to_its_first_step_and_one_that_takes_none_says_why(monkeypatch):
    (loss,) = startup._first_step(CPU)
    (first,) = step_speed.stepping(startup.MEMORY, CPU)()
    assert loss == first
    monkeypatch.setattr(startup, "MEMORY", "no_such_block")
    with pytest.raises(RuntimeError, match="no_such_block"):
        startup._first_step(CPU)


def test_compiled_steps_are_compared_with_the_same_steps(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append(self))
    monkeypatch.setattr(step_speed.shutil, "which", lambda name: name)
    found = next(step_speed.compiled_comparisons(CPU))
    trunk = found.ours.trainer.trunk
    assert compiled == list(trunk.layers)
    assert comparison._difference(found.ours(), found.other()) <= found.tolerance
    with torch.no_grad():
        trunk.layers[0].mlp[0].weight.mul_(2)  # had it been compiled to something else
    assert comparison._difference(found.ours(), found.other()) > found.tolerance


def test_compiling_without_a_compiler_is_a_users_error(monkeypatch):
    monkeypatch.setattr(step_speed.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="g\\+\\+"):
        next(step_speed.compiled_comparisons(CPU))
