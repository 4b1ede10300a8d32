"""The one kind of error that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend, told in one paragraph: what was wrong, where, what would be right.

    The command line prints it without a traceback and exits with status 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest of `known`, or the list of what is accepted."""
    accepted = sorted(known)
    near = difflib.get_close_matches(word, accepted, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'? Accepted: {', '.join(accepted)}."
    return f". Accepted: {', '.join(accepted)}." if accepted else "; nothing is accepted here."
