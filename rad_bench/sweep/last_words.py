"""What a process said last, where it could not say for itself why it failed."""

from __future__ import annotations

TRACEBACK = "Traceback (most recent call last):"


def last_words(output: str) -> str:
    """Return the error at the end of a process's output: of a traceback its message, else the last line.

    srun adds lines which only say that a task has exited. They count if there are no others.
    """
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("srun: error")] or lines
    if TRACEBACK in lines:
        last = len(lines) - 1 - lines[::-1].index(TRACEBACK)
        message = next((at for at in range(last + 1, len(lines)) if not lines[at].startswith(" ")), len(lines) - 1)
        return " ".join(line.strip() for line in lines[message:])
    return lines[-1].strip() if lines else ""
