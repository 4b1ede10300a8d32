"""The compiler makes one graph of a layer with any built-in block, or leaves out what the block says and no more."""

import importlib.machinery
import sys
import types

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from rad_bench.blocks.fast import kernels, mamba2_kernels
from rad_bench.model.registry import block_names
from tests.model.test_trunk import make_inputs, make_trunk

FRAMES = 5  # more than a chunk of ttt_chunk
CUDA = torch.device("cuda")  # the name of a device: nothing here needs it to be there


def compiled(name):
    """Train a trunk's layers twice as they are compiled. Return the number of graphs, and why there are several."""
    torch.compiler.reset()
    counters.clear()
    trunk, counter = make_trunk(name).float(), CompileCounter()
    for layer in trunk.layers:  # alike, so they share their graphs
        layer.compile(dynamic=False, backend=counter)
    inputs = [part.float() for part in make_inputs(trunk, FRAMES)]
    for _ in range(2):
        trunk(*inputs).sum().backward()
    return counter.frame_count, [why.replace("\n", " ") for why in counters["graph_break"]]


@pytest.mark.parametrize("name", [name for name in block_names() if name != "ttt"])
def test_a_layer_is_one_graph(name):
    assert compiled(name) == (1, [])


def test_the_compiler_does_not_unroll_the_frames_of_ttt():
    graphs, reasons = compiled("ttt")
    assert reasons and all("TTT._write_each" in why for why in reasons)
    assert graphs <= 7


@pytest.fixture
def _mamba_ssm(monkeypatch):
    """Install a stand-in for mamba-ssm, and let this device count as CUDA for it."""

    def scan(x, dt, A, B, C, chunk, initial_states, return_final_states):
        return x * dt[..., None] * A[:, None] * B.mean() * C.mean(), initial_states  # anything with gradients

    for name in ("triton", "mamba_ssm", *mamba2_kernels.MODULES):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.mamba_chunk_scan_combined, module.selective_state_update = scan, None
        monkeypatch.setitem(sys.modules, name, module)
    switch = kernels.unavailable
    monkeypatch.setattr(kernels, "unavailable", lambda device, dtype: switch(CUDA, dtype))
    mamba2_kernels.load.cache_clear()
    yield
    mamba2_kernels.load.cache_clear()


@pytest.mark.usefixtures("_mamba_ssm")
def test_the_compiler_leaves_out_mamba2s_kernels_and_nothing_else():
    graphs, reasons = compiled("mamba2")
    assert reasons and all("function scan_frames" in why for why in reasons)
    assert graphs <= 10
