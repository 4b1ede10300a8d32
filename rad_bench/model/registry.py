"""Find the class and the options of the block that a config names."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic

from rad_bench import blocks
from rad_bench.blocks.memory import MemoryBlock
from rad_bench.config import MemoryConfig
from rad_bench.errors import UserError, did_you_mean

IMPORT = "The package is rad_bench.blocks: `from rad_bench.blocks.memory import MemoryBlock`."
_NOT_BLOCKS = {"memory", "contract", "convolution", "fast", "start"}
_folders: set[Path] = set()  # of the users' files that were loaded


def block_names() -> list[str]:
    """Return the names of the built-in blocks: the files in `blocks/` that define one."""
    return sorted(m.name for m in pkgutil.iter_modules(blocks.__path__) if m.name not in _NOT_BLOCKS)


def find_block(name: str) -> type[MemoryBlock]:
    """Return the class of a block named `lstm`, `path/to/file.py:Class` or `package.module:Class`."""
    if ":" not in name:
        if name not in block_names():
            hint = did_you_mean(name, block_names())
            raise UserError(f"memory: there is no block '{name}'{hint} Own blocks: 'file.py:Class' or 'module:Class'.")
        module = importlib.import_module(f"rad_bench.blocks.{name}")
        classes = [c for c in _block_classes(module) if c.__module__ == module.__name__]
        if len(classes) != 1:
            raise UserError(f"memory: blocks/{name}.py must define exactly one block, but defines {len(classes)}.")
        return classes[0]
    source, _, class_name = name.rpartition(":")
    module = _load_file(Path(source), name) if source.endswith(".py") else _load_module(source, name)
    block = getattr(module, class_name, None)
    if block is None:
        names = [c.__name__ for c in _block_classes(module)]
        raise UserError(f"memory: {source} has no class '{class_name}'{did_you_mean(class_name, names)}")
    if not (inspect.isclass(block) and issubclass(block, MemoryBlock)):
        old = inspect.isclass(block) and any(base.__module__ == "blocks.memory" for base in block.__mro__)
        hint = f" {IMPORT}" if old else ""
        raise UserError(f"memory: '{name}' is not a subclass of rad_bench.blocks.memory.MemoryBlock.{hint}")
    if inspect.isabstract(block):
        missing = ", ".join(sorted(block.__abstractmethods__))
        raise UserError(f"memory: '{name}' lacks {missing}, which every block must define.")
    return block


@functools.cache
def block_options(block: type[MemoryBlock]) -> type[pydantic.BaseModel]:
    """Return a pydantic model of the block's options: the constructor's keyword arguments after `dim`."""
    try:
        return _options_model(block)
    except (NameError, TypeError, pydantic.errors.PydanticUserError) as error:
        raise UserError(
            f"memory: the options of {block.__name__} cannot be read from its constructor: {error}."
        ) from None


def _options_model(block: type[MemoryBlock]) -> type[pydantic.BaseModel]:
    hints = typing.get_type_hints(block.__init__)
    fields: dict[str, Any] = {}
    for parameter in list(inspect.signature(block.__init__).parameters.values())[1:]:
        if parameter.name == "dim" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints.get(parameter.name, Any), default)
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    return pydantic.create_model(f"{block.__name__}Options", __config__=config, **fields)


def block_forms(block: type[MemoryBlock]) -> list[dict[str, Any]]:
    """Return the options that give each form of a block: none for the default, and one for each other `form`."""
    field = block_options(block).model_fields.get("form")
    if field is None:
        return [{}]
    return [{}, *({"form": form} for form in typing.get_args(field.annotation) if form != field.default)]


def check_options(memory: MemoryConfig) -> dict[str, Any]:
    """Return the options with defaults filled in. Raises `UserError` naming the wrong option and the accepted ones."""
    block = find_block(memory.name)
    model = block_options(block)
    try:
        return model.model_validate(memory.options).model_dump()
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        option = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            reason = f"has no option '{option}'{did_you_mean(option, model.model_fields)}"
        elif problem["type"] == "missing":
            reason = f"needs the option '{option}', which has no default."
        else:
            reason = f"option '{option}' is {problem['input']!r:.80}: {problem['msg']}."
        raise UserError(f"memory: block '{memory.name}' {reason}") from None


def is_built_in(memory: MemoryConfig) -> bool:
    """Return whether the block is one of `blocks/`."""
    return ":" not in memory.name


def block_identity(memory: MemoryConfig) -> str:
    """Return the block's part of a run's identity: its name, or a user's class name and a hash of its files."""
    if is_built_in(memory):
        return memory.name
    content = b"".join(path.read_bytes() for path in block_files(memory))
    return f"{find_block(memory.name).__name__}@{hashlib.sha256(content).hexdigest()[:16]}"


def block_files(memory: MemoryConfig) -> list[Path]:
    """Return the files of a user's block: its own file, and those in the same folder that it imports from."""
    first = inspect.getmodule(find_block(memory.name))
    own = _file_of(first)
    if own is None:
        return []
    files: set[Path] = set()
    modules = [first]
    while modules:
        module = modules.pop()
        file = _file_of(module)
        if file is None or file in files or file.parent != own.parent:
            continue
        files.add(file)
        for value in vars(module).values():
            name = getattr(value, "__module__", None)
            modules.append(value if inspect.ismodule(value) else sys.modules.get(name) if name else None)
    return sorted(files)


def _file_of(module: Any) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file and file.endswith(".py") and os.path.isfile(file) else None


def _block_classes(module: Any) -> list[type[MemoryBlock]]:
    return [
        c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, MemoryBlock) and c is not MemoryBlock
    ]


def _load_module(source: str, name: str) -> Any:
    if not all(part.isidentifier() for part in source.split(".")):
        raise UserError(f"memory: '{source}' is not a module name; own blocks: 'file.py:Class' or 'module:Class'.")
    try:
        return importlib.import_module(source)
    except (Exception, SystemExit) as error:  # the user's code can raise anything
        reason = _reason(error)
        if isinstance(error, ModuleNotFoundError) and f"{source}.".startswith(f"{error.name}."):
            file = "/".join(source.split(".")) + ".py"
            reason += f" There is no {file} in {Path.cwd()} or beside the sweep either: give the file, as in "
            reason += f"'folder/{file}:{name.rpartition(':')[2]}', or put its folder on PYTHONPATH."
        raise UserError(f"memory: cannot import '{source}': {reason}") from None


def _load_file(path: Path, name: str) -> Any:
    if not os.path.isfile(path):  # unlike Path.is_file, it accepts names that no file can have
        raise UserError(f"memory: there is no file '{path}' (looked in {Path.cwd()}).")
    own = f"rad_bench_user_{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]}"
    if own in sys.modules:
        return sys.modules[own]
    try:
        sys.modules[own] = _in_package(path) or _alone(path, own)
    except (Exception, SystemExit) as error:
        sys.modules.pop(own, None)
        raise UserError(f"memory: '{name}' cannot be loaded: {_reason(error)}") from None
    return sys.modules[own]


def _alone(path: Path, name: str) -> Any:
    """Import a file under a name that nothing else has, so that it shadows no module of its name."""
    _check_siblings(path.parent.resolve())
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with _last_on_the_path(path.parent):
        spec.loader.exec_module(module)
    return module


def _check_siblings(folder: Path) -> None:
    """Raise `ImportError` if a block here would get another block's file of the same name: Python loads a name once."""
    for file in sorted(folder.glob("*.py")):
        other = _file_of(sys.modules.get(file.stem))
        if other is not None and other.parent in _folders - {folder}:
            raise ImportError(
                f"{file.name} beside it would be taken for {other}, which a block of another folder has imported; "
                "rename one of the two"
            )
    _folders.add(folder)


def _in_package(path: Path) -> Any:
    """Import a file as a module of its package, for relative imports; None if it is in none that can be imported."""
    root = path.resolve().parent
    while (root / "__init__.py").is_file():
        root = root.parent
    names = path.resolve().relative_to(root).with_suffix("").parts
    if len(names) == 1:
        return None
    module_name = ".".join(names).removesuffix(".__init__")
    with _last_on_the_path(root):
        try:
            if importlib.util.find_spec(module_name).origin != str(path.resolve()):  # type: ignore[union-attr]
                return None  # another package has this name
        except (ImportError, AttributeError, ValueError):
            return None
        return importlib.import_module(module_name)


@contextlib.contextmanager
def _last_on_the_path(folder: Path) -> Iterator[None]:
    """Let a block import the files beside it. They come last, so none of them shadows an installed module."""
    before = list(sys.path)
    sys.path.append(str(folder))
    importlib.invalidate_caches()  # the file may be newer than the last look into its folder
    try:
        yield
    finally:
        sys.path[:] = before


def _reason(error: BaseException) -> str:
    reason = f"{type(error).__name__}: {error}."
    old = isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "blocks"
    return f"{reason} {IMPORT}" if old else reason
