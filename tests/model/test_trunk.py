"""The trunk: training and rollout agree, blocks share it to the bit, nothing sees what it must not."""

import pytest
import torch

from rad_bench.config import TrunkConfig
from rad_bench.model.motion import motion_size
from rad_bench.model.registry import block_names, find_block
from rad_bench.model.trunk import Trunk

REGIMES = {
    "frame-wise": {"window": 3},
    "chunk-wise": {"frames_per_step": 4, "window": 0},
    "chunk-wise with overlap": {"frames_per_step": 2, "window": 4},
    "frame-wise, full attention": {"window": 3, "attention": "full"},
    "chunk-wise, full attention": {"frames_per_step": 2, "window": 4, "attention": "full"},
}
B, T = 2, 16


def make_trunk(block="none", seed=0, perturbed=True, **changes):
    config = TrunkConfig(width=32, patch=8, **changes)
    trunk = Trunk(config, find_block(block), (3, 16, 16), 4, seed).double()
    if perturbed:  # zero-initialised weights would hide errors
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in trunk.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return trunk


def make_inputs(trunk, frames=T):
    generator = torch.Generator().manual_seed(2)
    clean, noisy = torch.randn(2, B, frames, 3, 16, 16, generator=generator, dtype=torch.float64)
    step = trunk.config.frames_per_step
    level = torch.rand(B, frames // step, generator=generator, dtype=torch.float64).repeat_interleave(step, 1)
    size = motion_size(trunk.config.motion, 4)
    motion = torch.randn(B, frames, size, generator=generator, dtype=torch.float64)
    return clean, noisy, level, motion


def step_by_step(trunk, clean, noisy, level, motion):
    """Denoise each step against the cache, then commit its clean frames: rollout with teacher forcing."""
    cache, outputs, step = trunk.start(len(clean)), [], trunk.config.frames_per_step
    for first in range(0, clean.shape[1], step):
        now = slice(first, first + step)
        outputs.append(trunk.denoise(noisy[:, now], level[:, now], motion[:, now], cache))
        cache = trunk.commit(clean[:, now], motion[:, now], cache)
    return torch.cat(outputs, 1), cache


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("block", block_names())
@torch.no_grad()
def test_parallel_training_pass_equals_cached_rollout(block, regime):
    trunk = make_trunk(block, **REGIMES[regime])
    inputs = make_inputs(trunk)
    parallel = trunk(*inputs)
    sequential, _ = step_by_step(trunk, *inputs)
    assert parallel.abs().max() > 0.5
    assert (parallel - sequential).abs().max() < 1e-11  # float64; outputs reach about 5


@pytest.mark.parametrize("scan", ["location", "block", "frame", "pooled"])
@pytest.mark.parametrize("block", ["lstm", "ttt", "attention"])
@torch.no_grad()
def test_every_scan_agrees_between_training_and_rollout(block, scan):
    trunk = make_trunk(block, scan=scan, frames_per_step=2, window=2)
    inputs = make_inputs(trunk)
    assert (trunk(*inputs) - step_by_step(trunk, *inputs)[0]).abs().max() < 1e-11


@pytest.mark.parametrize("block", block_names())
@torch.no_grad()
def test_a_cache_keeps_nothing_of_the_frames_that_it_was_cut_from(block):
    trunk = make_trunk(block, window=2)
    clean, _, _, motion = make_inputs(trunk, frames=24)
    cache = trunk.commit(clean, motion, trunk.start(B))
    storages = {}
    cache.map(lambda part: storages.setdefault(part.untyped_storage().data_ptr(), part.untyped_storage()) and part)
    assert sum(storage.nbytes() for storage in storages.values()) <= 2 * (cache.memory_bytes() + cache.window_bytes())


@pytest.mark.parametrize("block", block_names())
@torch.no_grad()
def test_float32_agrees_to_rounding(block):
    trunk = make_trunk(block).float()
    inputs = [part.float() for part in make_inputs(trunk)]
    assert (trunk(*inputs) - step_by_step(trunk, *inputs)[0]).abs().max() < 5e-5


@pytest.mark.parametrize("block", block_names())
@torch.no_grad()
def test_noisy_suffix_equals_whole_noisy_stream(block):
    trunk = make_trunk(block)
    clean, noisy, level, motion = make_inputs(trunk)
    whole = trunk(clean, noisy, level, motion)
    suffix = trunk(clean, noisy[:, 6:], level[:, 6:], motion)
    assert (whole[:, 6:] - suffix).abs().max() < 1e-11


@pytest.mark.parametrize("block", block_names())
@torch.no_grad()
def test_committing_at_once_equals_committing_one_by_one(block):
    trunk = make_trunk(block)
    clean, noisy, level, motion = make_inputs(trunk)
    one_by_one = step_by_step(trunk, clean, noisy, level, motion)[1]
    at_once = trunk.commit(clean, motion, trunk.start(B))
    args = noisy[:, :1], level[:, :1], motion[:, :1]
    assert (trunk.denoise(*args, one_by_one) - trunk.denoise(*args, at_once)).abs().max() < 1e-11
    assert at_once.memory_bytes() == one_by_one.memory_bytes()


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("block", block_names())
@torch.no_grad()
def test_a_noisy_frame_sees_neither_its_truth_nor_later_nor_other_noisy_steps(block, regime):
    trunk = make_trunk(block, **REGIMES[regime])
    clean, noisy, level, motion = make_inputs(trunk)
    step = trunk.config.frames_per_step
    now = slice(2 * step, 3 * step)
    before = trunk(clean, noisy, level, motion)[:, now]
    clean[:, now.start :] += 1
    outside = torch.ones(T, dtype=torch.bool)
    outside[now] = False
    noisy[:, outside] += 1
    assert (trunk(clean, noisy, level, motion)[:, now] - before).abs().max() < 1e-11


@pytest.mark.parametrize("attention", ["axial", "full"])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("depth", [1, 2])
def test_without_memory_the_reach_is_depth_times_window(window, depth, attention):
    trunk = make_trunk("none", window=window, depth=depth, attention=attention)
    clean, noisy, level, motion = make_inputs(trunk)
    clean.requires_grad_()
    output = trunk(clean, noisy, level, motion)[:, -1]
    (gradient,) = torch.autograd.grad(output.sum(), clean)
    seen = gradient.abs().amax((0, 2, 3, 4)) > 0
    expected = torch.zeros(T, dtype=torch.bool)
    expected[T - 1 - depth * window : T - 1] = True
    assert seen.tolist() == expected.tolist()


@pytest.mark.parametrize("block", [name for name in block_names() if not find_block(name).memoryless])
def test_memory_reaches_every_earlier_frame(block):
    trunk = make_trunk(block, window=3, depth=1)  # a memory that learns in chunks of four leaves three to the window
    clean, noisy, level, motion = make_inputs(trunk)
    clean.requires_grad_()
    (gradient,) = torch.autograd.grad(trunk(clean, noisy, level, motion)[:, -1].sum(), clean)
    assert (gradient[:, :-1].abs().amax((0, 2, 3, 4)) > 0).all()


def test_every_block_starts_from_the_same_trunk():
    hashes = {make_trunk(block, perturbed=False).trunk_hash() for block in block_names()}
    assert len(hashes) == 1
    assert make_trunk("none", seed=1, perturbed=False).trunk_hash() not in hashes


@torch.no_grad()
def test_noisy_writes_change_training_and_leave_rollout_alone():
    clean_writes, noisy_writes = make_trunk("lstm"), make_trunk("lstm", memory_writes="noisy")
    clean, noisy, level, motion = make_inputs(clean_writes)
    suffix = noisy[:, 6:], level[:, 6:]
    difference = (clean_writes(clean, *suffix, motion) - noisy_writes(clean, *suffix, motion)).abs()
    assert difference.amax((0, 2, 3, 4))[0] < 1e-11  # the first noisy frame still reads clean memory
    assert difference.amax((0, 2, 3, 4))[1:].min() > 1e-6
    rollouts = [step_by_step(trunk, clean, noisy, level, motion)[0] for trunk in (clean_writes, noisy_writes)]
    assert torch.equal(*rollouts)


@torch.no_grad()
def test_a_cache_is_never_changed_by_its_use():
    trunk = make_trunk("attention")
    clean, noisy, level, motion = make_inputs(trunk)
    cache = trunk.commit(clean[:, :5], motion[:, :5], trunk.start(B))
    args = noisy[:, :1], level[:, :1], motion[:, :1], cache
    first = trunk.denoise(*args)
    trunk.commit(clean[:, 5:], motion[:, 5:], cache)
    assert torch.equal(trunk.denoise(*args), first)
