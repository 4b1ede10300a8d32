"""Run Mamba2 by mamba-ssm's kernels on the CPU, through Triton's interpreter; print its errors against the reference.

A program of its own, since what makes Triton interpret must be set before it is imported, for good. In fp32: the
interpreter's bf16 is wrong.
"""

import contextlib
import json
import os
import sys
import types
from unittest import mock

# Deterministic, mamba-ssm has one size of tiles for each kernel, and measures none: there is nothing to measure on.
os.environ.update(TRITON_INTERPRET="1", MAMBA_DETERMINISTIC="1")

import torch

from rad_bench.blocks.contract import differences, perturb, trace
from rad_bench.blocks.fast import kernels
from rad_bench.blocks.fast import mamba2_kernels as mamba_kernels
from rad_bench.blocks.mamba2 import Mamba2
from rad_bench.blocks.memory import MemoryBlock, leaves

torch.set_num_threads(1)
torch.cuda.device = lambda *_: contextlib.nullcontext()
torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=2)

calls = {"scan": 0, "update": 0}


def counted(name):
    kernel = getattr(mamba_kernels, name)

    def call(*arguments):
        calls[name] += 1
        return kernel(*arguments)

    return call


def difference(actual, expected):
    return max(float((a - b).abs().max()) for a, b in zip(actual, expected, strict=True))


def gradients_and_all(tokens, frames, **options):
    """Outputs, final state, the step, and the gradients of inputs, initial state and parameters."""
    block, clean, noisy = made(tokens, frames, **options)
    return differences(trace(block, clean, noisy, Mamba2), trace(block, clean, noisy, MemoryBlock))


def made(tokens, frames, **options):
    torch.manual_seed(0)
    block = Mamba2(8, head_dim=4, state=5, **options)
    perturb(block)
    return block, *torch.randn(2, 2, frames, tokens, 8)


@torch.no_grad()
def pieces(tokens, frames):
    """Prefetched in two pieces with carried state, the last frames of each retrieved, against the loop at once."""
    block, clean, noisy = made(tokens, frames, chunk=8)
    cut, state, found = frames // 2 + 1, block.initial_state(2), []
    for first, last in ((0, cut), (cut, frames)):
        piece = block.prefetch(clean[:, first:last], state)
        found += [piece.y_STKD, block.retrieve(noisy[:, last - 2 : last], piece)]
        state = piece.state
    with torch.enable_grad():  # by the plain step, whose kernel this is not about
        whole = MemoryBlock.prefetch(block, clean, block.initial_state(2))
        read = MemoryBlock.retrieve(block, noisy, whole)
    expected = [whole.y_STKD[:, :cut], read[:, cut - 2 : cut], whole.y_STKD[:, cut:], read[:, -2:]]
    return difference([*found, *leaves(state)], [*expected, *leaves(whole.state)])


@torch.no_grad()
def split():
    """Sequences beyond what a grid holds go in pieces."""
    block, clean, noisy = made(2, 3)
    found = []
    for grid in (kernels.LARGEST_GRID, 1):
        with mock.patch.object(kernels, "LARGEST_GRID", grid):
            prefetched = block.prefetch(clean, block.initial_state(2))
            y, state = block.step(noisy[:, 0], prefetched.state)
            found.append([prefetched.y_STKD, block.retrieve(noisy, prefetched), y, *leaves(state)])
    return difference(*found)


def main():
    loaded = mamba_kernels.load()
    if isinstance(loaded, str):
        sys.exit(loaded)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(mamba_kernels, "unavailable", return_value=""))
        for name in calls:
            stack.enter_context(mock.patch.object(mamba_kernels, name, counted(name)))
        errors = {
            "one token a frame": gradients_and_all(1, 19, chunk=8),
            "three tokens a frame": gradients_and_all(3, 7, chunk=16),
            "one frame of one token": gradients_and_all(1, 1),
            "pieces": {"one token": pieces(1, 11), "three tokens": pieces(3, 7)},
            "split": {"outputs and state": split()},
        }
    print(json.dumps({"errors": errors, "calls": calls}))


main()
