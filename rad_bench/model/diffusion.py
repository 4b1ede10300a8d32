"""Noise, what the network predicts of it, and DDIM (Song et al. 2021, arXiv 2010.02502) with eta 0.

x_t = alpha(t) x_0 + sigma(t) noise,   alpha^2 + sigma^2 = 1,   t in [0, 1], 0 = clean
prediction x0: the clean frame;   v: alpha noise - sigma x_0 (Salimans & Ho 2022, arXiv 2202.00512)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rad_bench.config import DiffusionConfig
from rad_bench.model.trunk import Trunk

LOWEST, HIGHEST = 0.02, 0.995  # noise levels that training visits; sampling starts at the highest


class Diffusion:
    """The noise process of one run; `bound` is the largest absolute value of what is denoised, if there is one."""

    def __init__(self, config: DiffusionConfig, bound: float | None = 1.0) -> None:
        self.config, self.bound = config, bound

    def alpha_sigma(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return signal and noise amplitudes at the given noise levels."""
        if self.config.schedule == "cosine":
            return torch.cos(0.5 * torch.pi * level), torch.sin(0.5 * torch.pi * level)
        # sigmoid schedule (Jabri et al. 2022, arXiv 2212.11972), start -3, end 3, tau 1
        low, high = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
        alpha2 = (high - torch.sigmoid(6 * level - 3)) / (high - low)
        return alpha2.clamp(0, 1).sqrt(), (1 - alpha2).clamp(0, 1).sqrt()

    def draw(self, trunk: Trunk, videos: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the levels [B, T] and the noise [B, T, C, H, W] of a batch's noisy streams, of `frames` each.

        Every step has a noise level of its own, 1 - u^2: biased towards noise, where memory is needed.
        """
        F = trunk.config.frames_per_step
        u = torch.rand(videos, frames // F, generator=generator).repeat_interleave(F, 1)
        noise = torch.randn(videos, frames, *trunk.frame_shape, generator=generator)
        return (1 - u**2).clamp(LOWEST, HIGHEST), noise

    def loss(self, network: nn.Module, clean: Tensor, motion_BTM: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error over the noisy stream, which covers the clip's last frames; `network` is the trunk."""
        target = clean[:, clean.shape[1] - noise.shape[1] :]
        alpha, sigma = (part[..., None, None, None] for part in self.alpha_sigma(level))
        output = network(clean, alpha * target + sigma * noise, level, motion_BTM)
        wanted = target if self.config.prediction == "x0" else alpha * noise - sigma * target
        return (output - wanted).square().mean()

    def sample(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor) -> Tensor:
        """Turn noise [B, F, C, H, W] into frames; `predict(x, level_BF)` is the network."""
        levels = torch.linspace(HIGHEST, 0.0, self.config.sampler_steps + 1).tolist()
        x = noise
        for now, then in zip(levels[:-1], levels[1:], strict=True):
            level = torch.full(x.shape[:2], now, device=x.device)
            alpha, sigma = self.alpha_sigma(torch.tensor(now))
            output = predict(x, level)
            x0 = output if self.config.prediction == "x0" else alpha * x - sigma * output
            x0 = self._clamp(x0)
            direction = (x - alpha * x0) / sigma
            next_alpha, next_sigma = self.alpha_sigma(torch.tensor(then))
            x = next_alpha * x0 + next_sigma * direction
        return self._clamp(x)

    def _clamp(self, x: Tensor) -> Tensor:
        return x if self.bound is None else x.clamp(-self.bound, self.bound)
