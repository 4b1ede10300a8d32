"""Blocks: the parallel form that training uses against the base class's loop over `step`, with gradients.

If kernels of another package compute a block, they are also compared with the block's form in PyTorch alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rad_bench.bench.comparison import Comparison
from rad_bench.blocks.lstm import LSTM
from rad_bench.blocks.memory import MemoryBlock, without_kernels
from rad_bench.model.registry import block_names, find_block

SEQUENCES, FRAMES, NOISY, TOKENS, DIM = 32, 24, 16, 1, 64  # a step of training at the default preset
FRAME_TOKENS = 4  # per frame, if a frame is one sequence: `scan: frame`
TOLERANCE = 1e-3  # fp32; gradients through 24 frames


def comparisons(device: torch.device) -> Iterator[Comparison]:
    """Yield the comparisons of all built-in blocks with a memory, at one token a frame and at several."""
    for tokens in (TOKENS, FRAME_TOKENS):
        for name in block_names():
            block = find_block(name)
            loops = block.prefetch is MemoryBlock.prefetch and block.retrieve is MemoryBlock.retrieve
            if loops or block.memoryless:
                continue  # the loop is its only form, or there is nothing to loop for
            torch.manual_seed(0)
            layer = block(DIM).to(device)
            clean = torch.randn(SEQUENCES * TOKENS // tokens, FRAMES, tokens, DIM, device=device)
            noisy = torch.randn(len(clean), NOISY, tokens, DIM, device=device)
            case = f"{name}, {tokens} token{'s' if tokens > 1 else ''} a frame"
            yield Comparison(
                case,
                "a loop over `step`",
                functools.partial(_train, layer, clean, noisy, type(layer)),
                functools.partial(_train, layer, clean, noisy, MemoryBlock),  # type: ignore[type-abstract]
                TOLERANCE,
                "at least 1",
            )
            with without_kernels():
                plain = layer.path(device, torch.float32).name
            if plain != layer.path(device, torch.float32).name:
                ours = functools.partial(_train, layer, clean, noisy, type(layer))
                yield Comparison(f"{case}, by kernels", plain, ours, without_kernels()(ours), TOLERANCE, "at least 1")
    yield _against_nn_lstm(device)


def _train(layer: MemoryBlock, clean: Tensor, noisy: Tensor, form: type[MemoryBlock]) -> Sequence[Tensor]:
    """Run forward and backward through both streams of a clip, by the block's own form or by the loop."""
    layer.zero_grad(set_to_none=True)
    clean, noisy = clean.detach().requires_grad_(), noisy.detach().requires_grad_()
    prefetched = form.prefetch(layer, clean, layer.initial_state(len(clean)))
    y_noisy = form.retrieve(layer, noisy, prefetched)
    (prefetched.y_STKD.square().mean() + y_noisy.square().mean()).backward()
    assert clean.grad is not None and noisy.grad is not None
    gradients = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
    return [prefetched.y_STKD, y_noisy, clean.grad, noisy.grad, *gradients]


def _against_nn_lstm(device: torch.device) -> Comparison:
    """Compare the clean stream alone, because PyTorch's LSTM does not return its cells before each frame."""
    torch.manual_seed(0)
    layer = LSTM(DIM).to(device)
    plain = nn.LSTM(DIM, layer.hidden, batch_first=True).to(device)
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        weights["weight_ih_l0"].copy_(layer.input.weight)
        weights["weight_hh_l0"].copy_(layer.recurrent.weight)
        weights["bias_ih_l0"].copy_(layer.input.bias)
        weights["bias_hh_l0"].zero_()
    x = torch.randn(SEQUENCES, FRAMES, TOKENS, DIM, device=device)

    def ours() -> Sequence[Tensor]:
        layer.zero_grad(set_to_none=True)
        y = layer.prefetch(x, layer.initial_state(SEQUENCES)).y_STKD[:, :, 0]
        y.square().mean().backward()
        assert layer.input.weight.grad is not None
        return [y, layer.input.weight.grad]

    def theirs() -> Sequence[Tensor]:
        plain.zero_grad(set_to_none=True)
        y = layer.output(plain(x[:, :, 0])[0])
        y.square().mean().backward()
        gradient = weights["weight_ih_l0"].grad
        assert gradient is not None
        return [y, gradient]

    return Comparison("lstm, clean stream", "torch.nn.LSTM", ours, theirs, TOLERANCE, "at least 1")
