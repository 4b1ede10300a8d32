"""The sweeps that come with rad-bench are found by name; a user's file goes first; a copy stands alone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rad_bench.errors import UserError
from rad_bench.store.run_folder import load_run
from rad_bench.sweep import shipped
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep, read_tree
from rad_bench.sweep.origin import Origins
from rad_bench.sweep.own_copy import write_copy
from tests.sweep.tiny import GRU, ROOT, TINY, command, rad_bench, run_here

SHORT = TINY.replace("steps: 30", "steps: 2").replace("checkpoint_every: 5", "warmup: 1")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty folder to work in, without a checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_sweep_comes_with_the_package_and_says_what_it_asks(desk):
    files = {path.relative_to(ROOT / "sweeps").with_suffix("") for path in (ROOT / "sweeps").rglob("*.yaml")}
    assert {*map(str, files)} == {*shipped.names()} and len(files) >= 20
    listed = run_here("sweeps", cwd=desk).stdout.splitlines()
    for name in shipped.names():
        (line,) = [line for line in listed if line.split()[0] == name]
        assert len(line.split(maxsplit=1)[1]) > 20
        assert load_sweep(name).name == load_sweep(ROOT / "sweeps" / f"{name}.yaml").name


@pytest.mark.parametrize(
    "name", ["window", "window.yaml", "sweeps/window", "sweeps/window.yaml", "gpu/window", "sweeps/gpu/window.yaml"]
)
def test_a_sweep_is_found_by_its_name_and_by_the_path_that_documents_write(desk, name):
    assert load_sweep(name).name == ("gpu_window" if "gpu" in name else "window")


@pytest.mark.parametrize("own", ["window", "window.yaml", "sweeps/window.yaml", "gpu/window"])
def test_a_file_of_the_user_goes_first(desk, own):
    (desk / own).parent.mkdir(exist_ok=True)
    (desk / own).write_text("name: mine\n")
    assert load_sweep(own.removesuffix(".yaml")).name == load_sweep(own).name == "mine"


def test_a_folder_of_that_name_is_in_nobodys_way(desk):
    (desk / "window").mkdir()
    assert load_sweep("window").name == "window"


@pytest.mark.parametrize("extends", ["memory_blocks", "sweeps/memory_blocks.yaml", "[memory_blocks, base]"])
def test_a_sweep_of_the_user_may_extend_one_by_name(desk, extends):
    (desk / "base.yaml").write_text("run: {training: {steps: 7}}\n")
    (desk / "mine.yaml").write_text(f"extends: {extends}\nname: mine\n")
    tree = read_tree(desk / "mine.yaml", Origins())
    assert tree["name"] == "mine" and tree["run"]["training"]["batch"] == 4


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("memory_blok", "memory_blocks"), ("gpu/windw", "gpu/window"), ("sweeps/widow.yaml", "window"),
        ("mein.yaml", "mine"), ("mine.yml", "mine"),
    ],
)  # fmt: skip
def test_what_is_not_found_is_answered_with_what_is_near(desk, written, near):
    (desk / "mine.yaml").write_text(TINY)
    (line,) = run_here("plan", written, cwd=desk, expect=2).stderr.strip().splitlines()
    assert f"{written}: No such file" in line and f"did you mean '{near}'?" in line
    assert "Traceback" not in line


@pytest.mark.parametrize("name", ["../sweeps/window", "/sweeps/window", "gpu/../window", "", "."])
def test_a_path_that_leads_elsewhere_is_no_name(desk, name):
    with pytest.raises(UserError):
        load_sweep(name)


@pytest.mark.parametrize("name", shipped.names())
def test_a_copy_stands_alone_and_is_the_same_sweep(desk, name):
    write_copy(name, desk / "own" / "copy.yaml")
    text = (desk / "own" / "copy.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ") and "extends" not in text.partition("\nname:")[2]
    assert load_sweep(desk / "own" / "copy.yaml").model_dump() == load_sweep(name).model_dump()


def test_a_copy_goes_where_it_is_wanted_and_overwrites_nothing(desk):
    assert "window.yaml: written" in run_here("sweeps", "copy", "gpu/window", cwd=desk).stdout
    assert "exists already" in run_here("sweeps", "copy", "window", cwd=desk, expect=2).stderr
    run_here("sweeps", "copy", "window", "--to", "a/b.yaml", cwd=desk)
    assert load_sweep("a/b").name == "window" and load_sweep("window").name == "gpu_window"
    told = run_here("sweeps", "copy", "widow", cwd=desk, expect=2).stderr
    assert "did you mean 'window'?" in told
    (desk / "file").touch()
    assert "cannot be written" in run_here("sweeps", "copy", "window", "--to", "file/b.yaml", cwd=desk, expect=2).stderr


# Blocks beside the sweep


@pytest.mark.parametrize("name", ["my_block:GRU", "my_block.py:GRU"])
@pytest.mark.parametrize("place", ["the folder to work in", "the sweep's folder", "the folder of what it extends"])
def test_a_block_may_lie_beside_the_sweep_or_where_one_works(desk, name, place):
    lies = {"the folder to work in": desk, "the sweep's folder": desk / "a"}.get(place, desk / "b")
    for folder in (desk / "a", desk / "b"):
        folder.mkdir()
    (lies / "my_block.py").write_text(GRU)
    (desk / "b" / "base.yaml").write_text(SHORT)
    (desk / "a" / "mine.yaml").write_text(f"extends: ../b/base.yaml\ngrid: {{memory: ['{name}'], seed: [0]}}\n")
    (run,) = plan_runs(load_sweep("a/mine.yaml"))
    file, _, name = run.config.memory.name.rpartition(":")
    assert Path(file).is_absolute() and Path(file).resolve() == lies / "my_block.py" and name == run.label == "GRU"


def test_where_one_works_goes_before_the_sweeps_folder(desk):
    (desk / "a").mkdir()
    for folder in (desk, desk / "a"):
        (folder / "my_block.py").write_text(GRU)
    (desk / "a" / "mine.yaml").write_text(SHORT.replace("{name: lstm, hidden: 8}", "'my_block:GRU'"))
    assert plan_runs(load_sweep("a/mine.yaml"))[-1].config.memory.name == f"{desk / 'my_block.py'}:GRU"


def test_a_block_that_is_nowhere_is_answered_with_what_helps(desk):
    (desk / "mine.yaml").write_text(SHORT.replace("{name: lstm, hidden: 8}", "'my_block:GRU'"))
    for arguments in (("plan", "mine.yaml", "--no-probe"), ("check", "my_block:GRU")):
        (line,) = run_here(*arguments, cwd=desk, expect=2).stderr.strip().splitlines()
        assert "my_block.py:GRU" in line and "PYTHONPATH" in line


def test_a_job_finds_a_block_of_the_working_directory(desk):
    """Its file, the file beside it that it imports, and no other that lies there."""
    (desk / "helper.py").write_text("WIDTH = 8\n")
    (desk / "random.py").write_text("raise RuntimeError('not me')\n")
    (desk / "my_block.py").write_text("from helper import WIDTH\n" + GRU)
    (desk / "tiny.yaml").write_text(SHORT)
    rad_bench("sweep", "tiny.yaml", "--set", "grid.memory=[my_block:GRU]", "--only", "seed=0", cwd=desk)
    (run,) = (desk / "results" / "tiny" / "runs").iterdir()
    assert load_run(run).config.memory.name == f"{desk / 'my_block.py'}:GRU"


# Installed


@pytest.mark.slow
def test_a_wheel_works_without_the_checkout(desk):
    """Built as pip builds it from a checkout, and by way of a source distribution."""
    pytest.importorskip("setuptools", minversion="77")
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-coz", "--exclude-standard"], capture_output=True, check=False
    ).stdout
    if not tracked:
        pytest.skip("not a git checkout")
    for name in tracked.decode().split("\0")[:-1]:
        if name.startswith(("tests/", "results/")) or not (ROOT / name).exists():
            continue
        (desk / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, desk / "tree" / name, follow_symlinks=False)
    build = "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def built(kind, tree, out):
        out.mkdir()
        subprocess.run(
            [sys.executable, "-c", build, kind, out], cwd=tree, env=environment, check=True, capture_output=True
        )
        return next(iter(out.iterdir()))

    source = built("build_sdist", desk / "tree", desk / "sdist")
    shutil.unpack_archive(source, desk / "unpacked", filter="data")
    wheels = [built("build_wheel", tree, desk / f"wheel{n}") for n, tree in enumerate(
        (desk / "tree", next((desk / "unpacked").iterdir())))]  # fmt: skip
    contents = [{name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in name} for wheel in wheels]
    assert contents[0] == contents[1]
    assert {f"rad_bench/sweeps/{name}.yaml" for name in shipped.names()} <= contents[0]
    assert {f"rad_bench/data/collect/luanti/{side}.lua" for side in ("server", "client")} <= contents[0]
    zipfile.ZipFile(wheels[0]).extractall(desk / "installed")
    work = desk / "work"
    work.mkdir()
    argv, environment = command()
    environment["PYTHONPATH"] = str(desk / "installed")

    def run(*arguments):
        return subprocess.run(
            [*argv, *arguments], cwd=work, env=environment, capture_output=True, text=True, check=True
        )

    where = "import rad_bench, sys; del sys.path[0]; print(rad_bench.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=work, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(desk / "installed"))
    assert "memory_blocks" in run("sweeps").stdout
    planned = ("--only", "memory=attention", "--only", "seed=0", "--set", "run.evaluation.episodes=4")
    assert "attention" in run("plan", "sweeps/memory_blocks.yaml", "--no-probe", *planned).stdout
    run("sweeps", "copy", "window")
    (work / "my_block.py").write_text(GRU)  # the sweep checks it first
    (work / "tiny.yaml").write_text(SHORT)
    run("sweep", "tiny", "--set", "grid.memory=[my_block:GRU]", "--only", "seed=0")
    assert (work / "results" / "tiny" / "report" / "index.html").exists()
