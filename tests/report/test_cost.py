"""Costs on the page: what is counted, and ratios of times that were taken in turns; no times of busy runs."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest

from rad_bench.report import write_report
from rad_bench.report.answer import answer
from rad_bench.report.cost import base_times, baseline, machine
from rad_bench.report.reading import read_sweep
from rad_bench.report.summary import summarise
from rad_bench.report.tables import cost, paper
from rad_bench.store.sweep_folder import CALIBRATION
from tests.report.synthetic import write_sweep


def timing(*factors):
    """A machine that slows down from turn to turn, and a model that takes `factors` times the base."""
    turns = [0.1, 0.2, 0.4]
    parts = ("step", "first_frames", "last_frames")
    return {part: [turn * factor for turn in turns] for part, factor in zip(parts, factors, strict=True)}


def with_calibration(folder, **changes):
    record = {
        "models": {"none": "a", "lstm": "b"}, "device": "cpu (a model)", "threads": 1, "cores": 2, "others": 0.01,
        "timings": {"none": timing(1, 1, 1), "lstm": timing(1.5, 2, 3)}, "frames": {"none": 8, "lstm": 8},
    }  # fmt: skip
    (folder / CALIBRATION).write_text(json.dumps(record | changes))
    return folder


def lines(table):
    return {line[0]: dict(zip(table.header, line, strict=True)) for line in table.cells}


def test_ratios_are_within_turns_so_a_machine_that_slows_down_changes_none(tmp_path):
    sweep = read_sweep(with_calibration(write_sweep(tmp_path)))
    costs = lines(cost(summarise(sweep)[0], machine(sweep)))
    parts = ("training step, ratio", "frame at the start, ratio", "frame at the end, ratio")
    assert [costs["lstm"][part] for part in parts] == ["1.50", "2.00", "3.00"]
    assert [costs["none"][part] for part in parts] == ["1.00"] * 3 and not any(costs["mamba2"][part] for part in parts)
    assert costs["lstm"]["FLOPs, ratio"] == "1.22" and costs["none"]["FLOPs, ratio"] == "1.00"
    assert base_times(sweep) == "none takes 200 ms a training step and 25 ms a frame at the end."
    assert machine(sweep).endswith("medians of 3 turns [quartiles]. The machine was idle otherwise.")


def test_quartiles_are_shown_where_turns_differ(tmp_path):
    own = {"step": [1.0, 2.0, 3.0], "first_frames": [1.0, 1.0, 1.0], "last_frames": [1.0, 1.0, 1.0]}
    even = {part: [1.0, 1.0, 1.0] for part in own}
    sweep = read_sweep(with_calibration(write_sweep(tmp_path), timings={"none": even, "lstm": own}))
    assert lines(cost(summarise(sweep)[0]))["lstm"]["training step, ratio"] == "2.00 [1.50, 2.50]"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"others": 1.9}, "NOT idle: other work kept 1.9 of 2 cores busy"),
        ({"others": None}, "was not measured"),
        ({"timings": {}, "absent": "the runs were jobs of a cluster"}, "No times: the runs were jobs of a cluster."),
    ],
)
def test_a_busy_machine_and_times_that_are_missing_are_told(tmp_path, changes, said):
    assert said in machine(read_sweep(with_calibration(write_sweep(tmp_path), **changes)))


def test_without_times_flops_stand_in_their_place(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path))
    rows, pairs = summarise(sweep)
    assert machine(sweep) == "No times: the sweep was not calibrated (launch.calibrate)." and not base_times(sweep)
    assert not [name for table in (cost(rows), paper(rows)) for name in table.header if "ms" in name or "time" in name]
    _, (mamba2, none, *_) = answer(sweep, rows, pairs, [])[-1]
    assert mamba2.startswith("mamba2: 1,000 parameters") and mamba2.endswith("takes 1.22 times the FLOPs of none.")
    assert none == "none: 0 parameters, no state."


@pytest.mark.usefixtures("without_pdf")
def test_the_page_and_the_summary_have_the_ratios(tmp_path):
    folder = with_calibration(write_sweep(tmp_path))
    page = write_report(folder).read_text()
    assert "all blocks in turns in one process, CPU time on cpu (a model), 1 thread" in page
    assert "none takes 200 ms a training step" in page
    assert not re.search(r"ms per|flops-", " ".join([page, *(path.name for path in folder.glob("report/plots/*.svg"))]))
    assert (folder / "report" / "plots" / "time-retrieval.svg").exists()
    summary = pd.read_csv(folder / "summary.csv").set_index(["block", "task"])
    columns = ["step_ratio", "first_frames_ratio", "last_frames_ratio_high"]
    assert summary.loc[("lstm", "retrieval"), columns].tolist() == pytest.approx([1.5, 2, 3])


def test_a_block_is_compared_with_the_none_of_its_axes_or_else_with_the_first_block(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path))
    frames = sweep.frames
    for labels, block, expected in (
        (["lstm", "mamba2"], "mamba2", "lstm"),
        (["none / window=1", "none / window=2", "lstm / window=2"], "lstm / window=2", "none / window=2"),
    ):
        named = pd.concat([frames[frames["block"] == "lstm"].assign(block=label) for label in labels])
        results = [sweep.results[0].model_copy(update={"block": label}) for label in labels]
        assert baseline(replace(sweep, frames=named, results=results), block) == expected
