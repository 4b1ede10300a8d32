"""Numbers of each frame, by name, from npz, HDF5, JSON or CSV files.

A column is named as the file names it:

    npz, HDF5   `speed`: an array [T]; `actions`: all columns of an array [T, K]; `actions[4]` and `actions[0:4]`: some
    CSV         a name of its first row, or, without one, the number of a column from 0
    JSON        `actor_pos.x` and `pose[4]`: in each record of a list; or in lists by name, as in an npz

`{frame}` in a name of an array stands for the frame's number, where each frame has an array of its own.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rad_bench.data.files import suffix
from rad_bench.errors import UserError

Array = NDArray[Any]
HDF5 = (".hdf5", ".h5", ".hdf")
TABLES = (".npz", *HDF5, ".json", ".csv", ".txt")
FRAME = "{frame}"
PART = re.compile(r"(.*)\[(\d+)(?::(\d+))?\]")


def read_columns(path: Path, names: Sequence[str], rows: str | None = None) -> list[Array]:
    """Return the named columns of a file, each as [T, K]. Raises `ValueError`, `OSError` or `KeyError` with a reason.

    `rows` is where a JSON file has its list of records: `data`, or `results.frames`.
    """
    with opened(path, rows) as arrays:
        return [_numbers(select(arrays, name), name, path) for name in names]


@contextmanager
def opened(path: Path, rows: str | None = None) -> Iterator[Mapping[str, Any]]:
    """Open a file as arrays by name. Those of HDF5 are read when they are sliced."""
    kind = suffix(path.name)
    if kind == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    elif kind in HDF5:
        with _hdf5().File(path, "r") as file:
            yield file
    elif kind == ".json":
        yield _json_columns(path, rows)
    else:
        yield _csv_columns(path)


def select(arrays: Mapping[str, Any], name: str) -> Array:
    """Return a column by its name. Raises `ValueError` if there is none, with those that there are."""
    match = None if name in arrays else PART.fullmatch(name)
    key = match[1] if match else name
    if FRAME in key:
        array: Array = np.stack([arrays[one][()] for one in frame_names(arrays, key)])
    elif key in arrays:
        array = arrays[key][()]
    else:
        raise ValueError(f"has no {key}, only {', '.join(map(str, list(arrays)[:20])) or 'nothing'}")
    if match is None:
        return array
    first, stop = int(match[2]), int(match[3] or int(match[2]) + 1)
    if array.ndim != 2 or not first < stop <= array.shape[1]:
        raise ValueError(f"{key} is {array.dtype} {array.shape}, so there is no {name}")
    return array[:, first:stop]


def frame_names(arrays: Mapping[str, Any], pattern: str) -> list[str]:
    """Return the names that a pattern with `{frame}` has in a file, for frames 0, 1, ... until one is missing."""
    names: list[str] = []
    while (name := pattern.replace(FRAME, str(len(names)))) in arrays:
        names.append(name)
    if not names:
        raise ValueError(f"has no {pattern.replace(FRAME, '0')}")
    return names


def _numbers(array: Array, name: str, path: Path) -> Array:
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim == 2 and array.dtype.kind == "U":  # of a table of texts
        row = next(row for row, cell in enumerate(array[:, 0]) if not _is_number(cell))
        raise ValueError(f"{path.name}: {name} is {str(array[row, 0])!r} in row {row}, not a number")
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise ValueError(f"{path.name}: {name} is {array.dtype} {array.shape}, should be numbers (T,) or (T, K)")
    if len(rows := np.flatnonzero(~np.isfinite(array).all(1))):
        raise ValueError(f"{path.name}: {name} is not finite in row {rows[0]}")
    return array


def _csv_columns(path: Path) -> dict[str, Array]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not text in UTF-8") from None
    delimiter = max(",;\t ", key=text.partition("\n")[0].count)
    lines = [line for line in csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True) if line]
    if not lines:
        raise ValueError(f"{path.name} is empty")
    named = not all(map(_is_number, lines[0]))
    names = [cell.strip() for cell in lines[0]] if named else list(map(str, range(len(lines[0]))))
    for number, line in enumerate(lines):
        if len(line) != len(names):
            raise ValueError(f"{path.name}: line {number + 1} has {len(line)} cells, and the first has {len(names)}")
    columns = list(zip(*lines[named:], strict=True)) or [()] * len(names)
    return {name: _column(values) for name, values in zip(names, columns, strict=True)}


def _column(cells: Sequence[str]) -> Array:
    """Return cells as numbers, or as texts if some are none: a column that nobody asks for may hold anything."""
    return np.array(cells, float) if all(map(_is_number, cells)) else np.array(cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _json_columns(path: Path, rows: str | None) -> dict[str, Array]:
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
        for part in rows.split(".") if rows else ():
            tree = tree[part]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path.name}: {f'has no {rows}' if rows else 'is not JSON'} ({error})") from None
    records = _records(tree)
    if records is None:
        if not isinstance(tree, dict):
            raise ValueError(f"{path.name}: holds neither a list of records nor lists by name")
        return {name: np.array(values) for name, values in tree.items() if isinstance(values, list)}
    if not records:
        raise ValueError(f"{path.name}: has no records")
    flat = [dict(_leaves(record)) for record in records]
    columns: dict[str, Array] = {}
    for name in dict.fromkeys(name for record in flat for name in record):
        lacking = next((number for number, record in enumerate(flat) if name not in record), None)
        if lacking is None:
            columns[name] = np.array([record[name] for record in flat])
        else:  # an error lists it, if it was asked for
            columns[f"{name} (but not in record {lacking})"] = np.array([])
    return columns


def _records(tree: Any) -> list[Any] | None:
    """Return the records of a JSON value: a list of mappings or lists, or a mapping by the frames' numbers."""
    if isinstance(tree, dict) and tree and all(key.isdecimal() for key in tree):
        return [tree[key] for key in sorted(tree, key=int)]
    if isinstance(tree, list):
        return tree
    if isinstance(tree, dict):  # one list of records among other things
        lists = [value for value in tree.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        return lists[0] if len(lists) == 1 else None
    return None


def _leaves(record: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(record, dict):
        for key, value in record.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(record, (int, float)) or (isinstance(record, list) and _flat(record)):
        yield prefix or "row", record


def _flat(values: list[Any]) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def _hdf5() -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError("HDF5 files need h5py to be read: pip install 'rad-bench[hdf5]'.") from None
    return h5py
