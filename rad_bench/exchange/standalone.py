"""Load this model and generate frames with it. rad-bench is not needed; torch, einops, pydantic and safetensors are.

from load import Model
model = Model()                                            # or Model(device="cuda")
frames = model.generate(context, actions, egomotion)       # see `generate`
"""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER / "rad_model" / "own")]

from rad_model.config import AutoencoderConfig, DiffusionConfig, TrunkConfig  # noqa: E402
from rad_model.model.codec import open_codec  # noqa: E402
from rad_model.model.diffusion import Diffusion  # noqa: E402
from rad_model.model.motion import motion_features  # noqa: E402
from rad_model.model.rollout import rollout  # noqa: E402
from rad_model.model.trunk import Trunk  # noqa: E402


class Model:
    """The trained model of this folder; `autoencoder` is the folder of its autoencoder, if that lies elsewhere."""

    def __init__(self, device: str = "cpu", autoencoder: str | None = None) -> None:
        self.config: dict[str, Any] = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
        self.device, block = torch.device(device), self.config["block"]
        memory = getattr(importlib.import_module(block["module"]), block["class"])
        encoding = dict(self.config["autoencoder"])
        if encoding["path"] is not None:
            encoding["path"] = autoencoder or str(FOLDER / encoding["path"])
        self.codec = open_codec(AutoencoderConfig(**encoding), tuple(self.config["frame_shape"]))
        diffusion = DiffusionConfig(**self.config["diffusion"])
        self.diffusion = Diffusion(diffusion, self.codec.bound)
        self.trunk = Trunk(
            TrunkConfig(**self.config["trunk"]), lambda dim: memory(dim, **block["options"]), self.codec.frame_shape,
            self.config["action_size"], self.config["seed"], diffusion.stabilisation,
            self.config["pose_size"],
        )  # fmt: skip
        self.trunk.load_state_dict(load_file(FOLDER / "model.safetensors"))
        self.trunk.to(self.device).eval()

    @torch.no_grad()
    def generate(
        self, frames: Tensor, actions: Tensor, egomotion: Tensor, noise: Callable[[int], Tensor] | None = None
    ) -> Tensor:
        """Return the frames after a context, uint8 [B, H, 3, height, width].

        `frames` is the context, uint8 [B, C, 3, height, width]; `actions` [B, C + H, A] and `egomotion` [B, C + H, P]
        (forward, to the left, turn in radians; if P is 5 also up, change of pitch; row t leads to frame t) are the
        motion of all frames. `noise(h)` is the
        starting noise [B, channels, height, width] of generated frame h.
        """
        motion = motion_features(self.trunk.config.motion, actions, egomotion).to(self.device)
        C, F = frames.shape[1], self.trunk.config.frames_per_step
        cache = self.trunk.start(len(frames))
        for chunk in torch.arange(C).split(max(32 // F, 1) * F):
            inputs = torch.stack([self.codec.encode(video[chunk].to(self.device)) for video in frames])
            cache = self.trunk.commit(inputs, motion[:, chunk], cache)
        shape = (len(frames), *self.trunk.frame_shape)

        def start(h: int) -> Tensor:
            return (torch.randn(shape) if noise is None else noise(h)).to(self.device)

        generated = rollout(self.trunk, self.diffusion, motion[:, C:], cache, start)
        return torch.stack([self.codec.decode(video).cpu() for video in generated.frames])


if __name__ == "__main__":
    model = Model()
    count = sum(parameter.numel() for parameter in model.trunk.parameters())
    print(f"{model.config['name']}: {count:,} parameters, loaded without rad-bench")
