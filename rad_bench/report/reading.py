"""Reading of a sweep's folder. All files are checked here, so later code can rely on their content."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api import types

from rad_bench.errors import UserError, one_line
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.evaluation.metrics import score_columns
from rad_bench.report.intervals import episode_means
from rad_bench.store.result import Calibration, Result, Scored, read_calibration, read_scored
from rad_bench.store.run_folder import RunFolder
from rad_bench.store.sweep_folder import CALIBRATION, check_links, check_name, read_plan

# Order of blocks in the report. Other blocks follow in alphabetical order, controls last.
ORDER = ("none", "feedforward", "lstm", "mamba2", "ttt", "attention")
TEXTS = ("run", "block", "task", "intervention", "kind", "card")
NUMBERS = ("seed", "episode", "frame", "gap", "psnr", "mse", "truth")
CURVE_TEXTS, CURVE_NUMBERS = ("run", "block", "task", "kind"), ("seed", "step", "episode", "frame", "psnr", "truth")
FRAME = ["task", "episode", "frame", "kind", "truth"]  # what frames of two models have in common if they are compared
# Present only if measured, as are further scores.
SELF_SIMILARITY, RECALL = ("self_revisit", "self_other", "self_neighbour"), ("items", "choices")


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep's folder."""

    folder: Path
    frames: pd.DataFrame
    # task -> share of its frames left out, because not all models have them; 1: no frame is shared, all are kept
    unshared: dict[str, float]
    results: list[Scored]  # of the runs in `frames`, in planned order
    plan: dict[str, Any]  # sweep.yaml
    failures: dict[str, str]  # planned run without frames -> reason
    curves: pd.DataFrame  # frames of weights on the way of training, by `step`; empty without `evaluation.at`
    calibration: Calibration | None = None  # times of the models, taken in turns after the runs

    @property
    def tasks(self) -> list[str]:
        """Return the tasks, the main one first."""
        return list(dict.fromkeys(self.frames["task"]))

    @property
    def blocks(self) -> list[str]:
        """Return the blocks in the report's order; the forms of one block together, in planned order."""
        rank = {name: number for number, name in enumerate(ORDER)}
        planned = {label: number for number, label in enumerate(dict.fromkeys(r.block for r in self.results))}

        def place(label: str) -> tuple[Any, ...]:
            name = base_name(label)
            return label in CONTROLS, rank.get(name, len(ORDER)), name, planned.get(label, len(planned)), label

        return sorted(self.frames["block"].unique(), key=place)

    def revisits(self, task: str, block: str, intervention: str = "keep", column: str = "psnr") -> pd.Series:
        """Return a block's means over revisit frames, indexed by (seed, episode, scored).

        `scored` identifies the true frames, so episodes with the same number pair up only if their frames are equal.
        """
        frames = self.frames
        own = (frames["task"] == task) & (frames["block"] == block) & (frames["intervention"] == intervention)
        return episode_means(frames[own & (frames["kind"] == "revisit")], column)

    @property
    def trained(self) -> list[Result]:
        """Return the results of the runs that rad-bench trained; the others are of models from outside."""
        return [result for result in self.results if isinstance(result, Result)]

    def results_of(self, block: str) -> list[Scored]:
        """Return the results of a block's runs, one per seed."""
        return [result for result in self.results if result.block == block]

    def trained_of(self, block: str) -> list[Result]:
        """Return those of the block's results that rad-bench trained: what they cost is known."""
        return [result for result in self.trained if result.block == block]


def base_name(block: str) -> str:
    """Return a block's name without options and other axes: `ttt(inner=mlp) / window=2` -> `ttt`."""
    return block.split(" / ")[0].split("(")[0]


def form_name(block: str) -> str:
    """Return what distinguishes a form of a block from others: `ttt(inner=mlp) / window=2` -> `inner=mlp, window=2`."""
    name, _, others = block.partition(" / ")
    options = name.partition("(")[2].removesuffix(")")
    return ", ".join(part for part in (options, *others.split(" / ")) if part)


def matching(control: str, block: str, blocks: Iterable[str]) -> str | None:
    """Return the control (`none`, say) of a block: the one with the same other axes, or the only one."""
    _, slash, others = block.partition(" / ")
    candidates = [name for name in blocks if base_name(name) == control]
    same = f"{control}{slash}{others}"
    return same if same in candidates else candidates[0] if len(candidates) == 1 else None


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's folder. Raises `UserError` if a file is invalid, or a name or link leads out of the folder."""
    table = folder / "frames.parquet"
    frames = read_frames(table)
    labels = {
        label: one_line(label) for label in frames["block"].unique()
    }  # the same, unless the file is not from a sweep
    frames = frames.assign(block=frames["block"].map(labels))
    plan = read_plan(folder) if (folder / "sweep.yaml").exists() else {}
    planned = plan.get("planned", [])
    for name in {*frames["run"], *frames["task"]}:
        check_name(name, table)
    place = {name: number for number, name in enumerate(planned)}
    runs = sorted(set(frames["run"]), key=lambda name: (place.get(name, len(place)), name))
    for run in {*runs, *planned}:
        check_links(folder / "runs" / run, folder)
    results = [read_scored(RunFolder(folder / "runs" / run).result) for run in runs]
    for result in results:
        if isinstance(result, Result):
            check_links(folder / "runs" / result.trained_by, folder)
    failures = {name: _why_missing(folder / "runs" / name) for name in planned if name not in runs}
    shared, unshared = shared_frames(frames)
    calibration = read_calibration(folder / CALIBRATION)
    return Sweep(folder, shared, unshared, results, plan, failures, _read_curves(folder, shared), calibration)


def _read_curves(folder: Path, frames: pd.DataFrame) -> pd.DataFrame:
    """Return the sweep's learning curves over the frames that the report uses, so that they end at its headline."""
    path = folder / "curves.parquet"
    if not path.exists():
        return pd.DataFrame(columns=[*CURVE_TEXTS, *CURVE_NUMBERS])
    curves = read_curve(path)
    used = pd.MultiIndex.from_frame(frames[FRAME].drop_duplicates())
    return curves[curves["run"].isin(frames["run"]) & pd.MultiIndex.from_frame(curves[FRAME]).isin(used)]


def shared_frames(frames: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the frames of each task that all models have (same truth, same kind), and the share left out.

    If one model generates 16 frames and another 19, they are compared over 16. If the models have no frame in common,
    for instance with different episodes, all frames are kept.
    """
    models = frames[~frames["block"].isin(CONTROLS)].drop_duplicates(["block", *FRAME])
    counts = models.groupby(FRAME)["block"].nunique()
    needed = models.groupby("task")["block"].nunique().reindex(counts.index.get_level_values("task"))
    common = counts.index[counts.to_numpy() == needed.to_numpy()]
    sharing = common.get_level_values("task").unique()
    kept = pd.MultiIndex.from_frame(frames[FRAME]).isin(common) | ~frames["task"].isin(sharing)
    sizes = frames.groupby("task", sort=False).size()
    left = 1 - frames[kept].groupby("task").size() / sizes
    return frames[kept], {task: float(left[task]) if task in sharing else 1.0 for task in sizes.index}


def read_run(folder: Path) -> pd.DataFrame:
    """Return the frames of a finished run. Raises `UserError` if its frames, curve or result cannot be read."""
    paths = RunFolder(folder)
    read_scored(paths.result)
    frames = read_frames(paths.frames)
    tables = {paths.frames: frames} | ({paths.curve: read_curve(paths.curve)} if paths.curve.exists() else {})
    for path, table in tables.items():
        if set(table["run"]) != {folder.name}:
            raise UserError(f"{path}: contains frames of another run, '{table['run'].iloc[0]:.80}'.")
    return frames


def read_frames(path: Path) -> pd.DataFrame:
    """Read a table of frames. Raises `UserError` if the file is not one."""
    return _read_table(path, TEXTS, NUMBERS)


def read_curve(path: Path) -> pd.DataFrame:
    """Read the learning curves of a run or a sweep. Raises `UserError` if the file does not hold any."""
    return _read_table(path, CURVE_TEXTS, CURVE_NUMBERS)


def _read_table(path: Path, texts: tuple[str, ...], numbers: tuple[str, ...]) -> pd.DataFrame:
    try:
        frames = pd.read_parquet(path)
    except Exception as error:  # a damaged file makes pyarrow and pandas raise many types
        raise UserError(f"{path}: cannot be read: {error}.") from None
    frames = frames if "truth" in frames else frames.assign(truth=0)  # older tables lack the column
    missing = {*texts, *numbers} - {*frames}
    if missing or not len(frames):
        raise UserError(f"{path}: is not a table of frames: it has no {', '.join(sorted(missing)) or 'rows'}.")
    for column in (*texts, *numbers, *score_columns(), *SELF_SIMILARITY, *RECALL):
        if column in frames and not _fits(frames[column], column):
            raise UserError(
                f"{path}: is not a table of frames: column '{column}' is {frames[column].dtype}, or has missing values."
            )
    return frames


def _fits(values: pd.Series, column: str) -> bool:
    if column in TEXTS:
        return pd.api.types.infer_dtype(values, skipna=False) == "string"
    if column in ("seed", "step", "episode", "frame", "truth"):
        return types.is_integer_dtype(values) and not values.isna().any()
    return types.is_numeric_dtype(values) and not types.is_bool_dtype(values)


def training_log(folder: Path, result: Result) -> Path:
    """Return the log of the training that made a run's weights; the run's own log if that is missing."""
    trained, own = (RunFolder(folder / "runs" / run).log for run in (result.trained_by, result.run))
    return trained if trained.exists() else own


def read_losses(path: Path) -> tuple[pd.Series, str | None]:
    """Return the training loss by step from a log, and a message if lines could not be read."""
    losses: dict[int, float] = {}
    unreadable = 0
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
            unreadable += 1  # a partly written line, or not a log line
    where = f"{path.parent.name}/{path.name}"
    message = f"{where}: {unreadable} of {len(lines)} lines cannot be read" if unreadable else None
    return pd.Series(losses, dtype=float).sort_index(), message


def _why_missing(run: Path) -> str:
    """Return why a planned run has no frames in the table."""
    if RunFolder(run).is_done:
        try:
            read_run(run)
        except UserError as error:
            return str(error)
        return "finished, but not in the report yet; `rad-bench report` adds it"
    return RunFolder(run).read_failure() or "not finished"
