"""Every block in `blocks/` is held to the whole contract, and the checks themselves can fail."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rad_bench.blocks import attention
from rad_bench.blocks.attention import Attention
from rad_bench.blocks.contract import ALL, CHECKS, check_block, differences, trace
from rad_bench.blocks.convolution import convolve, convolve_clip
from rad_bench.blocks.fast import gated_deltanet, kda
from rad_bench.blocks.fast import lstm as fast_lstm
from rad_bench.blocks.fast.gated_deltanet import in_chunks
from rad_bench.blocks.gated_deltanet import GatedDeltaNet
from rad_bench.blocks.gated_deltanet import _write as write_delta
from rad_bench.blocks.kda import KimiDeltaAttention
from rad_bench.blocks.lstm import LSTM
from rad_bench.blocks.mamba2 import Mamba2
from rad_bench.blocks.memory import MemoryBlock, Prefetched, map_state, without_kernels
from rad_bench.blocks.minlstm import MinLSTM
from rad_bench.blocks.mlstm import MLSTM
from rad_bench.blocks.mlstm import _recall as recall_mlstm
from rad_bench.blocks.mlstm import _write as write_mlstm
from rad_bench.blocks.ttt import TTT
from rad_bench.blocks.ttt_chunk import ChunkTTT
from rad_bench.model.registry import block_names, find_block

VARIANTS = {
    "lstm": [{"hidden": 12}],
    "mamba2": [{"head_dim": 4, "state": 5, "chunk": 8}, {"head_dim": 4, "state": 5, "chunk": 64}],
    "mamba3": [{"head_dim": 4, "state": 9, "chunk": 8}, {"heads": 1, "head_dim": 4, "state": 3, "rank": 2}],
    "ttt": [
        {"head_dim": 8, "form": "adapted"},
        {"head_dim": 8, "inner": "mlp", "form": "adapted"},
        {"head_dim": 8, "inner_norm": False, "form": "adapted"},
    ],
    "attention": [{"head_dim": 8}],
    "ttt_chunk": [
        {"head_dim": 8, "chunk": 4},
        {"head_dim": 8, "chunk": 1},
        {"head_dim": 8, "inner": "mlp", "chunk": 5},
    ],
    "feedforward": [{"hidden": 12}],
    "minlstm": [{"hidden": 12}],
    "mlstm": [
        {"head_dim": 8, "form": "adapted"},
        {"heads": 1, "head_dim": 5},
        {"head_dim": 8, "chunk": 8, "form": "adapted"},
        {"head_dim": 8, "chunk": 1, "form": "adapted"},
    ],
    "gated_deltanet": [
        {"head_dim": 8},
        {"heads": 1, "head_dim": 5, "chunk": 64},
        {"heads": 2, "head_dim": 4, "chunk": 1},
        {"heads": 2, "head_dim": 4, "chunk": 8},
    ],
    "kda": [{"head_dim": 8}, {"heads": 1, "head_dim": 5, "chunk": 64}, {"heads": 2, "head_dim": 4, "chunk": 1}],
}
FAR_BACK = "gradient reaches far back"
CASES = [(name, options) for name in block_names() for options in VARIANTS.get(name, [{}])]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_block_keeps_the_contract(name, options):
    thorough = options == VARIANTS.get(name, [{}])[0]
    outcomes = check_block(find_block(name), options, thorough=thorough)
    assert [outcome.name for outcome in outcomes] == ALL[: len(ALL) if thorough else len(CHECKS)]
    assert not [outcome for outcome in outcomes if not outcome.passed]


class WithAnEmptyTensor(LSTM):
    """Its state has a tensor without elements, which is unusual and right."""

    def initial_state(self, sequences):
        return (*super().initial_state(sequences), self.zeros(sequences, 0))

    def step(self, x_SKD, state):
        y_SKD, carried = super().step(x_SKD, state[:-1])
        return y_SKD, (*carried, state[-1])

    prefetch, retrieve, read = MemoryBlock.prefetch, MemoryBlock.retrieve, MemoryBlock.read


class WithNothingButAnEmptyTensor(WithAnEmptyTensor):
    def initial_state(self, sequences):
        return (self.zeros(sequences, 0),)

    def step(self, x_SKD, state):
        return super().step(x_SKD, (*LSTM.initial_state(self, len(x_SKD)), *state))[0], state


def test_a_state_tensor_without_elements_gets_a_verdict():
    assert all(outcome.passed for outcome in check_block(WithAnEmptyTensor, {"hidden": 12}))
    outcomes = check_block(WithNothingButAnEmptyTensor, {"hidden": 12}, thorough=False)
    (verdict,) = [outcome for outcome in outcomes if outcome.name == FAR_BACK]
    assert not verdict.passed and "no gradient from frame" in verdict.detail


@pytest.mark.parametrize("span", [1, 2, 7])
def test_attention_over_a_span_keeps_the_contract_but_for_what_lies_beyond(span):
    assert failures(Attention, {"head_dim": 8, "span": span}) == {"gradient reaches far back"}
    torch.manual_seed(0)
    block, x = Attention(8, head_dim=4, span=span), torch.randn(2, 12, 3, 8)
    for frame in (0, 4):
        other = x.clone()
        other[:, frame] += 1
        with torch.no_grad():
            before, after = (block.prefetch(frames, block.initial_state(2)).y_STKD for frames in (x, other))
        moved = (after - before).abs().amax((0, 2, 3))
        assert moved.nonzero().ravel().tolist() == list(range(frame, min(frame + span + 1, 12)))


@pytest.mark.parametrize("piece", [1, 3])
def test_attention_over_a_cache_of_several_tensors_keeps_the_contract(monkeypatch, piece):
    monkeypatch.setattr(attention, "PIECE", piece)
    assert not failures(Attention, {"head_dim": 8})


@pytest.mark.parametrize("span", [None, 2])
@pytest.mark.parametrize("frames", [0, 1, 7])
def test_attention_writes_one_frame_as_any_number_of_them(monkeypatch, frames, span):
    monkeypatch.setattr(attention, "PIECE", 3)
    torch.manual_seed(0)
    block, x_STKD = Attention(8, head_dim=4, span=span).double(), torch.randn(2, 8, 5, 8, dtype=torch.float64)
    state = block.prefetch(x_STKD[:, :frames], block.initial_state(2)).state if frames else block.initial_state(2)
    y_STKD, _, after = block.remember(x_STKD[:, frames : frames + 1], None, state)
    expected = block.prefetch(x_STKD[:, frames : frames + 1], state)
    torch.testing.assert_close(y_STKD, expected.y_STKD)
    torch.testing.assert_close(after, expected.state)


def test_a_frame_more_copies_the_last_tensor_of_attentions_cache_alone():
    block = Attention(8, head_dim=4)
    state = block.prefetch(torch.randn(2, 70, 1, 8), block.initial_state(2)).state
    _, _, after = block.remember(torch.randn(2, 1, 1, 8), None, state)
    for before, written in zip(state, after, strict=True):
        assert [piece.shape[2] for piece in written] == [32, 32, 7]
        assert all(map(torch.Tensor.is_set_to, written[:2], before[:2]))


class GRU(MemoryBlock):
    """A stranger's block: `initial_state` and `step`, nothing else."""

    def __init__(self, dim: int, hidden: int = 8) -> None:
        super().__init__(dim)
        self.cell, self.output = nn.GRUCell(dim, hidden), nn.Linear(hidden, dim)

    def initial_state(self, sequences):
        return (self.zeros(sequences, self.cell.hidden_size),)

    def step(self, x_SKD, state):
        (h,) = state
        outputs = []
        for x in x_SKD.unbind(1):
            h = self.cell(x, h)
            outputs.append(self.output(h))
        return torch.stack(outputs, 1), (h,)


def failures(block_class, options=None):
    return {outcome.name for outcome in check_block(block_class, options, thorough=False) if not outcome.passed}


def test_a_block_of_step_alone_is_valid():
    assert failures(GRU) == set()


class LooksAhead(GRU):
    def prefetch(self, x_STKD, state):
        found = super().prefetch(x_STKD, state)
        return Prefetched(found.y_STKD.flip(1), found.memory[1:] + [found.state], found.state)


class ChangesItsState(GRU):
    def step(self, x_SKD, state):
        y, (h,) = super().step(x_SKD, state)
        state[0].copy_(h)
        return y, state


class MixesSequences(GRU):
    def step(self, x_SKD, state):
        y, state = super().step(x_SKD, state)
        return y + y.mean(0, keepdim=True), state


class Forgets(GRU):
    def step(self, x_SKD, state):
        y, (h,) = super().step(x_SKD, (state[0].detach(),))
        return y, (h,)


class RemembersInTheModule(GRU):
    seen = 0.0

    def step(self, x_SKD, state):
        type(self).seen += 0.01
        y, state = super().step(x_SKD, state)
        return y + self.seen, state


class WrongDecay(LSTM):
    def retrieve(self, x_STKD, prefetched):
        return super().retrieve(x_STKD, prefetched) * 1.001


class LosesTheGradientOfItsState(LSTM):
    def prefetch(self, x_STKD, state):
        found = super().prefetch(x_STKD, state)
        return Prefetched(found.y_STKD, found.memory, map_state(torch.Tensor.detach, found.state))


class StepsOtherwiseWithoutGradients(LSTM):
    def step(self, x_SKD, state):
        y, state = super().step(x_SKD, state)
        return (y if torch.is_grad_enabled() else 1.001 * y), state


class ReadsOtherwise(LSTM):
    def read(self, x_SKD, state):
        return super().read(x_SKD, state) * 1.001


class GivesNoNumber(LSTM):
    def retrieve(self, x_STKD, prefetched):
        return super().retrieve(x_STKD, prefetched) * torch.nan


class ReadsOneTokenOnly(GRU):
    def step(self, x_SKD, state):
        y, state = super().step(x_SKD[:, :1], state)
        return y.expand_as(x_SKD), state


class StateOfAnotherType(GRU):
    def initial_state(self, sequences):
        return (torch.zeros(sequences, self.cell.hidden_size),)

    def step(self, x_SKD, state):
        return super().step(x_SKD, (state[0].to(x_SKD),))


class StateInADict(GRU):
    def initial_state(self, sequences):
        return {"h": super().initial_state(sequences)[0]}


class SizedByNothing(GRU):
    size_option = "hiden"


class CannotBeBuilt(GRU):
    def __init__(self, dim, hidden=8):
        self.cell = nn.GRUCell(dim, hidden)  # before super().__init__()


class ClaimsNoMemory(GRU):
    memoryless = True


def test_what_cannot_be_built_is_told_once_and_by_its_own_line():
    (outcome,) = check_block(CannotBeBuilt)
    assert outcome.name == "built" and not outcome.passed
    assert "before Module.__init__() call" in outcome.detail and "test_contract.py:" in outcome.detail


@pytest.mark.parametrize(
    ("faulty", "caught"),
    [
        (LooksAhead, "causality"),
        (LooksAhead, "prefetch, retrieve and read = step by step"),
        (ChangesItsState, "step is pure"),
        (MixesSequences, "batch invariance"),
        (Forgets, "gradient reaches far back"),
        (RemembersInTheModule, "reset = fresh start"),
        (WrongDecay, "fast path = reference (float32)"),
        (LosesTheGradientOfItsState, "fast path = reference (float32)"),
        (StepsOtherwiseWithoutGradients, "fast path = reference (float32)"),
        (ReadsOtherwise, "prefetch, retrieve and read = step by step"),
        (ReadsOtherwise, "fast path = reference (float32)"),
        (GivesNoNumber, "fast path = reference (float32)"),
        (ReadsOneTokenOnly, "gradient reaches far back"),
        (StateOfAnotherType, "shapes"),
        (StateInADict, "shapes"),
        (SizedByNothing, "shapes"),
        (ClaimsNoMemory, "gradient reaches far back"),
    ],
)
def test_a_faulty_block_is_caught(faulty, caught):
    assert caught in failures(faulty)


@pytest.mark.parametrize("faulty", [WrongDecay, MixesSequences])
def test_a_faulty_block_is_caught_in_float32(faulty):
    outcomes = check_block(faulty, dtype=torch.float32, thorough=False)
    assert not all(outcome.passed for outcome in outcomes)


@pytest.mark.parametrize(
    ("block", "name"),
    [(GRU, "loop over step"), (LSTM, "PyTorch, own prefetch"), (TTT, "PyTorch, own prefetch and retrieve")],
)
def test_a_block_says_what_computes_it(block, name):
    assert block(8).path(torch.device("cpu"), torch.float32).name == name


@pytest.mark.parametrize("inner", ["linear", "mlp"])
@pytest.mark.parametrize("inner_norm", [True, False])
def test_ttt_writes_the_gradient_of_its_inner_loss(inner, inner_norm):
    """The written-out gradient equals autograd's, head by head."""
    torch.manual_seed(0)
    block = TTT(16, inner=inner, heads=2, head_dim=8, inner_norm=inner_norm, form="adapted").double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    k, v = torch.randn(2, 3, 2, 5, 8, dtype=torch.float64)
    eta = torch.rand(3, 2, 5, 1, dtype=torch.float64)
    weights = tuple(w.detach().clone().requires_grad_() for w in block.initial_state(3))

    def inner_model(x):
        if inner == "linear":
            out = x @ weights[0] + weights[1]
        else:
            out = F.gelu(x @ weights[0] + weights[1]) @ weights[2] + weights[3]
        if inner_norm:
            out = F.layer_norm(out, (8,)) * block.norm_scale + block.norm_shift
        return x + out

    loss = 0.5 * (eta * (inner_model(k) - v) ** 2).sum() / k.shape[-2]
    gradients = torch.autograd.grad(loss, weights)
    _, written, _ = block._write((k, k, v, eta / k.shape[-2]), weights, block._norm())
    for new, weight, gradient in zip(written, weights, gradients, strict=True):
        torch.testing.assert_close(new, weight - gradient, rtol=1e-9, atol=1e-11)


def test_lstm_step_equals_pytorchs_own():
    torch.manual_seed(0)
    block = LSTM(16, hidden=12).double()
    theirs = nn.LSTM(16, 12, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(block.input.weight)
        theirs.bias_ih_l0.copy_(block.input.bias)
        theirs.weight_hh_l0.copy_(block.recurrent.weight)
        theirs.bias_hh_l0.zero_()
    x = torch.randn(3, 20, 1, 16, dtype=torch.float64)
    expected, (h, c) = theirs(x[:, :, 0])
    found = block.prefetch(x, block.initial_state(3))
    torch.testing.assert_close(found.y_STKD[:, :, 0], block.output(expected))
    torch.testing.assert_close(found.state[0], h[0])
    torch.testing.assert_close(found.state[1], c[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tokens", [1, 3])
def test_the_fused_lstm_computes_what_steps_do(monkeypatch, tokens, dtype):
    """It is used on CUDA devices; here PyTorch's own for the CPU stands in for it."""
    torch.manual_seed(0)
    block = LSTM(8, hidden=12).to(dtype)
    clean, noisy = torch.randn(2, 3, 20, tokens, 8, dtype=dtype)
    expected = trace(block, clean, noisy, MemoryBlock)
    assert "fused LSTM not used" in block.path(torch.device("cpu"), dtype).why
    monkeypatch.setattr(fast_lstm, "unavailable", lambda device, dtype: "")
    monkeypatch.setattr(fast_lstm, "recurrence", None)
    assert block.path(torch.device("cpu"), dtype).name == "PyTorch's fused LSTM"
    errors = differences(trace(block, clean, noisy, LSTM), expected)
    assert max(errors.values()) <= (1e-12 if dtype == torch.float64 else 1e-5), errors
    last = block.retrieve(noisy[:, -5:], block.prefetch(clean, block.initial_state(3)))
    torch.testing.assert_close(last, block.retrieve(noisy, block.prefetch(clean, block.initial_state(3)))[:, -5:])


@pytest.mark.parametrize(
    ("device", "dtype", "why"),
    [("cpu", torch.float32, "on cpu"), ("cuda", torch.bfloat16, "bfloat16"), ("cuda", torch.float32, "")],
)
def test_the_fused_lstm_is_used_on_cuda_devices(device, dtype, why):
    path = LSTM(8).path(torch.device(device), dtype)
    assert (path.name == "PyTorch's fused LSTM") == (not why) and why in path.why
    with without_kernels():
        assert LSTM(8).path(torch.device(device), dtype).name == "PyTorch, own prefetch"


def random_tokens(block, frames):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return torch.randn(2, frames, 1, block.dim, generator=generator, dtype=torch.float64)


def test_mlstm_is_its_equation_without_the_stabiliser():
    block = MLSTM(6, heads=2, head_dim=3, form="adapted").double()
    x_STKD = random_tokens(block, 9)
    q, k, v, i, f = (part[:, :, :, 0].transpose(1, 2) for part in block._project(x_STKD, None))
    C, n = torch.zeros(2, 2, 3, 3).double(), torch.zeros(2, 2, 3).double()
    read = []
    for t in range(9):
        size = (n * q[:, t]).sum(-1).abs().clamp(min=1.0)
        read.append((C @ q[:, t, :, :, None])[..., 0] / size[..., None])
        forget, write = f[:, t].exp()[..., None], i[:, t].exp()[..., None]
        C = forget[..., None] * C + write[..., None] * v[:, t, :, :, None] * k[:, t, :, None, :]
        n = forget * n + write * k[:, t]
    expected = block._finish(torch.stack(read, 2)[:, :, :, None], x_STKD)
    torch.testing.assert_close(block.prefetch(x_STKD, block.initial_state(2)).y_STKD, expected)


def test_mlstm_does_not_overflow_where_its_input_gate_would():
    block = MLSTM(4, heads=1, head_dim=3, form="adapted")
    with torch.no_grad():
        block.gates.bias[0] = 200.0
    x_STKD = torch.randn(2, 6, 1, 4)
    assert block.prefetch(x_STKD, block.initial_state(2)).y_STKD.isfinite().all()


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("chunk", [1, 6, 64])
def test_mlstm_keeps_to_its_steps_where_gates_are_extreme(chunk, tokens):
    """Gradients included, with what gates are made of anywhere between -100 and 100."""
    torch.manual_seed(0)
    block = MLSTM(8, heads=2, head_dim=4, chunk=chunk, form="adapted")
    with torch.no_grad():
        block.qkv.weight[:8] = nn.Linear(8, 8).weight  # queries apart from keys: where they are equal, more cancels
        block.gates.weight.copy_(100 * torch.eye(4, 8))
        block.gates.bias.zero_()
    x_STKD, noisy_STKD = torch.rand(2, 3, 40, tokens, 8) * 2 - 1
    # Sums that cancel, one over the other: rounding shows in their gradients.
    for dtype, tolerance in ((torch.float32, 1e-2), (torch.float64, 1e-9)):
        given = block.to(dtype), x_STKD.to(dtype), noisy_STKD.to(dtype)
        apart = differences(trace(*given, MLSTM), trace(*given, MemoryBlock))
        assert max(apart.values()) < tolerance, apart


@pytest.mark.parametrize("gate", [-100.0, 100.0])
def test_mlstm_has_gradients_where_it_forgets_and_writes_nothing_or_everything(gate):
    block = MLSTM(4, heads=1, head_dim=3, chunk=4, form="adapted")
    with torch.no_grad():
        block.gates.bias.fill_(gate)
    x_STKD = torch.randn(2, 10, 1, 4, requires_grad=True)
    for form in (MLSTM, MemoryBlock):
        found = form.prefetch(block, x_STKD, block.initial_state(2))
        (gradient,) = torch.autograd.grad(found.y_STKD.sum(), x_STKD)
        assert found.y_STKD.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("chunk", [1, 7, 12])
def test_mlstm_does_not_depend_on_where_its_chunks_end(chunk):
    whole = MLSTM(6, heads=2, head_dim=3, chunk=999, form="adapted").double()
    x_STKD = random_tokens(whole, 33).unflatten(1, (11, 3)).squeeze(3)  # three tokens a frame
    chunked = MLSTM(6, heads=2, head_dim=3, chunk=chunk, form="adapted").double()
    chunked.load_state_dict(whole.state_dict())
    state = whole.prefetch(x_STKD.flip(1), whole.initial_state(2)).state
    expected, found = (block.prefetch(x_STKD, state) for block in (whole, chunked))
    torch.testing.assert_close(found.y_STKD, expected.y_STKD)
    torch.testing.assert_close(found.state, expected.state)
    noisy = x_STKD.roll(1, 1)
    reads = whole.retrieve(noisy, expected)
    for frames in range(1, 12):
        torch.testing.assert_close(chunked.retrieve(noisy[:, -frames:], found), reads[:, -frames:])


def test_mlstm_sums_in_full_precision_under_autocast():
    block = MLSTM(8, heads=2, head_dim=4, chunk=4, form="adapted")
    block._finish = lambda h, x, c: h
    x_STKD, state = random_tokens(block.double(), 10).float(), block.float().initial_state(2)
    with torch.autocast("cpu", torch.bfloat16):
        found = block.prefetch(x_STKD, state)
        q, k, v, i, f = block._project(x_STKD, None)
        assert q.dtype == torch.bfloat16
        for t in range(10):
            torch.testing.assert_close(found.y_STKD[:, :, t], recall_mlstm(q[:, :, t], state))
            _, state = write_mlstm(q[:, :, t], k[:, :, t], v[:, :, t], i[:, :, t], f[:, :, t], state)
    torch.testing.assert_close(found.state, state)


def test_gated_deltanet_replaces_what_a_key_recalled():
    block = GatedDeltaNet(8, heads=1, head_dim=4).double()
    k = F.normalize(torch.randn(1, 1, 2, 4).double(), dim=-1)
    v = torch.randn(1, 1, 2, 4).double()
    one = torch.ones(1, 1, 2, 1).double()
    (M,) = block.initial_state(1)
    _, M = write_delta(k, k, v, one, one, M)
    torch.testing.assert_close((M @ k[:, :, 1, :, None])[..., 0], v[:, :, 1])  # the last key recalls its value
    _, M = write_delta(k[:, :, 1:], k[:, :, 1:], 2 * v[:, :, 1:], one[:, :, 1:], one[:, :, 1:], M)
    torch.testing.assert_close((M @ k[:, :, 1, :, None])[..., 0], 2 * v[:, :, 1])  # replaced, not added
    _, M = write_delta(k[:, :, :1], k[:, :, :1], v[:, :, :1], 0 * one[:, :, :1], 0 * one[:, :, :1], M)
    assert not M.any()  # forgotten


def delta_by_the_token(q, k, v, log_a, b, M):
    """What each query reads of the tokens before its own, and the last state, by the recurrence."""
    read = []
    for q_l, *token in zip(*(part.split(1, 2) for part in (q, k, v, log_a.exp(), b)), strict=True):
        read.append(q_l @ M.mT)
        _, M = write_delta(q_l, *token, M)
    return torch.cat(read, 2), M


def delta_in_chunks(q, k, v, log_a, b, M, rule, L):
    memory, M = rule.write_chunks(*(in_chunks(part, L) for part in (k, v, log_a, b)), M, 1)
    return rule.read(q, memory, 0), M


def delta_tokens(rule, tokens, log_a, b, alike):
    """Random tokens of 2 sequences and 3 heads; of keys the share `alike` is the same for all."""
    channels = 8 if rule is kda else 1  # that decay each by itself
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, tokens, 8, dtype=torch.float64)
    k = F.normalize((1 - alike) * k + alike * torch.randn(8, dtype=torch.float64), dim=-1)
    gates = (torch.full((2, 3, tokens, n), value, dtype=torch.float64) for n, value in ((channels, log_a), (1, b)))
    return [F.normalize(q, dim=-1), k, v, *gates, torch.randn(2, 3, 8, 8, dtype=torch.float64)]


def outcome_and_gradients(form, inputs, *options):
    inputs = [part.detach().requires_grad_() for part in inputs]
    outcome = form(*inputs, *options)
    loss = sum((torch.linspace(-1, 1, part.numel()).view_as(part) * part).sum() for part in outcome)
    return [part.detach() for part in (*outcome, *torch.autograd.grad(loss, inputs))]


DELTA_RULES = pytest.mark.parametrize("rule", [gated_deltanet, kda], ids=["gated_deltanet", "kda"])


@DELTA_RULES
@pytest.mark.parametrize("alike", [1.0, 0.99])
def test_the_delta_rule_in_fp32_survives_a_long_chunk_of_keys_alike(rule, alike):
    """Powers of the triangular system are beyond 1e70 here; in its solution they cancel."""
    inputs = delta_tokens(rule, 256, log_a=-1e-4, b=0.999, alike=alike)
    expected = outcome_and_gradients(delta_by_the_token, inputs)
    found = outcome_and_gradients(delta_in_chunks, [part.float() for part in inputs], rule, 256)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


@DELTA_RULES
@pytest.mark.parametrize("log_a", [-40.0, -2000.0])  # over 64 tokens more than exp(709), and in one
def test_the_delta_rule_decays_by_more_than_numbers_reach(rule, log_a):
    inputs = delta_tokens(rule, 64, log_a, b=0.9, alike=0.5)
    inputs[3][:, 1] = -0.01  # one head keeps
    inputs[3][:, 2, ::2] = -0.01  # one forgets at every second token
    inputs[3][:, 0, :, 1:] = -0.01  # in one, one channel forgets
    expected = outcome_and_gradients(delta_by_the_token, inputs)
    found = outcome_and_gradients(delta_in_chunks, inputs, rule, 64)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noisy_frames", [23, 9, 1])
@pytest.mark.parametrize("block", [GatedDeltaNet, KimiDeltaAttention])
def test_the_delta_rule_finds_the_same_in_many_chunks_as_in_one(block, noisy_frames):
    torch.manual_seed(0)
    one = block(6, heads=2, head_dim=3, chunk=69).double()
    x_STKD, noisy = torch.randn(2, 2, 23, 3, 6, dtype=torch.float64)
    warm = one.prefetch(noisy, one.initial_state(2)).state

    def run(block):
        found = block.prefetch(x_STKD, warm)
        return found.y_STKD, block.retrieve(noisy[:, -noisy_frames:], found), *found.state

    for chunk in (1, 5, 12, 68):  # frames a chunk: 1, 1, 4 and 12, or 23 in 6 and in 2 chunks
        many = block(6, heads=2, head_dim=3, chunk=chunk).double()
        many.load_state_dict(one.state_dict())
        for actual, wanted in zip(run(many), run(one), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-11)


def test_minlstm_is_its_equation():
    block = MinLSTM(5, hidden=4).double()
    x_STKD = random_tokens(block, 7)
    f, i, candidate = block.input(x_STKD[:, :, 0]).chunk(3, -1)
    h, outputs = torch.zeros(2, 4).double(), []
    for t in range(7):
        a, b = f[:, t].sigmoid(), i[:, t].sigmoid()
        h = a / (a + b) * h + b / (a + b) * candidate[:, t]
        outputs.append(block.output(h))
    found = block.prefetch(x_STKD, block.initial_state(2)).y_STKD[:, :, 0]
    torch.testing.assert_close(found, torch.stack(outputs, 1))


def test_chunks_of_one_frame_are_ttt():
    plain, chunked = TTT(8, head_dim=4, form="adapted").double(), ChunkTTT(8, head_dim=4, chunk=1).double()
    chunked.load_state_dict(plain.state_dict())
    x_STKD = random_tokens(plain, 9)
    chunked.load_state_dict(plain.state_dict())
    one, other = (block.prefetch(x_STKD, block.initial_state(2)).y_STKD for block in (plain, chunked))
    torch.testing.assert_close(one, other)


def test_the_host_knows_the_place_in_a_chunk_without_asking_the_device():
    block = ChunkTTT(8, head_dim=4, chunk=4).to("meta")
    state, places = block.initial_state(2), []
    for frames in (1, 2, 3, 5):
        state = block.prefetch(torch.zeros(2, frames, 1, 8, device="meta"), state).state
        places.append(state[-1].shape)
    assert places == [(2, 1, 0), (2, 3, 0), (2, 2, 0), (2, 3, 0)]


@pytest.mark.parametrize("tokens", [1, 6])
def test_mamba2s_convolution_is_pytorchs_and_so_is_its_gradient(tokens):
    torch.manual_seed(0)
    block, x = Mamba2(8, conv=4).double(), torch.randn(3, 2, tokens + 3, 128, dtype=torch.float64, requires_grad=True)
    parts = x, block.conv_weight, block.conv_bias
    y = convolve(*parts)
    kernel = block.conv_weight.T[:, None]
    expected = F.conv1d(x.flatten(0, 1).mT, kernel, block.conv_bias, groups=128).mT.unflatten(0, (3, 2))
    dy = torch.randn_like(y)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y, parts, dy), torch.autograd.grad(expected, parts, dy))


@pytest.mark.parametrize("name", ["attention", "gated_deltanet", "kda", "ttt_chunk"])
def test_queries_start_as_copies_of_keys(name: str) -> None:  # of the others see test_forms.py
    block = find_block(name)(16)
    query, key, _ = block.qkv.weight.chunk(3)
    assert torch.equal(query, key) and not torch.equal(query, torch.zeros_like(query))


def test_mamba2_reads_where_it_wrote_from_the_start() -> None:
    """Its keys and queries pass through a convolution over the frames before, which starts as nearly the identity."""
    block = find_block("mamba2")(16, heads=2, head_dim=8, state=32)
    out, back = torch.randn(1, 12, 1, 16), torch.arange(11, -1, -1)
    _, u, dt = block._project(torch.cat([out, out[:, back]], 1))
    u, *_ = convolve_clip(u, block.initial_state(1)[0], block.conv_weight, block.conv_bias, silu=True)
    tokens = block._tokens(u, dt)
    keys, queries = (torch.nn.functional.normalize(part[0, :, 0], dim=-1) for part in (tokens.B_STKN, tokens.C_STKN))
    similar = queries[12:] @ keys[:12].mT
    assert (similar.argmax(1) == back).all() and similar[torch.arange(12), back].min() > 0.8


def test_mamba3_turns_nothing_at_first_and_can_learn_to() -> None:
    block, x = find_block("mamba3")(16), torch.randn(2, 12, 1, 16)
    prefetched = block.prefetch(x, block.initial_state(2))
    assert not prefetched.memory.tokens.angle.any()
    prefetched.y_STKD.square().sum().backward()
    rates = block.input.weight.grad[-block.sizes[-1] :]
    assert rates.abs().amax(1).min() > 0
