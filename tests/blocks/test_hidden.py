"""Blocks that remember more than their state holds, or become another function, are caught."""

import time
from collections import deque

import pytest
import torch
from torch import nn

from rad_bench.blocks.contract import FRAMES, LENGTH, Check, check_block
from rad_bench.blocks.contract.checks import AT_LENGTH
from rad_bench.blocks.lstm import LSTM
from rad_bench.config import RunConfig
from rad_bench.errors import UserError
from rad_bench.model import budget
from rad_bench.sweep import plan
from tests.blocks.test_contract import GRU

STEPS, PIECES, CAUSAL = AT_LENGTH
EVAL, COUNTED, LONG_USE, ELSEWHERE = (
    "the same in eval()", "all tensors are counted", "the same after long use", "another process goes on"
)  # fmt: skip


def failures(block_class, **how):
    return {outcome.name: outcome.detail for outcome in check_block(block_class, **how) if not outcome.passed}


class LeaksLate(LSTM):
    """From frame 40 on, a noisy frame sees the clean frames after it."""

    first = 40

    def retrieve(self, x_STKD, prefetched):
        y = super().retrieve(x_STKD, prefetched)
        last = prefetched.y_STKD[:, -1:].expand(-1, max(y.shape[1] - self.first, 0), -1, -1)
        return torch.cat([y[:, : self.first], y[:, self.first :] + last], 1)


class LeaksLater(LeaksLate):
    first = 200


def test_a_leak_that_begins_late_is_caught():
    assert FRAMES < LeaksLate.first < LENGTH < LeaksLater.first
    assert set(failures(LeaksLate)) == {STEPS, CAUSAL, PIECES}


def test_a_leak_that_begins_later_is_caught_at_a_sweeps_own_length():
    assert failures(LeaksLater) == {}
    assert STEPS in failures(LeaksLater, length=240)


class ByTheClock(GRU):
    """A minute after it was built, another function."""

    def __init__(self, dim, hidden=8):
        super().__init__(dim, hidden)
        self.built = time.monotonic()

    def step(self, x_SKD, state):
        y, state = super().step(x_SKD, state)
        return (y if time.monotonic() < self.built + 60 else y + 1), state


bank, notes = deque(maxlen=4096), {}  # of this process


class GlobalBank(GRU):
    """Once it has seen a thousand frames, it reads from all of them."""

    def step(self, x_SKD, state):
        bank.append(x_SKD.detach().mean())
        y, state = super().step(x_SKD, state)
        return (y if len(bank) < 1000 else y + torch.stack(list(bank)[:8]).mean() + 1), state


class StateIsAKey(GRU):
    """Its state of one number is a key of a dict in the module, where all frames are kept."""

    def initial_state(self, sequences):
        return (torch.zeros(sequences, 1, dtype=torch.int64),)

    def step(self, x_SKD, state):
        (key,) = state
        frames = [notes.get(number, torch.zeros_like(x_SKD[0])) for number in key.ravel().tolist()]
        new = []
        for frame, past in zip(x_SKD, frames, strict=True):
            notes[len(notes) + 1] = past + frame
            new.append(len(notes))
        y, _ = super().step(x_SKD + torch.stack(frames), (self.zeros(len(x_SKD), 8),))
        return y, (torch.tensor(new)[:, None],)


class AnotherInEval(GRU):
    def step(self, x_SKD, state):
        y, state = super().step(x_SKD, state)
        return (y if self.training else 2 * y), state


class HoldsATensor(GRU):
    def __init__(self, dim, hidden=8):
        super().__init__(dim, hidden)
        self.tables = {"of": [torch.ones(dim)]}

    def step(self, x_SKD, state):
        return super().step(x_SKD + self.tables["of"][0].to(x_SKD), state)


@pytest.mark.parametrize(
    ("cheat", "caught", "why"),
    [
        (ByTheClock, LONG_USE, "a day later"),
        (GlobalBank, LONG_USE, "after 1,100 calls"),
        (StateIsAKey, ELSEWHERE, "in another process differ"),
        (AnotherInEval, EVAL, "in eval()"),
        (HoldsATensor, COUNTED, "'tables' holds a tensor that is neither"),
    ],
)
def test_what_a_block_hides_is_caught(cheat, caught, why):
    bank.clear()
    assert why in failures(cheat)[caught]


class OfAnotherKind(GRU):
    """A state that another instance cannot take up: it holds a random table of its own."""

    def __init__(self, dim, hidden=8):
        super().__init__(dim, hidden)
        self.register_buffer("table", torch.randn(dim), persistent=False)

    def step(self, x_SKD, state):
        return super().step(x_SKD + self.table, state)


def test_what_weights_and_state_do_not_hold_is_missed_in_another_process():
    assert set(failures(OfAnotherKind)) == {ELSEWHERE}


class Frozen(LSTM):
    """Has a table that no training changes."""

    def __init__(self, dim, hidden=8):
        super().__init__(dim, hidden)
        self.register_buffer("table", torch.randn(512, 512))
        self.fixed = nn.Parameter(torch.randn(10), requires_grad=False)


def config(block, **sections):
    return RunConfig.model_validate({
        "memory": f"tests.blocks.test_hidden:{block}", "trunk": {"width": 16, "patch": 8, "depth": 2},
        "training": {"frames": 8, "loss_from": 4}, "evaluation": {"context": 6, "horizon": 10}, **sections,
    })  # fmt: skip


def test_buffers_and_frozen_weights_count_in_a_budget():
    lstm = budget.plan_model(config("Frozen") .model_copy(update={"memory": RunConfig.model_validate(
        {"memory": {"name": "lstm", "hidden": 8}}).memory}), (3, 16, 16), 4)  # fmt: skip
    frozen = budget.plan_model(config("Frozen"), (3, 16, 16), 4)
    assert frozen.memory_parameters == lstm.memory_parameters + 2 * (512 * 512 + 10)
    matched = budget.plan_model(config("Frozen", match={"by": "parameters", "budget": 700_000}), (3, 16, 16), 4)
    assert abs(matched.memory_parameters - 700_000) < 14_000


class NeedsAnAccelerator(GRU):
    def step(self, x_SKD, state):
        if x_SKD.device.type == "cpu":
            raise RuntimeError("no kernel for this device")
        return super().step(x_SKD, state)


def test_a_block_that_does_not_run_on_the_cpu_is_counted_where_it_does(monkeypatch):
    run, plain = config("NeedsAnAccelerator"), config("NeedsAnAccelerator", memory="tests.blocks.test_contract:GRU")
    with pytest.raises(UserError, match="no kernel for this device"):
        budget.plan_model(run, (3, 16, 16), 4)
    monkeypatch.setattr(budget, "accelerators", lambda: [torch.device("meta")])  # has shapes, which are all it counts
    assert budget.plan_model(run, (3, 16, 16), 4) == budget.plan_model(plain, (3, 16, 16), 4)


@pytest.mark.parametrize(
    ("named", "gpu", "device", "precision"),
    [
        ("auto", False, "cpu", torch.float64),
        ("cuda", False, "cpu", torch.float64),
        ("cuda", True, "cuda", torch.float32),
    ],
)
def test_a_sweeps_blocks_are_checked_on_its_device_and_at_its_lengths(monkeypatch, named, gpu, device, precision):
    asked = {}

    def checked(block, options, place, dtype, dim, length):
        asked.update(device=place.type, dtype=dtype, dim=dim, length=length)
        return [Check(EVAL, False, "in eval() its outputs are other")]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(plan, "check_block", checked)
    with pytest.raises(UserError, match=r"breaks the contract.*eval") as refused:
        plan._check_contract(config("AnotherInEval"), named)
    assert asked == {"device": device, "dtype": precision, "dim": 16, "length": 16}
    assert ("PyTorch sees no GPU here" in str(refused.value)) is not gpu
