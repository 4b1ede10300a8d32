"""Sizes, durations and lists of numbers as text, for plans, progress and reports."""

from __future__ import annotations

from collections.abc import Sequence


def show_bytes(count: float) -> str:
    """Format a size to three digits: 390 bytes, 51.2 kB, 7.12 MB."""
    for unit, size in (("bytes", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if count < 999.5 * size:
            return f"{count / size:.3g} {unit}"
    return f"{float(f'{count / 1e12:.3g}'):,g} TB"


def show_seconds(seconds: float) -> str:
    """Format a duration to two digits: 34 ms, 1.2 s, 48 s, 11 min, 3.5 h."""
    for unit, size, limit in (("ms", 1e-3, 0.995), ("s", 1.0, 99.5), ("min", 60.0, 99.5 * 60)):
        if seconds < limit:
            return f"{two_digits(seconds / size)} {unit}"
    return f"{two_digits(seconds / 3600)} h"


def two_digits(value: float) -> str:
    """Format a number to two digits, without an exponent: 0.34, 4.8, 12,000."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def show_spans(numbers: Sequence[int], between: str) -> str:
    """Format 0, 1, 2 as `0-2` with `-` between them, and else a list of all numbers: 0, 2, 5."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}{between}{numbers[-1]}"
    return ", ".join(map(str, numbers))
