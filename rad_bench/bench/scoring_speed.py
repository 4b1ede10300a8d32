"""Metrics: batches of tensors against scikit-image frame by frame, and against the time of a rollout."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rad_bench.bench.comparison import Comparison
from rad_bench.bench.rollout_speed import ACTIONS, FRAME_SHAPE, perturbed_trunk
from rad_bench.config import DiffusionConfig, EvaluationConfig
from rad_bench.evaluation.metrics import few_at_a_time, psnr, ssim
from rad_bench.evaluation.scoring import frame_metrics
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.motion import motion_size
from rad_bench.model.rollout import rollout

FRAMES, SIDE = 64, 64
HORIZON = 8  # frames of the rollout that scoring is compared with


def comparisons(device: torch.device) -> Iterator[Comparison]:
    """Yield SSIM and PSNR against scikit-image, then scoring against rolling out."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (FRAMES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    y = (x + 25 * torch.randn(x.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    for name, ours, goal in (("ssim", ssim, "at least 4"), ("psnr", psnr, "")):
        yield Comparison(
            f"{name}, {FRAMES} frames of {SIDE} x {SIDE}",
            "scikit-image, frame by frame",
            functools.partial(_batched, ours, x.to(device), y.to(device)),
            functools.partial(_by_scikit_image, name, x, y),
            1e-5,
            goal,
        )
    yield _scoring_and_generating(device)


def _batched(metric: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Sequence[Tensor]:
    return [torch.cat([metric(*few) for few in few_at_a_time(x, y, x.device)]).cpu()]


def _by_scikit_image(name: str, x: Tensor, y: Tensor) -> Sequence[Tensor]:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b = x.double().numpy() / 255, y.double().numpy() / 255
    if name == "psnr":
        return [torch.tensor([peak_signal_noise_ratio(q, p, data_range=1.0) for p, q in zip(a, b, strict=True)])]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    values = [structural_similarity(q, p, channel_axis=0, **options) for p, q in zip(a, b, strict=True)]
    return [torch.tensor(np.array(values))]


@torch.no_grad()
def _scoring_and_generating(device: torch.device) -> Comparison:
    """Compare scoring some frames with generating them: the ratio is rollout time over scoring time."""
    videos = EvaluationConfig().batch
    trunk, diffusion = perturbed_trunk("none", device), Diffusion(DiffusionConfig())
    motion = torch.randn(videos, HORIZON, motion_size(trunk.config.motion, ACTIONS), device=device)
    noise = torch.randn(videos, *FRAME_SHAPE, device=device)
    cache = trunk.commit(noise[:, None], motion[:, :1], trunk.start(videos))
    frames = torch.randint(0, 256, (videos, HORIZON, *FRAME_SHAPE), dtype=torch.uint8)

    def generate() -> Sequence[Tensor]:
        return [rollout(trunk, diffusion, motion, cache, lambda _: noise).frames]

    def score() -> Sequence[Tensor]:
        return [torch.tensor(v) for v in frame_metrics(frames, frames.flip(1), device).values()]

    return Comparison("scoring frames", "generating them", score, generate, None, "at least 19: metrics at most 5 %")
