"""All that a block computes, gradients included, to compare its fast path with the reference."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from rad_bench.blocks.contract.probe import difference, differentiable, floating
from rad_bench.blocks.memory import MemoryBlock, leaves, map_state, without_kernels

Trace = dict[str, list[Tensor]]  # outputs, state, gradients, step -> tensors


def trace(block: MemoryBlock, x_STKD: Tensor, noisy_STKD: Tensor, form: type[MemoryBlock]) -> Trace:
    """Return a block's outputs, final state and gradients on clean and noisy frames, and its next `step` and `read`.

    It starts from a state that already holds some frames. `form` is the block's class for its own `prefetch`,
    `retrieve` and `read`, or `MemoryBlock` for the reference: it needs only `step`, and no kernels of other packages.
    """
    with without_kernels() if form is MemoryBlock else contextlib.nullcontext():
        return _trace(block, x_STKD, noisy_STKD, form)


def _trace(block: MemoryBlock, x_STKD: Tensor, noisy_STKD: Tensor, form: type[MemoryBlock]) -> Trace:
    reference = form is MemoryBlock
    x, noisy = (frames.detach().requires_grad_() for frames in (x_STKD, noisy_STKD))
    warm = form.prefetch(block, x_STKD[:, :5].flip(1), block.initial_state(len(x)))
    state = differentiable(warm.state)
    prefetched = form.prefetch(block, x, state)
    outputs = [prefetched.y_STKD, form.retrieve(block, noisy, prefetched)]
    final = list(leaves(prefetched.state))
    inputs = [x, noisy, *floating(state), *block.parameters()]
    # The loss depends on every output, and, with weight zero, on every input: each then has a gradient.
    results = [*outputs, *floating(prefetched.state)]
    loss = torch.stack([(_ramp(y) * y).sum() for y in results] + [0 * tensor.sum() for tensor in inputs]).sum()
    gradients = torch.autograd.grad(loss, inputs)
    with torch.set_grad_enabled(reference):  # without gradients, `step` may use another kernel
        frame, before = noisy[:, 0].detach(), map_state(Tensor.detach, prefetched.state)
        y_SKD, after = block.step(frame, before)
        read_SKD = form.read(block, frame, before)
    step = [y_SKD, read_SKD, *leaves(after)]
    return {"outputs": outputs, "state": final, "gradients": list(gradients), "step": step}


def _ramp(like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, like.numel(), device=like.device).view_as(like)


def differences(actual: Trace, expected: Trace) -> dict[str, float]:
    """Return the largest relative difference for each key of two traces. Each tensor is scaled by its largest value."""
    return {
        key: max((difference(a, b) for a, b in zip(actual[key], expected[key], strict=True)), default=0.0)
        for key in expected
    }
