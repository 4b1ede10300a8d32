"""What a block must not do where no tensor shows it: remember outside its state, or become another function.

A block that does either beats honest ones without a memory that they could have had: its state is no longer what its
bytes say, or what is trained is not what is evaluated.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from rad_bench.blocks.contract.elsewhere import go_on, go_on_elsewhere
from rad_bench.blocks.contract.probe import Probe, same

CALLS = 1100  # of each method
CLOCKS = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time")
DAY = 86_400  # seconds


def same_in_evaluation(probe: Probe) -> str:
    """A block computes in `eval()` what it computes in `train()`."""
    training = _everything(probe, probe.block.train())
    assert _equal(training, _everything(probe, probe.block.eval())), "in eval() its outputs are other than in train()"
    return "exact"


def counted_tensors_only(probe: Probe) -> str:
    """All tensors of the module are parameters or buffers, which budgets count and files keep."""
    _everything(probe, probe.block)
    counted = {id(tensor) for tensor in itertools.chain(probe.block.parameters(), probe.block.buffers())}
    for path, module in probe.block.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                uncounted = [tensor for tensor in _tensors(value) if id(tensor) not in counted]
                what = f"'{path + '.' if path else ''}{name}'"
                assert not uncounted, f"{what} holds a tensor that is neither a parameter nor a buffer"
    buffers = sum(buffer.numel() for buffer in probe.block.buffers())
    return f"{buffers:,} numbers in buffers, counted like parameters" if buffers else "no buffers"


@torch.no_grad()
def same_after_use(probe: Probe) -> str:
    """After a thousand calls of each method, and a day later by the clock, outputs are what they were."""
    block, start = probe.block, probe.block.initial_state(1)
    before = _everything(probe, block)
    x_STKD = probe.x_STKD[:1, :1]
    for _ in range(CALLS):
        prefetched = block.prefetch(x_STKD, start)
        block.retrieve(x_STKD, prefetched)
        block.step(x_STKD[:, 0], start)
        block.read(x_STKD[:, 0], start)
    assert _equal(before, _everything(probe, block)), f"after {CALLS:,} calls its outputs are other than before"
    with _a_day_later():
        assert _equal(before, _everything(probe, block)), "a day later by the clock its outputs are other than before"
    return f"{CALLS:,} calls and a day"


@torch.no_grad()
def goes_on_in_another_process(probe: Probe) -> str:
    """A state that is saved and loaded in another process, by another instance with the same weights, goes on the same:
    it holds all that the block remembers, and no reference to something else."""
    half = probe.frames // 2
    state = probe.block.prefetch(probe.x_STKD[:, :half], probe.start()).state
    rest = probe.x_STKD[:, half:], probe.noisy_STKD[:, half:]
    here, there = go_on(probe.block, *rest, state), go_on_elsewhere(probe, *rest, state)
    errors = [same("outputs here and in another process", a, b) for a, b in zip(there, here, strict=True)]
    return f"max error {max(errors):.1g}"


def _everything(probe: Probe, block: Any) -> list[Tensor]:
    """Return what all methods of a block compute."""
    with torch.no_grad():
        return go_on(block, probe.x_STKD, probe.noisy_STKD, probe.start())


def _equal(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    return all(map(torch.equal, some, others))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Iterate over tensors in a value, in containers too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list, set)):
        for item in value:
            yield from _tensors(item)


@contextlib.contextmanager
def _a_day_later() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in CLOCKS:
            stack.enter_context(mock.patch.object(time, name, _ahead(getattr(time, name), name)))
        yield


def _ahead(clock: Callable[[], float], name: str) -> Callable[[], float]:
    by = DAY * (10**9 if name.endswith("_ns") else 1)
    return lambda: clock() + by


HIDDEN: dict[str, Callable[[Probe], str]] = {
    "the same in eval()": same_in_evaluation,
    "all tensors are counted": counted_tensors_only,
    "the same after long use": same_after_use,
    "another process goes on": goes_on_in_another_process,
}
