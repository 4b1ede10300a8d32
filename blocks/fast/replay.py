"""TTT's recurrence over many frames, without keeping every frame's inner model for the backward pass.

A step W_t = W_{t-1} - x^T e subtracts a product of low rank, so the backward pass has W_{t-1} from W_t by adding it
again. It keeps the factors x and e, a row for each token, and the last W. It goes back frame by frame, and computes
each frame a second time for its gradient. What is kept does not grow with frames times the size of W.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad_bench.blocks.fast.ttt import Gradient, ascend
from rad_bench.blocks.memory import State

Tensors = tuple[Tensor, ...]
# A frame's tensors, the weights before it, what all frames share -> what the frame reads, the weights after it, factors
Write = Callable[[Tensors, State, Tensors], tuple[Tensor, State, Gradient]]
Read = Callable[[Tensors, State, Tensors], Tensor]  # for a frame that does not write


@torch.compiler.disable  # type: ignore[untyped-decorator]
def replay(
    write: Write, read: Read, clean: Sequence[Tensors], noisy: Sequence[Tensors], weights: State, shared: Tensors
) -> tuple[list[Tensor], list[Tensor], State]:
    """Write the clean frames in order; each noisy frame reads the weights before the clean frame at its place.

    `noisy` has an entry for each clean frame, empty where no frame reads. Every tensor that is to get a gradient must
    be among the arguments. Return what the clean and the noisy frames read, and the last weights.
    """
    frames = [*clean, *noisy]
    sizes = [len(frame) for frame in (*frames, weights, shared)]
    outputs = _Replay.apply(write, read, sizes, *(tensor for part in (*frames, weights, shared) for tensor in part))
    end = len(outputs) - len(weights)
    return list(outputs[: len(clean)]), list(outputs[len(clean) : end]), outputs[end:]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, write: Write, read: Read, sizes: list[int], *given: Tensor) -> Tensors:
        clean, noisy, weights, shared = _divide(given, sizes)
        reads, rereads, kept = [], [], []
        for own, reading in zip(clean, noisy, strict=True):
            if reading:
                rereads.append(read(reading, weights, shared))
            recalled, weights, gradient = write(own, weights, shared)
            reads.append(recalled)
            kept += [tensor for factors in gradient for tensor in factors]
        ctx.write, ctx.read, ctx.sizes, ctx.autocast = write, read, sizes, _autocast(given[0].device.type)
        ctx.save_for_backward(*given, *weights, *kept)
        return *reads, *rereads, *weights

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        count = sum(ctx.sizes)
        saved = ctx.saved_tensors  # once: activation checkpointing allows no second time
        given, kept = saved[:count], saved[count:]
        clean, noisy, first, shared = _divide(given, ctx.sizes)
        weights, kept = kept[: len(first)], kept[len(first) :]
        step = len(kept) // len(clean)  # kept tensors of a frame
        end = len(d_outputs) - len(first)
        d_reads, d_rereads = d_outputs[: len(clean)], list(d_outputs[len(clean) : end])
        d_weights = d_outputs[end:]
        d_shared = [torch.zeros_like(tensor) for tensor in shared]
        d_clean: list[Tensors] = []
        d_noisy: list[Tensors] = []
        for number in reversed(range(len(clean))):
            factors = kept[number * step : (number + 1) * step]
            weights = ascend(weights, list(zip(factors[::2], factors[1::2], strict=True))) if number else first
            parts = [
                tuple(tensor.detach().requires_grad_() for tensor in part)
                for part in (clean[number], noisy[number], weights, shared)
            ]
            own, reading, before, common = parts
            with torch.enable_grad(), ctx.autocast:
                recalled, after, _ = ctx.write(own, before, common)
                outputs, cotangents = [recalled, *after], [d_reads[number], *d_weights]
                if reading:
                    outputs.append(ctx.read(reading, before, common))
                    cotangents.append(d_rereads.pop())
            gradients = iter(torch.autograd.grad(outputs, [leaf for part in parts for leaf in part], cotangents))
            d_own, d_reading, d_weights, d_common = (tuple(next(gradients) for _ in part) for part in parts)
            d_clean.append(d_own)
            d_noisy.append(d_reading)
            d_shared = [total + own for total, own in zip(d_shared, d_common, strict=True)]
        d_given = [*reversed(d_clean), *reversed(d_noisy), d_weights, d_shared]
        return None, None, None, *(tensor for part in d_given for tensor in part)


def _autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """Return a context in which operations are cast as they are now."""
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))


def _divide(given: Sequence[Tensor], sizes: list[int]) -> tuple[list[Tensors], list[Tensors], State, Tensors]:
    """Divide the tensors by `sizes` into those of clean and of noisy frames, the weights, and what all share."""
    tensors = iter(given)
    *frames, weights, shared = (tuple(next(tensors) for _ in range(size)) for size in sizes)
    return frames[: len(frames) // 2], frames[len(frames) // 2 :], weights, shared
