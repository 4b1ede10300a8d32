"""What a run's config leads to: the model, its data, and where they are computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rad_bench.config import RunConfig
from rad_bench.data import Dataset, open_dataset
from rad_bench.data.encoded import Encoded
from rad_bench.data.recordings import Recordings
from rad_bench.model.budget import ModelPlan, build_trunk
from rad_bench.model.codec import Codec, open_codec
from rad_bench.model.graphs import Record
from rad_bench.model.trunk import Trunk


@dataclass(frozen=True)
class Experiment:
    """A config and all that is made from it."""

    config: RunConfig
    dataset: Dataset  # with latents, where an autoencoder makes some of recordings
    codec: Codec
    trunk: Trunk  # on `device`
    plan: ModelPlan
    device: torch.device
    record: Record | None  # how steps of training and rollouts are recorded, to be repeated (`graphs.py`)


def open_experiment(config: RunConfig, device: torch.device, record: Record | None = None) -> Experiment:
    """Open a config's data and autoencoder and build its trunk, with initial weights. Raises `UserError`."""
    dataset: Dataset = open_dataset(config.data)
    codec = open_codec(config.autoencoder, dataset.frame_shape)
    if not codec.lossless and isinstance(dataset, Recordings):
        dataset = Encoded(dataset, codec, device)
    trunk, plan = build_trunk(config, codec.frame_shape, dataset.action_size, dataset.pose_size)
    return Experiment(config, dataset, codec, trunk.to(device), plan, device, record)
