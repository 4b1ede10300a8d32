"""A results folder that somebody else made is read without following it elsewhere and without running what it names."""

import ast
import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from rad_bench.cli import main
from rad_bench.config import RunConfig
from rad_bench.errors import UserError
from rad_bench.report.reading import read_sweep
from rad_bench.store.run_folder import Run, load_run, save_run
from rad_bench.store.sweep_folder import planned_runs
from rad_bench.sweep.gather import finish
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.launch import run_sweep
from rad_bench.sweep.load import load_sweep
from rad_bench.sweep.merge import compare, merge
from rad_bench.sweep.status import read_runs
from tests.report.synthetic import write_sweep
from tests.sweep.tiny import ROOT, TINY

ELSEWHERE = ["../../etc", "/etc", "..", ".", "", "a/b", "a\\b", "x\n", "x" * 300, 7, None, ["x"], "~root", "\u65e5"]


@pytest.fixture
def folder(tmp_path):
    """A finished sweep whose every run names a block that must not be imported."""
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nraise SystemExit(3)\n")
    folder = write_sweep(tmp_path / "sweep", seeds=(0, 1), base={"none": 12.0, "lstm": 18.0}, episodes=2)
    frames = pd.read_parquet(folder / "frames.parquet")
    config = RunConfig.model_validate({"memory": f"{evil}:X"})
    for path in (folder / "runs").iterdir():
        label, _, seed = path.name.partition("-seed")
        run = Run(path.name, label, {"memory": f"{evil}:X"}, config.model_copy(update={"seed": int(seed)}), "0" * 64)
        save_run(run, path)
        frames[frames["run"] == path.name].to_parquet(path / "frames.parquet")
    return folder


def plan_of(folder, **changes):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


@pytest.mark.slow
def test_no_verb_on_a_results_folder_imports_a_block(folder, tmp_path, monkeypatch, capsys):
    for verb in (
        ["status", folder],
        ["report", folder],
        ["compare", folder, folder],
        ["merge", tmp_path / "m", folder],
    ):
        monkeypatch.setattr(sys, "argv", ["rad-bench", *map(str, verb)])
        main()
        assert not (tmp_path / "imported").exists(), verb
    assert (tmp_path / "m" / "report" / "index.html").exists()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_planned_names_lead_nowhere_else(folder, tmp_path, name):
    plan_of(folder, planned=["none-seed0", name])
    for read in (planned_runs, read_sweep, lambda _: merge(tmp_path / "m", [folder])):
        with pytest.raises(UserError, match=r"sweep\.yaml.* not a valid name of a run"):
            read(folder)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("column", ["run", "task"])
@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a\nb"])
def test_names_in_a_table_of_frames_lead_nowhere_else(folder, column, name):
    frames = pd.read_parquet(folder / "frames.parquet")
    frames.assign(**{column: name}).to_parquet(folder / "frames.parquet")
    with pytest.raises(UserError, match="not a valid name of a run"):
        read_sweep(folder)


@pytest.mark.usefixtures("without_plots")
def test_a_result_cannot_name_files_elsewhere(folder):
    path = folder / "runs" / "lstm-seed0" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "run": "../../../etc"}))
    assert {result.run for result in read_sweep(folder).results} == {p.name for p in (folder / "runs").iterdir()}
    strips = {"../../../../x": {"episodes": [0], "frames": [0]}, "{what.__class__}": {"episodes": ["0"], "frames": [0]}}
    for task, shown in strips.items():
        path.write_text(json.dumps({**result, "strips": {task: shown}}))
        with pytest.raises(UserError, match="is not a valid name"):
            read_sweep(folder)
        (unread,) = [status for status in read_runs(folder, planned_runs(folder))[0] if status.state != "done"]
        assert unread.name == "lstm-seed0" and "is not a valid name" in unread.detail
    assert finish(folder, planned_runs(folder)).unfinished == [unread]


def test_links_out_of_the_folder_are_not_followed(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("{}")
    run = folder / "runs" / "lstm-seed0"
    for link, target in ((run / "strips" / "continuation-keep-0.png", secret), (run / "round", run / "round")):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
        for read in (planned_runs, read_sweep, lambda _: merge(tmp_path / "m", [folder]), lambda f: compare(f, f)):
            with pytest.raises(UserError, match="leads out of"):
                read(folder)
        link.unlink()
    shutil.move(run, tmp_path / "run")
    run.symlink_to(tmp_path / "run")
    with pytest.raises(UserError, match="leads out of"):
        planned_runs(folder)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "planned: 3", "a: &a [*a]", "{" * 5000, "planned: [!!python/name:os.system ]", "x: 2020-99-99", "\x00"],
)
def test_what_is_no_sweep_is_refused(folder, content):
    (folder / "sweep.yaml").write_text(content)
    with pytest.raises(UserError, match="not the folder of a sweep"):
        planned_runs(folder)
    (folder / "runs" / "none-seed0" / "config.yaml").write_text(content)
    with pytest.raises(UserError, match="not the config of a run"):
        load_run(folder / "runs" / "none-seed0")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"{}"])
def test_what_is_no_result_or_table_is_refused(folder, content):
    (folder / "runs" / "none-seed0" / "result.json").write_bytes(content)
    with pytest.raises(UserError, match="not the result of a run"):
        read_sweep(folder)
    (folder / "frames.parquet").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_sweep(folder)


def test_a_failure_cannot_command_the_terminal(folder, monkeypatch, capsys):
    run = folder / "runs" / "none-seed0"
    (run / "result.json").unlink()
    (run / "failure.txt").write_bytes(b"Error: \x1b]0;owned\x07 [/bold] [red]x[/red] :smile: \xff\n")
    os.utime(run / "failure.txt", (2**31, 2**31))
    monkeypatch.setattr(sys, "argv", ["rad-bench", "status", str(folder)])
    main()
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown
    assert "[/bold] [red]x[/red] :smile:" in shown


def test_a_folder_from_elsewhere_does_not_choose_what_a_sweep_runs(tmp_path, monkeypatch):
    """What is missing is run as this sweep says, whatever config.yaml lies there already."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    sweep = load_sweep(tmp_path / "tiny.yaml")
    runs = plan_runs(sweep)[:1]
    place = tmp_path / "out" / "runs" / runs[0].name
    evil = RunConfig.model_validate({"memory": "/tmp/evil.py:X"})
    save_run(Run(runs[0].name, "evil", {}, evil, runs[0].key), place)
    monkeypatch.setattr("rad_bench.sweep.launch.launch_here", lambda *_: {})
    from rich.console import Console

    run_sweep(sweep, runs, {}, tmp_path / "out", "local", False, Console(quiet=True))
    assert load_run(place) == runs[0]


def test_nothing_that_is_read_can_hold_code():
    """No unsafe YAML, no pickles: of torch, of numpy, of pandas, of Python.

    One exception: the weights of LPIPS come as a pickle of known hash, for which a loader admits arrays alone.
    """
    calls = []
    for path in [*(ROOT / "rad_bench").rglob("*.py"), *(ROOT / "blocks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            unsafe = {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"} & set(names)
            assert not unsafe or (path.name, unsafe) == ("fetch_weights.py", {"pickle"}), path
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
                assert node.attr in ("Unpickler", "UnpicklingError"), path  # to restrict the one, and catch the other
            if isinstance(node, ast.Call):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                calls.append((path.name, ast.unparse(node.func), [ast.unparse(a) for a in node.args], given))
    for where, called, arguments, given in calls:
        if called == "torch.load":
            assert given.get("weights_only") == "True", where
        if called == "np.load":
            assert given.get("allow_pickle") == "False", where
        if called in ("yaml.load", "yaml.load_all"):
            assert arguments[1:] == ["_Loader"], where
        assert called not in ("yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "eval", "exec"), where
    assert {"torch.load", "np.load", "yaml.load"} <= {called for _, called, _, _ in calls}


@pytest.mark.slow
def test_giants_are_refused_before_they_are_given_memory(tmp_path):
    """In a process of four gigabytes, so that a test which fails does not take the machine along."""
    sweep = yaml.safe_load(TINY)
    sweep["grid"] = {"memory": ["none"]}
    for number, giant in enumerate(
        (
            {"memory": {"name": "lstm", "hidden": 10**9}},
            {"memory": {"name": "ttt", "head_dim": 10**7}},
            {"training": {"frames": 100_000}, "trunk": {"width": 4096, "depth": 1, "patch": 1}},
        )
    ):
        tree = {**sweep, "run": {**sweep["run"], **giant}, "grid": {}}
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(tree))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from rad_bench.cli import main\n"
        "for n in range(3):\n"
        "    sys.argv = ['rad-bench', 'plan', f'{n}.yaml']\n"
        "    try: main()\n"
        "    except SystemExit as ended: assert ended.code == 2, ended\n"
        "    else: raise AssertionError(n)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("are the most") == 3, ended.stderr
