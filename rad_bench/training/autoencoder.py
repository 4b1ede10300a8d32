"""Train the convolutional autoencoder on recorded frames. A killed training resumes and ends with the same weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rad_bench.data.recordings import Recordings
from rad_bench.errors import UserError, unwritten
from rad_bench.model.autoencoder import Autoencoder
from rad_bench.model.codec import to_input
from rad_bench.store.atomic import write_atomically
from rad_bench.training.checkpoint import write_state
from rad_bench.training.trainer import learning_rate

CLIP = 4  # frames read together: single ones are slow to decode from video
NOISE = 0.1  # deviation of the noise on latents in training
PENALTY = 1e-4  # weight of the latents' mean square
CLIP_NORM = 1.0  # of gradients
SAVE_EVERY = 100  # steps
SCALED_BY = 1024  # training frames that give the latents' mean and deviation, about
SETTINGS, CHECKPOINT = "settings.json", "checkpoint.pt"


@dataclass(frozen=True)
class Settings:
    """What decides the weights, beside the data."""

    size: int | None  # pixels; None: as recorded
    channels: int = 8  # of the latents
    width: int = 32  # channels at half the frame's side
    steps: int = 3000
    batch: int = 32  # frames
    learning_rate: float = 2e-3
    seed: int = 0
    warmup: int = 50  # steps


def train_autoencoder(
    data: Recordings, settings: Settings, out: Path, device: torch.device, report: Callable[[int, float], None]
) -> Autoencoder:
    """Train in the folder `out`, from its checkpoint if there is one; `report(step, loss)` is called after each step.

    All randomness of step s is a function of (seed, s).
    """
    torch.manual_seed(settings.seed)
    model = Autoencoder(settings.channels, settings.width).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(_resume(out, model, optimiser), settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, step)
        loss = _loss(model, _batch(data, settings, step).to(device), settings.seed, step)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimiser.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == settings.steps:
            _save(out, model, optimiser, step + 1)
        report(step + 1, float(loss.detach()))
    _scale(model, data, device)
    return model.eval().requires_grad_(False)


def _loss(model: Autoencoder, frames: Tensor, seed: int, step: int) -> Tensor:
    x = to_input(frames)
    latents = model.encoder(x)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    error = (model.decoder(latents + NOISE * noise) - x).square().mean()
    return error + PENALTY * latents.square().mean()


def _batch(data: Recordings, settings: Settings, step: int) -> Tensor:
    """Return the frames of a training step, uint8 [batch, 3, H, W]."""
    clips = data.draw(settings.seed, step, math.ceil(settings.batch / CLIP), CLIP)
    return data.clips(clips, CLIP).frames.flatten(0, 1)[: settings.batch]


@torch.no_grad()
def _scale(model: Autoencoder, data: Recordings, device: torch.device) -> None:
    """Set the latents' mean and deviation from training frames."""
    each = math.ceil(SCALED_BY / len(data.training))
    latents = [model.encoder(to_input(spread(data, item, each).to(device))) for item in data.training]
    values = torch.cat([z.transpose(0, 1).flatten(1) for z in latents], 1)  # [C, frames x positions]
    model.mean.copy_(values.mean(1)[:, None, None])
    model.deviation.copy_(values.std(1)[:, None, None])


def spread(data: Recordings, item: Any, count: int) -> Tensor:
    """Return up to `count` frames of an item, evenly spread over it: uint8 [N, 3, H, W]."""
    frames = data.clip(item, 0, item.length).frames
    return frames[:: math.ceil(len(frames) / count)]


def claim(out: Path, settings: Settings, data: str) -> None:
    """Make the folder of a training on the data of that identity. Raises `UserError` if it holds another training."""
    wanted = {**asdict(settings), "data": data}
    path = out / SETTINGS
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_atomically(path, (json.dumps(wanted, indent=1) + "\n").encode())
            return
        there = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unwritten(error, path) from None
    except ValueError:
        there = {}
    if there != wanted:
        changed = [key for key in wanted if there.get(key) != wanted[key]]
        raise UserError(
            f"{out}: holds the training of another autoencoder, with a different {', '.join(changed)}. Choose another "
            "--out, or remove this folder first."
        )


def _save(out: Path, model: Autoencoder, optimiser: torch.optim.Optimizer, step: int) -> None:
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}

    try:
        write_atomically(out / CHECKPOINT, lambda file: write_state(state, file))
    except OSError as error:
        raise unwritten(error, out / CHECKPOINT) from None


def _resume(out: Path, model: Autoencoder, optimiser: torch.optim.Optimizer) -> int:
    path = out / CHECKPOINT
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
