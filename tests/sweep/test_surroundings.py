"""What surrounds a launcher stays outside: a SLURM job around it, the working directory, home, locale and names."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rad_bench.config import LaunchConfig
from rad_bench.data.index import cache_folder
from rad_bench.errors import UserError
from rad_bench.evaluation import perceptual
from rad_bench.paths import absolute_path, user_path
from rad_bench.store.run_folder import RunFolder
from rad_bench.sweep import inherited, squeue
from rad_bench.sweep.job import Missing
from rad_bench.sweep.journal import Submission
from rad_bench.sweep.local import Attempt, end, start
from rad_bench.training.distributed import join
from tests.sweep.tiny import ON_SLURM, ROOT, TINY, command, rad_bench, run_here

SHORT = TINY.replace("steps: 30", "steps: 2").replace("checkpoint_every: 5", "warmup: 1")
ONE = ("--only", "memory=none", "--only", "seed=0")
AROUND = {  # of an interactive job of two nodes, in which torchrun was used too
    "SLURM_JOB_ID": "99", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_NUM_NODES": "2",
    "SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_PER_TASK": "8", "SLURM_ARRAY_JOB_ID": "98", "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_RESTART_COUNT": "5", "SBATCH_PARTITION": "elsewhere", "SBATCH_MEM_PER_NODE": "1", "SRUN_CPUS_PER_TASK": "8",
    "SQUEUE_PARTITION": "elsewhere", "SUBMITIT_EXECUTOR": "slurm", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1",
    "MASTER_ADDR": "elsewhere", "MASTER_PORT": "1",
}  # fmt: skip
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def episodes(folder, count=3):
    """Write episodes of a Memory Maze, of noise."""
    folder.mkdir(parents=True)
    facing = np.linspace(0, 6, 40)
    for number in range(count):
        np.savez(
            folder / f"{number}.npz",
            image=np.random.default_rng(number).integers(0, 255, (40, 16, 16, 3), np.uint8),
            action=np.eye(6)[np.ones(40, int)],
            agent_pos=np.full((40, 2), 1.5),
            agent_dir=np.column_stack([np.cos(facing), np.sin(facing)]),
            maze_layout=np.ones((5, 5), bool),
        )
    return folder


# A job around the launcher


@pytest.fixture
def around(monkeypatch):
    for name, value in AROUND.items():
        monkeypatch.setenv(name, value)


def test_what_describes_a_job_around_the_launcher_is_not_handed_on(around, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}/a{os.pathsep}")  # an empty entry is the working directory
    assert inherited.here()["PYTHONPATH"] == "/a"
    for environment in (inherited.here(), inherited.elsewhere()):
        assert not AROUND.keys() & environment.keys()
        assert environment["SLURM_CONF"] == "/etc/slurm.conf" and environment["PATH"] == os.environ["PATH"]
    assert inherited.here()["CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in inherited.elsewhere()
    with inherited.replaced_by(inherited.here()):
        assert "SLURM_PROCID" not in os.environ and join().world == 1
    assert AROUND.items() <= os.environ.items()


def test_a_run_here_is_no_part_of_that_job(around, tmp_path):
    """It fails, for want of a config, but its process says which rank and job it took itself for."""
    (tmp_path / "sitecustomize.py").write_text("import json, os; open('seen', 'w').write(json.dumps(dict(os.environ)))")
    attempt = Attempt(Missing(tmp_path, LaunchConfig()), 1, [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
        patch.chdir(tmp_path)
        start(attempt, ())
    attempt.processes[0].wait(60)
    end(attempt.processes)
    seen = json.loads((tmp_path / "seen").read_text())
    assert not {name for name in seen if name.startswith(("SLURM_", "SBATCH_", "SUBMITIT_"))}
    assert (seen["RANK"], seen["WORLD_SIZE"], seen["MASTER_ADDR"]) == ("0", "1", "localhost")


@pytest.fixture
def noting(tmp_path):
    """A folder of stand-ins for SLURM's commands, which note their environment; `sbatch` accepts a job."""
    tools = tmp_path / "tools"
    tools.mkdir()
    answers = {"sbatch": "echo Submitted batch job 7", "scontrol": "echo MaxArraySize = 1001"}
    for name in ("sbatch", "scontrol", "squeue", "scancel", "sacct", "srun"):
        (tools / name).write_text(f"#!/bin/sh\nenv > {tools}/{name}.seen\n{answers.get(name, 'true')}\n")
        (tools / name).chmod(0o755)
    return tools


def test_sbatch_is_called_as_from_outside_of_that_job(around, noting, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{noting}:{os.environ['PATH']}")
    (tmp_path / "tiny.yaml").write_text(ON_SLURM)
    run_here("sweep", "tiny.yaml", "--cluster", "slurm", "--detach", *ONE, cwd=tmp_path)
    squeue.query([Submission(tmp_path, "rad-bench-x", ("a",), True)])
    for name in ("sbatch", "scontrol", "squeue"):
        seen = dict(line.partition("=")[::2] for line in (noting / f"{name}.seen").read_text().splitlines())
        assert not AROUND.keys() & seen.keys(), name
    (script,) = tmp_path.glob("results/tiny/submitit/*/*_submission.sh")
    assert f"{sys.executable} -P -u -m submitit" in script.read_text()


@pytest.mark.slow
def test_a_sweep_launched_from_an_interactive_job_runs_as_from_outside(tmp_path, slurm):
    """SLURM itself refuses a job that inherits memory by CPU and asks for memory by node."""
    (tmp_path / "tiny.yaml").write_text(SHORT.replace("launch: {", "launch: {slurm: {partition: debug, poll: 1}, "))
    for name in ("yaml.py", "random.py", "torch.py", "blocks.py"):
        (tmp_path / name).write_text("raise SystemExit('not me')\n")
    around = {**slurm.environment, **AROUND}
    rad_bench("sweep", "tiny.yaml", *ONE, cwd=tmp_path, environment=around)
    (environment,) = tmp_path.glob("results/tiny/runs/*/environment.json")
    stored = json.loads(environment.read_text())
    assert stored["processes"] == 1 and stored["slurm_job"] not in (None, AROUND["SLURM_JOB_ID"])


# The working directory


@pytest.mark.parametrize("cluster", ["local", pytest.param("debug", marks=pytest.mark.slow)])
def test_files_in_the_working_directory_shadow_nothing(tmp_path, cluster):
    """Neither for the launcher nor for the processes that it starts."""
    (tmp_path / "tiny.yaml").write_text(SHORT)
    for name in ("blocks", "yaml", "torch", "random", "numpy", "submitit"):
        (tmp_path / f"{name}.py").write_text(f"open('imported', 'w').write({name!r})\nraise RuntimeError('not me')\n")
    script = tmp_path / "bin" / "rad-bench"  # what pip installs, whose folder comes first on the path
    script.parent.mkdir()
    script.write_text("from rad_bench.cli import main\nmain()\n")
    argv = [sys.executable, str(script), "sweep", "tiny.yaml", "--cluster", cluster, *ONE]
    environment = {**os.environ, "PYTHONPATH": f"{os.pathsep}{ROOT}"}  # an empty entry is the working directory
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "imported").exists()


def test_python_m_rad_bench_imports_nothing_from_the_working_directory(tmp_path):
    for name in ("yaml", "click", "random", "signal"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not me')\n")
    rad_bench("sweeps", cwd=tmp_path)
    rad_bench("--version", cwd=tmp_path, environment={**os.environ, "PYTHONSAFEPATH": "1"})


# Home and cache


def test_a_home_is_written_out_wherever_a_path_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a", "--out") == tmp_path / "a"
    assert absolute_path("~/a", "run.data.path") == str(tmp_path / "a")
    episodes(tmp_path / "maze", 6)
    (tmp_path / "base.yaml").write_text(SHORT)
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "mine.yaml").write_text(
        "extends: ~/base.yaml\nname: mine\nrun: {data: {name: memory_maze, path: ~/maze}}\n"
        "grid: {memory: ['~/gru_block.py:GRU'], seed: [0]}\n"
    )
    (tmp_path / "gru_block.py").write_text((ROOT / "examples" / "gru_block.py").read_text())
    shown = run_here("plan", "~/mine.yaml", "--no-probe", "--out=~/results", cwd=work).stdout
    assert "GRU" in shown
    run_here("data", "check", "~/maze", cwd=work)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "~nobody-here/tiny.yaml"),
        ("plan", "tiny.yaml", "--out=~nobody-here/out"),
        ("plan", "tiny.yaml", "--set", "run.data={name: memory_maze, path: ~nobody-here/maze}"),
        ("plan", "tiny.yaml", "--set", "grid.memory=['~nobody-here/my.py:X']"),
        ("plan", "tiny.yaml", "--set", "extends=~nobody-here/base.yaml"),
        ("status", "~nobody-here/results"),
        ("check", "~nobody-here/my.py:X"),
    ],
)
def test_a_home_that_does_not_exist_is_named(tmp_path, arguments):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (line,) = run_here(*arguments, cwd=tmp_path, expect=2).stderr.strip().splitlines()
    assert "~nobody-here" in line


def nobody(_):
    raise KeyError("uid not found")


def test_without_a_home_only_the_cache_is_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for function in ("getpwuid", "getpwnam"):
        monkeypatch.setattr(f"pwd.{function}", nobody)
    for name in ("USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder().is_absolute()
    run_here("data", "check", episodes(tmp_path / "maze"), cwd=tmp_path)
    assert squeue.query([]) == {}
    monkeypatch.setenv("PATH", "")
    with pytest.raises(squeue.SilentError):  # there is no squeue, and nobody's name was asked for
        squeue.query([Submission(tmp_path, "rad-bench-x", ("a",), True)])


@pytest.mark.parametrize("cache", ["relative/cache", "/dev/null", "/proc/nowhere", "{folder}/a file"])
def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch, cache):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", cache.format(folder=tmp_path))
    monkeypatch.setenv("HOME", "/proc/nowhere")
    folder = episodes(tmp_path / "maze")
    for _ in range(2):
        run_here("data", "check", folder, cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a file", "maze"}


def test_a_home_that_must_not_be_read_has_no_weights_in_it(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    perceptual.lpips_unavailable.cache_clear()
    assert "weights missing" in (perceptual.lpips_unavailable() or "")
    perceptual.lpips_unavailable.cache_clear()


# Locales and names


@pytest.mark.slow
def test_an_ascii_locale_reads_writes_and_prints_everything(tmp_path):
    """File, folder, data, label and block have accents; a run fails and says so."""
    folder = tmp_path / "données 日本"
    episodes(folder / "épisodes", 6)
    data = f"data: {{name: memory_maze, path: {folder / 'épisodes'}}}"
    (folder / "über.yaml").write_text(
        SHORT.replace("data: {name: rooms, size: 16}", data)
        .replace("memory: [none, {name: lstm, hidden: 8}]", "'régime': {‘été’: {memory: none}}")
        .replace("seed: [0, 1]", "seed: [0]"),
        encoding="utf-8",
    )
    options = {"cwd": folder, "environment": {**os.environ, **ASCII}}
    rad_bench("data", "check", "épisodes", **options)
    rad_bench("sweep", "über.yaml", "--out", "résultats", **options)
    (run,) = (folder / "résultats" / "tiny" / "runs").iterdir()
    assert "‘été’" in RunFolder(run).config.read_text(encoding="utf-8")
    (run / "result.json").unlink()
    RunFolder(run).write_failure("c’est cassé")
    assert "failed c" in rad_bench("status", "résultats/tiny", **options).stdout
    wrong = rad_bench("plan", "néant.yaml", expect=2, **options)
    assert "Traceback" not in wrong.stderr and "ant.yaml" in wrong.stderr


@pytest.mark.parametrize("arguments", [("plan", "NAME"), ("plan", "tiny.yaml", "--out", "NAME"), ("status", "NAME")])
@pytest.mark.parametrize("changes", [{}, ASCII], ids=["utf-8", "ascii"])
def test_a_name_that_is_not_utf_8_is_named_in_one_paragraph(tmp_path, arguments, changes):
    (tmp_path / "tiny.yaml").write_text(TINY)
    argv, environment = command(environment={**os.environ, **changes})
    named = [b"caf\xe9" if argument == "NAME" else argument.encode() for argument in arguments]
    ended = subprocess.run([*argv, *named], cwd=tmp_path, env=environment, capture_output=True)
    (line,) = ended.stderr.decode("ascii").strip().splitlines()
    assert ended.returncode == 2 and r"caf\xe9: is not UTF-8" in line


def test_a_folder_around_it_that_is_not_utf_8_is_named(tmp_path, monkeypatch):
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    place.mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=r"run\.data\.path: .*caf.*xe9/maze: is not UTF-8"):
        absolute_path("maze", "run.data.path")


def test_a_directory_that_is_gone_is_named(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    argv, environment = command("sweeps")
    shell = ["sh", "-c", f'rmdir {gone}; exec "$@"', "sh", *argv]
    ended = subprocess.run(shell, cwd=gone, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and "the current directory cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_file_is_read_and_written_as_utf_8():
    """Each text file names its encoding, and so does each program whose output is read."""
    without = []
    for path in (ROOT / "rad_bench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = {keyword.arg for keyword in node.keywords}
            mode = ast.literal_eval(node.args[0]) if node.args and isinstance(node.args[0], ast.Constant) else ""
            binary = isinstance(mode, str) and "b" in mode
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            reads = called in ("read_text", "write_text") or (
                called == "open" and owner not in ("archive", "av", "Image", "os", "self", "tarfile") and not binary
            )
            if (reads and "encoding" not in given) or given & {"text", "universal_newlines"}:
                without.append(f"{path.name}:{node.lineno}")
    assert without == []
