"""What lies in a sweep's folder, read once and checked: nothing that a file holds may surprise what comes after."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api import types

from rad_bench.errors import UserError, one_line
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.evaluation.metrics import score_columns
from rad_bench.report.intervals import episode_means
from rad_bench.store.result import Result, read_result
from rad_bench.store.run_folder import RunFolder
from rad_bench.store.sweep_folder import check_links, check_name, read_plan

# Others follow in alphabetical order, controls last.
ORDER = ("none", "feedforward", "lstm", "mamba2", "ttt", "attention")
TEXTS = ("run", "block", "task", "intervention", "kind", "card")
NUMBERS = ("seed", "episode", "frame", "gap", "psnr", "mse", "truth")
SELF_SIMILARITY = ("self_revisit", "self_other", "self_neighbour")  # where it was measured, as further scores are


@dataclass(frozen=True)
class Sweep:
    """What a sweep's folder holds."""

    folder: Path
    frames: pd.DataFrame
    unshared: dict[
        str, float
    ]  # task -> share of its frames left out, for not all models have them; 1: all kept, none shared
    results: list[Result]  # of the runs in `frames`, in the order in which they were planned
    plan: dict[str, Any]  # sweep.yaml
    failures: dict[str, str]  # planned runs that have no part in `frames` -> why

    @property
    def tasks(self) -> list[str]:
        """Return the tasks, the headline's first."""
        return list(dict.fromkeys(self.frames["task"]))

    @property
    def blocks(self) -> list[str]:
        """Return the blocks in the report's order; forms of one block stand together, as they were planned."""
        rank = {name: place for place, name in enumerate(ORDER)}
        planned = {label: place for place, label in enumerate(dict.fromkeys(r.block for r in self.results))}

        def place(label: str) -> tuple[Any, ...]:
            name = base_name(label)
            return label in CONTROLS, rank.get(name, len(ORDER)), name, planned.get(label, len(planned)), label

        return sorted(self.frames["block"].unique(), key=place)

    def revisits(self, task: str, block: str, intervention: str = "keep", column: str = "psnr") -> pd.Series:
        """Return a block's mean over revisit frames, indexed by (seed, episode, what was scored).

        The last is a digest of the frames' truth: episodes that are called alike pair up where they are alike.
        """
        frames = self.frames
        own = (frames["task"] == task) & (frames["block"] == block) & (frames["intervention"] == intervention)
        return episode_means(frames[own & (frames["kind"] == "revisit")], column)

    def results_of(self, block: str) -> list[Result]:
        """Return the results of a block's runs, one a seed."""
        return [result for result in self.results if result.block == block]


def base_name(block: str) -> str:
    """Return a block's name without options and other axes: `ttt(inner=mlp) / window=2` -> `ttt`."""
    return block.split(" / ")[0].split("(")[0]


def form_name(block: str) -> str:
    """Return what distinguishes a form from others: `ttt(inner=mlp) / window=2` -> `inner=mlp, window=2`."""
    name, _, others = block.partition(" / ")
    options = name.partition("(")[2].removesuffix(")")
    return ", ".join(part for part in (options, *others.split(" / ")) if part)


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's folder. Raises `UserError` if what it holds is no sweep's, or names what lies elsewhere."""
    table = folder / "frames.parquet"
    frames = read_frames(table)
    labels = {label: one_line(label) for label in frames["block"].unique()}  # a sweep would not give others
    frames = frames.assign(block=frames["block"].map(labels))
    plan = read_plan(folder) if (folder / "sweep.yaml").exists() else {}
    planned = plan.get("planned", [])
    for name in {*frames["run"], *frames["task"]}:
        check_name(name, table)
    place = {name: number for number, name in enumerate(planned)}
    runs = sorted(set(frames["run"]), key=lambda name: (place.get(name, len(place)), name))
    for run in {*runs, *planned}:
        check_links(folder / "runs" / run, folder)
    results = [read_result(RunFolder(folder / "runs" / run).result) for run in runs]
    for result in results:
        check_links(folder / "runs" / result.trained_by, folder)
    failures = {name: _why_missing(folder / "runs" / name) for name in planned if name not in runs}
    return Sweep(folder, *shared_frames(frames), results, plan, failures)


def shared_frames(frames: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the frames of each task that all models have, of the same truth and kind, and the share left out.

    Models that generate a retrieval of 16 frames and of 19 are compared over 16. Where models have no frame in common,
    being asked for other episodes say, all are kept: each stands for itself.
    """
    key = ["task", "episode", "frame", "kind", "truth"]
    models = frames[~frames["block"].isin(CONTROLS)].drop_duplicates(["block", *key])
    having = models.groupby(key)["block"].nunique()
    needed = models.groupby("task")["block"].nunique().reindex(having.index.get_level_values("task"))
    common = having.index[having.to_numpy() == needed.to_numpy()]
    sharing = common.get_level_values("task").unique()
    kept = pd.MultiIndex.from_frame(frames[key]).isin(common) | ~frames["task"].isin(sharing)
    sizes = frames.groupby("task", sort=False).size()
    left = 1 - frames[kept].groupby("task").size() / sizes
    return frames[kept], {task: float(left[task]) if task in sharing else 1.0 for task in sizes.index}


def read_run(folder: Path) -> pd.DataFrame:
    """Return the frames of a finished run. Raises `UserError` if they, or its result, cannot be read."""
    paths = RunFolder(folder)
    read_result(paths.result)
    frames = read_frames(paths.frames)
    if set(frames["run"]) != {folder.name}:
        raise UserError(f"{paths.frames}: holds frames of another run, '{frames['run'].iloc[0]:.80}'.")
    return frames


def read_frames(path: Path) -> pd.DataFrame:
    """Read a table of frames. Raises `UserError` if it is none."""
    try:
        frames = pd.read_parquet(path)
    except Exception as error:  # a spoilt file makes pyarrow raise many things, and pandas more
        raise UserError(f"{path}: cannot be read: {error}.") from None
    frames = frames if "truth" in frames else frames.assign(truth=0)  # older tables do not tell
    missing = {*TEXTS, *NUMBERS} - {*frames}
    if missing or not len(frames):
        raise UserError(f"{path}: is no table of frames: it has no {', '.join(sorted(missing)) or 'rows'}.")
    for column in (*TEXTS, *NUMBERS, *score_columns(), *SELF_SIMILARITY):
        if column in frames and not _fits(frames[column], column):
            raise UserError(
                f"{path}: is no table of frames: its column '{column}' is {frames[column].dtype}, or has gaps."
            )
    return frames


def _fits(values: pd.Series, column: str) -> bool:
    if column in TEXTS:
        return pd.api.types.infer_dtype(values, skipna=False) == "string"
    if column in ("seed", "episode", "frame", "truth"):
        return types.is_integer_dtype(values) and not values.isna().any()
    return types.is_numeric_dtype(values) and not types.is_bool_dtype(values)


def training_log(folder: Path, result: Result) -> Path:
    """Return the log of the training that made a run's weights; the run's own, if that one is gone."""
    first, own = (RunFolder(folder / "runs" / run).log for run in (result.trained_by, result.run))
    return first if first.exists() else own


def read_losses(path: Path) -> tuple[pd.Series, str | None]:
    """Return a run's training loss by step, from its log, and what of that log could not be read."""
    losses: dict[int, float] = {}
    spoilt = 0
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return pd.Series(dtype=float), f"{path.parent.name}/{path.name}: {error.strerror}"
    for line in lines:
        try:
            record = json.loads(line)
            if record["phase"] == "training":
                losses[int(record["step"])] = float(record["loss"])
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            spoilt += 1  # half a line, written when a process died, or what no run wrote
    told = f"{path.parent.name}/{path.name}: {spoilt} of {len(lines)} lines cannot be read" if spoilt else None
    return pd.Series(losses, dtype=float).sort_index(), told


def _why_missing(run: Path) -> str:
    """Return why a planned run has no part in the frames."""
    if RunFolder(run).is_done:
        try:
            read_run(run)
        except UserError as error:
            return str(error)
        return "finished, and not yet gathered; `rad-bench report` does"
    try:
        lines = RunFolder(run).failure.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return one_line(lines[-1]) if lines else "not finished"
