"""A small convolutional autoencoder: 8 x 8 pixels become one token of a few numbers.

In training it is a VAE (Kingma and Welling 2013, arXiv 1312.6114) whose posterior has a fixed deviation: noise on the
latents makes near latents decode alike, and a penalty on their size keeps them from outgrowing the noise. In use the
latents are the means, scaled to zero mean and unit variance in each channel.

Letters: N frames, C latent channels, H height, W width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rad_bench.errors import UserError

FACTOR = 8  # pixels a side of a token
GROUPS = 8  # of a normalisation; `width` is a multiple of it
RECORD, WEIGHTS = "autoencoder.json", "model.safetensors"


class Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = convolution(F.silu(norm(y)))
        return x + y


class Autoencoder(nn.Module):
    """Encodes frames [N, 3, H, W] in [-1, 1] as latents [N, C, H / 8, W / 8], and decodes them."""

    mean: Tensor  # [C, 1, 1] of the encoder's output over training frames
    deviation: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()

        def down(inner: int, outer: int) -> nn.Module:
            return nn.Conv2d(inner, outer, 3, stride=2, padding=1)

        def up(inner: int, outer: int) -> nn.Module:
            return nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv2d(inner, outer, 3, padding=1))

        def head(inner: int, outer: int) -> nn.Module:
            return nn.Sequential(nn.GroupNorm(GROUPS, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))

        wide = 2 * width
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, width, 3, padding=1), Residual(width),
            down(width, wide), Residual(wide), down(wide, wide), Residual(wide), head(wide, channels),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, wide, 3, padding=1), Residual(wide), up(wide, wide), Residual(wide),
            up(wide, width), Residual(width), head(width, 12), nn.PixelShuffle(2),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def encode(self, frames: Tensor) -> Tensor:
        return (self.encoder(frames) - self.mean) / self.deviation

    def decode(self, latents: Tensor) -> Tensor:
        frames: Tensor = self.decoder(latents * self.deviation + self.mean)
        return frames


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a trained autoencoder: its settings, data and scores. Raises `UserError`."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if not all(isinstance(record[key], int) for key in ("channels", "width")):
            raise ValueError("channels and width should be whole numbers")
        if not (folder / WEIGHTS).is_file():
            raise ValueError(f"{WEIGHTS} is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"autoencoder.path {folder}: {RECORD} is not that of a trained autoencoder ({reason}); name a folder that "
            "`rad-bench autoencoder train` has finished."
        ) from None
    return record
