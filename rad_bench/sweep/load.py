"""From a YAML file and the command line's overrides to a checked `SweepConfig`."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rad_bench.config import FilesData, RunConfig, SweepConfig
from rad_bench.errors import UserError, did_you_mean

LARGEST_FILE = 1 << 20  # bytes; a sweep is written by hand
LONGEST_CHAIN = 8  # of `extends`


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key given twice and aliases (whose expansion has no bound)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "aliases are not accepted here", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_sweep(path: Path, overrides: Iterable[str] = ()) -> SweepConfig:
    """Read a sweep file, apply `PATH=VALUE` overrides, and check it. Raises `UserError`."""
    tree = _read(path, ())
    for override in overrides:
        _override(tree, override)
    return validate(SweepConfig, tree, str(path))


def validate(model: type[Any], tree: Any, where: str, prefix: str = "") -> Any:
    """Validate against a pydantic model; its complaints become one `UserError`."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = [_explain(model, problem, prefix) for problem in error.errors()]
        more = f" ({len(problems) - 3} more problems follow.)" if len(problems) > 3 else ""
        raise UserError(f"{where}: " + " ".join(problems[:3]) + more) from None


def parse_value(text: str) -> Any:
    """Parse the value of a command line override as YAML."""
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"'{text}' is not a YAML value: {_yaml_reason(error)}.") from None


def split_assignment(text: str, option: str) -> tuple[str, Any]:
    """Split `PATH=VALUE`, the value parsed as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise UserError(f"{option} {text}: must have the form PATH=VALUE, such as run.trunk.window=4.")
    return path.strip(), parse_value(value)


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in chain or len(chain) >= LONGEST_CHAIN:
        names = " -> ".join(p.name for p in (*chain, path))
        raise UserError(f"{path}: 'extends' leads in a circle or too far: {names}.")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: is larger than {LARGEST_FILE >> 20} MiB, which no sweep file is.")
        tree: Any = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise UserError(f"{path}: is not a text file.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: is not valid YAML: {_yaml_reason(error)}.") from None
    if tree is None:
        raise UserError(f"{path}: is empty; a sweep needs at least a name and a grid.")
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must be a mapping with the keys {', '.join(SweepConfig.model_fields)} at its top.")
    own: dict[str, Any] = tree
    extends = own.pop("extends", [])
    parents = [extends] if isinstance(extends, str) else extends
    if not (isinstance(parents, list) and all(isinstance(parent, str) for parent in parents)):
        raise UserError(
            f"{path}: extends is {extends!r}, and must be the path of another sweep file, or a list of them."
        )
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = merge(merged, _read(path.parent / parent, (*chain, path.resolve())))
    return merge(merged, own)


def _yaml_reason(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return place + str(problem or error).replace("\n", " ")


def merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Lay `own` over `base`, mapping by mapping; a mapping of another `name` (a different kind of data) replaces."""
    merged = dict(base)
    for key, value in own.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name") in (None, old.get("name")):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _override(tree: dict[str, Any], assignment: str) -> None:
    path, value = split_assignment(assignment, "--set")
    parts = path.split(".")
    if parts[0] not in SweepConfig.model_fields:
        hint = did_you_mean(parts[0], SweepConfig.model_fields)
        raise UserError(f"--set {assignment}: '{parts[0]}' is no part of a sweep{hint}")
    if parts[0] == "grid":  # an axis is itself a dotted path
        parts = ["grid", ".".join(parts[1:])] if len(parts) > 1 else parts
        value = value if isinstance(value, list) or len(parts) == 1 else [value]
    if parts[0] == "run":
        grid = tree.get("grid")
        if isinstance(grid, dict):
            grid.pop(".".join(parts[1:]), None)  # a fixed value takes the place of an axis
    place = tree
    for part in parts[:-1]:
        inner = place.get(part)
        if not isinstance(inner, dict):
            # `memory: lstm` is short for `memory: {name: lstm}`
            inner = {"name": inner} if isinstance(inner, str) else {}
            place[part] = inner
        place = inner
    place[parts[-1]] = value


def _explain(model: type[BaseModel], problem: Mapping[str, Any], prefix: str) -> str:
    """Say in a sentence what pydantic found."""
    location = [str(part) for part in problem["loc"] if not _is_tag(part, problem["loc"], model)]
    key = ".".join([prefix, *location] if prefix else location) or "the file"
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
        return [found for part in typing.get_args(annotation) for found in _models_in(part)]
    return []


def _is_tag(part: Any, location: tuple[Any, ...], model: type[BaseModel]) -> bool:
    """Pydantic puts the tag of a union into the path (`data.rooms.size`); a YAML has no such level."""
    index = location.index(part)
    if index == 0:
        return False
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
    """Return the keys accepted at a place."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        inner = [
            found for m in models if part in m.model_fields for found in _models_in(m.model_fields[part].annotation)
        ]
        tagged = [
            m for m in models if "name" in m.model_fields and part in typing.get_args(m.model_fields["name"].annotation)
        ]
        models = inner or tagged or models
    return sorted({name for m in models for name in m.model_fields})


def absolute_paths(config: RunConfig) -> RunConfig:
    """Return the config with its files and folders made absolute: jobs may run from elsewhere."""
    data, memory, autoencoder = config.data, config.memory, config.autoencoder
    if isinstance(data, FilesData):
        data = data.model_copy(update={"path": str(Path(data.path).expanduser().absolute())})
    if autoencoder.path is not None:
        path = str(Path(autoencoder.path).expanduser().absolute())
        autoencoder = autoencoder.model_copy(update={"path": path})
    place, colon, name = memory.name.rpartition(":")
    if colon and place.endswith(".py"):
        memory = memory.model_copy(update={"name": f"{Path(place).absolute()}:{name}"})
    return config.model_copy(update={"data": data, "memory": memory, "autoencoder": autoencoder})
