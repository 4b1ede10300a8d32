"""Attention in bands against attention with a dense mask, gradients included, and its cost."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rad_bench.blocks.none import NoMemory
from rad_bench.config import TrunkConfig
from rad_bench.model.trunk import Trunk
from rad_bench.model.window import attend_in_bands, make_bands

SHAPES = {  # clean and noisy frames of a pass, frames known before it, window, frames a step
    "training": (11, 11, 0, 3, 1),
    "loss on a suffix": (11, 5, 0, 3, 1),
    "chunks": (12, 12, 0, 4, 2),
    "context": (11, 0, 0, 3, 1),
    "one step of a rollout": (0, 1, 9, 3, 1),
    "no window": (12, 12, 0, 0, 4),
}


def mask(clean, noisy, first, window, step):
    config = TrunkConfig(width=16, heads=2, depth=1, window=window, frames_per_step=step, patch=8, attention="full")
    trunk = Trunk(config, NoMemory, (3, 16, 16), 4, 0)
    return trunk.streams(clean, noisy, first, torch.device("cpu")).visible_QK


def inputs(queries, keys, tokens=3):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, tokens, frames, 2, 8) for frames in (queries, keys, keys)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def dense(q, k, v, visible):
    """Every token against every token, one video, head and query at a time."""
    B, N, T, H, P = q.shape
    out = torch.zeros(B, N, T, H, P, dtype=q.dtype)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                seen = visible[t].nonzero()[:, 0]
                keys, values = (x[b, :, seen, h].reshape(-1, P) for x in (k, v))
                weights = (q[b, :, t, h] @ keys.T / P**0.5).softmax(-1)
                out[b, :, t, h] = weights @ values
    return out


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_bands_equal_the_dense_form_with_gradients(shape, size):
    visible = mask(*SHAPES[shape])
    tensors = inputs(*visible.shape)
    banded = attend_in_bands(*tensors, make_bands(visible, SHAPES[shape][0], size))
    slow = dense(*tensors, visible)
    torch.testing.assert_close(banded, slow, atol=1e-12, rtol=0)
    weight = torch.randn(slow.shape, generator=torch.Generator().manual_seed(1), dtype=slow.dtype)
    for ours, twin in zip(torch.autograd.grad((banded * weight).sum(), tensors),
                          torch.autograd.grad((slow * weight).sum(), tensors), strict=True):  # fmt: skip
        torch.testing.assert_close(ours, twin, atol=1e-12, rtol=0)


def test_the_cost_is_linear_in_the_clip():
    def flops(frames):
        visible = mask(frames, frames, 0, 3, 1)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            attend_in_bands(*inputs(*visible.shape), make_bands(visible, frames, 8))
        return counter.get_total_flops()

    assert flops(128) == 2 * flops(64) == 4 * flops(32)


def test_a_frame_sees_other_locations_of_the_window_and_no_frame_beyond_it():
    """Without spatial attention's help: one layer, and only the keys of another location of an earlier frame move."""
    visible = mask(8, 0, 0, 3, 1)
    q, k, v = (x.detach() for x in inputs(8, 8))
    before = attend_in_bands(q, k, v, make_bands(visible, 8, 4))
    changed = k.clone()
    changed[:, 1, 2] += 1
    moved = (attend_in_bands(q, changed, v, make_bands(visible, 8, 4)) != before).any(-1).any(-1)[0]
    assert moved[0].tolist() == [t in (2, 3, 4, 5) for t in range(8)]
