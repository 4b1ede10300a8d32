"""Write an evaluation as files: that of a sweep, or one over a folder of recordings."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rad_bench.config import MemoryConfig, RunConfig, SweepConfig
from rad_bench.data import open_dataset, open_folder
from rad_bench.errors import UserError, unwritten
from rad_bench.evaluation.evaluate import answer_keys, reach
from rad_bench.exchange.folder import Index, read_index, write_index, write_questions, write_truth
from rad_bench.model.codec import open_codec
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep, sweep_without_file
from rad_bench.training.device import choose_device
from rad_bench.training.distributed import Group


def write_tasks(
    data: Path, out: Path, overrides: Iterable[str], only: Iterable[str], report: Callable[[int, int], None]
) -> Index:
    """Write the evaluation of `data`, a sweep file or a folder of recordings, into `out`, which must not exist.

    The folder is written completely or not at all; `report(done, of)` is called after each question. Raises
    `UserError` if the sweep's runs have several evaluations, or the data cannot serve theirs.
    """
    if out.exists():
        raise UserError(f"{out}: exists already. Write the tasks into a new folder, or remove this one first.")
    sweep = _over_folder(data, overrides) if data.is_dir() else load_sweep(data, overrides)
    config = _one_evaluation([run.config for run in plan_runs(sweep, only, str(data))], data)
    dataset = open_dataset(config.data)
    codec = open_codec(config.autoencoder, dataset.frame_shape)
    keys = answer_keys(config, dataset, codec, choose_device("auto", Group()))
    done, of = 0, sum(len(key.task.truth) for key in keys)
    temporary = out.with_name(f".{out.name}.tmp")

    def count() -> None:
        nonlocal done
        done += 1
        report(done, of)

    try:
        shutil.rmtree(temporary, ignore_errors=True)
        for key in keys:
            write_questions(temporary, key, count)
        write_truth(temporary, config, keys)
        write_index(temporary, sweep.name, config.data.name, dataset.identity, keys)
        temporary.rename(out)
    except OSError as error:
        raise unwritten(error, out) from None
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)
    return read_index(out)


def _over_folder(folder: Path, overrides: Iterable[str]) -> SweepConfig:
    """Return a sweep of one run over a folder of recordings, by the defaults; without poses, only continuation."""
    recordings = open_folder(folder)
    run: dict[str, Any] = {"data": {"name": recordings.source.kind, "path": str(folder)}}
    if not recordings.has_poses:
        run |= {"trunk": {"motion": "action"}, "evaluation": {"tasks": ["continuation"]}}
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-_")[:64]
    return sweep_without_file({"name": name or "recordings", "run": run}, str(folder), overrides)


def _one_evaluation(configs: list[RunConfig], data: Path) -> RunConfig:
    """Return a config with the evaluation of all runs. Raises `UserError` if they have several."""
    first, *others = (_decisive(config) for config in configs)
    unequal = dict.fromkeys(key for other in others for key in first if other[key] != first[key])
    if unequal:
        raise UserError(
            f"{data}: its runs differ in what is asked ({', '.join(unequal)}), and tasks are one evaluation; choose "
            "one by --only AXIS=VALUE, or fix the values by --set."
        )
    return configs[0].model_copy(update={"memory": MemoryConfig(name="none"), "seed": 0})


def _decisive(config: RunConfig) -> dict[str, Any]:
    """Return what decides the questions and their scores."""
    evaluation = config.evaluation.model_dump(include={"tasks", "episodes", "context", "horizon"})
    return {
        "data": config.data, "autoencoder": config.autoencoder, "trunk.frames_per_step": config.trunk.frames_per_step,
        "the reach of attention": reach(config), **{f"evaluation.{key}": value for key, value in evaluation.items()},
    }  # fmt: skip
