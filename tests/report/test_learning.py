"""Learning curves end at the headline, and the page says whether the order of blocks still changes."""

import pandas as pd
import pytest

from rad_bench.errors import UserError
from rad_bench.report import write_report
from rad_bench.report.learning import learning_curves, learning_lines, learning_table, order_sentences
from rad_bench.report.reading import read_curve, read_sweep
from rad_bench.report.summary import summarise
from tests.report.synthetic import write_curves, write_sweep
from tests.report.test_report import text_of

END = {"none": 0.0, "lstm": 0.0, "mamba2": 0.0}
LATE = {"none": -0.5, "lstm": -1.0, "mamba2": -2.0}  # at the end mamba2 is 3 dB above lstm


@pytest.fixture
def folder(tmp_path):
    return write_sweep(tmp_path, seeds=(0, 1))


def curves_of(folder, shifts):
    write_curves(folder, shifts)
    return learning_curves(read_sweep(folder))


def test_the_last_point_is_the_headline_exactly(folder):
    curves = curves_of(folder, {10: LATE, 20: LATE, 30: END})
    headline = {(row.block, row.task): row.revisit["psnr"] for row in summarise(read_sweep(folder))[0]}
    assert len(curves) == 6  # three blocks on two tasks; a control is not trained
    for curve in curves:
        assert list(curve.points) == [10, 20, 30]
        assert curve.points[30] == headline[curve.block, curve.task]
        assert curve.points[20].mean == pytest.approx(headline[curve.block, curve.task].mean + LATE[curve.block])


def test_where_models_are_compared_over_fewer_frames_the_curve_is_too(folder):
    path = folder / "frames.parquet"
    frames = pd.read_parquet(path)
    write_curves(folder, {10: LATE, 30: END})
    frames[(frames["block"] != "none") | (frames["frame"] < 6)].to_parquet(path)
    sweep = read_sweep(folder)
    assert sweep.unshared["retrieval"] > 0
    headline = {(row.block, row.task): row.revisit["psnr"] for row in summarise(sweep)[0]}
    for curve in learning_curves(sweep):
        assert curve.points[30] == headline[curve.block, curve.task]


def test_an_order_that_stays_is_called_so_with_the_change_of_each_block(folder):
    sentences = order_sentences(curves_of(folder, {10: {"mamba2": -9.0}, 20: LATE, 30: END}))
    assert sentences == [
        f"On {task}, the order of the blocks is the same after 20 and after 30 steps. Change between the two, in dB: "
        "none +0.50, lstm +1.00 and mamba2 +2.00."
        for task in ("continuation", "retrieval")
    ]


def test_blocks_that_changed_places_are_named_with_their_difference_before_and_after(folder):
    (sentence, _) = order_sentences(curves_of(folder, {20: {**LATE, "mamba2": -5.0}, 30: END}))
    assert sentence.startswith(
        "On continuation, the order of the blocks still changed between 20 and 30 steps of training: lstm and mamba2 "
        "(lstm less mamba2: +"
    )
    assert "none and" not in sentence
    assert " changed places. Change between the two, in dB: none +0.50, lstm +1.00 and mamba2 +5.00." in sentence


def test_blocks_are_compared_at_steps_that_all_have(folder):
    curves = curves_of(folder, {10: LATE, 20: LATE, 30: END})
    curves[0].revisits.pop(20)
    assert "after 10 and after 30 steps" in order_sentences(curves[:3])[0]
    curves[0].revisits.pop(10)
    assert order_sentences(curves[:3]) == [
        "On continuation, the blocks have no two steps of training in common, so their order is not compared."
    ]
    assert order_sentences(curves[1:2])[0].startswith("On continuation, there is only one block. Change")


def test_the_table_shows_the_last_steps_and_the_plot_all(folder):
    curves = curves_of(folder, {**{step: LATE for step in range(3, 30, 3)}, 30: END})
    table = learning_table(curves)
    assert table.header == ["block", "task", *(f"step {step}" for step in (15, 18, 21, 24, 27, 30)), "change, dB"]
    assert table.cells[1][:2] == ["lstm", "continuation"] and table.cells[1][-1] == "+1.00 [1.00, 1.00]"
    assert [line.x for line in learning_lines(curves)] == [[float(step) for step in range(3, 31, 3)]] * 6


@pytest.mark.usefixtures("without_pdf")
def test_the_page_has_the_section_with_curves_and_only_then(folder):
    heading = "Does the order still change with training?"
    assert heading not in write_report(folder).read_text()
    assert not list((folder / "report" / "plots").glob("learning-*"))
    write_curves(folder, {20: LATE, 30: END})
    page = text_of(write_report(folder).read_text())
    assert heading in page and "the order of the blocks is the same after 20 and after 30 steps" in page
    assert "retrieval: revisit PSNR of the averaged weights against training steps" in page
    assert {path.stem for path in (folder / "report" / "plots").glob("learning-*.svg")} == {
        "learning-continuation", "learning-retrieval",
    }  # fmt: skip


@pytest.mark.parametrize("change", [lambda f: f.drop(columns="step"), lambda f: f.assign(step="x"), lambda f: f[:0]])
def test_curves_of_another_shape_are_refused(folder, change):
    write_curves(folder, {30: END})
    change(pd.read_parquet(folder / "curves.parquet")).to_parquet(folder / "curves.parquet")
    with pytest.raises(UserError, match=r"curves\.parquet: is not"):
        read_curve(folder / "curves.parquet")
