"""Errors for users: `UserError`, and helpers that word its messages."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterable
from pathlib import Path

LONGEST_MESSAGE = 1800  # characters
LONGEST_WORD = 200  # characters compared by `did_you_mean`, whose search is quadratic


class UserError(Exception):
    """A mistake that the user can correct. The message is one paragraph: what is wrong, where, and what is right.

    The command line prints it without a traceback and exits with status 2. Messages quote files and command lines, so
    line breaks and unprintable characters are removed here.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def unwritten(error: OSError, where: Path) -> UserError:
    """Return the error for a file that cannot be written; `where` is named if `error` names no file."""
    # `copytree` collects the errors of all files. The first one is shown.
    reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
    return UserError(f"{error.filename or where}: cannot be written: {reason}.")


def one_line(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Return text as one line: line breaks become spaces, unprintable characters are escaped, long text is cut."""
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} ... {text[len(text) - longest // 3 :]}"
    if text.isprintable():
        return text
    line = "".join(c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in text)
    return line if len(line) <= longest + 10 else one_line(line, longest)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the nearest of `known`, and the list of accepted words."""
    accepted = sorted(known)
    near = difflib.get_close_matches(word[:LONGEST_WORD], [a[:LONGEST_WORD] for a in accepted[:1000]], n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'? Accepted: {', '.join(accepted)}."
    return f". Accepted: {', '.join(accepted)}." if accepted else "; nothing is accepted here."
