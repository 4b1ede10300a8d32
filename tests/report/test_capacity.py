"""Bits: what an answer carries at a share of right ones, and how the report shows it."""

import numpy as np
import pandas as pd
import pytest

from rad_bench.report import write_report
from rad_bench.report.capacity import channel_bits
from tests.report.synthetic import write_sweep


def test_bits_of_a_channel_are_its_mutual_information():
    for choices, share in ((2, 0.9), (8, 0.5), (12, 0.3), (8, 1.0)):
        joint = np.full((choices, choices), (1 - share) / (choices - 1) / choices)
        np.fill_diagonal(joint, share / choices)
        nonzero = joint[joint > 0]
        information = (nonzero * np.log2(nonzero * choices**2)).sum()
        assert channel_bits(share, choices) == pytest.approx(information)


def test_guessing_carries_nothing_on_the_average():
    assert channel_bits(1 / 8, 8) == pytest.approx(0, abs=1e-12)
    shares = np.random.default_rng(0).binomial(200, 1 / 8, 4000) / 200
    assert abs(np.mean([channel_bits(share, 8) for share in shares])) < 2e-3
    assert channel_bits(0.0, 8) < 0 < channel_bits(0.2, 8) and np.isnan(channel_bits(np.nan, 8))


@pytest.mark.usefixtures("without_plots")
def test_the_report_says_how_many_bits_each_block_recovers_and_per_kilobyte_of_state(tmp_path):
    folder = write_sweep(tmp_path)
    frames = pd.read_parquet(folder / "frames.parquet")
    share = frames["block"].map({"none": 1 / 8, "lstm": 0.5, "mamba2": 1.0, "copy-last": 0.25})
    frames.assign(recall=share, items=6.0, choices=8.0).to_parquet(folder / "frames.parquet")
    page = write_report(folder).read_text()
    summary = pd.read_csv(folder / "summary.csv").set_index(["block", "task"])
    assert summary.loc[("mamba2", "retrieval"), ["items", "bits_offered", "bits"]].tolist() == [6, 18, 18]
    assert summary.loc[("lstm", "retrieval"), "bits"] == pytest.approx(6 * channel_bits(0.5, 8))
    assert summary.loc[("none", "retrieval"), "bits"] == pytest.approx(0, abs=1e-9)
    table = (folder / "report" / "tables" / "capacity.md").read_text()
    (line,) = [line for line in table.splitlines() if line.startswith("| mamba2 | retrieval")]
    state = summary.loc[("mamba2", "retrieval"), "state_bytes_end"]
    assert "| 6.0 |" in line and "| 18.0 |" in line and line.endswith(f"| {18_000 / state:.2f} |")
    assert "bits per kB" in page and "that only memory can know, generated frames hold: mamba2 18.0" in page


@pytest.mark.usefixtures("without_plots")
def test_without_a_palette_the_report_has_no_such_table(tmp_path):
    page = write_report(write_sweep(tmp_path)).read_text()
    assert "bits per kB" not in page and "bits in the colours" not in page
