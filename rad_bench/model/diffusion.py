"""The noise process, the prediction target, and DDIM sampling (Song et al. 2021, arXiv 2010.02502) with eta 0.

x_t = alpha(t) x_0 + sigma(t) noise,   alpha^2 + sigma^2 = 1,   t in [0, 1], 0 = clean
prediction x0: the clean frame;   v: alpha noise - sigma x_0 (Salimans & Ho 2022, arXiv 2202.00512)
shift: alpha / sigma is multiplied by it at every level (Hoogeboom et al. 2023, arXiv 2301.11093)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rad_bench.config import DiffusionConfig
from rad_bench.model.trunk import Trunk

LOWEST, HIGHEST = 0.02, 0.995  # range of noise levels in training; sampling starts at the highest


class Diffusion:
    """The noise process of one run; `bound` is the largest absolute value of clean frames, None if there is none."""

    def __init__(self, config: DiffusionConfig, bound: float | None = 1.0) -> None:
        self.config, self.bound = config, bound

    def alpha_sigma(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return signal and noise amplitudes at the given noise levels."""
        alpha, sigma = self._schedule(level)
        if self.config.shift == 1:
            return alpha, sigma
        norm = torch.hypot(self.config.shift * alpha, sigma)
        return self.config.shift * alpha / norm, sigma / norm

    def _schedule(self, level: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.schedule == "cosine":
            return torch.cos(0.5 * torch.pi * level), torch.sin(0.5 * torch.pi * level)
        # sigmoid schedule (Jabri et al. 2022, arXiv 2212.11972), start -3, end 3, tau 1
        low, high = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
        alpha2 = (high - torch.sigmoid(6 * level - 3)) / (high - low)
        return alpha2.clamp(0, 1).sqrt(), (1 - alpha2).clamp(0, 1).sqrt()

    def draw(self, trunk: Trunk, videos: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return noise levels [B, T] and noise [B, T, C, H, W] for the noisy streams of a batch, T = `frames`.

        Each step has its own noise level, 1 - u^2 with uniform u: biased towards high noise, where memory is needed.
        """
        F = trunk.config.frames_per_step
        u = torch.rand(videos, frames // F, generator=generator).repeat_interleave(F, 1)
        noise = torch.randn(videos, frames, *trunk.frame_shape, generator=generator)
        return (1 - u**2).clamp(LOWEST, HIGHEST), noise

    def loss(
        self, network: Callable[..., Tensor], clean: Tensor, motion_BTM: Tensor, level: Tensor, noise: Tensor
    ) -> Tensor:
        """Return the mean squared error over the noisy stream, the clip's last frames; `network` is the trunk."""
        x0 = clean[:, clean.shape[1] - noise.shape[1] :]
        alpha, sigma = (amplitude[..., None, None, None] for amplitude in self.alpha_sigma(level))
        output = network(clean, alpha * x0 + sigma * noise, level, motion_BTM)
        target = x0 if self.config.prediction == "x0" else alpha * noise - sigma * x0
        return (output - target).square().mean()

    def sample(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor) -> Tensor:
        """Denoise noise [B, F, C, H, W] to frames; `predict(x, level_BF)` is the network."""
        levels = torch.linspace(HIGHEST, 0.0, self.config.sampler_steps + 1).tolist()
        x = noise
        for current, following in zip(levels[:-1], levels[1:], strict=True):
            level = torch.full(x.shape[:2], current, device=x.device)
            alpha, sigma = self.alpha_sigma(torch.tensor(current))
            output = predict(x, level)
            x0 = output if self.config.prediction == "x0" else alpha * x - sigma * output
            x0 = self._clamp(x0)
            direction = (x - alpha * x0) / sigma
            next_alpha, next_sigma = self.alpha_sigma(torch.tensor(following))
            x = next_alpha * x0 + next_sigma * direction
        return self._clamp(x)

    def _clamp(self, x: Tensor) -> Tensor:
        return x if self.bound is None else x.clamp(-self.bound, self.bound)
