"""Recordings with their latents: each whole episode is encoded once, and its latents are kept on disk."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rad_bench.data.episodes import Episodes
from rad_bench.data.index import cache_folder
from rad_bench.data.recordings import Recordings
from rad_bench.data.source import Item
from rad_bench.errors import UserError
from rad_bench.store.atomic import write_atomically


class Encoder(Protocol):
    """Encodes frames [T, 3, H, W] uint8 as latents [T, C, h, w] float32."""

    identity: str

    def encode(self, frames: Tensor) -> Tensor: ...


class Encoded:
    """Implements `Dataset` over recordings; training batches have latents as well as frames."""

    def __init__(self, data: Recordings, encoder: Encoder, device: torch.device) -> None:
        self.data, self.encoder, self.device = data, encoder, device
        self.frame_shape, self.action_size, self.identity = data.frame_shape, data.action_size, data.identity
        self.has_poses, self.pose_size, self.same_view = data.has_poses, data.pose_size, data.same_view
        self.folder = cache_folder() / "latents" / encoder.identity / data.content

    def training_batch(
        self, seed: int, step: int, batch: int, frames: int, rows: slice = slice(None), with_surfaces: bool = False
    ) -> Episodes:
        """Return the batch of the recordings, with latents."""
        clips = self.data.draw(seed, step, batch, frames)[rows]
        latents = [torch.from_numpy(np.array(self._latents(item)[start : start + frames])) for item, start in clips]
        return replace(self.data.clips(clips, frames, with_surfaces), latents=torch.stack(latents))

    def held_out(self, episodes: int, frames: int, context: int) -> Episodes:
        """Return the episodes of the recordings, without latents: evaluation encodes its contexts itself."""
        return self.data.held_out(episodes, frames, context)

    def probe_clips(self, training: bool, count: int, frames: int) -> Episodes:
        """Return the probe clips of the recordings, without latents."""
        return self.data.probe_clips(training, count, frames)

    def _latents(self, item: Item) -> np.ndarray:
        path = self.folder / f"{hashlib.sha256(item.name.encode()).hexdigest()[:32]}.npy"
        if not path.exists():
            frames = self.data.clip(item, 0, item.length).frames
            latents = self.encoder.encode(frames.to(self.device)).cpu().numpy()
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, lambda file: np.save(file, latents))
            except OSError as error:
                raise UserError(
                    f"{path.parent}: latents cannot be written there: {error.strerror}; set "
                    "XDG_CACHE_HOME to a folder that can be written."
                ) from None
        latents_on_disk: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return latents_on_disk
