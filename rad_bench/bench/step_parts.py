"""Where a training step's time goes, forward and backward, at the default config.

A clock knows which part of the trunk is computed: in the forward pass from wrapped methods, in the backward pass from
autograd functions at a part's inputs and outputs. PyTorch's profiler is not used, because its overhead
is longer than many operations of so small a model.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from rad_bench.bench.step_speed import stepping
from rad_bench.data import Episodes
from rad_bench.model.trunk import Trunk
from rad_bench.training.trainer import Trainer

TRUNK = "rest of the trunk"  # embedding, modulation, residuals, head, loss
METHODS = {  # methods of a layer -> their part
    "_remember": "memory",
    "spatial.project": "attention in space", "spatial.attend": "attention in space",
    "temporal.project": "attention in time", "temporal.attend": "attention in time",
    "mlp.forward": "feed-forward",
}  # fmt: skip
NOISE, UPDATE = "noise", "optimiser, average"
PARTS = (*dict.fromkeys(METHODS.values()), TRUNK, NOISE, UPDATE)
WARM_UP, FEWEST = 3, 5  # steps


@dataclass(frozen=True)
class Profile:
    """The time of a training step by part."""

    block: str
    step_ms: float
    shares: dict[str, float]  # part -> share of the step's time
    memory_flops: float  # the memory's share of the FLOPs, forward

    def record(self) -> dict[str, Any]:
        """Return the profile as it is stored."""
        return asdict(self)


class Clock:
    """Adds up the time of each part. On the CPU it counts CPU time, on a GPU the time until the device has finished."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._part = device, ""
        self.seconds: dict[str, float] = defaultdict(float)
        self._began = self._now()

    def switch(self, part: str) -> None:
        """Add the time from now on to `part`."""
        now = self._now()
        self.seconds[self._part] += now - self._began
        self._part, self._began = part, now

    def _now(self) -> float:
        if self._device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()


def profile(block: str, device: torch.device, seconds: float) -> Profile:
    """Take training steps with the named block for about so many seconds, and return the time of each part."""
    steps = stepping(block, device)
    clock = Clock(device)
    trainer = _Timed(**vars(steps.trainer), clock=clock)
    _time_parts(trainer.trunk, clock)
    for _ in range(WARM_UP):
        trainer.step(steps.clips, 0)
    clock.switch("")
    clock.seconds.clear()
    taken, began = 0, time.perf_counter()
    while taken < FEWEST or time.perf_counter() - began < seconds:
        clock.switch(UPDATE)
        trainer.step(steps.clips, 0)
        clock.switch("")
        taken += 1
    spent = {part: clock.seconds[part] / taken for part in PARTS}
    total = sum(spent.values())
    shares = {part: value / total for part, value in spent.items()}
    return Profile(block, 1e3 * total, shares, steps.plan.memory_flops / steps.flops)


@dataclass(frozen=True)
class _Timed(Trainer):
    clock: Clock

    def _micro_batches(self, episodes: Episodes, number: int) -> list[tuple[Tensor, ...]]:
        self.clock.switch(NOISE)
        return super()._micro_batches(episodes, number)

    def _backward(self, shares: list[tuple[Tensor, ...]]) -> Tensor:
        self.clock.switch(TRUNK)
        loss = super()._backward(shares)
        self.clock.switch(UPDATE)
        return loss


def _time_parts(trunk: Trunk, clock: Clock) -> None:
    for layer in trunk.layers:
        for path, part in METHODS.items():
            *owner, method = path.split(".")
            _time(layer.get_submodule(".".join(owner)), method, part, clock)


def _time(owner: nn.Module, method: str, part: str, clock: Clock) -> None:
    """Wrap a method so that the clock switches to `part` in its forward and backward pass."""
    compute: Callable[..., Any] = getattr(owner, method)

    def timed(*arguments: Any) -> Any:
        clock.switch(part)
        outputs = compute(*_marked(arguments, TRUNK, clock))
        single = isinstance(outputs, Tensor)
        outputs = _marked((outputs,) if single else outputs, part, clock)
        clock.switch(TRUNK)
        return outputs[0] if single else outputs

    setattr(owner, method, timed)


def _marked(values: tuple[Any, ...], part: str, clock: Clock) -> tuple[Any, ...]:
    """Return the same values. The clock switches to `part` once the gradients of their tensors are computed."""
    places = [place for place, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
    if not places:
        return values
    marked = dict(zip(places, _Mark.apply(part, clock, *(values[place] for place in places)), strict=True))
    return tuple(marked.get(place, value) for place, value in enumerate(values))


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: str, clock: Clock, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.part, ctx.clock = part, clock
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        ctx.clock.switch(ctx.part)
        return None, None, *gradients


def table(profiles: list[Profile]) -> Table:
    """Return the profiles as a table, a row a block."""
    rich_table = Table(title="bench profile", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    rich_table.add_column("memory")
    for heading in ("step, ms", "memory, % of FLOPs", *(f"{part}, % of time" for part in PARTS)):
        rich_table.add_column(heading, justify="right")
    for p in profiles:
        shares = (f"{100 * p.shares[part]:.0f}" for part in PARTS)
        rich_table.add_row(p.block, f"{p.step_ms:.1f}", f"{100 * p.memory_flops:.0f}", *shares)
    return rich_table
