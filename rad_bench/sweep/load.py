"""From a YAML file and the command line's overrides to a checked `SweepConfig`."""

from __future__ import annotations

import copy
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rad_bench.config import ClipsData, FilesData, RunConfig, SweepConfig
from rad_bench.data.layout import is_file
from rad_bench.errors import UserError, did_you_mean
from rad_bench.paths import absolute_path, block_path, user_path
from rad_bench.store import strict_yaml
from rad_bench.sweep import shipped
from rad_bench.sweep.origin import Origins

LARGEST_FILE = 1 << 20  # bytes; a sweep is written by hand
LONGEST_CHAIN = 8  # of `extends`
PROBLEMS_NAMED = 3  # of a config; the others are counted


def load_sweep(path: Path | str, overrides: Iterable[str] = ()) -> SweepConfig:
    """Read a sweep file, or one that comes with rad-bench, apply `PATH=VALUE` overrides, and check it.

    Raises `UserError`.
    """
    path = shipped.find(Path(path))
    origins = Origins(str(path))
    return _checked(read_tree(path, origins), origins, overrides)


def sweep_without_file(tree: dict[str, Any], where: str, overrides: Iterable[str] = ()) -> SweepConfig:
    """Return the sweep that a tree describes, after the overrides; `where` is named in errors. Raises `UserError`."""
    return _checked(tree, Origins(where), overrides)


def _checked(tree: dict[str, Any], origins: Origins, overrides: Iterable[str]) -> SweepConfig:
    folders = dict.fromkeys(Path(name).parent for name, _ in reversed(origins.layers))
    for override in overrides:
        origins.layers.append((f"--set {override:.200}", _override(tree, override)))
    sweep: SweepConfig = validate(SweepConfig, tree, origins.of)
    return sweep.read_from(folders, origins.of)


def read_tree(path: Path, origins: Origins) -> dict[str, Any]:
    """Return a sweep file merged with what it extends; all files that are read are added to `origins`."""
    tree = {**_read(path, (), {}, origins)}
    if isinstance(tree.get("grid"), dict):  # `memory: null` removes an axis of an extended file
        tree["grid"] = {axis: values for axis, values in tree["grid"].items() if values is not None}
    return tree


def validate(model: type[Any], tree: Any, where: Callable[[Sequence[str]], str], prefix: str = "") -> Any:
    """Validate against a pydantic model. Its errors become one `UserError`; `where` tells where a key was set."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        more = f" ({len(errors) - PROBLEMS_NAMED} more problems follow.)" if len(errors) > PROBLEMS_NAMED else ""
        text, before = "", None
        for problem in errors[:PROBLEMS_NAMED]:
            key = [*filter(None, prefix.split(".")), *_location(model, problem)]
            place, sentence = where(key), _explain(model, problem, key)
            text += f" {sentence}" if place == before else f" {place}: {sentence}"
            before = place
        raise UserError(text.strip() + more) from None


def parse_value(text: str) -> Any:
    """Parse the value of a command line override as YAML."""
    try:
        return strict_yaml.load(text)
    except yaml.YAMLError as error:
        raise UserError(f"'{text:.80}' is not a YAML value: {strict_yaml.reason(error)}.") from None


def split_assignment(text: str, option: str) -> tuple[str, Any]:
    """Split `PATH=VALUE`, the value parsed as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise UserError(f"{option} {text:.200}: must have the form PATH=VALUE, such as run.trunk.window=4.")
    return path.strip(), parse_value(value)


def _read(path: Path, chain: tuple[Path, ...], known: dict[Path, dict[str, Any]], origins: Origins) -> dict[str, Any]:
    """Return a sweep file merged with the files it extends. `known` caches files, so each is read once."""
    real = Path(os.path.realpath(path))  # unlike Path.resolve, it accepts links that form a circle
    if real in chain or len(chain) >= LONGEST_CHAIN:
        names = " -> ".join(p.name for p in (*chain, path))
        raise UserError(f"{path}: 'extends' forms a circle, or a chain longer than {LONGEST_CHAIN}: {names}.")
    if real not in known:
        own = _parse(path)
        known[real] = _extended(path, own, (*chain, real), known, origins)
        origins.layers.append((str(path), copy.deepcopy(own)))
    return known[real]


def _parse(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():  # a folder, or a device or pipe that never ends
            raise UserError(f"{path}: is not a file.")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: is larger than {LARGEST_FILE >> 20} MiB, the limit for a sweep file.")
        tree: Any = strict_yaml.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise UserError(f"{path}: is not a text file.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML: {strict_yaml.reason(error)}.") from None
    if tree is None:
        raise UserError(f"{path}: is empty; a sweep needs at least a name and a grid.")
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must be a mapping with the keys {', '.join(SweepConfig.model_fields)} at its top.")
    return tree


def _extended(
    path: Path,
    own: dict[str, Any],
    chain: tuple[Path, ...],
    known: dict[Path, dict[str, Any]],
    origins: Origins,
) -> dict[str, Any]:
    extends = own.pop("extends", [])
    parents = [extends] if isinstance(extends, str) else extends
    if not (isinstance(parents, list) and all(isinstance(parent, str) for parent in parents)):
        raise UserError(
            f"{path}: extends is {extends!r:.80}; it must be the path of another sweep file, or a list of paths."
        )
    merged: dict[str, Any] = {}
    for parent in parents:
        file = shipped.find(user_path(parent, f"{path}: extends"), path.parent)
        merged = merge(merged, _read(file, chain, known, origins))
    return merge(merged, own)


def merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Merge `own` into `base`, key by key. A mapping with another `name` (another kind of data) replaces the old."""
    merged = dict(base)
    for key, value in own.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name") in (None, old.get("name")):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _override(tree: dict[str, Any], assignment: str) -> dict[str, Any]:
    """Change the tree, and return the change as a tree."""
    path, value = split_assignment(assignment, "--set")
    parts = path.split(".")
    if parts[0] not in SweepConfig.model_fields:
        hint = did_you_mean(parts[0], SweepConfig.model_fields)
        if parts[0] in RunConfig.model_fields:
            hint = f"; did you mean 'run.{path}'?"
        raise UserError(f"--set {assignment:.200}: '{parts[0]}' is not a key of a sweep{hint}")
    if len(parts) > strict_yaml.DEEPEST:
        raise UserError(f"--set {assignment:.200}: there is no path of {len(parts)} parts in a sweep.")
    if parts[0] == "grid":  # an axis is itself a dotted path
        parts = ["grid", ".".join(parts[1:])] if len(parts) > 1 else parts
        value = value if isinstance(value, list | dict) or len(parts) == 1 else [value]
    if parts[0] == "run":
        grid = tree.get("grid")
        if isinstance(grid, dict):
            grid.pop(".".join(parts[1:]), None)  # a fixed value replaces an axis
    set_at(tree, parts, value, f"--set {assignment:.200}")
    change: dict[str, Any] = {}
    set_at(change, parts, value, assignment)
    return change


def set_at(tree: dict[str, Any], path: list[str], value: Any, where: str) -> None:
    """Set the value at a path of a tree; missing mappings are added. Raises `UserError`."""
    *above, last = path
    for part in above:
        inner = tree.get(part)
        if isinstance(inner, str):
            inner = {"name": inner}  # `memory: lstm` is short for `memory: {name: lstm}`
        if not isinstance(inner, dict | None):
            raise UserError(f"{where}: there is nothing below '{part}', which is {inner!r:.80}.")
        inner = inner or {}
        tree[part] = inner
        tree = inner
    tree[last] = value


def _location(model: type[BaseModel], problem: Mapping[str, Any]) -> list[str]:
    return [str(part) for at, part in enumerate(problem["loc"]) if not _is_tag(at, problem["loc"], model)]


def _explain(model: type[BaseModel], problem: Mapping[str, Any], path: list[str]) -> str:
    """Return a pydantic error as a sentence."""
    location, key = _location(model, problem), ".".join(path) or "the file"
    kind, reason = problem["type"], problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"{key}: there is no such key{did_you_mean(location[-1], _accepted(model, problem['loc'][:-1]))}"
    if kind == "missing":
        return f"{key}: is missing."
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return f"{key}: {reason}."
    if kind == "value_error":
        return f"{key}: {reason}." if location else f"{reason}."
    return f"{key}: is {problem['input']!r:.80}: {reason}."


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for part in typing.get_args(annotation) for model in _models_in(part)]
    return []


def _is_tag(index: int, location: tuple[Any, ...], model: type[BaseModel]) -> bool:
    """Return whether a part of a location is a union's tag or type (`data.rooms.size`), which no YAML has."""
    part = location[index]
    if index == 0:
        return False
    if str(part).startswith(("list[", "dict[")):
        return True
    before = [
        m
        for name in (location[index - 1],)
        for m in _models_in(getattr(model.model_fields.get(str(name)), "annotation", None))
    ]
    return len(before) > 1 and any(
        part == m.model_fields["name"].default or part in typing.get_args(m.model_fields["name"].annotation)
        for m in before
    )


def _accepted(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Return the keys that are accepted at a location."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        inner = [
            model for m in models if part in m.model_fields for model in _models_in(m.model_fields[part].annotation)
        ]
        tagged = [
            m for m in models if "name" in m.model_fields and part in typing.get_args(m.model_fields["name"].annotation)
        ]
        models = inner or tagged or models
    return sorted({name for m in models for name in m.model_fields})


def absolute_paths(config: RunConfig, folders: Iterable[Path] = ()) -> RunConfig:
    """Return the config with its files and folders made absolute: jobs may run from elsewhere.

    A block's file may also lie in one of `folders`, those of the sweep's files.
    """
    data, memory, autoencoder = config.data, config.memory, config.autoencoder
    if isinstance(data, FilesData):
        data = data.model_copy(update={"path": absolute_path(data.path, "run.data.path")})
    if isinstance(data, ClipsData) and data.layout is not None and is_file(data.layout):
        data = data.model_copy(update={"layout": absolute_path(data.layout, "run.data.layout")})
    if autoencoder.path is not None:
        path = absolute_path(autoencoder.path, "run.autoencoder.path")
        autoencoder = autoencoder.model_copy(update={"path": path})
    memory = memory.model_copy(update={"name": block_path(memory.name, folders)})
    return config.model_copy(update={"data": data, "memory": memory, "autoencoder": autoencoder})
