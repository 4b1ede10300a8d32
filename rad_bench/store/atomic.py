"""Atomic writes: a file has its old content or its new content, also after a kill."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from rad_bench.errors import unwritten


def write_atomically(
    path: Path, content: bytes | Callable[[BinaryIO], object], fence: Callable[[], None] = lambda: None
) -> None:
    """Write a temporary file, sync it to disk, call `fence` (which may raise), and rename the file to `path`.

    `content` is the file's content, or a function that writes it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # process ids are not unique on a shared disk
    try:
        with temporary.open("wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())
        fence()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # leave no partly written file on a full disk
        raise


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON; make the folder if needed. Raises `UserError` if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise unwritten(error, path) from None
