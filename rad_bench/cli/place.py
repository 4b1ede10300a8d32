"""The type of all command line arguments that are paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rad_bench.paths import user_path


class PlaceType(click.ParamType):
    """A path, `~` replaced: shells leave it alone in `--out=~/results`."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path. Raises `UserError`."""
        where = param.opts[0] if isinstance(param, click.Option) else (param.human_readable_name if param else "path")
        return value if isinstance(value, Path) else user_path(value, where)


PLACE = PlaceType()
