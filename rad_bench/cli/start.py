"""What the command line sets right before anything else: the encoding of file names and of what is printed."""

from __future__ import annotations

import codecs
import io
import os
import sys
from pathlib import Path

from rad_bench.errors import UserError

PROGRAMS = ("rad-bench", "rad_bench")  # the command, and `python -m rad_bench`


def settle() -> None:
    """Let everything be printed and every file be named, whatever the locale. Raises `UserError`."""
    _restart_in_utf8()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        here = os.getcwd()
    except OSError as error:
        raise UserError(f"the current directory cannot be used ({error.strerror}); cd to another one.") from None
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if len(entries) > 1 and "" in entries:  # as `PYTHONPATH=$PYTHONPATH:/mine` leaves one: it is this directory
        sys.path[:] = [folder for folder in sys.path if folder not in ("", here)]


def _restart_in_utf8() -> None:
    """Start this process again in Python's UTF-8 mode if file names would be ASCII only. Its jobs inherit that.

    The mode cannot be changed later. A program that calls `main` in its own process is not started again.
    """
    own = Path(sys.orig_argv[-len(sys.argv)]).name if len(sys.argv) <= len(sys.orig_argv) else ""
    ascii_only = codecs.lookup(sys.getfilesystemencoding()).name == "ascii"
    if ascii_only and own in PROGRAMS and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
