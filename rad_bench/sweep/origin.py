"""Where a setting of a sweep comes from, so that an error names the right file or option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Origins:
    """The files that a sweep was read from, those extended first, and the options that changed it after them."""

    main: str = ""  # the file that the user named
    layers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # name, its own tree

    def of(self, key: Sequence[str]) -> str:
        """Return what set a key last or, if nothing did, what is above it."""
        depths = [(_depth(tree, key), place) for place, (_, tree) in enumerate(self.layers)]
        deepest, place = max(depths, default=(0, 0))
        return self.layers[place][0] if deepest else self.main


def _depth(tree: Any, key: Sequence[str]) -> int:
    """Return how many parts of a key lead to something in the tree."""
    for number, part in enumerate(key):
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, dict) and part in tree:
            tree = tree[part]
        else:
            return number
    return len(key)
