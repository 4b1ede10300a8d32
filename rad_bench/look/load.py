"""Load a finished run, for `rad-bench rollout` and `rad-bench play`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from rad_bench.blocks.memory import leaves
from rad_bench.config import MemoryConfig
from rad_bench.errors import UserError
from rad_bench.model.experiment import Experiment, open_experiment
from rad_bench.model.registry import block_identity
from rad_bench.store.result import read_result
from rad_bench.store.run_folder import Run, RunFolder, load_run
from rad_bench.training.device import be_deterministic, choose_device
from rad_bench.training.distributed import Group


@dataclass(frozen=True)
class Trained(Experiment):
    """A finished run with its weights."""

    folder: RunFolder
    run: Run

    @property
    def name(self) -> str:
        """Return the name of the run among others: its label and seed."""
        return f"{self.run.label}, seed {self.run.config.seed}"

    @property
    def has_memory(self) -> bool:
        """Return whether its block carries a state."""
        return any(True for state in self.trunk.start(1).memory() for _ in leaves(state))


def load_trained(path: Path) -> Trained:
    """Load a finished run from its folder, ready to generate the same frames as its evaluation.

    Raises `UserError` if the run is not finished, or if its data, autoencoder or block have changed.
    """
    folder = RunFolder(path)
    _check_folder(folder)
    run = load_run(path)
    result = read_result(folder.result)
    memory = MemoryConfig(name=run.config.memory.name, options=result.memory.options)
    device = choose_device("auto", Group())
    be_deterministic(max(result.threads, 1), device)
    experiment = open_experiment(run.config.model_copy(update={"memory": memory}), device)
    for what, now, then in (
        ("data", experiment.dataset.identity, result.data.identity),
        ("autoencoder", experiment.codec.identity, result.data.codec),
        ("block", block_identity(run.config.memory), result.memory.identity),
    ):  # fmt: skip
        if then not in (None, now):  # older results have no identity of the block
            raise UserError(
                f"{path}: the {what} that its config.yaml names has changed since training (was {then}, now {now}), "
                "so its frames cannot be generated again. Restore it, or correct config.yaml."
            )
    try:
        experiment.trunk.load_state_dict(load_file(folder.weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder.weights}: cannot be loaded into the model that config.yaml describes: {error}."
        ) from None
    experiment.trunk.eval()
    return Trained(**vars(experiment), folder=folder, run=run)


def _check_folder(folder: RunFolder) -> None:
    """Raise `UserError` unless this is the folder of a finished run."""
    if not folder.config.is_file():
        runs = sorted(path.parent for path in folder.path.glob("runs/*/config.yaml"))
        done = [run for run in runs if RunFolder(run).is_done]
        hint = ", such as results/<sweep>/runs/<name>"
        if runs:
            hint = f"; a finished run of this sweep is {done[0]}" if done else "; no run of this sweep is finished yet"
        raise UserError(f"{folder.path}: is not a run folder (no config.yaml){hint}.")
    if not folder.is_done:
        raise UserError(f"{folder.path}: this run is not finished (no result.json); finish its sweep first.")
