"""NMR and half-life on frames whose right answers are known."""

import numpy as np
import pandas as pd
import pytest

from rad_bench.report.usage import half_life, memory_rows, normalised_revisit
from tests.report.synthetic import write_sweep


def curve(gain, kind="revisit", episodes=range(5)):
    """Frames of a block that gives `gain[h]` dB over a swapped memory at generated frame h."""
    rows = [
        (episode, frame, kind, intervention, 10.0 + (value if intervention == "keep" else 0.0))
        for episode in episodes
        for frame, value in enumerate(gain)
        for intervention in ("keep", "swap")
    ]
    return pd.DataFrame(rows, columns=["episode", "frame", "kind", "intervention", "psnr"])


def test_the_half_life_of_a_straight_decline_is_where_the_line_crosses():
    gain = 8.0 - 0.2 * np.arange(40)  # the first point, at frame 1.5, is 7.7; half of it is left at frame 20.75
    assert half_life(curve(gain)) == pytest.approx(20.75)


def test_a_gain_that_lasts_has_no_half_life_and_none_at_all_is_undefined():
    assert half_life(curve(np.full(40, 5.0))) == np.inf
    assert np.isnan(half_life(curve(np.full(40, 0.1))))
    kept = curve(np.full(40, 5.0))
    assert np.isnan(half_life(kept[kept["intervention"] == "keep"]))


def test_what_attention_reaches_and_points_of_few_frames_leave_the_half_life_alone():
    decline = curve(8.0 - 0.2 * np.arange(40))
    within_reach = decline["frame"] < 4
    late = decline.assign(kind=np.where(within_reach, "recent", "revisit"))
    late.loc[within_reach & (late["intervention"] == "keep"), "psnr"] += 20  # of the window's making
    assert half_life(late) == pytest.approx(22.75)  # the first point of revisits, at frame 5.5, is 6.9; half is 3.45
    one_episode = late[~within_reach | (late["episode"] == 0)].assign(kind="revisit")
    assert half_life(one_episode) == pytest.approx(22.75)  # four revisits are no point
    assert np.isnan(half_life(decline.assign(kind="recent")))


def test_nmr_is_its_definition_and_undefined_where_neighbours_say_nothing():
    kept = pd.DataFrame({"self_revisit": [0.5, np.nan], "self_other": [0.3, np.nan], "self_neighbour": [0.7, 0.7]})
    assert normalised_revisit(kept) == pytest.approx(0.5)
    assert np.isnan(normalised_revisit(kept.assign(self_neighbour=0.32)))
    assert np.isnan(normalised_revisit(kept.assign(self_revisit=np.nan)))
    assert np.isnan(normalised_revisit(kept[["self_other"]]))


def test_rows_of_a_sweep(tmp_path):
    frames = pd.read_parquet(write_sweep(tmp_path, episodes=24) / "frames.parquet")
    rows = {(row.block, row.task): row for row in memory_rows(frames, ["none", "lstm"], ["retrieval"])}
    assert rows["lstm", "retrieval"].nmr.mean == pytest.approx(0.5)
    assert rows["none", "retrieval"].nmr.mean == pytest.approx(0.0)
    assert rows["lstm", "retrieval"].half_life == [np.inf] * 3
    assert rows["lstm", "retrieval"].pairs == 24 * 6  # of the evaluation, whatever the number of seeds


def test_seeds_without_a_ratio_are_counted(tmp_path):
    frames = pd.read_parquet(write_sweep(tmp_path) / "frames.parquet")
    frames.loc[frames["seed"] == 1, "self_neighbour"] = 0.3  # as alike as different views: nothing to compare with
    (row,) = memory_rows(frames, ["lstm"], ["retrieval"])
    assert (row.nmr.seeds, row.seeds) == (2, 3)
