"""The trunk's inputs: pixels, or the latents of a trained, frozen autoencoder.

A codec turns frames [..., 3, H, W] uint8 into the trunk's [..., C, h, w] float32, and back.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rad_bench.config import AutoencoderConfig
from rad_bench.errors import UserError
from rad_bench.model.autoencoder import Conv

FRAMES_AT_ONCE = 64  # in one call of an autoencoder
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


class Codec(Protocol):
    """Converts frames to the trunk's inputs and back."""

    frame_shape: tuple[int, int, int]  # C, h, w
    bound: float | None  # largest absolute value of the inputs; sampling clamps to it
    identity: str
    lossless: bool  # decode(encode(frames)) == frames

    def encode(self, frames: Tensor) -> Tensor: ...

    def decode(self, inputs: Tensor) -> Tensor: ...


class Pixels:
    """Pixels, scaled to [-1, 1]."""

    bound: float | None = 1.0
    identity = "pixels"
    lossless = True

    def __init__(self, frame_shape: tuple[int, int, int]) -> None:
        self.frame_shape = frame_shape

    def encode(self, frames: Tensor) -> Tensor:
        return frames.float() / 127.5 - 1.0

    def decode(self, inputs: Tensor) -> Tensor:
        return ((inputs + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class KL:
    """The latents of diffusers' AutoencoderKL (the mean of the posterior), scaled as its config says.

    `path` is a local folder written by `save_pretrained`; nothing is downloaded. Raises `UserError` if it is not one.
    """

    bound: float | None = None
    lossless = False

    def __init__(self, config: AutoencoderConfig, frame_shape: tuple[int, int, int]) -> None:
        assert config.path is not None
        self.folder = Path(config.path)
        self._settings = _read_settings(self.folder)
        factor = 2 ** (len(self._settings["block_out_channels"]) - 1)
        _, height, width = frame_shape
        if height % factor or width % factor:
            raise UserError(
                f"autoencoder.path {config.path} divides sides by {factor}, which does not divide frames of "
                f"{height} x {width} pixels; set data.size to a multiple of {factor}."
            )
        self.frame_shape = (int(self._settings["latent_channels"]), height // factor, width // factor)
        self.scale = float(self._settings.get("scaling_factor") or 1.0)
        self.shift = float(self._settings.get("shift_factor") or 0.0)
        self.identity = _hash_folder(self.folder)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        model = self._model(str(frames.device))
        batches = frames.flatten(0, -4).split(FRAMES_AT_ONCE)
        latents = torch.cat([model.encode(batch.float() / 127.5 - 1.0).latent_dist.mode() for batch in batches])
        return ((latents - self.shift) * self.scale).unflatten(0, frames.shape[:-3])

    @torch.no_grad()
    def decode(self, inputs: Tensor) -> Tensor:
        model = self._model(str(inputs.device))
        batches = (inputs.flatten(0, -4) / self.scale + self.shift).split(FRAMES_AT_ONCE)
        frames = torch.cat([((model.decode(z).sample + 1) * 127.5).round().clamp(0, 255).byte() for z in batches])
        return frames.unflatten(0, inputs.shape[:-3])

    @functools.lru_cache(maxsize=2)  # noqa: B019  a run has one codec, on one or two devices
    def _model(self, device: str) -> Any:
        from rad_bench.model.torchvision_import import import_torchvision

        import_torchvision()
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise UserError(f"autoencoder: kl needs diffusers ({error}): pip install 'rad-bench[latents]'.") from None
        try:
            model = AutoencoderKL.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"autoencoder.path {self.folder} cannot be loaded: {error}.") from None
        return model.to(device).eval().requires_grad_(False)


def open_codec(config: AutoencoderConfig, frame_shape: tuple[int, int, int]) -> Codec:
    """Return the codec of a run, for frames of the given shape."""
    if config.name == "none":
        return Pixels(frame_shape)
    return Conv(config, frame_shape) if config.name == "conv" else KL(config, frame_shape)


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        channels, latent = settings["block_out_channels"], settings["latent_channels"]
        if not (isinstance(channels, list) and channels and isinstance(latent, int)):
            raise ValueError("block_out_channels or latent_channels is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"autoencoder.path {folder}: config.json is not that of an AutoencoderKL ({reason}); name a folder that "
            "diffusers' save_pretrained wrote."
        ) from None
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(f"autoencoder.path {folder}: has no weights; it should contain {' or '.join(WEIGHTS)}.")
    return settings


@functools.cache
def _hash_folder(folder: Path) -> str:
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    weights = next(folder / name for name in WEIGHTS if (folder / name).is_file())
    with weights.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
