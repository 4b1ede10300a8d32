"""The memory that is predicted is the memory that is used, where a model is small enough to be measured."""

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile

from rad_bench.config import LaunchConfig, RunConfig
from rad_bench.run.footprint import Model, footprint
from rad_bench.training.distributed import Group
from rad_bench.training.loop import make_trainer, training_clips
from tests.runs import opened

MODELS = {
    "none": {},
    "lstm": {"hidden": 96},
    "mamba2": {"state": 64},
    "ttt": {"head_dim": 48},
    "attention": {},
}


def config(memory, **training):
    return RunConfig.model_validate({
        "data": {"name": "rooms", "size": 32}, "memory": {"name": memory, **MODELS[memory]},
        "trunk": {"width": 64, "depth": 3, "patch": 8, "window": 4},
        "training": {"batch": 4, "frames": 24, "loss_from": 8, **training},
        "evaluation": {"context": 12, "horizon": 8, "episodes": 4, "probe": 4},
    })  # fmt: skip


def allocated(work):
    """Return the peak bytes that PyTorch's allocator handed out on the CPU while the work was done."""
    with profile(profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "checkpointing"), [*((memory, False) for memory in MODELS), ("none", True)])
def test_a_training_step_allocates_what_is_predicted(memory, checkpointing):
    run = config(memory)
    experiment = opened(run)
    launch = LaunchConfig(activation_checkpointing=checkpointing)
    trainer = make_trainer(experiment, launch, Group())
    clips = training_clips(run, experiment.dataset, 0)
    with sdpa_kernel(SDPBackend.MATH):  # as on a GPU
        trainer.step(clips, 0)  # makes the optimiser's moments
        measured = allocated(lambda: trainer.step(clips, 1))
    data, frame_shape = experiment.dataset, experiment.codec.frame_shape
    model = Model(run, experiment.plan.options, frame_shape, data.action_size, data.pose_size)
    predicted = footprint(model, run.training.batch, checkpointing)
    assert predicted.weights == sum(p.nbytes for p in experiment.trunk.parameters())
    assert predicted.gradient == pytest.approx(measured, rel=0.05)
