"""Printing of tables. rich is imported only when a table is printed."""

from __future__ import annotations

import sys
from typing import Any


def print_table(table: Any, width: int = 160) -> None:
    """Print a table, in the width of the terminal; without a terminal, `width` columns."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else width  # type: ignore[assignment]
    Console(width=width, markup=False, emoji=False).print(table)  # print `[x]` and `:x:` literally
