"""The convolution by causal-conv1d's kernel is the one in PyTorch, as far as a stand-in for the package can show."""

import sys
import types

import pytest
import torch
from torch.autograd import Function, grad

from rad_bench.blocks import convolution
from rad_bench.blocks.contract import differences, trace
from rad_bench.blocks.convolution import convolve_apart, convolve_clip
from rad_bench.blocks.fast import convolution_kernel as kernel
from rad_bench.blocks.fast import kernels
from rad_bench.blocks.mamba2 import Mamba2
from rad_bench.blocks.memory import MemoryBlock, without_kernels
from rad_bench.model.registry import find_block
from rad_bench.run import parity

CUDA, CPU = torch.device("cuda"), torch.device("cpu")  # names of devices: nothing here needs them to be there
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def demand(met, what):
    if not met:
        raise RuntimeError(f"the real causal_conv1d would raise: {what}")


def demand_channels_last(x, name):
    """In this layout the kernel reads 16 bytes at once. It checks the strides, and faults on the address."""
    demand(x.shape[1] % 8 == 0, f"{name}: channels are a multiple of 8")
    demand(x.stride(0) % 8 == 0 and x.stride(2) % 8 == 0, f"{name}: strides are multiples of 8, not {x.stride()}")
    demand(x.data_ptr() % 16 == 0, f"{name}: address")


class Gradient(Function):
    """The identity. It makes the demands of the kernel's backward pass."""

    @staticmethod
    def forward(ctx, y, channels_last):
        ctx.channels_last = channels_last
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy):
        if dy.stride(1) != 1 and dy.stride(2) != 1:
            dy = dy.contiguous()
        if ctx.channels_last:
            dy = dy if dy.stride(1) == 1 else dy.mT.contiguous().mT
            demand_channels_last(dy, "the output's gradient")
        return dy, None


class StandIn(types.ModuleType):
    """causal-conv1d, slow and in the open: its signature, its result, and what it demands of tensors."""

    def __init__(self):
        super().__init__("causal_conv1d")
        self.calls = 0

    def causal_conv1d_fn(
        self, x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
        final_states_out=None, activation=None,
    ):  # fmt: skip
        self.calls += 1
        (batch, channels, length), (_, taps) = x.shape, weight.shape
        demand(activation in (None, "silu", "swish"), f"activation {activation}")
        demand(seq_idx is None and final_states_out is None, "not in the stand-in")
        demand(x.dtype in DTYPES and weight.dtype in DTYPES, f"{x.dtype} and {weight.dtype}")
        demand(weight.shape == (channels, taps) and 2 <= taps <= 4, f"weight {tuple(weight.shape)}")
        if x.stride(1) != 1 and x.stride(2) != 1:
            x = x.contiguous()
        channels_last = x.stride(1) == 1 and x.stride(2) > 1
        if channels_last:
            demand_channels_last(x, "x")
        if bias is not None:
            demand(bias.dtype == weight.dtype and bias.shape == (channels,), "bias")
        before = x.new_zeros(batch, channels, taps - 1)
        if initial_states is not None:
            demand(channels_last, "initial states need channels last")
            demand(initial_states.dtype == x.dtype and initial_states.shape == before.shape, "initial states")
            demand(initial_states.stride(1) == 1, "initial states with channels last")
            before = initial_states
        inputs = torch.cat([before, x], 2)
        tokens = []
        for token in range(length):
            y = (inputs[:, :, token : token + taps] * weight).sum(2)
            tokens.append(y if bias is None else y + bias)
        y = Gradient.apply(torch.stack(tokens, 2).to(x.dtype), channels_last)
        y = y if activation is None else y * torch.sigmoid(y)
        if not return_final_states:
            return y
        demand(channels_last, "final states need channels last")
        return y, inputs[:, :, length:]


@pytest.fixture
def package(monkeypatch):
    """Install a stand-in for causal-conv1d, and let this device count as CUDA for it."""
    package = StandIn()
    monkeypatch.setitem(sys.modules, "causal_conv1d", package)
    switch = kernels.unavailable
    monkeypatch.setattr(kernels, "unavailable", lambda device, dtype: switch(CUDA, dtype))
    return package


@pytest.fixture(autouse=True)
def _imported_anew():
    kernel.load.cache_clear()
    yield
    kernel.load.cache_clear()


def leaf(*shape):
    return torch.randn(shape).requires_grad_()


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("taps", [2, 4])
@pytest.mark.parametrize(("sequences", "tokens", "channels"), [(3, 1, 8), (1, 3, 13), (2, 5, 16)])
def test_the_kernel_convolves_as_pytorch_does_gradients_and_tails_included(
    package, sequences, tokens, channels, taps, silu
):
    torch.manual_seed(0)
    S, T, K, C, J = sequences, 4, tokens, channels, taps - 1
    # A block's inputs are part of a wider projection: no stride or address of theirs is round.
    projected, queries = leaf(S, T, K, C + 5), leaf(S, 3, K, C + 5)
    given = projected, queries, leaf(S, J, C), leaf(taps, C), leaf(C)

    def everything():
        clean, noisy, tail, weight, bias = given
        y_STKC, tails, last = convolve_clip(clean[..., 3 : 3 + C], tail, weight, bias, silu)
        y_SQKC = convolve_apart(noisy[..., 3 : 3 + C], tails, weight, bias, silu)
        outputs = [y_STKC, y_SQKC, tails, last]
        generator = torch.Generator().manual_seed(1)
        loss = sum((y * torch.randn(y.shape, generator=generator)).sum() for y in outputs)
        return [*outputs, *grad(loss, given, retain_graph=True), *grad(outputs[0].sum(), given[0])]

    found = everything()
    assert package.calls == 2
    with without_kernels():
        expected = everything()
    assert package.calls == 2
    torch.testing.assert_close(found, expected)


def odd(name):
    """Blocks with convolutions, of a number of channels that the kernel cannot take as it is."""
    options = {"head_dim": 5, "form": "paper"} if name != "mamba2" else {"head_dim": 4, "state": 5}
    return find_block(name), options


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("name", ["mamba2", "gated_deltanet", "kda", "mlstm", "ttt"])
def test_blocks_with_the_kernel_compute_what_they_do_without(package, name, tokens):
    torch.manual_seed(0)
    block_class, options = odd(name)
    block, frames = block_class(8, **options), torch.randn(2, 2, 6, tokens, 8)
    found = trace(block, *frames, block_class)
    calls = package.calls
    assert calls > 2
    errors = differences(found, trace(block, *frames, MemoryBlock))
    assert max(errors.values()) <= 1e-5, errors
    assert package.calls == calls  # the reference is without kernels, `step` included


def test_what_a_kernel_gets_wrong_is_found_before_a_run(package, monkeypatch):
    block = Mamba2(8, head_dim=4, state=4)
    assert parity.measure_parity("mamba2", block, 2, CPU).max_error <= 2e-5
    right = kernel.convolve
    monkeypatch.setattr(kernel, "convolve", lambda inputs, weight, bias, silu: right(inputs, weight, 2 * bias, silu))
    with torch.no_grad():
        block.conv_bias.add_(0.1)
    with pytest.raises(parity.ParityError, match=r"chunked scan, causal-conv1d.*of block 'mamba2' does not compute"):
        parity.measure_parity("mamba2", block, 2, CPU)


@pytest.mark.parametrize("name", ["mamba2", "gated_deltanet", "kda", "mlstm", "ttt"])
def test_a_blocks_path_names_the_kernel_or_says_why_it_is_not_used(package, name):
    block_class, options = odd(name)
    block = block_class(8, **options)
    assert block.path(CUDA, torch.float32).name.endswith(", causal-conv1d")
    assert "causal-conv1d not used: they do not compute in float64" in block.path(CUDA, torch.float64).why
    with without_kernels():
        path = block.path(CUDA, torch.float32)
    assert "causal-conv1d" not in path.name and "not used: BLOCK_KERNELS=off" in path.why


def test_a_form_without_convolution_does_not_speak_of_it(package):
    for name in ("gated_deltanet", "kda", "mlstm", "ttt", "ttt_chunk", "lstm"):
        path = find_block(name)(8, **({} if name == "ttt_chunk" else {"form": "adapted"})).path(CUDA, torch.float32)
        assert "causal-conv1d" not in path.name + path.why


@pytest.mark.parametrize(
    ("device", "dtype", "taps", "why"),
    [
        (CPU, torch.float32, 4, "CUDA device"),
        (CUDA, torch.float64, 4, "float64"),
        (CUDA, torch.float32, 5, "2 to 4 taps, not 5"),
        (CUDA, torch.float32, 4, "causal-conv1d is not installed"),
    ],
)
def test_the_reason_why_the_kernel_is_not_used_is_told(monkeypatch, device, dtype, taps, why):
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    assert why in kernel.unavailable(device, dtype, taps)


def test_a_broken_installation_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "causal_conv1d.py").write_text("import causal_conv1d_cuda\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "causal_conv1d", raising=False)
    why = kernel.load.__wrapped__()
    assert why == "causal-conv1d cannot be imported: ModuleNotFoundError: No module named 'causal_conv1d_cuda'"


def test_the_compiler_gets_the_form_in_pytorch(package):
    compiled = torch.compile(convolution.convolve, backend="eager", fullgraph=True)
    given = torch.randn(2, 7, 8), torch.randn(4, 8), torch.randn(8)
    y = compiled(*given)
    assert not package.calls
    torch.testing.assert_close(y, convolution.convolve(*given))
    assert package.calls == 1
