"""Files that a reader, or a kill, sees with their old content or their new, never a part."""

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
    """Write a file that takes the place of `path` once it is whole and on disk, and the fence, which may raise, allows.

    `content` is what the file shall hold, or a function that writes it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # ids of processes are no names on a shared disk
    try:
        with temporary.open("wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())
        fence()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk must not fill further
        raise


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON, their folder included. Raises `UserError` if that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise unwritten(error, path) from None
