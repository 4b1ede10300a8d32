"""The architecture, held to: a room imports only rooms below it, and no two modules import each other in a circle.

A room is a folder or a loose file of `rad_bench/`. `python tests/test_house.py` prints the rooms and counts arrows.
"""

import ast
import graphlib
import pathlib
import sys

PACKAGE = pathlib.Path(__file__).parents[1] / "rad_bench"
ROOMS = (  # from the ground floor up
    "blocks", "errors", "units", "paths", "drawing", "config", "store", "data", "model", "training", "evaluation",
    "run", "look", "report", "bench", "sweep", "exchange", "cli",
)  # fmt: skip
FACES = ("__init__", "__main__")  # of the package itself: its version, and `python -m rad_bench`


def modules(package):
    """Return each module's dotted name below the package, and its file."""
    files = [path for path in package.rglob("*.py") if "__pycache__" not in path.parts]
    files += [path for path in (package / "blocks").resolve().rglob("*.py")]
    found = {}
    for path in files:
        inside = path.resolve().is_relative_to(package.resolve())
        name = path.resolve().relative_to(package.resolve() if inside else package.resolve().parent)
        found[".".join(name.with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imports(package=PACKAGE):
    """Return for each module those of the package that it imports, in functions too."""
    known = modules(package)
    found = {}
    for name, path in known.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                named = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for full in named:
                parts = full.split(".")
                if parts[0] != package.name:
                    continue
                below = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
                found[name] |= {next((module for module in below if module in known), "")} - {"", name}
    return found


def arrows(package=PACKAGE):
    """Return the pairs (room, a room that it imports)."""
    pairs = {(a.split(".")[0], b.split(".")[0]) for a, others in imports(package).items() for b in others}
    return {(a, b) for a, b in pairs if a != b and a not in FACES}


def test_every_room_has_its_floor():
    assert {name.split(".")[0] for name in modules(PACKAGE)} - {*FACES} == {*ROOMS}


def test_a_room_imports_only_rooms_below_it():
    upwards = sorted((a, b) for a, b in arrows() if ROOMS.index(a) <= ROOMS.index(b))
    assert not upwards, upwards


def test_no_modules_import_each_other_in_a_circle():
    graphlib.TopologicalSorter(imports()).prepare()  # raises CycleError, which names them


def test_blocks_know_nothing_of_the_rest():
    assert {b for a, b in arrows() if a == "blocks"} == set()


if __name__ == "__main__":
    rooms = [room for room in ROOMS if any(name.split(".")[0] == room for name in modules(PACKAGE))]
    print(f"{len(rooms)} rooms, {len(arrows())} arrows")
    for room in reversed(rooms):
        below = sorted((b for a, b in arrows() if a == room), key=ROOMS.index, reverse=True)
        print(f"  {room:<11} {' '.join(below)}", file=sys.stdout)
