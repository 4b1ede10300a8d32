"""Both forms of every block keep the contract; the paper's form is the published layer, written out once more here."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from rad_bench.blocks.contract import check_block, perturb
from rad_bench.config import RunConfig
from rad_bench.data import open_dataset
from rad_bench.model.budget import plan_model
from rad_bench.model.registry import block_forms, block_names, find_block
from rad_bench.run import identity
from rad_bench.run.identity import run_key
from rad_bench.run.parity import measure_parity

SMALL = {
    "lstm": {"hidden": 12},
    "minlstm": {"hidden": 12},
    "mamba2": {"head_dim": 4, "state": 5, "chunk": 8},
    "mamba3": {"head_dim": 4, "state": 9, "chunk": 8},
}


def all_forms(name):
    default = inspect.signature(find_block(name).__init__).parameters["form"].default
    return [{"form": default}, *block_forms(find_block(name))[1:]]


FORMED = [name for name in block_names() if len(block_forms(find_block(name))) > 1]
TIED = [name for name in FORMED if {"form": "paper-tied"} in all_forms(name)]
PAPER = [
    *[(name, {**SMALL.get(name, {"head_dim": 5}), "form": "paper"}) for name in FORMED],
    ("ttt", {"heads": 2, "head_dim": 4, "inner": "mlp", "form": "paper-tied"}),
    ("ttt", {"heads": 2, "head_dim": 4, "inner_norm": False, "form": "paper"}),
    ("mlstm", {"heads": 1, "head_dim": 6, "chunk": 8, "form": "paper"}),
]


def test_every_block_with_a_paper_of_its_own_has_two_forms():
    assert FORMED == ["gated_deltanet", "kda", "lstm", "mamba2", "mamba3", "minlstm", "mlstm", "ttt"]
    assert TIED == ["gated_deltanet", "kda", "mamba2", "mamba3", "mlstm", "ttt"]


@pytest.mark.parametrize(("name", "options"), PAPER, ids=str)
def test_the_papers_form_keeps_the_contract(name, options):
    outcomes = check_block(find_block(name), options, thorough="heads" not in options)
    assert not [outcome for outcome in outcomes if not outcome.passed]


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("name", FORMED)
def test_the_papers_form_computes_what_its_steps_do_in_fp32(name, tokens):
    assert measure_parity(name, find_block(name)(24, form="paper"), tokens, torch.device("cpu")).max_error <= 2e-5


def convolved(u_SLC, weight, bias=None):
    """A causal convolution by channel, by PyTorch's own."""
    taps, C = weight.shape
    return F.conv1d(F.pad(u_SLC.mT, (taps - 1, 0)), weight.T[:, None], bias, groups=C).mT


def by_head(x_SLE, heads):
    return x_SLE.unflatten(-1, (heads, -1)).transpose(1, 2)


def published_mlstm(block, x):
    u = block.up(x)
    c = F.silu(convolved(u, block.conv_weight, block.conv_bias))
    wq, wk, wv = (torch.block_diag(*part) for part in block.qkv_blocks.chunk(3))
    q, k, v = c @ wq.T, c @ wk.T, u @ wv.T
    i, f = block.gates(torch.cat([q, k, v], -1)).mT.chunk(2, 1)
    q, k, v = (by_head(part, block.heads) for part in (q, k / block.head_dim**0.5, v))
    C, n, outputs = 0, 0, []
    for t in range(x.shape[1]):  # without the stabiliser
        forget, write = f[..., t].sigmoid(), i[..., t].exp()
        C = forget[..., None, None] * C + write[..., None, None] * v[:, :, t, :, None] * k[:, :, t, None]
        n = forget[..., None] * n + write[..., None] * k[:, :, t]
        size = (n * q[:, :, t]).sum(-1).abs().clamp(min=1.0)
        outputs.append((C @ q[:, :, t, :, None])[..., 0] / size[..., None])
    h = torch.stack(outputs, 1)
    h = ((h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()).flatten(2)
    return block.output((block.norm * h + block.skip * c) * F.silu(block.open(x)))


def published_gated_deltanet(block, x):
    a, b = block.gates(x).chunk(2, -1)
    a = torch.exp(-block.log_rate.exp() * F.softplus(a + block.decay_bias))
    return published_delta_rule(block, x, a[..., None], b, F.silu(block.open(x)))


def published_kda(block, x):
    step = F.softplus(block.decay(x) + block.decay_bias).unflatten(-1, (block.heads, -1))
    a = torch.exp(-block.log_rate.exp()[:, None] * step)
    return published_delta_rule(block, x, a, block.write(x), block.open(x).sigmoid())


def published_delta_rule(block, x, a, b, gate):
    """a is [S, L, H, P] or [S, L, H, 1]."""
    q, k, v = F.silu(convolved(block.qkv(x), block.conv_weight)).chunk(3, -1)
    q, k, v = (by_head(part, block.heads) for part in (q, k, v))
    q, k, b = F.normalize(q, dim=-1), F.normalize(k, dim=-1), b.sigmoid()
    M, outputs = torch.zeros(len(x), block.heads, block.head_dim, block.head_dim).to(x), []
    for t in range(x.shape[1]):
        k_t, b_t = k[:, :, t, :, None], b[:, t, :, None, None]
        decayed = M * a[:, t, :, None]
        M = decayed - b_t * decayed @ k_t @ k_t.mT + b_t * v[:, :, t, :, None] @ k_t.mT
        outputs.append((M @ q[:, :, t, :, None])[..., 0])
    h = torch.stack(outputs, 1)
    h = h / (h.square().mean(-1, keepdim=True) + torch.finfo(h.dtype).eps).sqrt() * block.norm
    return block.output(h.flatten(2) * gate)


def published_mamba3(block, x):
    """B and C turned back by the sum of all angles so far, as complex numbers; in the block the state turns."""
    inner, N, H, A = block.heads * block.head_dim, block.state_size, block.heads, block.state_size // 4
    keys = block.rank * N
    sizes = {"z": inner, "x": inner, "B": keys, "C": keys, "dt": H, "A": H, "mix": H, "angle": A}
    part = dict(zip(sizes, block.input(x).split(list(sizes.values()), -1), strict=True))
    u, dt = part["x"].unflatten(-1, (H, -1)), F.softplus(part["dt"] + block.dt_bias)
    alpha = torch.exp(dt * (-F.softplus(part["A"])).clamp(max=-1e-4))
    mix = part["mix"].sigmoid()
    beta, gamma = (1 - mix) * dt * alpha, mix * dt
    so_far = (math.pi * part["angle"].tanh()[:, :, None] * dt[..., None]).cumsum(1)

    def turned(name, rank, weight, bias):
        vector = part[name][..., rank * N : (rank + 1) * N]
        vector = vector / (vector.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
        vector = vector[:, :, None] + bias[:, rank]
        pairs = torch.polar(torch.ones_like(so_far), -so_far) * torch.complex(vector[..., :A], vector[..., A : 2 * A])
        return torch.cat([pairs.real, pairs.imag, vector[..., 2 * A :]], -1)

    def inputs(rank):
        return u if block.rank == 1 else block.spread[:, rank] * u

    ranks = range(block.rank)
    write = sum(inputs(r)[..., None] * turned("B", r, block.B_norm, block.B_bias)[..., None, :] for r in ranks)
    h, states = 0, []
    for t in range(x.shape[1]):
        h = alpha[:, t, :, None, None] * h + gamma[:, t, :, None, None] * write[:, t]
        if t:
            h = h + beta[:, t, :, None, None] * write[:, t - 1]
        states.append(h)
    h, z, y = torch.stack(states, 1), part["z"].unflatten(-1, (H, -1)), 0
    for r in ranks:
        read = (h @ turned("C", r, block.C_norm, block.C_bias)[..., None])[..., 0] + block.skip[:, None] * inputs(r)
        y = y + (read * F.silu(z) if block.rank == 1 else block.gather[:, r] * read * F.silu(block.gates[:, r] * z))
    return block.output(y.flatten(2))


def published_ttt(block, x, frame):
    """The primal form: weights after each token, by autograd of the loss of the mini-batch's tokens so far."""
    u, v = block.qkv(x).chunk(2, -1)
    wq, wk = block.conv_weight.chunk(2, -1)
    bq, bk = block.conv_bias.chunk(2)
    q, k, v = (by_head(part, block.heads) for part in (convolved(u, wq, bq), convolved(u, wk, bk), v))
    eta = block.rate * block.rate_logit(x).sigmoid().mT / block.head_dim
    weights = [weight.expand(len(x), *weight.shape).detach().requires_grad_() for weight in block.initial]

    def model(x, weights):
        out = x @ weights[0] + weights[1]
        if len(weights) > 2:
            out = F.gelu(out) @ weights[2] + weights[3]
        return x + F.layer_norm(out, out.shape[-1:]) * block.norm_scale + block.norm_shift

    outputs = []
    for first in range(0, x.shape[1], frame):
        for t in range(first, first + frame):
            so_far = slice(first, t + 1)
            error = (model(k[:, :, so_far], weights) - v[:, :, so_far]).square().sum(-1)
            gradients = torch.autograd.grad((eta[:, :, so_far] * error / 2).sum() / (t + 1 - first), weights)
            after = [weight - gradient for weight, gradient in zip(weights, gradients, strict=True)]
            outputs.append(model(q[:, :, t : t + 1], after)[:, :, 0])
        weights = [weight.detach().requires_grad_() for weight in after]
    z = F.layer_norm(
        torch.stack(outputs, 1).flatten(2), (q.shape[1] * q.shape[3],), block.output_norm, block.output_shift
    )
    return block.output(z * F.gelu(block.open(x), approximate="tanh"))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(
    ("name", "published", "options"),
    [
        ("mlstm", published_mlstm, {"heads": 2, "head_dim": 6, "chunk": 8}),
        ("gated_deltanet", published_gated_deltanet, {"heads": 2, "head_dim": 5, "chunk": 8}),
        ("kda", published_kda, {"heads": 2, "head_dim": 5, "chunk": 8}),
        ("mamba3", published_mamba3, {"heads": 2, "head_dim": 5, "state": 9, "chunk": 6}),
        ("mamba3", published_mamba3, {"heads": 2, "head_dim": 5, "state": 9, "rank": 3, "chunk": 6}),
        ("ttt", published_ttt, {"heads": 2, "head_dim": 5}),
        ("ttt", published_ttt, {"heads": 2, "head_dim": 5, "inner": "mlp"}),
    ],
)
def test_the_papers_form_is_the_published_layer(name, published, options, tokens):
    """On clean frames it is the layer over all tokens. A noisy frame's output is what its tokens, put in the place of
    the clean ones, would have."""
    torch.manual_seed(0)
    block = find_block(name)(8, form="paper", **options).double()
    perturb(block)
    clean, noisy = torch.randn(2, 2, 7, tokens, 8, dtype=torch.float64)
    also = (tokens,) if name == "ttt" else ()
    found = block.prefetch(clean, block.initial_state(2))
    torch.testing.assert_close(found.y_STKD.flatten(1, 2), published(block, clean.flatten(1, 2), *also))
    read = block.retrieve(noisy, found)
    for t in (0, 1, 6):
        tokens_so_far = torch.cat([clean[:, :t], noisy[:, t : t + 1]], 1).flatten(1, 2)
        torch.testing.assert_close(read[:, t], published(block, tokens_so_far, *also)[:, -tokens:])


def test_the_default_is_the_form_that_trials_chose():
    defaults = {name: all_forms(name)[0]["form"] for name in FORMED}
    assert {name for name, form in defaults.items() if form == "paper-tied"} == {"mlstm", "ttt"}
    assert set(defaults.values()) == {"adapted", "paper-tied"}


def first_two(block, name, x_STKD):
    """The queries and keys of clean frames."""
    start = block.initial_state(len(x_STKD))
    if name == "ttt":
        return block._clean(x_STKD, block._parts(start)[0])[0][:2]
    if name == "mamba3":
        return block._project(x_STKD)[2][1:3]
    if name == "mlstm":
        return block._project(*block._convolved(x_STKD, start[:-3])[:2])[:2]
    return block._project(block._convolved(x_STKD, start[:-1])[0], x_STKD)[:2]


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("form", ["adapted", "paper", "paper-tied"])
def test_queries_start_as_copies_of_keys_but_as_published(name, form):
    torch.manual_seed(0)
    block, x = find_block(name)(16, heads=2, head_dim=8, form=form), torch.randn(1, 5, 1, 16)
    if name == "mamba2":
        tokens = block.prefetch(x, block.initial_state(1)).memory.tokens
        alike = F.cosine_similarity(tokens.B_STKN, tokens.C_STKN, -1).min() > 0.9  # convolved, each by its own noise
    else:
        q, k = first_two(block, name, x)
        alike = torch.allclose(F.normalize(q, dim=-1), F.normalize(k, dim=-1), atol=1e-5)
    assert bool(alike) == (form != "paper")


def config(name, **match):
    return RunConfig.model_validate({
        "memory": name, "match": match, "trunk": {"width": 32, "patch": 8},
        "training": {"frames": 8, "loss_from": 4}, "evaluation": {"context": 6, "horizon": 6},
    })  # fmt: skip


@pytest.mark.parametrize("name", FORMED)
def test_both_forms_meet_a_budget(name):
    for budget in ({"by": "parameters", "budget": 20_000}, {"by": "state", "budget": 40_000}):
        if budget["by"] == "state" and name in ("lstm", "minlstm"):
            continue  # a vector: the same in both forms
        for form in ("adapted", "paper"):
            plan = plan_model(config({"name": name, "form": form}, **budget), (3, 16, 16), 4)
            assert abs(plan.residual) <= 0.03, (form, budget, plan.residual)


@pytest.mark.parametrize("match", [{}, {"by": "parameters", "budget": 20_000}])
def test_the_form_of_before_leaves_a_runs_key_as_it_was(monkeypatch, match):
    dataset = open_dataset(config("none").data)
    forms = "adapted", "paper", "paper-tied"
    adapted, paper, tied = (run_key(config({"name": "mlstm", "form": form}, **match), dataset) for form in forms)
    assert len({adapted, paper, tied}) == 3
    assert run_key(config("mlstm", **match), dataset) == tied
    monkeypatch.setattr(identity, "check_options", lambda _: {"heads": 4, "head_dim": 16, "chunk": 64})  # as it was
    assert run_key(config("mlstm", **match), dataset) == adapted
