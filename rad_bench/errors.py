"""The one kind of error that a user is meant to read."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterable
from pathlib import Path

LONGEST_MESSAGE = 1800  # characters
LONGEST_WORD = 200  # that is looked for among the known ones; the search is quadratic


class UserError(Exception):
    """A mistake the user can mend, told in one paragraph: what was wrong, where, what would be right.

    The command line prints it without a traceback and exits with status 2. Messages quote what files and command lines
    hold, so they are brought to one printable line here, whatever that was.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def unwritten(error: OSError, where: Path) -> UserError:
    """Return what is told of a disk that is full, or a folder that is not ours; `where`: if the error does not say."""
    # A tree that could not be copied tells of each of its files; the first will do.
    reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
    return UserError(f"{error.filename or where}: cannot be written: {reason}.")


def one_line(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Return text as one line: breaks become spaces, what does not print its escape; the middle of long text is cut."""
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} ... {text[len(text) - longest // 3 :]}"
    if text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= longest + 10 else one_line(shown, longest)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest of `known`, or the list of what is accepted."""
    accepted = sorted(known)
    near = difflib.get_close_matches(word[:LONGEST_WORD], [a[:LONGEST_WORD] for a in accepted[:1000]], n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'? Accepted: {', '.join(accepted)}."
    return f". Accepted: {', '.join(accepted)}." if accepted else "; nothing is accepted here."
