"""What makes training cheaper changes nothing it should not: mixed precision, recomputation, compilation, shares."""

import shutil

import pytest
import torch

from rad_bench.blocks.memory import leaves
from rad_bench.config import DiffusionConfig, LaunchConfig, RoomsData
from rad_bench.data import open_dataset
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.registry import block_names, find_block
from rad_bench.store.run_folder import RunFolder
from rad_bench.training.distributed import Group
from rad_bench.training.loop import train
from tests.model.test_trunk import make_inputs, make_trunk
from tests.run.test_execute import tiny
from tests.runs import opened


def float_trunk(block, **changes):
    trunk = make_trunk(block, **changes).float()
    return trunk, [part.float() for part in make_inputs(trunk)]


def loss_and_gradient(trunk, inputs, autocast=False):
    """Return the training loss, and its gradient as one vector (without weights that have none)."""
    clean, noise, level, motion = inputs
    trunk.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = Diffusion(DiffusionConfig()).loss(trunk, clean, motion, level, noise)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in trunk.parameters() if p.grad is not None])


@pytest.mark.parametrize("block", block_names())
def test_bf16_trains_every_block_as_fp32_does_but_for_rounding(block):
    trunk, inputs = float_trunk(block)
    loss, gradient = loss_and_gradient(trunk, inputs)
    rounded_loss, rounded_gradient = loss_and_gradient(trunk, inputs, autocast=True)
    assert rounded_loss.dtype == torch.float32
    assert not torch.equal(rounded_loss, loss)
    torch.testing.assert_close(rounded_loss, loss, rtol=0.02, atol=0)
    most = 0.1 if block == "mlstm" else 0.05  # its queries start as its keys, which makes its reading sharp
    assert (rounded_gradient - gradient).norm() < most * gradient.norm()


@pytest.mark.parametrize("block", [name for name in block_names() if not find_block(name).memoryless])
@torch.no_grad()
def test_what_is_carried_from_frame_to_frame_stays_in_fp32(block):
    memory = find_block(block)(32).float()
    x_STKD = torch.randn(4, 60, 2, 32, generator=torch.Generator().manual_seed(0))
    state = memory.prefetch(x_STKD, memory.initial_state(4)).state
    with torch.autocast("cpu", torch.bfloat16):
        rounded = memory.prefetch(x_STKD, memory.initial_state(4)).state
    for exact, part in zip(leaves(state), leaves(rounded), strict=True):
        assert part.dtype == exact.dtype
        assert (part - exact).float().norm() <= 0.02 * exact.float().norm()


@pytest.mark.parametrize(("block", "ttt_keeps"), [("lstm", None), ("ttt", 1 << 40), ("ttt", 0), ("ttt_chunk", 0)])
def test_recomputed_activations_are_not_kept_and_leave_the_same_gradients(monkeypatch, block, ttt_keeps):
    monkeypatch.setattr("rad_bench.blocks.ttt.KEPT", ttt_keeps)
    trunk, inputs = float_trunk(block, depth=3)
    gradients, kept = [], []
    for trunk.recompute in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=sizes: to.append(t.numel()) or t, lambda t: t):
            output = trunk(*inputs)
        kept.append(sum(sizes))
        trunk.zero_grad()
        output.square().mean().backward()
        gradients.append([p.grad.clone() for p in trunk.parameters()])
    assert kept[1] < 0.2 * kept[0]
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-8)


def trained(folder, launch, **training):
    folder.mkdir()
    config = tiny(memory="none", training={"steps": 3, **training})
    experiment = opened(config, perturbed=True)
    names = list(experiment.trunk.state_dict())
    average, progress = train(experiment, RunFolder(folder), launch, Group())
    saved = torch.load(folder / "checkpoint.pt")
    assert list(saved["trunk"]) == list(saved["average"]) == names
    return progress.loss_last, torch.cat([p.flatten() for p in average.parameters()])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPU")
def test_compiled_layers_train_the_same_and_their_checkpoints_have_the_same_names(tmp_path):
    torch._dynamo.utils.counters.clear()
    eager = trained(tmp_path / "eager", LaunchConfig(activation_checkpointing=True))
    assert not torch._dynamo.utils.counters["stats"]
    compiled = trained(tmp_path / "compiled", LaunchConfig(compile=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # and no other: it was not compiled again
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_precision_is_science_and_reaches_training(tmp_path):
    fp32 = trained(tmp_path / "fp32", LaunchConfig())
    bf16 = trained(tmp_path / "bf16", LaunchConfig(), precision="bf16")
    assert bf16[0] != fp32[0]
    assert bf16[0] == pytest.approx(fp32[0], rel=0.02)
    assert bf16[1].dtype == torch.float32


def test_rows_of_a_batch_are_those_of_the_whole():
    data = open_dataset(RoomsData(size=16))
    whole, rows = data.training_batch(0, 3, 6, 5), data.training_batch(0, 3, 6, 5, slice(2, 4))
    for name in ("frames", "actions", "egomotion", "poses", "names"):
        mine, of_all = getattr(rows, name), getattr(whole, name)[2:4]
        assert torch.equal(mine, of_all) if isinstance(mine, torch.Tensor) else mine == of_all


def test_buffers_of_a_block_are_taken_over_and_not_averaged(tmp_path):
    """A user's block may count, or keep running statistics; evaluation must see them as training left them."""
    config = tiny(memory={"name": "lstm", "hidden": 8})
    experiment = opened(config)
    counted = experiment.trunk.layers[0].memory
    counted.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    prefetch = counted.prefetch
    counted.prefetch = lambda *given: counted.steps.add_(1) is not None and prefetch(*given)
    average, progress = train(experiment, RunFolder(tmp_path), LaunchConfig(), Group())
    assert average.layers[0].memory.steps == counted.steps == progress.step == 25
