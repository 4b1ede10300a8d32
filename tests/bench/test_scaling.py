"""Predictions for a large model, held against a model small enough to be measured whole."""

import pytest

from rad_bench.bench import scaling
from rad_bench.config import RunConfig
from rad_bench.model.budget import make_trunk
from rad_bench.model.diffusion import Diffusion

FRAMES, WIDTH, DEPTH = 24, 96, 3


@pytest.mark.parametrize("block", ["none", "lstm", "attention"])
def test_predictions_come_true_where_they_can_be_measured(block, monkeypatch):
    monkeypatch.setattr(scaling, "LATENTS", (4, 12, 16))
    monkeypatch.setattr(scaling, "EARLY", 8)
    predicted = scaling.predict(block, FRAMES, WIDTH, DEPTH)

    run = RunConfig.model_validate({
        "data": {"name": "minecraft", "path": "."},
        "memory": {"name": block, **predicted.options},
        "trunk": {"width": WIDTH, "depth": DEPTH, "heads": scaling.HEADS, "patch": 2, "window": scaling.WINDOW,
                  "mlp_ratio": 4.0},
    })  # fmt: skip
    trunk = make_trunk(run, predicted.options, scaling.LATENTS, scaling.ACTIONS)
    diffusion = Diffusion(run.diffusion, None)
    assert predicted.parameters == sum(p.numel() for p in trunk.parameters())
    assert predicted.memory_parameters == sum(p.numel() for _, p in trunk.memory_parameters())
    assert predicted.training_flops == scaling._training_flops(trunk, diffusion, FRAMES)
    assert predicted.state_bytes == scaling._filled(trunk, FRAMES).memory_bytes()
    assert predicted.frame_flops_late == scaling._generating_flops(trunk, diffusion, FRAMES)
    kept = scaling._kept_bytes(trunk, FRAMES, diffusion)
    assert kept == pytest.approx(predicted.kept_bytes, rel=0.05)
    trunk.recompute = True
    shallow = scaling._trunk(run, DEPTH - 1, *scaling.LATENTS[1:])
    layer = kept - scaling._kept_bytes(shallow, FRAMES, diffusion)  # the one that is being gone through
    recomputed = scaling._kept_bytes(trunk, FRAMES, diffusion) + layer
    assert recomputed == pytest.approx(predicted.recomputed_bytes, rel=0.05)
    assert predicted.resident_bytes == pytest.approx(20 * predicted.parameters, rel=0.01)
    assert predicted.seconds_a_clip == predicted.training_flops / (scaling.PEAK_FLOPS * scaling.REACHED)
