"""Hashes that identify a run and its training."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import rad_bench
from rad_bench.config import SCIENCE_VERSION, LaunchConfig, RunConfig
from rad_bench.data import Dataset
from rad_bench.evaluation.metrics import metric_card
from rad_bench.model.codec import open_codec
from rad_bench.model.registry import block_identity, check_options, find_block
from rad_bench.run.environment import version
from rad_bench.training.device import device_name

NOT_SCIENCE = (
    ("data", "path"),
    ("data", "layout"),  # what it says is part of the data's identity
    ("autoencoder", "path"),
    ("evaluation", "batch"),
    ("evaluation", "strips"),
    ("training", "checkpoint_every"),
)
HOW_STEPS_ARE_TAKEN = {"threads", "accumulate", "compile", "activation_checkpointing", "cuda_graphs"}  # of `launch`
LATER = {("evaluation", "fvd"): 0}  # options that came later, with the value that leaves older runs as they were
LATER_OF_BLOCKS: dict[str, Any] = {"form": "adapted"}  # the same, of blocks


def run_key(config: RunConfig, dataset: Dataset) -> str:
    """Return the hash of everything that decides a run's result, and nothing else."""
    parts = _parts(config, dataset)
    options = check_options(config.memory)
    if config.match.by != "none":  # the budget decides on the others
        options = {k: v for k, v in options.items() if k == "form"} | config.memory.options
    parts["config"]["memory"]["options"] = {k: v for k, v in options.items() if (k, v) not in LATER_OF_BLOCKS.items()}
    return _hash(parts | {"metrics": metric_card(config.evaluation.fvd)["card"]})


def training_key(config: RunConfig, dataset: Dataset, options: dict[str, Any], machine: Machine) -> str:
    """Return the hash of everything that decides a run's trained weights to the last bit.

    It includes the code, the device, the number of threads and the block's final options, so a change to any of them
    trains again. It does not include the evaluation, nor how the options were solved.
    """
    parts = _parts(config, dataset)
    parts["config"]["memory"]["options"] = options
    for section in ("evaluation", "match"):
        del parts["config"][section]
    block = find_block(config.memory.name)(config.trunk.width, **options)
    path = asdict(block.path(machine.device, torch.float32))
    return _hash(parts | {"machine": machine.record(), "path": path, "sources": _sources()})


@dataclass(frozen=True)
class Machine:
    """The device of a training, and how it is run there."""

    device: torch.device
    launch: LaunchConfig
    processes: int

    def record(self) -> dict[str, Any]:
        """Return what decides the last bits of the weights, and the time of training."""
        settings = self.launch.model_dump(include=HOW_STEPS_ARE_TAKEN)
        packages = {name: version(name) for name in ("torch", "triton", "mamba-ssm", "causal-conv1d", "fla-core")}
        return {"device": device_name(self.device), "processes": self.processes, **settings, **packages}


@functools.cache
def _sources() -> str:
    """Return the hash of the code that training uses."""
    package = Path(rad_bench.__file__).parent
    rooms = ("blocks", "data", "model", "training")
    files = [path for room in rooms for path in (package / room).resolve().rglob("*.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def decisive(config: RunConfig) -> dict[str, Any]:
    """Return the part of a config that decides the result."""
    science = config.model_dump(mode="json")
    for section, leaf in NOT_SCIENCE:
        science[section].pop(leaf, None)
    for (section, leaf), before in LATER.items():
        if science[section].get(leaf) == before:
            del science[section][leaf]
    return science


def _parts(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    science = decisive(config)
    science["memory"]["name"] = block_identity(config.memory)
    parts: dict[str, Any] = {"config": science, "data": dataset.identity, "version": SCIENCE_VERSION}
    if config.autoencoder.name != "none":
        parts["autoencoder"] = open_codec(config.autoencoder, dataset.frame_shape).identity
    return parts


def _hash(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
