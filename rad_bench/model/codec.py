"""The trunk's inputs: pixels, or the latents of a trained, frozen autoencoder.

A codec turns frames [..., 3, H, W] uint8 into the trunk's [..., C, h, w] float32, and back.
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rad_bench.config import AutoencoderConfig
from rad_bench.errors import UserError
from rad_bench.model.autoencoder import FACTOR, Autoencoder, read_record
from rad_bench.model.autoencoder import WEIGHTS as TRAINED

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
        return to_input(frames)

    def decode(self, inputs: Tensor) -> Tensor:
        return to_frames(inputs)


def to_input(frames: Tensor) -> Tensor:
    """Scale frames, uint8, to [-1, 1]."""
    return frames.float() / 127.5 - 1.0


def to_frames(output: Tensor) -> Tensor:
    """Return the frames, uint8, that an output in [-1, 1] shows."""
    return ((output + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Latents(ABC):
    """The latents of an autoencoder in a local folder: what all kinds have in common.

    Raises `UserError` if the frames' sides are not multiples of `factor`, the pixels a side of a token.
    """

    bound: float | None = None
    lossless = False

    def __init__(
        self, folder: Path, channels: int, factor: int, identity: str, frame_shape: tuple[int, int, int]
    ) -> None:
        _, height, width = frame_shape
        if height % factor or width % factor:
            raise UserError(
                f"autoencoder.path {folder} divides sides by {factor}, which does not divide frames of "
                f"{height} x {width} pixels; set data.size to a multiple of {factor}."
            )
        self.folder, self.identity = folder, identity
        self.frame_shape = (channels, height // factor, width // factor)

    @abstractmethod
    def _load(self) -> Any:
        """Return the model, on the CPU. Raises `UserError` if it cannot be loaded."""

    @abstractmethod
    def _to_latents(self, model: Any, x: Tensor) -> Tensor:
        """Encode frames [N, 3, H, W] in [-1, 1]."""

    @abstractmethod
    def _from_latents(self, model: Any, z: Tensor) -> Tensor:
        """Decode latents [N, C, h, w] to frames in [-1, 1]."""

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        model, batches = self._model(str(frames.device)), frames.flatten(0, -4).split(FRAMES_AT_ONCE)
        latents = torch.cat([self._to_latents(model, to_input(batch)) for batch in batches])
        return latents.unflatten(0, frames.shape[:-3])

    @torch.no_grad()
    def decode(self, inputs: Tensor) -> Tensor:
        model, batches = self._model(str(inputs.device)), inputs.flatten(0, -4).split(FRAMES_AT_ONCE)
        frames = torch.cat([to_frames(self._from_latents(model, batch)) for batch in batches])
        return frames.unflatten(0, inputs.shape[:-3])

    @functools.lru_cache(maxsize=2)  # noqa: B019  a run has one codec, on one or two devices
    def _model(self, device: str) -> Any:
        return self._load().to(device).eval().requires_grad_(False)


class Conv(Latents):
    """The latents of an autoencoder that `rad-bench autoencoder train` wrote. Raises `UserError` if it did not."""

    def __init__(self, folder: Path, frame_shape: tuple[int, int, int]) -> None:
        record = read_record(folder)
        self._size = int(record["channels"]), int(record["width"])
        super().__init__(folder, self._size[0], FACTOR, _hash_files(folder / TRAINED), frame_shape)

    def _load(self) -> Autoencoder:
        model = Autoencoder(*self._size)
        try:
            model.load_state_dict(load_file(self.folder / TRAINED))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(f"autoencoder.path {self.folder} cannot be loaded: {error}.") from None
        return model

    def _to_latents(self, model: Autoencoder, x: Tensor) -> Tensor:
        return model.encode(x)

    def _from_latents(self, model: Autoencoder, z: Tensor) -> Tensor:
        return model.decode(z)


class KL(Latents):
    """The latents of diffusers' AutoencoderKL (the mean of the posterior), scaled as its config says.

    The folder was written by `save_pretrained`; nothing is downloaded. Raises `UserError` if it is not one.
    """

    def __init__(self, folder: Path, frame_shape: tuple[int, int, int]) -> None:
        settings = _read_settings(folder)
        self.scale = float(settings.get("scaling_factor") or 1.0)
        self.shift = float(settings.get("shift_factor") or 0.0)
        weights = next(folder / name for name in WEIGHTS if (folder / name).is_file())
        factor = 2 ** (len(settings["block_out_channels"]) - 1)
        identity = _hash_files(folder / "config.json", weights)
        super().__init__(folder, int(settings["latent_channels"]), factor, identity, frame_shape)

    def _load(self) -> Any:
        from rad_bench.model.torchvision_import import import_torchvision

        import_torchvision()
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise UserError(f"autoencoder: kl needs diffusers ({error}): pip install 'rad-bench[latents]'.") from None
        try:
            return AutoencoderKL.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"autoencoder.path {self.folder} cannot be loaded: {error}.") from None

    def _to_latents(self, model: Any, x: Tensor) -> Tensor:
        latents: Tensor = (model.encode(x).latent_dist.mode() - self.shift) * self.scale
        return latents

    def _from_latents(self, model: Any, z: Tensor) -> Tensor:
        frames: Tensor = model.decode(z / self.scale + self.shift).sample
        return frames


def open_codec(config: AutoencoderConfig, frame_shape: tuple[int, int, int]) -> Codec:
    """Return the codec of a run, for frames of the given shape."""
    if config.path is None:
        return Pixels(frame_shape)
    kinds: dict[str, type[Conv] | type[KL]] = {"conv": Conv, "kl": KL}
    return kinds[config.name](Path(config.path), frame_shape)


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
def _hash_files(*files: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
