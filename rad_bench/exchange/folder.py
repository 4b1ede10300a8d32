"""The folder of an evaluation: questions that any model can take, and the truth apart from them.

    index.json                        the tasks: context, horizon, episodes, swap partners; see `Index`
    questions/<task>/<episode>/       context/0000.png ...    the true frames that are given
                                      question.npz            the same frames, and the motion: see `ARRAYS`
    truth/<task>.npz, truth/key.json  what scores depend on; a model must not see it

A number of the format (`VERSION`) rises when a reader of the old one would misread the new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from rad_bench.config import RunConfig
from rad_bench.data.episodes import Palette
from rad_bench.data.source import UNREADABLE
from rad_bench.errors import UserError
from rad_bench.evaluation.interventions import partners
from rad_bench.evaluation.scoring import Key
from rad_bench.evaluation.tasks import Task

FORMAT, VERSION = "rad-bench tasks", 1
INDEX, QUESTIONS, TRUTH = "index.json", "questions", "truth"
ARRAYS = {  # of question.npz; C frames are given, H are asked for
    "frames": "uint8 [C, height, width, 3], RGB: the true frames that are given, the same as context/*.png",
    "actions": "float32 [C + H, A]: row t is the action that led to frame t; zero on the way back of a retrieval",
    "poses": "float64 [C + H, 3]: x, y and heading of frame t, which is to be drawn; heading in radians, 0 along +x, "
    "counter-clockwise as seen from above; or [C + H, 5], with height, and pitch in radians, positive where the camera "
    "looks up; absent if the data have no poses",
    "egomotion": "float32 [C + H, 3]: the motion from frame t - 1 to frame t in the body frame of t - 1: forward, to "
    "the left, turn; or [C + H, 5], with up and change of pitch, and a level body frame; row 0 is zero; absent if the "
    "data have no poses",
}
ABOUT = {
    "task": "Show a model the C frames that are given and the motion of all C + H frames; it generates the H frames "
    "that follow. Write them as ROLLOUTS/<task>/<episode>.npz (array `frames`, uint8 [H, height, width, 3]), as "
    "ROLLOUTS/<task>/<episode>/*.png, or as a video ROLLOUTS/<task>/<episode>.mp4, and run: rad-bench score DIR "
    "--rollouts NAME=ROLLOUTS",
    "swap": "To know whether a model uses its memory, generate the same frames once more with the memory of another "
    "episode: the memory is what the model has after the context of `swap_partner`, while the frames that attention "
    "sees, and the motion, stay this episode's. Score with --swapped NAME=FOLDER.",
    "reach": "A frame counts as a revisit if its view was out of sight for more than `reach` frames. It should be no "
    "less than what your model sees without its memory, such as the length of its attention window.",
    **{f"question.npz: {name}": text for name, text in ARRAYS.items()},
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True)


class Question(_Section):
    """One episode of a task."""

    episode: int
    folder: str  # below the folder of the evaluation
    swap_partner: int | None  # episode whose memory is used in a swap; None: all are clips of one recording
    recording: str | None = None  # of which it is a clip; None: a world of its own


class TaskIndex(_Section):
    """A task's questions, by episode."""

    name: str
    context: int  # C, frames given
    horizon: int  # H, frames asked for
    episodes: list[Question]


class Index(_Section):
    """The content of index.json."""

    format: Literal["rad-bench tasks"] = "rad-bench tasks"
    version: Literal[1] = 1
    about: dict[str, str]
    name: str
    data_name: str  # as in a sweep: rooms, memory_maze ...
    data_identity: str  # hash of the recordings or the world
    frame_size: tuple[int, int]  # height and width, pixels
    action_size: int
    has_poses: bool
    reach: int
    tasks: list[TaskIndex]


class KeyRecord(_Section):
    """The content of truth/key.json: how the frames are classified, and the config that the tasks were made from."""

    has_poses: bool
    same_view: tuple[float, float] | None
    reach: int
    config: RunConfig


def write_index(folder: Path, name: str, data_name: str, data_identity: str, keys: list[Key]) -> None:
    """Write index.json, last of all: a folder without it is not whole."""
    task = keys[0].task
    index = Index(
        about=ABOUT, name=name, data_name=data_name, data_identity=data_identity,
        frame_size=tuple(task.truth.shape[-2:]), action_size=task.actions.shape[-1],
        has_poses=keys[0].has_poses, reach=keys[0].reach,
        tasks=[_task_index(key.task) for key in keys],
    )  # fmt: skip
    _write(folder / INDEX, (json.dumps(index.model_dump(), indent=1) + "\n").encode())


def _task_index(task: Task) -> TaskIndex:
    partner = partners(task.origins)
    recordings = task.recordings or [None] * len(task.truth)
    episodes = [
        Question(
            episode=e, folder=f"{QUESTIONS}/{task.name}/{e:03d}", recording=recordings[e],
            swap_partner=None if partner is None else int(partner[e]),
        )
        for e in range(len(task.truth))
    ]  # fmt: skip
    return TaskIndex(name=task.name, context=task.context, horizon=task.horizon, episodes=episodes)


def write_questions(folder: Path, key: Key, report: Callable[[], None]) -> None:
    """Write the questions of a task; `report()` is called after each."""
    task = key.task
    for question in _task_index(task).episodes:
        place, e = folder / question.folder, question.episode
        frames = _last(task.truth[e, : task.context])
        (place / "context").mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(frames):
            _write(place / "context" / f"{number:04d}.png", lambda file, f=frame: Image.fromarray(f).save(file, "PNG"))  # type: ignore[misc]
        arrays = {"frames": frames, "actions": task.actions[e].numpy()}
        if key.has_poses:
            arrays |= {"poses": task.poses[e].numpy(), "egomotion": task.egomotion[e].numpy()}
        _write(place / "question.npz", lambda file, a=arrays: np.savez_compressed(file, **a))  # type: ignore[misc]
        report()


def write_truth(folder: Path, config: RunConfig, keys: list[Key]) -> None:
    """Write the truth of all tasks."""
    for key in keys:
        task = key.task
        arrays = {"frames": _last(task.truth), "actions": task.actions.numpy(), "surfaces": task.surfaces.numpy()}
        arrays |= {"poses": task.poses.numpy(), "egomotion": task.egomotion.numpy()}
        if task.recordings is not None:
            arrays["recordings"] = np.array(task.recordings)
        if task.palette is not None:
            rows = task.palette.rows
            arrays |= {"candidates": task.palette.candidates.numpy(), "colours": task.palette.colours.numpy()}
            arrays["rows"] = np.array([rows.start, rows.stop])
        if key.decoded is not None:
            arrays["decoded"] = _last(key.decoded)
        _write(folder / TRUTH / f"{task.name}.npz", lambda file, a=arrays: np.savez_compressed(file, **a))  # type: ignore[misc]
    key = keys[0]
    record = KeyRecord(has_poses=key.has_poses, same_view=key.same_view, reach=key.reach, config=config)
    _write(folder / TRUTH / "key.json", (record.model_dump_json(indent=1) + "\n").encode())


def read_index(folder: Path) -> Index:
    """Read a folder's index. Raises `UserError` if it is none, or of another version."""
    path = folder / INDEX
    tree = _parse(path)
    if isinstance(tree, dict) and tree.get("format") == FORMAT and tree.get("version") != VERSION:
        raise UserError(
            f"{path}: its format is of version {tree.get('version')!s:.20}; this rad-bench reads {VERSION}."
        )
    return _validate(Index, tree, path)


def read_keys(folder: Path, index: Index) -> tuple[RunConfig, list[Key]]:
    """Read the truth: the config that the tasks were made from, and the key of each. Raises `UserError`."""
    path = folder / TRUTH / "key.json"
    record = _validate(KeyRecord, _parse(path), path)
    return record.config, [_read_key(folder / TRUTH / f"{task.name}.npz", task, record) for task in index.tasks]


def _read_key(path: Path, task: TaskIndex, record: KeyRecord) -> Key:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        tensors = {name: torch.from_numpy(a) for name, a in arrays.items() if name not in ("recordings", "rows")}
        palette = None
        if "rows" in arrays:
            palette = Palette(tensors["candidates"], tensors["colours"], slice(*map(int, arrays["rows"])))
        recordings = tuple(map(str, arrays["recordings"])) if "recordings" in arrays else None
        made = Task(
            task.name, task.context, _first(tensors["frames"]), tensors["actions"], tensors["egomotion"],
            tensors["poses"], tensors["surfaces"], recordings, palette,
        )  # fmt: skip
        decoded = _first(tensors["decoded"]) if "decoded" in tensors else None
        if (len(made.truth), made.horizon) != (len(task.episodes), task.horizon):
            raise ValueError(f"holds {len(made.truth)} episodes of {made.horizon} frames, and {INDEX} lists others")
        return Key.of(made, record.reach, record.has_poses, record.same_view, decoded)
    except (*UNREADABLE, TypeError, IndexError) as error:
        raise UserError(f"{path}: is not the truth of a task: {error or type(error).__name__}.") from None


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); `rad-bench tasks` writes it.") from None


def _validate(model: type[Any], tree: Any, path: Path) -> Any:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or "the file"
        raise UserError(f"{path}: is not what `rad-bench tasks` writes: {key}: {problem['msg']}.") from None


def _write(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content) if isinstance(content, bytes) else content(file)


def _last(frames: Tensor) -> np.ndarray:
    """Return frames with the channels last, as pictures have them."""
    pictures: np.ndarray = frames.movedim(-3, -1).contiguous().numpy()
    return pictures


def _first(frames: Tensor) -> Tensor:
    return frames.movedim(-1, -3).contiguous()
