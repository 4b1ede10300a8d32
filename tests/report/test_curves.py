"""Curves rest on enough episodes, on the frames they are named after, and show every control."""

import pandas as pd
import pytest

from rad_bench.report import write_report
from rad_bench.report.curves import LEAST_EPISODES, gap_curves, horizon_curves
from rad_bench.report.evidence import gaps
from rad_bench.report.plots import draw_plots
from rad_bench.report.reading import read_sweep
from rad_bench.report.summary import summarise
from tests.report.synthetic import write_sweep


def revisits(gap, episodes, psnr=20.0, frame=0):
    rows = [("lstm", seed, episode, frame, gap, psnr, 0) for seed in (0, 1) for episode in range(episodes)]
    return pd.DataFrame(rows, columns=["block", "seed", "episode", "frame", "gap", "psnr", "truth"])


def test_a_bin_of_few_episodes_is_no_point_of_a_curve():
    frames = pd.concat([revisits(8, LEAST_EPISODES), revisits(50, LEAST_EPISODES - 1, frame=40)], ignore_index=True)
    (gap,), (horizon,) = gap_curves(frames, ["lstm"]), horizon_curves(frames, ["lstm"])
    assert (gap.x, horizon.x) == ([8.0], [0.0])
    assert gap_curves(revisits(8, LEAST_EPISODES - 1), ["lstm"]) == []


def test_frames_and_episodes_of_each_bin_are_told(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path))  # of 12 frames the revisits are 1, 5 and 9, with gaps 8, 12 and 16
    assert [line[1:] for line in gaps(sweep).cells if line[0] == "retrieval"] == [
        ["over 6 to 9", "8", "8"],
        ["over 9 to 12", "8", "8"],
        ["over 12 to 16", "8", "8"],
    ]
    sweep.frames.loc[(sweep.frames["block"] == "lstm") & (sweep.frames["episode"] < 3), "kind"] = "recent"
    assert gaps(sweep).cells[0][2:] == ["5 to 8", "5 to 8"]


@pytest.mark.slow
@pytest.mark.usefixtures("without_pdf")
def test_the_horizon_s_curve_is_of_revisits_and_the_one_of_all_frames_says_so(tmp_path):
    folder = write_sweep(tmp_path)
    frames = pd.read_parquet(folder / "frames.parquet")
    frames["psnr"] = (frames["kind"] != "revisit").map({True: 40.0, False: 20.0})
    frames.to_parquet(folder / "frames.parquet")
    sweep = read_sweep(folder)
    plots = {plot.name: plot for plot in draw_plots(sweep, summarise(sweep)[0], tmp_path / "plots")}
    assert "lstm: 20 at 1, 20 at 9;" in plots["horizon-retrieval"].text
    assert "lstm: 35 at 1.5, 35 at 9.5;" in plots["horizon-all-retrieval"].text  # one frame of four is a revisit
    assert "all frames" not in plots["horizon-retrieval"].caption
    assert "all frames" in plots["horizon-all-retrieval"].caption
    assert f"fewer than {LEAST_EPISODES} episodes" in plots["gap-retrieval"].caption


@pytest.mark.slow
@pytest.mark.usefixtures("without_pdf")
def test_controls_are_drawn_in_every_panel_and_as_a_line_over_the_cost(tmp_path):
    forms = {"none": 12.0, "lstm(size=1)": 15.0, "lstm(size=2)": 16.0}
    folder = write_sweep(tmp_path, base={**forms, "copy-last": 11.0}, swap_loss=dict.fromkeys(forms, 3.0))
    frames = pd.read_parquet(folder / "frames.parquet")
    ceiling = frames[frames["block"] == "copy-last"].assign(block="autoencoder", psnr=30.0)
    pd.concat([frames, ceiling], ignore_index=True).to_parquet(folder / "frames.parquet")
    sweep = read_sweep(folder)
    plots = {plot.name: plot for plot in draw_plots(sweep, summarise(sweep)[0], tmp_path / "plots")}
    for control in ("copy-last", "autoencoder"):
        assert plots["gap-retrieval"].svg.count(f">{control}<") == 2  # panels
        assert plots["horizon-retrieval"].svg.count(f">{control}<") == 2
        assert plots["state-retrieval"].svg.count(f">{control}<") == 1
        assert f">{control}<" not in plots["loss"].svg
    assert "autoencoder: 30.0 dB" in plots["flops-retrieval"].text


@pytest.mark.usefixtures("without_pdf")
def test_a_sweep_of_few_episodes_has_no_curves_and_the_page_says_why(tmp_path):
    page = write_report(write_sweep(tmp_path, episodes=LEAST_EPISODES - 1, seeds=(0, 1))).read_text()
    assert {path.stem.partition("-")[0] for path in page_plots(tmp_path)} == {"interventions", "state", "flops", "loss"}
    assert f"bins of fewer than {LEAST_EPISODES} episodes are not drawn" in page


def page_plots(folder):
    return (folder / "report" / "plots").glob("*.svg")
