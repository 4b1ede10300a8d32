"""What a model's plan counts does not depend on how it is counted."""

import pytest
import torch

from rad_bench.config import RunConfig
from rad_bench.model import budget
from rad_bench.model.registry import block_names, find_block

READS_VALUES = {"ttt_chunk"}  # and so takes real tensors in any case


@pytest.mark.parametrize("block", block_names())
@pytest.mark.parametrize("by", ["none", "flops", "state"])
def test_counts_on_shapes_alone_are_those_of_real_tensors(monkeypatch, block, by):
    if by == "state" and (find_block(block).memoryless or block in ("lstm", "minlstm")):
        pytest.skip("a vector of that many bytes has millions of weights, and no memory has no bytes")
    config = RunConfig.model_validate({
        "memory": block,
        "match": {} if by == "none" else {"by": by, "budget": 100_000},
        "trunk": {"width": 16, "patch": 8, "frames_per_step": 2},
        "training": {"frames": 8, "loss_from": 4},
        "evaluation": {"context": 6, "horizon": 6},
    })  # fmt: skip
    plans, devices, count = [], [], budget._trunk_flops
    monkeypatch.setattr(budget, "_trunk_flops", lambda *given: (count(*given), devices.append(given[-1].type))[0])
    for largest in (1 << 60, 0):
        monkeypatch.setattr(budget, "SMALL", largest)
        plans.append(budget.plan_model(config, (3, 16, 16), 4))
    assert plans[0] == plans[1]
    assert devices == ["cpu", "cpu" if block in READS_VALUES else "meta"]


def test_no_count_leaves_the_trunk_on_the_meta_device(monkeypatch):
    monkeypatch.setattr(budget, "SMALL", 0)
    trunk, _ = budget.build_trunk(RunConfig.model_validate({"memory": "lstm"}), (3, 32, 32), 4)
    assert {p.device for p in trunk.parameters()} == {torch.device("cpu")}
