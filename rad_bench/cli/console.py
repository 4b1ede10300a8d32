"""What verbs print with. rich is imported once there is something to print."""

from __future__ import annotations

import sys
from typing import Any


def print_table(table: Any, width: int = 160) -> None:
    """Print a table, `width` columns wide where there is no terminal to say."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else width  # type: ignore[assignment]
    Console(width=width, markup=False, emoji=False).print(table)  # `[x]` and `:x:` in cells mean themselves
