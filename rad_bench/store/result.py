"""The content of `result.json`: the record of a finished run, or of a model from outside that was scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rad_bench.errors import UserError, one_line
from rad_bench.store.sweep_folder import check_name


class _Section(BaseModel):
    """Base of all sections. Keys with a default are missing in the oldest results."""

    model_config = ConfigDict(frozen=True)


BUSY = 0.1  # share of the cores that other work may use in an idle machine
_S = TypeVar("_S", bound=_Section)


class Memory(_Section):
    name: str
    options: dict[str, Any]  # all options, with the solved size
    identity: str | None = None  # hash of the block's code


class Counts(_Section):
    memory: int
    trunk: int


class Match(_Section):
    by: str
    budget: int | None
    residual: float | None  # (spent - budget) / budget


class TrainingRecord(_Section):
    """The training that made the weights, in this run or another."""

    steps: int
    seconds: float
    seconds_per_step: float
    share_waiting_for_data: float = 0.0  # of `seconds`
    loss_first: float | None
    loss_last: float
    peak_memory_bytes: int = 0
    by: str | None = None  # name of the run that trained the weights
    key: str | None = None  # hash that identifies the training


class RolloutTimes(_Section):
    """Seconds per frame and video, with `videos` rolled out together."""

    seconds_per_frame_start: float
    seconds_per_frame_end: float
    videos: int


class EvaluationTime(_Section):
    seconds: float


class MetricCard(_Section):
    """The definition of each metric, and a hash of them all (`card`)."""

    model_config = ConfigDict(extra="allow")

    card: str
    psnr: str
    ssim: str
    lpips: str


class Data(_Section):
    name: str
    identity: str
    codec: str = "pixels"  # identity of the autoencoder


class Strips(_Section):
    """The episodes and frames that the strips of a task show."""

    episodes: list[int]
    frames: list[int]


class VideoDistance(_Section):
    """FVD of a task, over as many generated as true clips."""

    clips: int
    frames: int  # of a clip
    height: int  # of a frame, in pixels
    width: int
    scores: dict[str, float] = {}  # of what the run `generated`, and of controls, by name
    halves: float | None = None  # of the true clips of every second episode against the others': what chance gives
    absent: str | None = None  # why there are no scores


class Timing(_Section):
    """Seconds of each turn."""

    step: list[float] = Field(min_length=1)  # a training step
    first_frames: list[float] = Field(min_length=1)  # a step of a rollout after the context, of all videos together
    last_frames: list[float] = Field(min_length=1)  # at the end of the longest horizon


class Calibration(_Section):
    """Times of a sweep's models, taken in turns after its runs; or why there are none."""

    models: dict[str, str]  # label -> hash of what was timed
    timings: dict[str, Timing] = {}  # by label
    absent: str | None = None  # why there are no times
    device: str = ""
    threads: int = 1
    frames: dict[str, int] = {}  # generated in a step of a rollout, over all videos, by label
    others: float | None = None  # cores that other work kept busy meanwhile; None: not known
    cores: int = 1
    commit: str | None = None

    @property
    def busy(self) -> bool:
        """True if other work used so much of the machine that ratios may be off."""
        return self.others is not None and self.others > BUSY * self.cores


class Need(_Section):
    """Which of the frames that are trained, or scored, need a memory."""

    frames: int  # looked at
    share: float  # of them that need a memory
    gaps: tuple[float, float, float] | None  # quartiles of the frames that what they show was out of sight
    episodes: int  # clips or held-out episodes with such frames
    of: int  # looked at


class Parity(_Section):
    """The path that computed the block, why it was chosen, and its largest error against the reference."""

    path: str
    why: str
    max_error: float
    device: str


class Generated(_Section):
    """Where frames of a model from outside came from, and what was noticed when they were read."""

    rollouts: str  # folder
    swapped: str | None = None  # folder of those with the memory of the swap partner
    notes: list[str] = []  # what was changed before scoring, such as the size
    suspects: list[str] = []  # what can be scored but hardly be meant, such as black frames


class Scored(_Section):
    """The record of a model whose frames were scored, without the frames. `generated`: not trained by rad-bench."""

    format: Literal[1] = 1
    run: str
    block: str  # label
    seed: int
    axes: dict[str, Any] = {}
    reach: int
    device: str
    threads: int
    metrics: MetricCard
    science_version: int
    commit: str | None
    episodes: int
    data: Data
    strips: dict[str, Strips] = {}  # by task
    fvd: dict[str, VideoDistance] = {}  # by task; empty without `evaluation.fvd`
    need: dict[str, Need] = {}  # of the training clips, under `training`, and of each task's generated frames
    generated: Generated | None = None


class Result(Scored):
    """The result of a finished run: of a model that rad-bench trained."""

    memory: Memory
    parameters: Counts
    match: Match
    flops_per_frame: Counts
    state_bytes: dict[int, int] = Field(min_length=1)  # frames seen -> bytes of memory state per video
    window_bytes: int | None = None
    training: TrainingRecord
    rollout: RolloutTimes
    evaluation: EvaluationTime | None = None
    peak_memory_bytes: int
    processes: int = 1
    trunk_hash: str
    probe: dict[str, float] = {}  # R^2 by probed quantity
    parity: Parity | None = None
    generated: None = None

    @property
    def trained_by(self) -> str:
        """The name of the run that trained the weights: this one, unless it reused another run's weights."""
        return self.training.by or self.run


def read_scored(path: Path) -> Scored:
    """Read the result of a run, or the record of a model from outside. Raises `UserError`.

    Its name is taken from the folder, because paths are made from it.
    """
    tree = _parse(path, "the result of a run")
    outside = isinstance(tree, dict) and tree.get("generated") is not None
    result = _validate(path, tree, Scored if outside else Result, "the result of a run")
    for task in result.strips:
        check_name(task, path)  # becomes part of file names
    if isinstance(result, Result) and result.training.by is not None:
        check_name(result.training.by, path)
    return result.model_copy(update={"run": path.parent.name, "block": one_line(result.block)})


def read_result(path: Path) -> Result:
    """Read the result of a run, as `read_scored` does. Raises `UserError` also for a model from outside."""
    result = read_scored(path)
    if not isinstance(result, Result):
        raise UserError(
            f"{path}: '{result.block}' was scored from its frames ({result.generated and result.generated.rollouts}); "
            "rad-bench did not train it and has no weights of it."
        )
    return result


def read_training(path: Path) -> TrainingRecord:
    """Read the record of a run's training. Raises `UserError`."""
    what = "the record of a training"
    record = _validate(path, _parse(path, what), TrainingRecord, what)
    if record.by is not None:
        check_name(record.by, path)
    return record


def read_calibration(path: Path) -> Calibration | None:
    """Read the calibration of a sweep; None if there is no such file. Raises `UserError`."""
    what = "the calibration of a sweep"
    return _validate(path, _parse(path, what), Calibration, what) if path.exists() else None


def _parse(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not {what}: {type(error).__name__}: {error}.") from None


def _validate(path: Path, tree: Any, model: type[_S], what: str) -> _S:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or "the file"
        raise UserError(f"{path}: is not {what}: {key}: {problem['msg']}.") from None
