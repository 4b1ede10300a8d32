"""The sources that a model needs to be built and run, under another package name: they hide no installed one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import rad_bench

RENAMED, OWN = "rad_model", "own"  # the package in an exported folder, and in it the files of a user's block
PACKAGE = Path(rad_bench.__file__).parent


def needed_sources(roots: Iterable[str], own: Iterable[Path] = ()) -> dict[str, str]:
    """Return the text of every module that the modules `roots` (`model.trunk`) and the files `own` import, by path."""
    texts = {f"{OWN}/{path.name}": path.read_text(encoding="utf-8") for path in _with_siblings(own)}
    waiting = [*roots, *(name for text in texts.values() for name in _imports(text))]
    while waiting:
        module = waiting.pop()
        path = f"{module.replace('.', '/')}.py"
        if path not in texts:
            texts[path] = (PACKAGE / path).read_text(encoding="utf-8")
            waiting += _imports(texts[path])
    return {path: _renamed(text) for path, text in sorted(texts.items())}


def _with_siblings(files: Iterable[Path]) -> list[Path]:
    """Return files, and those beside them that they import, whatever they import from these."""
    waiting, found = list(files), dict[Path, None]()
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found[file] = None
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            beside = (file.with_name(f"{name.split('.')[0]}.py") for name in names)
            waiting += [path for path in beside if path.is_file()]
    return list(found)


def _imports(text: str) -> list[str]:
    """Return the modules of this package that a source imports, in functions too."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name]
    modules = [name.partition(".")[2] for name in names]
    return [module for module in modules if module and PACKAGE.joinpath(f"{module.replace('.', '/')}.py").is_file()]


def _renamed(text: str) -> str:
    return re.sub(rf"^(\s*(?:from|import)\s+){PACKAGE.name}\b", rf"\1{RENAMED}", text, flags=re.MULTILINE)
