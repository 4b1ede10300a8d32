"""Launches are counted exactly: each operation that computes once, and none that only looks or allocates."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from rad_bench.bench import launches, suite
from rad_bench.bench.gpu_size import gpu_size
from rad_bench.bench.launches import LaunchCount, Launches, layer_launches
from rad_bench.blocks.feedforward import FeedForward
from rad_bench.blocks.memory import MemoryBlock, Prefetched
from rad_bench.blocks.mlstm import MLSTM
from rad_bench.blocks.ttt import TTT
from rad_bench.cli import cli
from rad_bench.config import RunConfig
from rad_bench.sweep.load import load_sweep, validate
from tests.sweep.tiny import ROOT


def launched(work, *shapes):
    tensors = [torch.zeros(shape, device="meta") for shape in shapes]
    with Launches() as counted:
        work(*tensors)
    return counted.count


def test_a_product_with_bias_an_activation_and_a_sum_are_four_launches():
    assert launched(lambda x, w, b: (x @ w + b).relu().sum(), (4, 3), (3, 2), (2,)) == 4


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.view(3, 4), lambda x: x.T, lambda x: x[1:], lambda x: x.unbind(0), lambda x: x.chunk(2, 1),
        lambda x: x[:, None].expand(4, 5, 3), lambda x: x.detach(), lambda x: x.flatten(), lambda x: x.permute(1, 0),
        lambda x: torch.empty_like(x), lambda x: x.new_empty(7), lambda x: torch.empty(3, device="meta"),
    ],
)  # fmt: skip
def test_what_only_looks_or_allocates_launches_nothing(look):
    assert launched(look, (4, 3)) == 0


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.add_(1), lambda x: x[1:].zero_(), lambda x: x.T.contiguous(), lambda x: x.clone(),
        lambda x: x.new_zeros(3), lambda x: torch.cat([x, x]), lambda x: x.T.reshape(-1), lambda x: x.bfloat16(),
        lambda x: torch.arange(3, device="meta"),
    ],
)  # fmt: skip
def test_what_writes_launches_once(compute):
    assert launched(compute, (4, 3)) == 1


class Tiny(MemoryBlock):
    """y = relu(W x): its launches can be counted by hand."""

    def __init__(self, dim):
        super().__init__(dim)
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def initial_state(self, sequences):
        return ()

    def step(self, x_SKD, state):
        return (x_SKD.flatten(0, 1) @ self.weight).relu().view_as(x_SKD), state

    def prefetch(self, x_STKD, state):
        return Prefetched(self.step(x_STKD.flatten(0, 1), state)[0].view_as(x_STKD), None, state)

    def retrieve(self, x_STKD, prefetched):
        return self.prefetch(x_STKD, ()).y_STKD


def test_a_layers_passes_are_counted_apart():
    # Each stream: a product and relu forward; relu's gradient and two products backward. The weight's two are added.
    assert layer_launches(Tiny(8), S=2, T=5, Q=3, K=1) == (2 * 2, 2 * 3 + 1)


def test_a_loop_over_frames_grows_with_them_and_a_parallel_form_does_not():
    def total(block, T):
        return sum(layer_launches(block, S=2, T=T, Q=2, K=1))

    assert total(TTT(8, heads=2, head_dim=4), 9) > total(TTT(8, heads=2, head_dim=4), 8)
    assert total(FeedForward(8, hidden=4), 9) == total(FeedForward(8, hidden=4), 8)
    assert total(MLSTM(8, heads=2, head_dim=4), 9) == total(MLSTM(8, heads=2, head_dim=4), 8)


def test_the_size_is_that_of_the_gpu_sweeps():
    run, launch = gpu_size("lstm")
    sweep = load_sweep(ROOT / "sweeps" / "gpu" / "memory_blocks.yaml")
    theirs = validate(RunConfig, {**sweep.run, "memory": "lstm", "seed": 0}, "gpu", "run")
    assert (run.trunk.width, run.trunk.depth, run.trunk.patch) == (256, 6, 8)
    assert run.data.size == theirs.data.size and run.match == theirs.match
    assert run.training == theirs.training
    assert launch.accumulate == sweep.launch.accumulate


def test_counts_are_shown_and_stored(tmp_path, monkeypatch):
    few = dataclasses.replace(suite.BLOCK_KINDS["launches"], blocks=lambda: ["minlstm", "attention"])
    monkeypatch.setitem(suite.BLOCK_KINDS, "launches", few)
    told = CliRunner().invoke(cli, ["bench", "launches", "--device", "cpu", "--out", str(tmp_path)])
    assert told.exit_code == 0, told.output
    minlstm, attention = json.loads((tmp_path / "launches-cpu.json").read_text())["launches"]
    assert min(minlstm["forward"], attention["forward"]) > 10 and minlstm["frames"] == 96
    assert minlstm["step"] == 12 * (minlstm["forward"] + minlstm["backward"])
    assert f"{minlstm['step']:,}" in told.output


def test_the_table_divides_by_attention_where_it_is_there():
    def row(*counts):
        return [next(iter(column.cells)) for column in launches.table(counts).columns]

    one = LaunchCount("lstm", {}, 200, 300, 100, 6, 2, 3 * 10**12)
    assert row(one) == ["lstm", "200", "300", "5.0", "", "6,000", "30", "3.0"]
    assert row(one, dataclasses.replace(one, block="attention", forward=100, backward=150))[4] == "2.0"
