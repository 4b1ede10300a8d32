"""Copy a sweep that comes with rad-bench into a file of the user's, to be changed there."""

from __future__ import annotations

import itertools
from pathlib import Path

from rad_bench import __version__
from rad_bench.errors import UserError, unwritten
from rad_bench.store import strict_yaml
from rad_bench.store.atomic import write_atomically
from rad_bench.sweep.load import read_tree
from rad_bench.sweep.origin import Origins
from rad_bench.sweep.shipped import file_of


def write_copy(name: str, target: Path) -> None:
    """Write the sweep, merged with what it extends, so that the file stands alone. Raises `UserError`."""
    file = file_of(name)
    comment = itertools.takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    origin = f"# Copied from sweeps/{name}.yaml of rad-bench {__version__}, together with what that extends."
    text = "\n".join([*comment, origin, strict_yaml.dump(read_tree(file, Origins()))])
    if target.exists():
        raise UserError(f"{target}: exists already; delete it, or name another file with --to.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, text.encode())
    except OSError as error:
        raise unwritten(error, target) from None
