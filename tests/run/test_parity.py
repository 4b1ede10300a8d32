"""A block's path against its steps: exact where it should be, caught where it is not, and nothing else is touched."""

import json

import pytest
import torch
from click.testing import CliRunner

from rad_bench.blocks.lstm import LSTM
from rad_bench.cli import cli
from rad_bench.model import registry
from rad_bench.model.registry import block_names, find_block
from rad_bench.run.parity import BlockCheck, check_on_device, measure_parity
from tests.blocks.test_contract import WrongDecay

CPU = torch.device("cpu")
WRONG = "tests.blocks.test_contract:WrongDecay"


@pytest.mark.parametrize("tokens", [1, 3, 64])
@pytest.mark.parametrize("name", block_names())
def test_every_block_computes_what_its_steps_do(name, tokens):
    found = measure_parity(name, find_block(name)(24), tokens, CPU)
    assert found.max_error <= 2e-5


def test_the_comparison_disturbs_neither_generators_nor_weights():
    block = LSTM(8)
    before, weights = torch.get_rng_state(), {name: w.clone() for name, w in block.state_dict().items()}
    first = measure_parity("lstm", block, 2, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weights[name], weight) for name, weight in block.state_dict().items())
    torch.rand(3)
    assert measure_parity("lstm", block, 2, CPU) == first  # and is not disturbed by them


class Drops(LSTM):
    """Random in training, which both ways of it are spared."""

    def step(self, x_SKD, state):
        y, state = super().step(x_SKD, state)
        return torch.nn.functional.dropout(y, 0.5, self.training), state


def test_a_block_with_dropout_has_parity():
    assert measure_parity("drops", Drops(8), 2, CPU).max_error <= 2e-5


def test_blocks_are_checked_in_both_precisions_and_figures_are_stored(tmp_path):
    found = check_on_device(["mamba2", WRONG], "cpu", tmp_path, lambda name: None)
    assert [(each.block, each.tokens, each.passed) for each in found] == [
        (f"{name}{form}", tokens, name == "mamba2")
        for name, forms in (("mamba2", ("", "(form=paper)", "(form=paper-tied)")), (WRONG, ("", "(form=paper)")))
        for form in forms for tokens in (1, 4)
    ]  # fmt: skip
    record = json.loads((tmp_path / "check-cpu.json").read_text())
    assert record["environment"]["device"].startswith("cpu")
    right, wrong = record["found"][0], record["found"][-2]
    assert right["fp32"]["gradients"] < 2e-4 < right["bf16"]["gradients"]
    assert wrong["fp32"]["outputs"] > 2e-4
    assert any("fast path = reference" in line for line in wrong["broken"])


@pytest.mark.parametrize(
    ("bf16", "loop", "passed"),
    [(0.01, 0.0, True), (0.1, 0.05, True), (0.1, 0.03, False), (float("nan"), 0.05, False)],
)
def test_bf16_may_err_about_as_much_as_the_loop_does_in_bf16(bf16, loop, passed):
    found = BlockCheck("lstm", 1, fp32={"outputs": 0.0}, bf16={"outputs": bf16}, loop_bf16={"outputs": loop})
    assert found.passed is passed


def test_what_a_block_raises_is_told_and_the_others_are_checked(tmp_path, monkeypatch):
    def broken(self, x_STKD, prefetched):
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(WrongDecay, "retrieve", broken)
    found = check_on_device([WRONG, "none"], "cpu", tmp_path, lambda name: None)
    assert [each.passed for each in found] == [False] * 4 + [True] * 2  # both forms, then `none`
    assert "an illegal memory access" in found[0].error


def test_check_without_a_block_checks_all_and_fails_with_any(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "block_names", lambda: ["none", WRONG])
    told = CliRunner().invoke(cli, ["check", "--device", "cpu", "--out", str(tmp_path)])
    assert told.exit_code == 1
    assert "PyTorch, own prefetch" in told.output and "FAIL" in told.output
    assert WRONG in str(told.exception)


def test_blocks_says_for_each_block_what_computes_it_and_why():
    told = CliRunner().invoke(cli, ["blocks", "--device", "cpu"])
    assert told.exit_code == 0, told.output
    for name in block_names():
        path = find_block(name)(8).path(CPU, torch.float32)
        assert f"{name}: {path.name}; {path.why}" in told.output
