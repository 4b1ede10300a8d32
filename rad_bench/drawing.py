"""matplotlib with its own defaults: no rc file, style or backend of the user changes a picture, or stops one.

Import matplotlib's names from here. pyplot is not needed: a `Figure` draws itself in the format of its file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def _unset_by_the_user() -> Iterator[None]:
    """Hide MPLBACKEND and all rc files: matplotlib reads them when it is imported, and may fail on what they say.

    The first rc file it looks for is in the working directory. The one beside its own data holds its defaults.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    package = importlib.util.find_spec("matplotlib")
    assert package is not None and package.origin is not None
    try:
        with contextlib.chdir(Path(package.origin).parent / "mpl-data"):
            yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


with _unset_by_the_user():
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import to_hex, to_rgb
    from matplotlib.figure import Figure

__all__ = ["Axes", "Figure", "settings", "to_hex", "to_rgb"]


@contextlib.contextmanager
def settings(changes: dict[Any, Any]) -> Iterator[None]:
    """Draw with matplotlib's defaults and these changes alone."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(changes)
        yield
