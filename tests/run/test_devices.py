"""Runs keep host and device apart, and do not wait for the device inside loops. No GPU is needed to see that."""

from dataclasses import replace

import pytest
import torch

from rad_bench.config import LaunchConfig
from rad_bench.evaluation.evaluate import evaluate
from rad_bench.evaluation.probe import probe
from rad_bench.model.registry import block_names
from rad_bench.store.run_folder import RunFolder
from rad_bench.training import trainer as training_step
from rad_bench.training.batches import training_clips
from rad_bench.training.device import be_deterministic
from rad_bench.training.distributed import Group
from rad_bench.training.loop import train
from rad_bench.training.trainer import make_trainer
from tests.run.apart import META, Apart
from tests.runs import opened, tiny_run

# On CUDA, of what PyTorch lists; what blocks use of it is said in docs/gpu.md
NO_DETERMINISTIC_FORM = {"cumsum", "cumprod", "scatter_reduce", "histc", "bincount", "put_.", "median", "kthvalue",
                         "grid_sampler", "upsample", "pool3d", "nll_loss2d", "_scaled_dot_product_efficient",
                         "_scaled_dot_product_flash", "_scaled_dot_product_cudnn"}  # fmt: skip
CUMULATED = {"gated_deltanet", "kda", "mamba2", "mamba3", "mlstm"}  # their logarithms of decay


FEW = ("lstm", "ttt_chunk")  # all others are slow tests
BLOCKS = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in block_names()]
WITH_OTHER_READS = [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in ("attention", "mamba2", "ttt"))]


def on_device(block, **sections):
    experiment = opened(tiny_run(memory=block, **sections).config)
    return replace(experiment, trunk=experiment.trunk.to(META), device=META)


@pytest.fixture(autouse=True)
def optimiser_for_the_stand_in(monkeypatch):
    """Fused AdamW exists for GPUs and CPUs only."""
    monkeypatch.setattr(
        training_step, "make_optimiser", lambda trunk, config: torch.optim.SGD(trunk.parameters(), momentum=0.9)
    )


class StoppedError(Exception):
    """The training is interrupted."""


@pytest.mark.parametrize("block", BLOCKS)
def test_training_stops_and_resumes_without_mixing_host_and_device(block, tmp_path):
    training = {"steps": 5, "checkpoint_every": 2, "frames": 12}

    def stop(progress, average):
        if progress.step == 3:
            raise StoppedError

    with Apart() as apart:
        with pytest.raises(StoppedError):
            train(on_device(block, training=training), RunFolder(tmp_path), LaunchConfig(), Group(), stop)
        apart.waits = 0
        _, progress = train(on_device(block, training=training), RunFolder(tmp_path), LaunchConfig(), Group())
    assert progress.step == 5
    assert torch.load(tmp_path / "checkpoint.pt")["progress"]["step"] == 5
    assert apart.waits == 4 + 1  # for the losses in the checkpoint after step 4, and the one in the log


@pytest.mark.parametrize("block", WITH_OTHER_READS)
def test_evaluation_waits_for_the_device_once_a_video_and_not_once_a_frame(block):
    waits = []
    for length in (4, 8):  # of the context, and generated
        evaluation = {"context": length, "horizon": length, "probe": 4, "tasks": ["continuation"], "strips": 0}
        experiment = on_device(block, evaluation={**evaluation, "episodes": 2}, diffusion={"sampler_steps": 1})
        with Apart() as apart:
            frames = evaluate(experiment, lambda done, of: None).frames
            probe(experiment)
        assert {"keep", "reset", "swap"} == set(frames.intervention)
        waits.append(apart.waits)
    assert waits[0] == waits[1]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_clip_is_trained_on_without_waiting(block):
    experiment = on_device(block, training={"frames": 24})
    trainer = make_trainer(experiment, LaunchConfig(accumulate=2, activation_checkpointing=True), Group())
    clips = training_clips(experiment.config, experiment.dataset, 0)
    with Apart() as apart:
        trainer.step(clips, 0)
    assert not apart.waits
    used = {name for name in NO_DETERMINISTIC_FORM if any(name in operation for operation in apart.operations)}
    assert used == ({"cumsum"} if block in CUMULATED else set())


def test_attention_on_a_gpu_is_computed_by_matrix_products_and_on_a_cpu_by_the_fused_kernel():
    threads = torch.get_num_threads()
    for device, fused in (("cuda", False), ("cpu", True)):
        be_deterministic(threads, torch.device(device))
        assert torch.backends.cuda.flash_sdp_enabled() == torch.backends.cuda.mem_efficient_sdp_enabled() == fused
        assert torch.backends.cuda.cudnn_sdp_enabled() == fused and torch.backends.cuda.math_sdp_enabled()


def test_mixed_devices_are_noticed():
    with Apart(), pytest.raises(AssertionError, match="host and device"):
        torch.ones(3, device="meta")[torch.tensor([0, 1])]
    with Apart() as apart:
        assert float(torch.ones(3, device="meta").sum()) == 0 and torch.ones(2, device="meta").cpu().tolist() == [0, 0]
    assert apart.waits == 2
