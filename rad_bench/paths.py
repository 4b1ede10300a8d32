"""Paths as users write them: `~` is their home folder, and a name must be text."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rad_bench.errors import UserError


def user_path(text: str, where: str) -> Path:
    """Return the path that a user wrote at `where`, an option or a key. Raises `UserError` if it names no place.

    Results, reports and SLURM's scripts hold paths as UTF-8, so a name in another encoding is refused here.
    """
    _check_text(text, where)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        home = Path(text).parts[0]
        raise UserError(
            f"{where}: {text}: there is no home folder '{home}' here; write the whole path, or "
            f"{Path.cwd() / text} if {home} is the name of a folder."
        ) from None


def absolute_path(text: str, where: str) -> str:
    """As `user_path`, and made absolute: jobs may run from elsewhere."""
    path = str(user_path(text, where).absolute())
    _check_text(path, where)
    return path


def block_path(name: str, folders: Iterable[Path]) -> str:
    """Return a block's name with its file made absolute, so that jobs find it too. Raises `UserError`.

    A file is looked for in the working directory and then in `folders`. `module:Class` may name one as well:
    `my_block:GRU` is `my_block.py:GRU`, if there is such a file, or else an installed module.
    """
    source, colon, class_name = name.rpartition(":")
    if not colon:
        return name
    if source.endswith(".py"):
        files = [user_path(source, "run.memory")]
    else:
        module = Path(*source.split("."))
        files = [module.with_name(f"{module.name}.py"), module / "__init__.py"] if module.name else []
    for folder in (Path(), *folders):
        for file in files:
            if os.path.isfile(folder / file):  # unlike Path.is_file, it accepts names that no file can have
                return f"{absolute_path(str(folder / file), 'run.memory')}:{class_name}"
    return f"{absolute_path(str(files[0]), 'run.memory')}:{class_name}" if source.endswith(".py") else name


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        name = os.fsencode(text).decode(errors="backslashreplace")
        raise UserError(f"{where}: {name}: is not UTF-8; rename this file or folder, or use another one.") from None
