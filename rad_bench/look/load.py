"""A finished run, loaded: what `rad-bench rollout` and `rad-bench play` look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rad_bench.config import MemoryConfig
from rad_bench.data import Dataset, open_dataset
from rad_bench.errors import UserError
from rad_bench.model.budget import make_trunk
from rad_bench.model.codec import Codec, open_codec
from rad_bench.model.registry import block_identity, check_options
from rad_bench.model.trunk import Trunk
from rad_bench.store.result import read_result
from rad_bench.store.run_folder import Run, RunFolder, load_run
from rad_bench.training.device import be_deterministic, choose_device
from rad_bench.training.distributed import Group


@dataclass(frozen=True)
class Trained:
    """A run with its weights, and the data and codec it was trained on."""

    folder: RunFolder
    run: Run
    trunk: Trunk
    dataset: Dataset
    codec: Codec
    device: torch.device

    @property
    def name(self) -> str:
        """What to call the run beside others."""
        return f"{self.run.label}, seed {self.run.config.seed}"


def load_trained(path: Path) -> Trained:
    """Load a finished run from its folder, ready to generate the very frames that its evaluation did.

    Raises `UserError` if the folder is none, the run is not finished, or its data are no longer what it was trained on.
    """
    folder = RunFolder(path)
    _check_folder(folder)
    run = load_run(path)
    result = read_result(folder.result)
    memory = MemoryConfig(name=run.config.memory.name, options=result.memory.options)
    device = choose_device("auto", Group())
    be_deterministic(max(result.threads, 1), device)
    dataset = open_dataset(run.config.data)
    codec = open_codec(run.config.autoencoder, dataset.frame_shape)
    for what, now, then in (
        ("data", dataset.identity, result.data.identity),
        ("autoencoder", codec.identity, result.data.codec),
        ("block", block_identity(run.config.memory), result.memory.identity),
    ):  # fmt: skip
        if then not in (None, now):  # older results do not tell their block's
            raise UserError(
                f"{path}: the {what} that its config.yaml leads to is not what it was trained with (identity {then}, "
                f"now {now}), so its frames could not be made again. Let config.yaml lead to the former."
            )
    trunk = make_trunk(run.config, check_options(memory), codec.frame_shape, dataset.action_size)
    try:
        trunk.load_state_dict(load_file(folder.weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder.weights}: cannot be loaded into the model that config.yaml describes: {error}."
        ) from None
    return Trained(folder, run, trunk.to(device).eval(), dataset, codec, device)


def _check_folder(folder: RunFolder) -> None:
    """Raise `UserError` unless this is the folder of a run that is done."""
    if not folder.config.is_file():
        runs = sorted(path.parent for path in folder.path.glob("runs/*/config.yaml"))
        done = [run for run in runs if RunFolder(run).is_done]
        hint = ", such as results/<sweep>/runs/<name>"
        if runs:
            hint = f"; a finished run of this sweep is {done[0]}" if done else "; no run of this sweep is finished yet"
        raise UserError(f"{folder.path}: is not the folder of a run (no config.yaml){hint}.")
    if not folder.is_done:
        raise UserError(f"{folder.path}: this run is not finished (no result.json); finish its sweep first.")
