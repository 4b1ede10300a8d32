"""What a model's plan counts does not depend on how it is counted."""

import pytest
import torch

from rad_bench.config import RunConfig
from rad_bench.model import budget
from rad_bench.model.registry import block_names, find_block

FRAME, ACTIONS = (3, 16, 16), 4


def config(block, match=None, **trunk):
    return RunConfig.model_validate({
        "memory": block,
        "match": match or {},
        "trunk": {"width": 16, "patch": 8, "frames_per_step": 2, **trunk},
        "training": {"frames": 8, "loss_from": 4},
        "evaluation": {"context": 6, "horizon": 6},
    })  # fmt: skip


@pytest.mark.parametrize("block", block_names())
@pytest.mark.parametrize("by", ["none", "flops", "state"])
def test_counts_on_shapes_alone_are_those_of_real_tensors(monkeypatch, block, by):
    if by == "state" and (find_block(block).memoryless or block in ("lstm", "minlstm")):
        pytest.skip("a vector of that many bytes has millions of weights, and no memory has no bytes")
    run = config(block, {} if by == "none" else {"by": by, "budget": 100_000})
    plans, devices, tokens = [], [], budget._tokens
    monkeypatch.setattr(budget, "_tokens", lambda *given: (tokens(*given), devices.append(given[-1].type))[0])
    for largest in (1 << 60, 0):
        monkeypatch.setattr(budget, "SMALL", largest)
        devices.clear()
        budget._bare_flops.cache_clear()
        plans.append(budget.plan_model(run, FRAME, ACTIONS))
        assert devices[-1] == ("cpu" if largest or block == "none" else "meta")
    assert plans[0] == plans[1]


@pytest.mark.parametrize("block", ["none", "lstm", "ttt", "attention"])
@pytest.mark.parametrize("layers", ["all", "alternate", "last"])
@pytest.mark.parametrize("scan", [{}, {"scan": "frame"}, {"scan": "block", "memory_writes": "noisy"}])
def test_counts_of_one_sequence_in_one_layer_are_those_of_the_whole_trunk(block, layers, scan):
    run = config(block, depth=3, window=4, memory_layers=layers, **scan)
    trunk, plan = budget.build_trunk(run, FRAME, ACTIONS)
    clip, motion = torch.zeros(1, 8, *FRAME), torch.zeros(1, 8, trunk.motion.in_features)
    with torch.no_grad():
        flops = budget.count_flops(lambda: trunk(clip, clip[:, 4:], torch.zeros(1, 4), motion))
        cache, state = trunk.start(1), {}
        for mark in (2, 6, 12):
            new = mark - cache.frames
            cache = trunk.commit(torch.zeros(1, new, *FRAME), torch.zeros(1, new, motion.shape[-1]), cache)
            state[mark] = cache.memory_bytes()
    assert plan.memory_flops + plan.trunk_flops == flops // 8
    assert plan.state_bytes == state
    assert plan.window_bytes == cache.window_bytes()


def test_no_count_leaves_the_trunk_on_the_meta_device(monkeypatch):
    monkeypatch.setattr(budget, "SMALL", 0)
    trunk, _ = budget.build_trunk(RunConfig.model_validate({"memory": "lstm"}), (3, 32, 32), 4)
    assert {p.device for p in trunk.parameters()} == {torch.device("cpu")}


@pytest.mark.parametrize("block", [name for name in block_names() if find_block(name).count_option])
def test_a_large_budget_makes_more_heads_and_no_larger_ones(block):
    small, large = (
        budget.plan_model(config(block, {"by": "parameters", "budget": parameters}, width=256), FRAME, ACTIONS)
        for parameters in (200_000, 8_000_000)
    )
    assert small.options["head_dim"] <= budget.LARGEST_HEAD and large.options["head_dim"] in budget.HEAD_SIZES
    assert large.options["heads"] > 2 * small.options["heads"]
    assert max(abs(small.residual), abs(large.residual)) <= budget.TOLERANCE
