"""A strict subset of YAML 1.2, which loads as plain data of bounded size.

It is stricter than PyYAML's safe loader. These are errors: numbers with leading zeros (octal in YAML 1.1), duplicate
keys, keys that are not text, aliases (they can expand without bound), deep nesting, numbers that are not finite or
exceed 64 bits, and unprintable characters. Dates are text. So everything that loads can be written as JSON, compared
and shown.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

import yaml

DEEPEST = 24  # levels of nesting
LONGEST_TEXT = 10_000  # characters in one value
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_PREFIX = "tag:yaml.org,2002:"


def load(text: str) -> Any:
    """Parse a text. Raises `yaml.YAMLError`, and nothing else."""
    return yaml.load(text, _Loader)


def dump(tree: Any) -> str:
    """Return a tree as YAML that `load` turns into the same tree. Keys keep their order."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def reason(error: yaml.YAMLError) -> str:
    """Say where a text has an error, and which."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return place + str(problem or error)


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        start = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise _refusal("aliases are not accepted here", start)
        if self.depth >= DEEPEST:
            raise _refusal(f"is nested more than {DEEPEST} levels deep", start)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)  # type: ignore[no-untyped-call]
        except (ValueError, KeyError, IndexError):  # `!!int abc`, or thousands of digits
            raise _refusal(
                f"'{node.value!s:.40}' is not a valid {node.tag.rpartition(':')[2]}", node.start_mark
            ) from None
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise _refusal("is an integer that exceeds 64 bits", node.start_mark)
        if isinstance(value, float) and not math.isfinite(value):
            raise _refusal(f"{value} is not a finite number", node.start_mark)
        if isinstance(value, str):
            _check_text(value, node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refusal(f"key {key!r:.80} is not text", key_node.start_mark)
            if key in seen:
                raise _refusal(f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as text, so that other programs read it as we do."""


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text: str = loader.construct_scalar(node)  # type: ignore[no-untyped-call]
    if re.fullmatch(r"[-+]?0[0-9]+", text):
        raise _refusal(
            f"{text:.40} is one number in YAML 1.1 and another in YAML 1.2; write {int(text)}, or '{text:.40}' if it "
            "is text",
            node.start_mark,
        )
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text: str = loader.construct_scalar(node)  # type: ignore[no-untyped-call]
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


# The core schema of YAML 1.2. PyYAML follows YAML 1.1, in which `on` and `yes` are true, 12:00:00 is 43200, 010 is 8
# and 1e-3 is text.
_CORE = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
)
_Loader.yaml_implicit_resolvers = {}
for _class in (_Loader, _Dumper):
    for _name, _pattern, _first in _CORE:
        _class.add_implicit_resolver(_PREFIX + _name, re.compile(rf"(?:{_pattern})\Z"), _first)  # type: ignore[no-untyped-call]
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag in [_PREFIX + name for name in _PLAIN]
}
_Loader.add_constructor(_PREFIX + "int", _construct_int)  # type: ignore[no-untyped-call]
_Loader.add_constructor(_PREFIX + "float", _construct_float)  # type: ignore[no-untyped-call]


def _check_text(value: str, node: yaml.Node) -> None:
    if len(value) > LONGEST_TEXT:
        raise _refusal(f"is a text of more than {LONGEST_TEXT} characters", node.start_mark)
    if not value.isprintable():
        for character in value:
            if not (character.isprintable() or character in "\n\t" or unicodedata.category(character) == "Zs"):
                raise _refusal(f"contains the unprintable character {character!a}", node.start_mark)


def _refusal(problem: str, mark: yaml.Mark | None) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)
