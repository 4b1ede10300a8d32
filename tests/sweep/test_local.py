"""Runs on this machine: which GPUs they have, what is said of those that fail, and that none is left behind."""

import os
import signal
import subprocess
import sys

import pytest

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.store.run_folder import RunFolder
from rad_bench.sweep import local
from rad_bench.sweep.cluster import ClusterLaunch
from rad_bench.sweep.job import SUPERSEDED, Missing
from rad_bench.sweep.local import gpus_of, launch_here, visible_gpus
from rad_bench.sweep.status import run_status
from tests.sweep.tiny import TINY, command, wait_for


@pytest.mark.parametrize(
    ("visible", "launch", "expected"),
    [
        ((), {}, [(), (), ()]),
        (("0",), {}, [("0",), ("0",), ("0",)]),  # shared
        (("0", "1"), {}, [("0",), ("1",), ("0",)]),
        (("4", "5", "6", "7"), {"processes": 2}, [("4", "5"), ("6", "7"), ("4", "5")]),
        (("0",), {"processes": 2}, [("0",), ("0",), ("0",)]),
        (("0", "1"), {"device": "cpu"}, [(), (), ()]),
        (("0", "1"), {"device": "cuda:1"}, [("0", "1"), ("0", "1"), ("0", "1")]),
    ],
)
def test_runs_beside_each_other_have_gpus_of_their_own_where_there_are_enough(visible, launch, expected):
    assert [gpus_of(place, LaunchConfig(**launch), visible) for place in range(3)] == expected


def test_the_gpus_to_use_are_those_that_the_user_shows(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8932f937")
    assert visible_gpus() == ("2", "GPU-8932f937")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Launch a run whose process executes some code; return how often it began, and what is said of it."""

    def launch(code, attempts=3):
        began = []

        def start(attempt, gpus):
            began.append(attempt.number)
            with attempt.run.paths.output.open("ab") as output:
                process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=output, stderr=output)
            attempt.processes.append(process)

        monkeypatch.setattr(local, "start", start)
        monkeypatch.setattr(local, "POLL_SECONDS", 0.01)
        notes = launch_here([Missing(tmp_path, LaunchConfig(attempts=attempts))], 2, lambda: None)
        return len(began), notes.get(tmp_path.name)

    return launch


def test_a_run_that_fails_before_it_has_begun_is_tried_once_and_says_why(launch, tmp_path):
    tried, note = launch("import no_such_module")
    assert tried == 1
    assert note == f"ModuleNotFoundError: No module named 'no_such_module' ({tmp_path / 'output.txt'})"
    assert (run_status(tmp_path).state, run_status(tmp_path).detail) == ("failed", note)


@pytest.mark.parametrize(("name", "memory"), [("SIGKILL", True), ("SIGSEGV", False)])
def test_a_run_whose_process_is_killed_is_tried_again_and_memory_is_suspected_only_where_it_fits(launch, name, memory):
    tried, note = launch(f"import os, signal; os.kill(os.getpid(), signal.{name})", attempts=2)
    assert tried == 2 and note.startswith(f"its process was killed 2 times by {name}")
    assert ("too little memory" in note) is memory


def test_a_run_that_goes_on_after_a_kill_has_no_note(launch):
    code = """
import os, pathlib
before, result = pathlib.Path("before"), pathlib.Path("result.json")
if not before.exists():
    before.touch()
    os.kill(os.getpid(), 9)
result.touch()
"""
    assert launch(code) == (2, None)


def test_what_a_run_said_itself_of_its_failure_stays(launch, tmp_path):
    RunFolder(tmp_path).failure.write_text("why\n")
    assert launch("raise SystemExit(1)")[0] == 1
    assert run_status(tmp_path).detail == "why"


def test_a_run_that_another_attempt_took_over_has_not_failed(launch, tmp_path):
    assert launch(f"print({SUPERSEDED!r})") == (1, f"{SUPERSEDED} ({tmp_path / 'output.txt'})")
    assert not RunFolder(tmp_path).failure.exists()


def test_paths_in_which_slurm_would_replace_something_are_refused(tmp_path):
    with pytest.raises(UserError, match="folder without %"):
        ClusterLaunch(tmp_path / "exp%j", {}, lambda: None).start()


@pytest.mark.parametrize(
    ("send", "end"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)], ids=["a terminal", "kill"]
)
def test_an_interrupt_ends_all_runs_and_says_so_in_one_line(tmp_path, send, end):
    """Also where it was started with SIGINT ignored, as shells start what they run in the background."""
    (tmp_path / "tiny.yaml").write_text(TINY.replace("steps: 30", "steps: 100000"))
    argv, environment = command("sweep", "tiny.yaml", "--only", "seed=0")
    launcher = subprocess.Popen(
        argv, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    runs = tmp_path / "results" / "tiny" / "runs"
    wait_for(lambda: sum(b"\n" in log.read_bytes() for log in runs.glob("*/log.jsonl")) == 2)  # lines, not only files
    send(launcher.pid, end)
    out, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert errors.strip() == "interrupted; the same command goes on from here"
    assert "Traceback" not in out
    assert {run_status(run).state for run in runs.iterdir()} == {"stopped"}
    with pytest.raises(ProcessLookupError):
        os.killpg(launcher.pid, 0)  # nobody of its group is left
