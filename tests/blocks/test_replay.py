"""TTT that goes back through its weights computes what TTT that keeps them does, and keeps less."""

import pytest
import torch

from rad_bench.blocks import ttt
from rad_bench.blocks.contract import perturb
from rad_bench.blocks.contract.probe import difference, differentiable, floating
from rad_bench.blocks.memory import state_bytes
from rad_bench.blocks.ttt import TTT
from rad_bench.blocks.ttt_chunk import ChunkTTT

FORMS = {
    "linear": lambda: TTT(8, heads=2, head_dim=6, form="adapted"),
    "mlp": lambda: TTT(8, "mlp", heads=2, head_dim=6, form="adapted"),
    "delta rule": lambda: TTT(8, heads=2, head_dim=6, rate=0.1, inner_norm=False, form="adapted"),
    "paper": lambda: TTT(8, heads=2, head_dim=6, form="paper"),
    "paper, mlp": lambda: TTT(8, "mlp", heads=2, head_dim=6, form="paper"),
    "chunks": lambda: ChunkTTT(8, heads=2, head_dim=6, chunk=4),
    "chunks, mlp": lambda: ChunkTTT(8, "mlp", heads=2, head_dim=6, chunk=4),
}


def trained_once(block, kept, noisy_frames, warm=0):
    """Return all outputs and all gradients of one pass, if `kept` bytes of weights may be kept."""
    generator = torch.Generator().manual_seed(0)
    like = next(block.parameters())
    before, clean, noisy = (
        torch.randn(2, frames, 2, 8, generator=generator).to(like) for frames in (warm + 1, 19, noisy_frames)
    )
    state = block.initial_state(2)
    if warm:
        state = block.prefetch(before[:, :warm], state).state
    inputs = [clean.requires_grad_(), noisy.requires_grad_(), *floating(state := differentiable(state))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ttt, "KEPT", kept)
        y_clean, y_noisy, after = block.remember(clean, noisy, state)
    outputs = [y_clean, y_noisy, *(leaf for leaf in floating(after) if leaf.numel())]
    loss = sum((torch.linspace(-1, 1, y.numel()).view_as(y) * y).sum() for y in outputs)
    gradients = torch.autograd.grad(loss, [*inputs, *block.parameters()], materialize_grads=True)
    return outputs, list(gradients)


def make(form):
    torch.manual_seed(0)
    block = FORMS[form]()
    perturb(block)
    return block


@pytest.mark.parametrize("together", [0, 3])
@pytest.mark.parametrize("noisy_frames", [19, 6])
@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("form", FORMS)
def test_going_back_through_the_weights_gives_the_gradients_of_keeping_them(form, warm, noisy_frames, together):
    block = make(form).double()
    once = state_bytes(tuple(weight.expand(2, *weight.shape) for weight in block.initial))
    (outputs, gradients), (again, gradients_again) = (
        trained_once(block, kept, noisy_frames, warm) for kept in (1 << 40, together * once)
    )
    for expected, actual in zip(outputs, again, strict=True):
        assert difference(actual, expected) < 1e-13
    if form.startswith("chunks") and not warm:  # the sum that a chunk begins with is zero, and not read
        layers = len(block.initial)
        del gradients[2 + layers : 2 + 2 * layers], gradients_again[2 + layers : 2 + 2 * layers]
    for expected, actual in zip(gradients, gradients_again, strict=True):
        assert difference(actual, expected) < 1e-12


@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("chunks")])
def test_keeping_the_weights_or_not_gives_the_same_bits(form):
    block = make(form)
    (outputs, _), (again, _) = (trained_once(block, kept, 6) for kept in (1 << 40, 0))
    assert all(map(torch.equal, outputs, again))


@pytest.mark.parametrize("form", ["linear", "paper, mlp"])
def test_mixed_precision_is_the_same_on_the_way_back(form):
    block = make(form)
    with torch.autocast("cpu", torch.bfloat16):
        (outputs, gradients), (again, gradients_again) = (trained_once(block, kept, 6) for kept in (1 << 40, 0))
    assert all(map(torch.equal, outputs, again))
    kept, replayed = (torch.cat([part.flatten().float() for part in parts]) for parts in (gradients, gradients_again))
    assert (replayed - kept).norm() < 0.01 * kept.norm()


@pytest.mark.parametrize("form", ["linear", "mlp", "chunks"])
def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_weights_of_all_frames(form, monkeypatch):
    monkeypatch.setattr(ttt, "KEPT", 0)
    small = {"heads": 1, "head_dim": 64}
    block = ChunkTTT(8, **small) if form == "chunks" else TTT(8, form, form="adapted", **small)
    weights = 4 * sum(weight.numel() for weight in block.initial)  # bytes a sequence; a token has far fewer

    def kept(frames):
        storages = {}

        def keep(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            x = torch.zeros(1, frames, 1, 8)
            y = block.remember(x, x[:, frames // 2 :], block.initial_state(1))
        del y
        return sum(storage.nbytes() for storage in storages.values())

    assert kept(48) - kept(24) < 24 * 0.25 * weights
