"""What decides a run's result, and what decides its weights alone: each a hash, equal where the other is to be."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rad_bench.config import SCIENCE_VERSION, RunConfig
from rad_bench.data import Dataset
from rad_bench.evaluation.metrics import metric_card
from rad_bench.model.codec import open_codec
from rad_bench.registry import block_identity, check_options

NOT_SCIENCE = (
    ("data", "path"),
    ("autoencoder", "path"),
    ("evaluation", "batch"),
    ("evaluation", "strips"),
    ("training", "checkpoint_every"),
)


def run_key(config: RunConfig, dataset: Dataset) -> str:
    """Return the hash of everything that decides a run's result, and of nothing else."""
    parts = _parts(config, dataset)
    parts["config"]["memory"]["options"] = (
        check_options(config.memory) if config.match.by == "none" else config.memory.options
    )
    return _hash(parts | {"metrics": metric_card()["card"]})


def training_key(config: RunConfig, dataset: Dataset, options: dict[str, Any]) -> str:
    """Return the hash of what decides a run's weights; `options` are its block's, solved ones.

    How the weights are evaluated is not among it, nor what led to the options.
    """
    parts = _parts(config, dataset)
    parts["config"]["memory"]["options"] = options
    for section in ("evaluation", "match"):
        del parts["config"][section]
    return _hash(parts)


def _parts(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    science = config.model_dump(mode="json")
    for section, leaf in NOT_SCIENCE:
        science[section].pop(leaf, None)
    science["memory"]["name"] = block_identity(config.memory)
    parts: dict[str, Any] = {"config": science, "data": dataset.identity, "version": SCIENCE_VERSION}
    if config.autoencoder.name != "none":
        parts["autoencoder"] = open_codec(config.autoencoder, dataset.frame_shape).identity
    return parts


def _hash(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
