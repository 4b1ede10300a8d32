"""FVD in the report: a number with its clips, or the reason why there is none, and never a mixture of both."""

import json

import pandas as pd
import pytest

from rad_bench.errors import UserError
from rad_bench.report import write_report
from rad_bench.report.reading import read_sweep
from rad_bench.report.summary import summarise, summary_table
from rad_bench.report.tables import distances
from rad_bench.sweep.merge import _same_cards
from tests.report.synthetic import write_sweep

ABSENT = "weights missing: `rad-bench weights fvd` fetches them"


def with_fvd(folder, clips=128, absent=None):
    """Give the runs of a sweep an FVD of continuation, and none, with a reason, of retrieval."""
    for path in folder.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        scores = {"generated": 100.0 * len(result["block"]) + result["seed"], "copy-last": 900.0}
        size = {"frames": 16, "height": 64, "width": 48}
        continuation = {"clips": clips, **size, "scores": scores, "halves": 150.25}
        fvd = {"continuation": continuation, "retrieval": {"clips": 32, **size, "absent": ABSENT}}
        path.write_text(json.dumps({**result, "fvd": fvd}))
    return folder


@pytest.mark.usefixtures("without_plots")
def test_the_page_has_the_number_with_its_clips_or_says_why_there_is_none(tmp_path):
    folder = with_fvd(write_sweep(tmp_path))
    page = write_report(folder).read_text()
    summary = pd.read_csv(folder / "summary.csv").set_index(["block", "task"])
    assert summary.loc[("lstm", "continuation"), "fvd"] == pytest.approx(401)
    assert summary.loc[("copy-last", "continuation"), ["fvd", "fvd_clips"]].tolist() == [900, 128]
    assert summary["fvd"].xs("retrieval", level="task").isna().all()
    lines = (folder / "report" / "tables" / "fvd.md").read_text().splitlines()
    (lstm,) = [line for line in lines if line.startswith("| lstm | continuation")]
    assert lstm == "| lstm | continuation | 401.0 [398.5, 403.5] | 150.2 | 128 | 16 | 64 x 48 |  |"
    absent = [line for line in lines if "| retrieval" in line]
    assert len(absent) == 4 and all("|  |  | 32 | 16 | 64 x 48 | weights missing" in line for line in absent)
    assert "half of the true episodes against the other half" in page and "rad-bench weights fvd" in page


def test_runs_that_were_not_asked_for_it_have_no_such_table_and_column(tmp_path):
    rows, _ = summarise(read_sweep(write_sweep(tmp_path)))
    assert not distances(rows).cells and "fvd" not in summary_table(rows)


def test_sweeps_whose_clips_differ_do_not_mix(tmp_path):
    sweeps = [read_sweep(with_fvd(write_sweep(tmp_path / name), clips)) for name, clips in (("a", 128), ("b", 256))]
    with pytest.raises(UserError, match=r"different clips.*continuation: 256 of 16 frames of 64 x 48 pixels"):
        _same_cards(sweeps)
    _same_cards([sweeps[0], sweeps[0], read_sweep(write_sweep(tmp_path / "none"))])
