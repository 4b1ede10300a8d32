"""The colour and marker of each block, the same in every plot of every report.

Built-in blocks have fixed ones. A user's block gets them from a hash of its name, so they stay the same in all sweeps;
if two blocks of a sweep collide, the later name gets the next free ones. Forms of one block (options, other axes) share
its hue, from light to dark, and differ in line and marker.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

from rad_bench.drawing import to_hex, to_rgb
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.report.reading import base_name

# Most colours are from Okabe & Ito, for colour-blind readers. All have medium lightness, for light and dark pages.
BUILT_IN = {
    "none": ("#6A6A6A", "o"),
    "lstm": ("#E69F00", "s"),
    "mamba2": ("#0072B2", "^"),
    "ttt": ("#009E73", "D"),
    "attention": ("#D55E00", "v"),
    "feedforward": ("#9A8C7A", "X"),
    "minlstm": ("#B8860B", "P"),
    "mlstm": ("#CC79A7", "<"),
    "gated_deltanet": ("#56B4E9", ">"),
    "kda": ("#4B6FD6", "d"),
    "mamba3": ("#117A8B", "h"),
    "ttt_chunk": ("#66A61E", "p"),
}
CONTROL = ("#999999", "")
COLOURS = ("#AA4499", "#8C7FD0", "#999933", "#CC6677", "#3FA7A0", "#A0662B")  # of user blocks
MARKERS = ("h", "*", "d", "8", "H", "o", "s", "^")
LINES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))  # of forms, in this order
LIGHTEST, DARKEST = 0.35, 0.3  # how much the first form is lightened and the last darkened


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of one curve or point."""

    colour: str
    marker: str
    line: str | tuple[float, tuple[float, ...]]


def block_styles(blocks: list[str]) -> dict[str, Style]:
    """Return the style of each block label."""
    looks = dict(BUILT_IN)
    for name in sorted({base_name(block) for block in blocks} - {*BUILT_IN, *CONTROLS}):
        looks[name] = _look(name, set(looks.values()))
    styles: dict[str, Style] = {}
    for name in dict.fromkeys(map(base_name, blocks)):
        forms = [block for block in blocks if base_name(block) == name]
        if name in CONTROLS:
            styles |= {form: Style(*CONTROL, LINES[2 + CONTROLS.index(name)]) for form in forms}
            continue
        colour, marker = looks[name]
        for place, form in enumerate(forms):
            share = place / (len(forms) - 1) if len(forms) > 1 else 0.5
            own = marker if len(forms) == 1 else "os^Dv<>P"[place % 8]
            by = (1 - 2 * share) * (LIGHTEST if share < 0.5 else DARKEST)
            styles[form] = Style(_shade(colour, by), own, LINES[place % len(LINES)])
    return styles


def _look(name: str, taken: set[tuple[str, str]]) -> tuple[str, str]:
    looks = [(colour, marker) for marker, colour in itertools.product(MARKERS, COLOURS)]
    first = int.from_bytes(hashlib.sha256(name.encode(errors="replace")).digest()[:4], "big") % len(looks)
    free = [look for look in looks[first:] + looks[:first] if look not in taken]
    return free[0] if free else looks[first]


def _shade(colour: str, by: float) -> str:
    """Mix a colour with white (by > 0) or black (by < 0)."""
    to = 1.0 if by > 0 else 0.0
    red, green, blue = ((1 - abs(by)) * part + abs(by) * to for part in to_rgb(colour))
    return to_hex((red, green, blue)).upper()
