"""How many surfaces a memory holds: the curve, where half is lost, and how the report shows it."""

import numpy as np
import pandas as pd
import pytest

from rad_bench.report import write_report
from rad_bench.report.capacity import channel_bits
from rad_bench.report.load import half_lost, loads
from rad_bench.report.reading import read_sweep
from tests.report.synthetic import write_sweep

ITEMS = [4] * 8 + [8] * 8 + [16] * 8 + [32] * 8  # of the episodes
HOLDS = {"none": 0, "lstm": 8, "mamba2": 64, "copy-last": 0}  # surfaces; the others are guessed


def write_loads(folder, episodes=len(ITEMS)):
    folder = write_sweep(folder, episodes=episodes)
    frames = pd.read_parquet(folder / "frames.parquet")
    items = frames["episode"].map(dict(enumerate(ITEMS))).astype(float)
    held = np.minimum(frames["block"].map(HOLDS), items) / items
    frames.assign(recall=held + (1 - held) / 8, items=items, choices=8.0).to_parquet(folder / "frames.parquet")
    return folder


def test_half_is_lost_between_two_loads_by_their_logarithm():
    assert half_lost([4, 16], [0.75, 0.25]) == pytest.approx(8)
    assert half_lost([4, 8, 16], [1.0, 0.5, 0.0]) == pytest.approx(8)
    assert half_lost([4, 8, 16], [0.4, 0.6, 0.2]) == pytest.approx(8 * 2**0.25), "for good: after the last half"
    assert half_lost([4, 8], [0.9, 0.5]) == np.inf and half_lost([4, 8], [0.4, 0.1]) == -np.inf


def test_a_memory_of_eight_surfaces_bends_away_after_eight(tmp_path):
    found = {load.block: load for load in loads(read_sweep(write_loads(tmp_path))) if load.task == "retrieval"}
    assert [point.items for point in found["lstm"].points] == [4, 8, 16, 32]
    bits = [point.bits.mean for point in found["lstm"].points]
    assert bits[:2] == pytest.approx([12, 24]) and bits[2] == pytest.approx(16 * channel_bits(0.5 + 0.5 / 8, 8))
    assert 8 < found["lstm"].half.mean < 16 and found["lstm"].most.items == 8
    assert found["mamba2"].half_text == "more than 32" and found["none"].half_text == "fewer than 4"
    assert found["mamba2"].most.bits.mean == pytest.approx(96)


@pytest.mark.usefixtures("without_pdf")
def test_the_page_shows_the_curve_the_knee_and_bits_per_kilobyte(tmp_path):
    folder = write_loads(tmp_path)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "half of their colours are lost: mamba2 more than 32, lstm 1" in page
    lines = (folder / "report" / "tables" / "load.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("| mamba2 | retrieval")]
    state = (
        pd.read_csv(folder / "summary.csv").set_index(["block", "task"]).loc[("mamba2", "retrieval"), "state_bytes_end"]
    )
    assert line.endswith(f"| more than 32 | 96.0 [96.0, 96.0] | 32 | {96_000 / state:.2f} |")
    assert (folder / "report" / "plots" / "load-retrieval.svg").exists()


@pytest.mark.usefixtures("without_plots")
def test_worlds_of_one_size_have_no_curve(tmp_path):
    folder = write_loads(tmp_path)
    frames = pd.read_parquet(folder / "frames.parquet")
    frames[frames["items"] <= 8].to_parquet(folder / "frames.parquet")
    assert loads(read_sweep(folder)) == []
    assert "until half is lost" not in write_report(folder).read_text(encoding="utf-8")
