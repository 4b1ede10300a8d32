"""What the files of recordings mean: where frames, actions and poses are, in which units and on which axes.

A layout is a YAML file. The presets are such files too, in `layouts/`, and good ones to copy from.

    frames:   {file: "{episode}.{video}"}                        or "{episode}/*.{picture}", or an array of an npz
    actions:  {file: "{episode}.npz", columns: ["actions[0:4]"]}
    poses:    {file: "{episode}.csv", x: x, y: y, heading: yaw, unit: degrees}

`{episode}` is the name of a recording, folders included. For the names of columns see `tables.py`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from rad_bench.config import Config
from rad_bench.data.files import check_folder
from rad_bench.data.tables import read_columns
from rad_bench.errors import UserError, did_you_mean
from rad_bench.store import strict_yaml

PRESETS = Path(__file__).parent / "layouts"
OWN = "layout.yaml"  # read if it lies in the folder of the recordings and no other is named
EPISODE, VIDEO, PICTURE = "{episode}", "{video}", "{picture}"
Floats = NDArray[np.float64]
Count = Annotated[int, Field(ge=2, le=10_000)]


class Frames(Config):
    """Where a recording's frames are."""

    file: str | tuple[str, ...] = Field(description="pattern of the file; several are shown one after the other")
    array: str | None = Field(None, description="of an npz or HDF5 file: uint8 [T, height, width, 3] or [T, 3, ...]")
    colour: Literal["rgb", "bgr"] = "rgb"

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,) if isinstance(self.file, str) else self.file

    @model_validator(mode="after")
    def _consistent(self) -> Frames:
        for pattern in self.files:
            if EPISODE not in pattern:
                raise ValueError(f"file '{pattern}' must hold {EPISODE}, the name of a recording")
        if len({pattern.rpartition(".")[2] for pattern in self.files}) != 1:
            raise ValueError("file: several files must be of one kind")
        return self


class Table(Config):
    """A file of numbers, a row a frame."""

    file: str = Field(description="pattern of the file")
    rows: str | None = Field(None, description="of a JSON file: where its list of records is, such as data.frames")


class Actions(Table):
    """Actions, in the order of `columns`."""

    columns: tuple[str, ...] = Field(min_length=1)
    classes: Count | tuple[Count, ...] | None = Field(
        None, description="of whole numbers 0..classes-1, read as one-hot; several: one for each column"
    )
    leads_to: Literal["this", "next"] = Field("this", description="row t led to frame t, or leads to frame t + 1")

    def read(self, path: Path) -> NDArray[np.float32]:
        """Return the rows of a file, [T, A]; row t led to frame t. Raises `ValueError`."""
        columns = np.concatenate(read_columns(path, self.columns, self.rows), 1)
        if self.classes is not None:
            columns = self._one_hot(columns, path)
        if self.leads_to == "next":
            columns = np.concatenate([np.zeros_like(columns[:1]), columns[:-1]])
        return columns.astype(np.float32)

    def _one_hot(self, columns: NDArray[Any], path: Path) -> NDArray[np.float32]:
        width = columns.shape[1]
        classes = self.classes if isinstance(self.classes, tuple) else (self.classes or 0,) * width
        if len(classes) != width:
            raise ValueError(f"{path.name}: has {width} columns of actions, and actions.classes has {len(classes)}")
        parts = []
        for number, (values, most) in enumerate(zip(columns.T, classes, strict=True)):
            if not ((values == np.floor(values)) & (values >= 0) & (values < most)).all():
                what = f"column {number} of the actions is" if width > 1 else "actions are"
                span = f"from {values.min():g} to {values.max():g}"
                raise ValueError(f"{path.name}: {what} {span}, should be whole numbers 0..{most - 1}")
            parts.append(np.eye(most, dtype=np.float32)[values.astype(int)])
        return np.concatenate(parts, 1)


class Poses(Table):
    """The camera's place and heading, and its height and pitch where they are recorded: one alone has the other 0."""

    x: str
    y: str
    height: str | None = None
    heading: str | tuple[str, str] = Field(description="an angle, or the x and y of a direction")
    pitch: str | None = None
    unit: Literal["degrees", "radians"] = "radians"
    handedness: Literal["right", "left"] = Field(
        "right", description="right: seen from above, y is 90 degrees counter-clockwise from x"
    )
    zero: Literal["+x", "+y", "-x", "-y"] = Field("+x", description="where the camera looks at heading 0")
    turns: Literal["counter-clockwise", "clockwise"] = Field(
        "counter-clockwise", description="how the heading grows, seen from above"
    )
    tilts: Literal["up", "down"] = Field("up", description="how the pitch grows")
    scale: float = Field(1.0, gt=0, description="of places: 0.01 makes metres of centimetres")

    @property
    def size(self) -> int:
        """Return the number of columns of a pose."""
        return 3 if self.height is None and self.pitch is None else 5

    def read(self, path: Path) -> Floats:
        """Return the poses of a file, [T, size]. Raises `ValueError`."""
        angles = (self.heading,) if isinstance(self.heading, str) else self.heading
        others = [name for name in (self.height, self.pitch) if name is not None]
        columns = read_columns(path, [self.x, self.y, *angles, *others], self.rows)
        x, y, *rest = (column.astype(np.float64) for column in columns)
        mirror = 1.0 if self.handedness == "right" else -1.0
        radians = np.deg2rad if self.unit == "degrees" else np.asarray
        if len(angles) == 1:
            dx, dy = {"+x": (1, 0), "+y": (0, 1), "-x": (-1, 0), "-y": (0, -1)}[self.zero]
            turn = radians(rest[0])
            heading = np.arctan2(mirror * dy, dx) + (turn if self.turns == "counter-clockwise" else -turn)
        else:
            heading = np.arctan2(mirror * rest[1], rest[0])
        pose = [self.scale * x, mirror * self.scale * y, heading]
        if self.size == 5:
            recorded = iter(rest[len(angles) :])
            height, pitch = (next(recorded) if name else np.zeros_like(x) for name in (self.height, self.pitch))
            pose += [self.scale * height, radians(pitch if self.tilts == "up" else -pitch)]
        if any(column.shape[1] != 1 for column in pose):
            raise ValueError(f"{path.name}: x, y, heading, height and pitch must be one column each")
        return np.concatenate(pose, 1)


class Ground(Config):
    """A map of the ground, over which paths are drawn. Nothing is trained on it or scored by it."""

    file: str = Field(description="pattern of an npz file")
    array: str = Field(description="[X, Y]: the height at x to x + 1 and y to y + 1 in the poses' places, or NaN")

    def read(self, path: Path) -> Floats:
        """Return the map. Raises `ValueError`."""
        with np.load(path, allow_pickle=False) as arrays:
            if self.array not in arrays.files:
                raise ValueError(f"{path.name}: has no array '{self.array}'")
            heights = arrays[self.array]
        if heights.ndim != 2:
            raise ValueError(f"{path.name}: '{self.array}' has {heights.ndim} dimensions, and a map has two")
        return heights.astype(np.float64)


class Layout(Config):
    """A layout of recordings."""

    frames: Frames
    actions: Actions | None = None
    poses: Poses | None = None
    ground: Ground | None = None

    @property
    def identity(self) -> str:
        """Return the hash of all that decides what is read from given files to train and to score on."""
        return hashlib.sha256(self.model_dump_json(exclude={"ground"}).encode()).hexdigest()[:16]


def presets() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def is_file(name: str) -> bool:
    """Return whether a name is that of a file, and not of a preset."""
    return "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))


def read_layout(name: str | None, folder: Path) -> Layout:
    """Return a layout by the path of its file or the name of a preset; None: `layout.yaml` in `folder`.

    Raises `UserError` if there is none, or it is not one.
    """
    if name is None:
        check_folder(folder)
        path = folder / OWN
        if not path.is_file():
            raise UserError(
                f"data.layout: is not given, and {path} does not exist. Name a file that says what the recordings' "
                f"files mean, or one of the presets {', '.join(presets())}."
            )
    elif is_file(name):
        path = Path(name)
    else:
        path = PRESETS / f"{name}.yaml"
        if name not in presets():
            raise UserError(f"data.layout: there is no preset '{name:.80}'{did_you_mean(name, presets())}")
    try:
        tree: Any = strict_yaml.load(path.read_text(encoding="utf-8"))
        return Layout.model_validate(tree)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.layout: {path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"data.layout: {path}: is not valid YAML: {strict_yaml.reason(error)}.") from None
    except ValidationError as error:
        problems = error.errors(include_url=False)  # a mistyped key is also one that is missing
        problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        key = ".".join(map(str, problem["loc"])) or "the file"
        sections: dict[str, type[Config]] = {"frames": Frames, "actions": Actions, "poses": Poses, "ground": Ground}
        above = sections.get(str(problem["loc"][0]), Layout) if len(problem["loc"]) > 1 else Layout
        hint = (
            did_you_mean(str(problem["loc"][-1]), above.model_fields) if problem["type"] == "extra_forbidden" else "."
        )
        reason = "there is no such key" if hint != "." else problem["msg"].removeprefix("Value error, ")
        raise UserError(f"data.layout: {path}: {key}: {reason}{hint}") from None
