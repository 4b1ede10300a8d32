"""The recipe of CONTRIBUTING.md, followed: a metric is one entry of `METRICS`, and all else goes by it."""

import numpy as np
import pandas as pd
import pytest
import torch

from rad_bench.errors import UserError
from rad_bench.evaluation.metrics import METRICS, Metric, metric_card
from rad_bench.evaluation.scoring import frame_metrics
from rad_bench.report import write_report
from rad_bench.report.reading import read_frames
from tests.report.synthetic import write_sweep


def mae(frames, truth):
    return (frames - truth).abs().mean((-3, -2, -1))


@pytest.fixture
def with_mae(monkeypatch):
    entry = Metric(
        score=mae, definition="mean absolute error", label="MAE", unit="levels", digits=1, higher_is_better=False,
        smallest=8,
    )  # fmt: skip
    monkeypatch.setitem(METRICS, "mae", entry)


def test_a_card_defines_it_and_is_another(request):
    before = metric_card()
    request.getfixturevalue("with_mae")
    assert metric_card()["mae"] == "mean absolute error" and metric_card()["card"] != before["card"]


def test_frames_are_scored_by_it_where_they_are_large_enough(with_mae):
    videos = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8)
    scores = frame_metrics(videos, videos.flip(1), torch.device("cpu"))
    expected = mae(videos.flatten(0, 1) / 255, videos.flip(1).flatten(0, 1) / 255)
    np.testing.assert_allclose(scores["mae"], expected, atol=1e-6)
    assert "mae" not in frame_metrics(videos[..., :7], videos[..., :7], torch.device("cpu"))


@pytest.mark.usefixtures("without_pdf")
def test_a_report_reads_summarises_ranks_and_shows_it(with_mae, tmp_path):
    folder = write_sweep(tmp_path)
    frames = pd.read_parquet(folder / "frames.parquet")
    frames = frames[frames["task"] == "retrieval"]
    frames = frames.assign(mae=40 - frames["psnr"], mae_decoded=30 - frames["psnr"])
    frames.to_parquet(folder / "frames.parquet")
    page = write_report(folder).read_text()
    summary = pd.read_csv(folder / "summary.csv").set_index(["block", "task"])
    assert summary.loc[("lstm", "retrieval"), "revisit_mae"] == pytest.approx(22.0, abs=0.3)
    headline = (folder / "report" / "tables" / "headline.md").read_text()
    for heading in ("revisit MAE, levels", "revisit MAE against decoded truth, levels"):
        assert f"| {heading} |" in headline and f">{heading}</th>" in page
    lines = [line for line in headline.splitlines() if "| retrieval |" in line and line.count("**19.")]
    assert len(lines) == 1 and lines[0].startswith("| **mamba2**")  # less is better, and no other is as good
    assert "retrieval: revisit MAE against the generated frame" in page
    frames.assign(mae="loud").to_parquet(folder / "frames.parquet")
    with pytest.raises(UserError, match="column 'mae'"):
        read_frames(folder / "frames.parquet")
