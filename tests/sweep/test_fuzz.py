"""Whatever a sweep file or a command line holds, planning ends in a plan or in one clear paragraph, and writes nothing.

Mutants of the published sweeps, of their parsed trees and of their text; the same ones every time.
"""

import copy
import os
import random
import resource
import shutil
import signal
import time
import unicodedata
from pathlib import Path

import pytest
import yaml

from rad_bench.errors import UserError
from rad_bench.model.registry import block_names, find_block
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep
from tests.sweep.tiny import ROOT, TINY

LONGEST_MESSAGE = 2000  # characters
SLOWEST = 20  # seconds; a hang, not a measure of speed
MOST_MEMORY = 300 << 20  # bytes that planning any number of mutants may add
MUTANTS = 12  # of each kind and file

HUGE = [10**9, 10**12, 10**18, 10**30, 2**63, 2**64, 10**400, -1, -(10**30), 0, 1e308, 1e-320]
WORDS = [
    "", " ", "\n", "a\nb", "\x00", "\x1b[31m", "\x7f", "\u202e", "\ud800", "\u2028", "é", "日本", "🧠", "x" * 300,
    "y" * 20_000, "../../x", "../../x.py:Y", "/etc/passwd", "/dev/zero", "~", "~nobody_at_all/x", "C:\\x", "a/b", ".",
    "..", "-x", "lstm", "none", "lstn", ":", ":X", "x:", ".x:Y", "..:Y", "os:path", "os.path:join", "no.such:Thing",
    "a.py:", ".py:X", "os:nowhere\n", "a b:c", "\x00:x", "\x00.py:x", "blocks.lstm:LSTM", "=1+1", "$\\frac{1}{0}$",
    "{x}", "%s", "1:30:00", "2020-13-45", "2020-01-01", "null", "true", "<<", "=", "name", "rooms", "memory_maze",
    "retrieval", "seed", "memory",
]  # fmt: skip
ODD = [
    None, True, False, [], {}, [[]], [{}], [None], {"": {}}, {"name": None}, {"name": []}, {"name": {}},
    [[[[[[1]]]]]], {"a": {"b": {"c": 1}}}, float("nan"), float("inf"), -float("inf"), {"name": "lstm", "options": 3},
    {"name": "lstm", "options": {"hidden": 10**9}}, {"name": "lstm", "hidden": float("nan")}, {"name": "ttt",
    "inner": {}}, {"name": "lstm", "x\ny": 1}, list(range(500)), ["x"] * 500, {str(i): {} for i in range(500)},
    {"x" * 5000: 1}, *HUGE, *WORDS,
]  # fmt: skip
ACTS = ("value",) * 3 + ("number",) * 3 + ("tweak", "delete", "rename", "add", "swap", "wrap", "axis", "point")
SNIPPETS = [
    "\t", "\r", "\x00", "\x85", "\ufeff", "&a ", "*a", "<<: ", "!!python/object/apply:os.system ['true']",
    "!!binary aGk=", "!!set {a}", "!!timestamp 2020-01-01", "!!omap [a: 1]", "2020-13-45", "1" * 5000,
    "0x" + "f" * 5000, ".nan", "-.inf", "[" * 3000,
    "{a: " * 3000, "- " * 2000, "? ", "? [a]: b", "|\n", ">\n", "---\n", "...\n", "%YAML 9.9\n", "#", "'", '"',
    '"\\ud800"', '"\\0"', ": ", "extends: /dev/zero\n", "extends: [tiny.yaml, tiny.yaml]\n", "extends: .\n",
    "extends: ''\n", "\U0001f9e0", "𝟙", "1_000", "1e9", "0b1", "0o7", "~",
]  # fmt: skip
AXES = (
    "seed", "trunk.window", "memory.hidden", "memory.name", "memory.name.x", "data.size.x", "evaluation.tasks",
    "memory.options.hidden", "data", "trunk", "match.budget", "training.betas.0", ".", "trunk.", "trunk..width",
)  # fmt: skip
PATHS = (
    "run", "grid", "name", "launch", "run.memory", "run.trunk.width", "grid.memory", "grid.seed", "run.data",
    "launch.slurm", "run.evaluation.tasks", "grid.regime", "memory", "seed", "extends", "planned",
)  # fmt: skip
LEAVES = (
    "run.training.steps", "run.seed", "grid.seed", "run.training.frames", "launch.threads", "seed", "memory",
    "grid.training.steps", "run.evaluation.horizon", "run.trunk.scan", "run.memory.hidden",
)  # fmt: skip


def sweeps():
    """The names of what is mutated, below the folder that `place` fills."""
    published = sorted((ROOT / "sweeps").rglob("*.yaml"))
    return ["tiny.yaml", *(path.relative_to(ROOT / "sweeps").as_posix() for path in published)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(ROOT / "sweeps", folder / "sweeps")
    (folder / "sweeps" / "tiny.yaml").write_text(TINY)
    for name in block_names():  # compiled before, so that what is written later is not Python's
        find_block(name)
    return folder / "sweeps"


def whole_tree(path):
    """A sweep file with what it extends, by the embedded world, so that mutants get as far as a plan."""
    tree = load_sweep(path).model_dump(mode="json")
    data = tree["run"].get("data", {})
    if data.get("name") in ("memory_maze", "voxels"):
        tree["run"] |= {"data": {"name": "rooms", "size": 16}, "autoencoder": {"name": "none"}}
    return tree


def places(tree, path=()):
    """Every (container, key) of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from places(value)


def mutate_tree(tree, rng):
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        found = list(places(tree))
        if not found:
            break
        inside, key = rng.choice(found)
        act = rng.choice(ACTS)
        if act == "value":
            inside[key] = copy.deepcopy(rng.choice(ODD))
        elif act == "delete":
            del inside[key]
        elif act == "rename" and isinstance(inside, dict):
            inside[rng.choice((*WORDS, key[:-1], key + "s", key.upper()))] = inside.pop(key)
        elif act == "add" and isinstance(inside, dict):
            inside[rng.choice(WORDS)] = copy.deepcopy(rng.choice(ODD))
        elif act == "add":
            inside.append(copy.deepcopy(rng.choice(ODD)))
        elif act == "swap":
            other, its = rng.choice(found)
            inside[key], other[its] = copy.deepcopy(other[its]), copy.deepcopy(inside[key])
        elif act == "wrap":
            inside[key] = [inside[key]] if rng.random() < 0.5 else {str(key): inside[key]}
        elif act in ("number", "tweak"):
            numbers = [
                (other, its) for other, its in found if isinstance(other[its], int | float) and abs(other[its]) < 1e300
            ]
            if not numbers:
                continue
            inside, key = rng.choice(numbers)
            if act == "tweak":  # often a valid sweep still
                inside[key] = max(1, inside[key] * rng.choice((1, 2, 3, 10)))
                continue
            inside[key] = rng.choice((*HUGE, -inside[key], inside[key] + 1, inside[key] / 3, str(inside[key])))
        elif isinstance(tree.get("grid"), dict):
            grid = tree["grid"]
            if act == "axis":
                axis = rng.choice(AXES)
                values = [
                    list(range(3000)),
                    [1, 2],
                    ["a/b", "a\nb"],
                    [copy.deepcopy(rng.choice(ODD))],
                    {"a": {"trunk.width": 10**9}},
                ]
                grid[axis] = rng.choice(values)
            else:
                points = {
                    rng.choice(WORDS): {rng.choice(("trunk.width", "seed", "nothing", "", "memory")): rng.choice(ODD)}
                }
                grid[rng.choice(WORDS)] = copy.deepcopy(points)
    return tree


def mutate_text(text, rng):
    data = text.encode()
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 10, 100))
        act = rng.choice(("byte", "cut", "copy", "snippet", "letter", "letter", "letter", "character", "indent"))
        if act == "byte":
            data = data[:at] + rng.randbytes(length) + data[at + length :]
        elif act == "letter":
            data = data[:at] + rng.choice("aelmnrs0123456789").encode() + data[at + 1 :]
        elif act == "cut":
            data = data[:at] + data[at + length :]
        elif act == "copy":
            data = data[:at] + data[at : at + length] * rng.choice((2, 2, 50)) + data[at + length :]
        elif act == "snippet":
            data = data[:at] + rng.choice(SNIPPETS).encode() + data[at:]
        elif act == "character":
            data = data[:at] + rng.choice(":,-[]{}#&*!|>'\"%@`?\\ \n\t.0=").encode() + data[at + 1 :]
        else:
            data = data.replace(b"\n", b"\n ", rng.randrange(1, 5))
    return data


def mutate_assignment(rng):
    path = rng.choice((*PATHS, *WORDS))
    path += rng.choice(("", "", "", ".", ".x", ".name", "." + rng.choice(WORDS), ".a" * 2000))
    if rng.random() < 0.4:
        path = rng.choice(LEAVES)
        plain = ("1", "2", "0", "24", "lstm", "none", "[1, 2]", "pooled", "{name: lstm, hidden: 3}")
        return f"{path}={rng.choice((*plain, *map(str, HUGE)))}"
    value = rng.choice((*WORDS, *SNIPPETS, *map(str, HUGE), *(repr(odd) for odd in ODD)))
    return path + rng.choice(("=", "=", "=", "=", "==", "", " = ")) + value


def dumped(tree):
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=False).encode()


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def plan(path, overrides=(), only=()):
    """Plan what the file says; return the runs, or the error's text if it is one that a user may read."""
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"planning takes longer than {SLOWEST} s"))
    signal.alarm(SLOWEST)
    try:
        return plan_runs(load_sweep(path, overrides), only, path.name)
    except UserError as error:
        return str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def assert_sound(outcome):
    if isinstance(outcome, str):
        assert 10 < len(outcome) <= LONGEST_MESSAGE, f"{len(outcome)} characters: {outcome[:200]}"
        odd = {c for c in outcome if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
        assert not odd, f"{odd} in {outcome!r:.300}"
    else:
        assert outcome
        for run in outcome:
            assert run.name == Path(run.name).name and len(run.name) < 200, run.name
            assert run.label.isprintable() and len(run.label) < 1000, run.label


def mutants(kind, path, number, seed):
    """The content of the mutants of a sweep, and what the command line adds to each."""
    tree, text = whole_tree(path), path.read_text()
    for i in range(number):
        rng = random.Random(f"{seed} {kind} {path.name} {i}")
        if kind == "tree":
            yield dumped(mutate_tree(tree, rng)), (), ()
        elif kind == "text":
            yield mutate_text(text if rng.random() < 0.5 else dumped(tree).decode(), rng), (), ()
        else:
            overrides = [mutate_assignment(rng) for _ in range(rng.choice((1, 1, 2)))]
            yield dumped(tree), *rng.choice(((overrides, ()), (overrides, ()), ((), overrides)))


def fuzz(place, kind, number, seed=0):
    for name in sweeps():
        mutant = (place / name).with_name("mutant.yaml")
        for content, overrides, only in mutants(kind, place / name, number, seed):
            mutant.write_bytes(content)
            yield name, content, overrides, only, mutant
        mutant.unlink()


@pytest.mark.parametrize("kind", ["tree", "text", "arguments"])
def test_any_mutant_of_a_sweep_ends_in_a_plan_or_one_paragraph(place, monkeypatch, kind):
    monkeypatch.chdir(place)
    peak, ended = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {"plan": 0, "error": 0}
    for name, content, overrides, only, mutant in fuzz(place, kind, MUTANTS):
        before = snapshot(place.parent)
        try:
            outcome = plan(mutant, overrides, only)
            assert_sound(outcome)
        except Exception as error:  # say which mutant, whatever it raised
            raise AssertionError(f"{name} with {overrides} {only}:\n{content.decode(errors='replace')}") from error
        assert snapshot(place.parent) == before, "planning has written"
        ended["error" if isinstance(outcome, str) else "plan"] += 1
    assert min(ended.values()) >= 10, ended  # mutants reach both ends
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10 < MOST_MEMORY


def planned(tmp_path, text, *overrides):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return plan(path, overrides)


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("run.trunk.width=1000000000", "run.trunk.width"),
        ("run.trunk.depth=1000000000000", "run.trunk.depth"),
        ("run.training.frames=1000000000000", "run.training.frames"),
        ("run.seed=1" + 30 * "0", "64 bits"),
        ("run.training.learning_rate=.nan", "finite"),
        ("run.training.clip=.inf", "finite"),
        ("run.training.betas=[2.0, 0.9]", "run.training.betas.0"),
        ("run.data.size=" + 5000 * "9", "not a valid int"),
        ('launch.slurm.partition="gpu\\n#SBATCH --wrap=evil"', "launch.slurm.partition"),
        ("grid.memory=[{name: lstm, hidden: 1.0}, lstm]", "valid integer"),
        ('name="a\\u202Eb"', "unprintable"),
        ("name=../elsewhere", "name"),
        ("run.data.x.y=" + 100 * "[" + 100 * "]", "nested"),
        ("run" + 100 * ".x" + "=1", "no path of 101 parts"),
        ("run=!!python/object/apply:os.system [echo]", "python/object"),
        ("run=!!int many", "not a valid int"),
        ("run=&a [*a]", "aliases"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path, override, word):
    outcome = planned(tmp_path, TINY, override)
    assert isinstance(outcome, str), outcome
    assert word in outcome
    assert_sound(outcome)


def test_a_grid_beyond_counting_is_refused_at_once(tmp_path):
    axes = "".join(f"  training.{key}: {list(range(1, 1001))}\n" for key in ("steps", "batch", "warmup"))
    before = time.monotonic()
    outcome = planned(tmp_path, TINY.replace("launch:", f"{axes}launch:"))
    assert "4000000000 points" in outcome
    assert time.monotonic() - before < SLOWEST


def test_an_axis_below_a_leaf_is_refused(tmp_path):
    assert "nothing below 'seed'" in planned(tmp_path, TINY.replace("  seed: [0, 1]", "  seed: [0]\n  seed.x: [1]"))


def test_a_file_that_never_ends_is_not_read(tmp_path):
    for endless in ("/dev/zero", "."):
        assert "is not a file" in planned(tmp_path, f"extends: {endless}\n{TINY}")
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in planned(tmp_path, f"extends: pipe\n{TINY}")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert "cannot be read" in planned(tmp_path, f"extends: round\n{TINY}")


def test_files_that_extend_each_other_many_times_are_read_once_each(tmp_path):
    for depth in range(6):
        (tmp_path / f"{depth}.yaml").write_text(f"extends: {[f'{depth + 1}.yaml'] * 50}\n")
    (tmp_path / "6.yaml").write_text(TINY)
    assert len(planned(tmp_path, "extends: 0.yaml\n")) == 4


@pytest.mark.parametrize("value", ["../../etc", "/etc/passwd", "a\nb", "x" * 250, "$(true)", "\u65e5\u672c", "..", "~"])
def test_labels_never_leave_the_runs_folder(tmp_path, value):
    """A named point may be called anything; its runs' folders and labels are plain."""
    tree = yaml.safe_load(TINY)
    tree["grid"]["point"] = {value: {"trunk.window": 3}}
    outcome = planned(tmp_path, yaml.safe_dump(tree))
    assert not isinstance(outcome, str), outcome
    assert_sound(outcome)


def test_points_that_a_report_could_not_tell_apart_are_refused(tmp_path):
    source = (ROOT / "blocks" / "none.py").read_text()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.py").write_text(f"{source}# {folder}\n")
    memories = [f"{tmp_path}/{folder}/x.py:NoMemory" for folder in ("a", "b")]
    assert "tell them apart" in planned(tmp_path, TINY, f"grid.memory={memories}")
