"""The learning curve of a run: the averaged weights of `evaluation.at`, evaluated as the final ones are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
from safetensors.torch import load_file

from rad_bench.evaluation.controls import CONTROLS
from rad_bench.evaluation.evaluate import evaluate
from rad_bench.model.experiment import Experiment
from rad_bench.store.run_folder import Run, RunFolder

COLUMNS = ["run", "block", "seed", "step", "task", "episode", "frame", "kind", "truth", "psnr"]


def evaluate_snapshots(
    experiment: Experiment, folder: RunFolder, report: Callable[[int], None]
) -> dict[int, pd.DataFrame]:
    """Return the frames of each snapshot, by step: of all tasks, under `keep`, with the final evaluation's noise.

    `report(done)` is called when rollouts finish.
    """
    config = experiment.config.evaluation
    kept = config.model_copy(update={"interventions": ("keep",), "strips": 0, "fvd": 0})
    run = experiment.config.model_copy(update={"evaluation": kept})
    trunk = copy.deepcopy(experiment.trunk)
    frames: dict[int, pd.DataFrame] = {}
    for number, step in enumerate(config.at):
        trunk.load_state_dict(load_file(folder.snapshot(step)))

        def report_rollouts(done: int, of: int, number: int = number) -> None:
            report(number * of + done)

        frames[step] = evaluate(replace(experiment, config=run, trunk=trunk), report_rollouts).frames
    return frames


def write_curve(run: Run, frames: dict[int, pd.DataFrame], folder: RunFolder) -> None:
    """Write a run's `curve.parquet` from the frames of its snapshots and of its final weights, by step."""
    kept = [
        table[(table["intervention"] == "keep") & ~table["block"].isin(CONTROLS)].assign(step=step)
        for step, table in frames.items()
    ]
    curve = pd.concat(kept, ignore_index=True).assign(run=folder.path.name, block=run.label, seed=run.config.seed)
    folder.replace(folder.curve, lambda file: curve[COLUMNS].to_parquet(file, index=False))
