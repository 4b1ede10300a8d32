"""What a reader of a log file sees of a sweep, and what a run's log says of it."""

import io
import json
import os
import re

from rich.console import Console

from rad_bench.store.lease import hold
from rad_bench.store.run_folder import RunFolder
from rad_bench.sweep import progress
from rad_bench.sweep.progress import ProgressView
from rad_bench.sweep.status import run_status


def begun(folder, step, seconds=4.0):
    folder.mkdir(parents=True, exist_ok=True)
    record = {"phase": "training", "step": step, "steps": 100, "loss": 0.25, "seconds": seconds}
    RunFolder(folder).log.write_text(json.dumps(record) + "\n")
    return folder


def test_a_running_run_tells_its_step_its_loss_and_its_rate(tmp_path):
    folder = begun(tmp_path / "lstm", 20)
    assert run_status(folder).state == "stopped"
    with hold(RunFolder(folder).attempts, 30.0):
        status = run_status(folder)
    assert (status.state, status.detail) == ("running", "step 20/100, loss 0.2500, 5.0 steps a second")


def test_a_log_file_gets_one_line_an_interval_with_the_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    folders = [begun(tmp_path / f"run{k}", 10) for k in range(5)]
    file = io.StringIO()
    with ProgressView(folders, Console(file=file, width=40)) as view:
        with hold(RunFolder(folders[0]).attempts, 30.0), hold(RunFolder(folders[1]).attempts, 30.0):
            view.update()
            begun(folders[0], 60)
            view.update()
        os.link(RunFolder(folders[0]).log, RunFolder(folders[0]).result)
        view.update()
    first, second, done, third = file.getvalue().splitlines()
    assert re.match(r"\d\d:\d\d:\d\d 9%, 0 of 5 done, 2 running; run0: step 10/100", first)
    assert "run1: step 10/100" in first and "left" not in first  # nothing has moved yet, so nobody can know
    assert re.search(r" 18%, 0 of 5 done, 2 running, about \S+ \S+ left; run0: step 60/100", second)
    assert done == "1/5 run0: done"
    assert "1 of 5 done, 0 running, about" in third
