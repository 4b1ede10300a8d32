"""What is recorded once and repeated equals what is computed."""

from dataclasses import replace

import pytest
import torch

from rad_bench.config import DiffusionConfig, LaunchConfig, TrunkConfig
from rad_bench.errors import UserError
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.graphs import Repeats
from rad_bench.model.motion import motion_size
from rad_bench.model.registry import block_names, find_block
from rad_bench.model.rollout import rollout
from rad_bench.model.trunk import Trunk
from rad_bench.training.batches import training_clips
from rad_bench.training.distributed import Group
from rad_bench.training.trainer import make_trainer
from tests.model.tape import Tape
from tests.runs import opened, tiny_run

VIDEOS, CONTEXT, GENERATED = 1, 3, 7


def generated(block, record, attention="axial", step=1):
    """Frames and cache of a rollout, its window of 4 frames full after the first generated ones."""
    config = TrunkConfig(width=16, heads=2, depth=1, patch=8, window=4, attention=attention, frames_per_step=step)
    trunk = Trunk(config, find_block(block), (3, 16, 16), 4, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    motion = torch.randn(VIDEOS, 2 * CONTEXT + 2 * GENERATED, motion_size(config.motion, 4), generator=generator)
    frames = torch.randn(VIDEOS, 2 * CONTEXT, 3, 16, 16, generator=generator)
    noise = torch.randn(2 * GENERATED, VIDEOS, 3, 16, 16, generator=generator)
    given = CONTEXT * step
    with torch.no_grad():
        cache = trunk.commit(frames[:, :given], motion[:, :given], trunk.start(VIDEOS))
    diffusion = Diffusion(DiffusionConfig(sampler_steps=1))
    return rollout(trunk, diffusion, motion[:, given : given + GENERATED * step], cache, lambda h: noise[h], record)


@pytest.mark.parametrize("block", block_names())
def test_a_recorded_rollout_is_the_rollout(block):
    tape = Tape()
    ours, twin = generated(block, tape), generated(block, None)
    torch.testing.assert_close(ours.frames, twin.frames, rtol=0, atol=1e-5)
    assert ours.cache.frames == twin.cache.frames == CONTEXT + GENERATED
    for tensor, own in zip(ours.cache.tensors(), twin.cache.tensors(), strict=True):
        torch.testing.assert_close(tensor, own, rtol=0, atol=1e-5)
    # The window is full after one frame; one more is computed, the next is recorded. A chunk of TTT has four shapes.
    assert (tape.recordings, tape.repetitions) == {"attention": (0, 0), "ttt_chunk": (2, 2)}.get(block, (1, 5))


def test_a_cache_may_come_to_have_more_tensors(monkeypatch):
    one = generated("attention", None)
    monkeypatch.setattr("rad_bench.blocks.attention.PIECE", 4)
    several = generated("attention", None)
    assert len(several.cache.tensors()) == len(one.cache.tensors()) + 4  # 10 frames are 3 pieces of keys and of values
    torch.testing.assert_close(several.frames, one.frames, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("attention", "step"), [("full", 1), ("full", 2), ("axial", 2)])
def test_a_recorded_rollout_is_the_rollout_over_bands_and_steps_of_several_frames(attention, step):
    tape = Tape()
    ours, twin = (generated("lstm", record, attention, step).frames for record in (tape, None))
    torch.testing.assert_close(ours, twin, rtol=0, atol=1e-5)
    assert tape.recordings == 1


@pytest.mark.parametrize(("block", "precision"), [*((name, "fp32") for name in block_names()), ("mamba2", "bf16")])
def test_recorded_passes_train_the_same(block, precision):
    training = {"steps": 2, "batch": 4, "frames": 6, "precision": precision}
    run = tiny_run(memory=block, training=training).config
    weights, tape = [], Tape()
    for record in (tape, None):
        experiment = replace(opened(run), record=record)
        trainer = make_trainer(experiment, LaunchConfig(accumulate=2), Group())
        for step in range(2):
            trainer.step(training_clips(run, experiment.dataset, step), step)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.trunk.parameters()]))
    assert (tape.recordings, tape.repetitions) == (1, 3)  # of four passes, the first is computed
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


def test_what_does_more_than_its_tensors_say_is_refused():
    calls = []

    def count(x):
        calls.append(x)
        return (x + len(calls),)

    repeats = Repeats(Tape())
    for _ in range(2):  # called, then recorded
        repeats(count, torch.tensor(1.0))
    with pytest.raises(UserError, match=r"launch\.cuda_graphs: a recorded step gave other results"):
        repeats(count, torch.tensor(1.0))


def test_without_a_recorder_functions_are_called():
    assert Repeats(None)(lambda x: (x + 1,), torch.zeros(1))[0] == 1


def test_rounding_of_what_is_nearly_zero_beside_the_rest_is_no_difference():
    repeats = Repeats(lambda function, *given: lambda x: (x, torch.tensor(2e-9)))
    for _ in range(3):
        x, _ = repeats(lambda x: (x, torch.tensor(1e-9)), torch.tensor(1.0))
    assert x == 1
