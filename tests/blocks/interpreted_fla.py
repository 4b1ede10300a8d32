"""Run a block by flash-linear-attention's kernels on the CPU, through Triton's interpreter; print errors.

A program of its own, since what makes Triton interpret must be set before it is imported, for good.
"""

import contextlib
import json
import os
import sys
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.language as tl
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps

from rad_bench.blocks.contract import TOLERANCE, differences, perturb, trace
from rad_bench.blocks.contract.probe import difference
from rad_bench.blocks.fast import fla_kernels, kernels
from rad_bench.blocks.memory import MemoryBlock, leaves
from rad_bench.model.registry import find_block
from rad_bench.run.parity import BF16_FLOOR, BF16_MARGIN

torch.set_num_threads(1)


def patched(owner, name):
    """Replace a function by one that gets the original first."""

    def decorate(function):
        original = getattr(owner, name)
        setattr(owner, name, lambda *arguments, **options: function(original, *arguments, **options))
        return function

    return decorate


@patched(Autotuner, "__init__")
def one_size_of_tiles(init, self, fn, names, configs, *arguments, **options):
    # Which of several is fastest would be measured, and there is nothing to measure on.
    init(self, fn, names, configs[:1], *arguments, **options)


# Triton's interpreter keeps bf16 as integers. It converts them, rounding down, but calculates with them as integers.


@patched(InterpreterBuilder, "cast_impl")
def round_to_nearest(cast, self, x, dtype):
    kinds = x.dtype.scalar, dtype.scalar
    if kinds == (tl.float32, tl.bfloat16):
        x = type(x)(torch.from_numpy(x.data).bfloat16().view(torch.int16).numpy().view("uint16"), tl.bfloat16)
    elif kinds == (tl.bfloat16, tl.float32):
        x = type(x)(torch.from_numpy(x.data.view("int16")).view(torch.bfloat16).float().numpy(), tl.float32)
    else:
        x = cast(self, x, dtype)
    return x


@patched(InterpreterBuilder, "binary_op")
def calculate_in_fp32(calculate, self, a, b, operator):
    if a.dtype.scalar != tl.bfloat16:
        return calculate(self, a, b, operator)
    a, b = (self.cast_impl(x, tl.float32) for x in (a, b))
    return self.cast_impl(calculate(self, a, b, operator), tl.bfloat16)


# It has no constants of that type.
InterpreterBuilder.get_bf16 = lambda self, value: self.cast_impl(self.get_fp32(value), tl.bfloat16)


@patched(InterpreterBuilder, "create_dot")
def multiply_in_fp32(multiply, self, a, b, *arguments):
    a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return multiply(self, a, b, *arguments)


@patched(ReduceOps, "sum")
def sum_in_fp32(add, self, x):
    return add(self, x.to(tl.float32) if x.dtype.scalar == tl.bfloat16 else x)


def let_loops_count_in_triton():
    """Let `range` give numbers of Triton to the kernels that convert them, not Python's."""
    from fla.ops.common import chunk_delta_h, chunk_h

    for kernels_of in chunk_delta_h, chunk_h:
        kernels_of.range = lambda *ends: (tl.full((), i, tl.int32) for i in range(*ends))


def made(name, tokens, frames, **options):
    torch.manual_seed(0)
    sizes = {"head_dim": 5} | ({"state": 9} if name == "mamba3" else {})
    block = find_block(name)(8, heads=2, **sizes, **options)
    perturb(block)
    return block, *torch.randn(2, 2, frames, tokens, 8)


def errors(name, tokens, frames, **options):
    """The worst error of outputs, final state, step and gradients of inputs, initial state and parameters, in fp32 and
    bf16, each as a part of what `rad-bench check` allows."""
    block, clean, noisy = made(name, tokens, frames, **options)
    clean, noisy = clean[:1], noisy[:1]  # one sequence: the interpreter takes its time
    expected = trace(block, clean, noisy, MemoryBlock)
    found = {"fp32": max(differences(trace(block, clean, noisy, type(block)), expected).values())}
    found["fp32"] /= TOLERANCE[torch.float32]
    with torch.autocast("cpu", torch.bfloat16):
        loop, path = (differences(trace(block, clean, noisy, form), expected) for form in (MemoryBlock, type(block)))
    return found | {"bf16": max(path[what] / max(BF16_MARGIN * loop[what], BF16_FLOOR) for what in path)}


@torch.no_grad()
def pieces(name, tokens, frames, **options):
    """Two pieces with carried state, a sequence a call, the last frames of each read, against the loop."""
    block, clean, noisy = made(name, tokens, frames, **options)
    cut, state, found = frames // 2 + 1, block.initial_state(2), []
    with mock.patch.object(kernels, "LARGEST_GRID", block.heads):
        for first, last in ((0, cut), (cut, frames)):
            y, read, state = block.remember(clean[:, first:last], noisy[:, last - 2 : last], state)
            found += [y, read]
    whole = MemoryBlock.prefetch(block, clean, block.initial_state(2))
    read = MemoryBlock.retrieve(block, noisy, whole)
    expected = [whole.y_STKD[:, :cut], read[:, cut - 2 : cut], whole.y_STKD[:, cut:], read[:, -2:]]
    pairs = zip([*found, *leaves(state)], [*expected, *leaves(whole.state)], strict=True)
    return {"fp32": max(difference(a, b) for a, b in pairs) / TOLERANCE[torch.float32]}


def main(name):
    rules, rule = fla_kernels.load(), name if name in fla_kernels.RULES else "simple_gla"
    if isinstance(rules, str):
        sys.exit(rules)
    let_loops_count_in_triton()
    paper = {"form": "paper"} | ({"rank": 2} if name == "mamba3" else {})
    calls = mock.Mock(side_effect=rules[rule])
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(fla_kernels, "unavailable", return_value=""))
        stack.enter_context(mock.patch.dict(rules, {rule: calls}))
        found = {
            "adapted": errors(name, 3, 8, form="adapted"),  # 72 tokens: more than a chunk of the kernels
            "paper": errors(name, 3, 5, **paper),
            "adapted, in pieces": pieces(name, 1, 6, form="adapted"),
            "paper, in pieces": pieces(name, 3, 5, **paper),
        }
    print(json.dumps({"errors": found, "calls": calls.call_count}))


main(sys.argv[1])
