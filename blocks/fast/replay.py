"""TTT's recurrence over many frames, without keeping every frame's inner model for the backward pass.

A step W_t = W_{t-1} - x^T e subtracts a product of low rank, so the backward pass has W_{t-1} from W_t by adding it
again. It keeps the factors x and e, a row for each token, and the last W. It goes back group by group of frames, and
computes each frame a second time for its gradient. Frames that only read, each its own W, do so a group at a time. What
is kept does not grow with frames times the size of W.
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
    write: Write, read: Read, clean: Sequence[Tensors], noisy: Sequence[Tensors], weights: State, shared: Tensors,
    most: int = 1,
) -> tuple[list[Tensor], list[Tensor], State]:  # fmt: skip
    """Write the clean frames in order; each noisy frame reads the weights before the clean frame at its place.

    `noisy` has an entry for each clean frame, empty where no frame reads. At most `most` frames read together, and so
    many times the weights are held. Every tensor that is to get a gradient must be among the arguments. Return what the
    clean and the noisy frames read, and the last weights.
    """
    frames = [*clean, *noisy]
    sizes = [len(frame) for frame in (*frames, weights, shared)]
    tensors = (tensor for part in (*frames, weights, shared) for tensor in part)
    outputs = _Replay.apply(write, read, sizes, _groups(noisy, most), *tensors)
    end = len(outputs) - len(weights)
    return list(outputs[: len(clean)]), list(outputs[len(clean) : end]), outputs[end:]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, write: Write, read: Read, sizes: list[int], groups: list[list[int]], *given: Tensor
    ) -> Tensors:
        clean, noisy, weights, shared = _divide(given, sizes)
        reads, rereads, kept = [], [], []
        for group in groups:
            before = []
            for number in group:
                before.append(weights)
                recalled, weights, gradient = write(clean[number], weights, shared)
                reads.append(recalled)
                kept += [tensor for factors in gradient for tensor in factors]
            if noisy[group[0]]:
                rereads += _read_together(read, [noisy[number] for number in group], before, shared)
        ctx.write, ctx.read, ctx.sizes, ctx.groups = write, read, sizes, groups
        ctx.autocast = _autocast(given[0].device.type)
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
        d_clean: list[Tensors] = []  # of the last frame first, as those below
        d_noisy: list[Tensors] = []
        for group in reversed(ctx.groups):
            before: list[State] = []
            for number in reversed(group):
                factors = kept[number * step : (number + 1) * step]
                weights = ascend(weights, list(zip(factors[::2], factors[1::2], strict=True))) if number else first
                before.append(weights)
            d_before: list[State] = [()] * len(group)
            readings = [noisy[number] for number in reversed(group)]
            if readings[0]:

                def read(*parts: Tensors, G: int = len(group)) -> list[Tensor]:
                    return _read_together(ctx.read, list(parts[:G]), list(parts[G:-1]), parts[-1])

                cotangents = [d_rereads.pop() for _ in group]
                *d_parts, d_common = _gradient(read, [*readings, *before, shared], cotangents, ctx.autocast)
                d_noisy += d_parts[: len(group)]
                d_before = d_parts[len(group) :]
                d_shared = [total + own for total, own in zip(d_shared, d_common, strict=True)]
            else:
                d_noisy += readings
            for number, own_before, d_own_before in zip(reversed(group), before, d_before, strict=True):

                def write(*parts: Tensors) -> list[Tensor]:
                    recalled, after, _ = ctx.write(*parts)
                    return [recalled, *after]

                parts = [clean[number], own_before, shared]
                d_own, d_weights, d_common = _gradient(write, parts, [d_reads[number], *d_weights], ctx.autocast)
                if d_own_before:
                    d_weights = tuple(total + own for total, own in zip(d_weights, d_own_before, strict=True))
                d_clean.append(d_own)
                d_shared = [total + own for total, own in zip(d_shared, d_common, strict=True)]
        d_given = [*reversed(d_clean), *reversed(d_noisy), d_weights, d_shared]
        return None, None, None, None, *(tensor for part in d_given for tensor in part)


def _groups(noisy: Sequence[Tensors], most: int) -> list[list[int]]:
    """Divide the frames, in order, into groups of at most `most` whose readings have the same shapes, or none."""
    groups: list[list[int]] = []
    for number, reading in enumerate(noisy):
        shapes = [tensor.shape for tensor in reading]
        if groups and len(groups[-1]) < most and shapes == [tensor.shape for tensor in noisy[groups[-1][0]]]:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _read_together(read: Read, readings: list[Tensors], weights: list[State], shared: Tensors) -> list[Tensor]:
    """Let frames read, each its own weights, in one call: frames become sequences."""
    frames, own = (tuple(torch.cat(parts) for parts in zip(*each, strict=True)) for each in (readings, weights))
    return list(read(frames, own, shared).chunk(len(readings)))


def _gradient(
    function: Callable[..., list[Tensor]], parts: Sequence[Tensors], cotangents: list[Tensor],
    autocast: contextlib.AbstractContextManager[object],
) -> list[Tensors]:  # fmt: skip
    """Compute `function(*parts)` and return its gradient by all tensors of the parts, part by part."""
    own = [tuple(tensor.detach().requires_grad_() for tensor in part) for part in parts]
    with torch.enable_grad(), autocast:
        outputs = function(*own)
    inputs = [tensor for part in own for tensor in part]
    gradients = iter(torch.autograd.grad(outputs, inputs, cotangents, materialize_grads=True))
    return [tuple(next(gradients) for _ in part) for part in own]


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
