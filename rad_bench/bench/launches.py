"""How many kernels a training step launches in its memory: where kernels are short, this number sets the time on a GPU.

Counted are the ATen operations of one layer's memory over a micro-batch of `sweeps/gpu/scale.yaml`, forward and
backward, each as one launch. Operations that only look at a tensor in another way, or only allocate one, launch none.
The layer is carried out on tensors without values, so no GPU is needed. What is counted is a block's form in PyTorch:
kernels of other packages, and operations that PyTorch fuses on CUDA alone, such as `rms_norm`, launch fewer.

Letters: S sequences, T frames, Q noisy frames, K tokens a frame in a sequence, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from rad_bench.bench.gpu_size import gpu_size
from rad_bench.blocks.memory import MemoryBlock
from rad_bench.model.experiment import open_experiment
from rad_bench.model.trunk import memory_layers

LAUNCH_MS = 0.005  # of one launch from PyTorch, about
CEILING = "attention"  # the block that others are divided by
ONLY_ALLOCATE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
VIEWS = {"_unsafe_view"}  # a view whose schema does not say so


class Launches(TorchDispatchMode):
    """Counts the operations within it that would launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.count += not (function.is_view or name in VIEWS or name in ONLY_ALLOCATE)
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class LaunchCount:
    """The launches of one layer's memory, for a micro-batch of clips."""

    block: str
    options: dict[str, Any]
    forward: int
    backward: int
    frames: int  # clean frames of a clip
    layers: int  # with a memory
    micro_batches: int  # a training step
    step_flops: int  # of a training step, the trunk's too, forward and backward

    @property
    def layer(self) -> int:
        """Launches of a layer, forward and backward."""
        return self.forward + self.backward

    @property
    def step(self) -> int:
        """Launches of a training step in all layers' memories."""
        return self.layer * self.layers * self.micro_batches

    def record(self) -> dict[str, Any]:
        """Return the counts as they are stored."""
        return asdict(self) | {"step": self.step}


def count_launches(block: str) -> LaunchCount:
    """Count the launches of the named block at the size of `sweeps/gpu/scale.yaml`."""
    run, launch = gpu_size(block)
    experiment = open_experiment(run, torch.device("cpu"))
    trunk, plan, training, F = experiment.trunk, experiment.plan, run.training, run.trunk.frames_per_step
    S, K = trunk.scan.sequences(training.batch // launch.accumulate), trunk.scan.tokens_per_step
    forward, backward = layer_launches(
        trunk.memory_block(), S, training.frames // F, (training.frames - training.loss_from) // F, K
    )
    return LaunchCount(
        block, plan.options, forward, backward, training.frames, len(memory_layers(run.trunk)), launch.accumulate,
        3 * (plan.memory_flops + plan.trunk_flops) * training.frames * training.batch,  # backward: twice the forward's
    )  # fmt: skip


def layer_launches(memory: MemoryBlock, S: int, T: int, Q: int, K: int) -> tuple[int, int]:
    """Return the launches of the forward and of the backward pass of `remember` over T clean and Q noisy frames."""
    memory = memory.to("meta")
    clean, noisy = (
        torch.empty(S, frames, K, memory.dim, device="meta", requires_grad=True) for frames in (T, Q)
    )  # fmt: skip
    with sdpa_kernel(SDPBackend.MATH):  # attention is computed as matrix products on a GPU
        with Launches() as forward:
            y_clean, y_noisy, _ = memory.remember(clean, noisy, memory.initial_state(S))
        outputs = [y for y in (y_clean, y_noisy) if y is not None and y.requires_grad]
        gradients = [torch.empty_like(y) for y in outputs]
        with Launches() as backward:
            if outputs:
                torch.autograd.backward(outputs, gradients)
    return forward.count, backward.count


def table(counts: Sequence[LaunchCount]) -> Table:
    """Return the counts as a table, a row a block."""
    rich_table = Table(title="bench launches", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    columns = (
        "memory", "a layer, forward", "backward", "both, a frame", f"times {CEILING}", "a training step, all layers",
        f"ms at {1e3 * LAUNCH_MS:.0f} µs each", "TFLOP a step, with the trunk",
    )  # fmt: skip
    for heading in columns:
        rich_table.add_column(heading, justify="left" if heading == "memory" else "right")
    ceiling = next((c.layer for c in counts if c.block == CEILING), None)
    for c in counts:
        rich_table.add_row(
            c.block, f"{c.forward:,}", f"{c.backward:,}", f"{c.layer / c.frames:.1f}",
            "" if ceiling is None else f"{c.layer / ceiling:.1f}", f"{c.step:,}", f"{c.step * LAUNCH_MS:,.0f}",
            f"{c.step_flops / 1e12:.1f}",
        )  # fmt: skip
    return rich_table
