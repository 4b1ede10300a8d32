"""Intervals and corrections against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from rad_bench.report.intervals import (
    best_group,
    compare_pairs,
    difference,
    estimate,
    holm,
    memory_verdict,
    over_episodes,
    seeds_note,
    share_closed,
    smallest_shown,
)


def by_seed(*values, episodes=2):
    """Seed means as given, episodes symmetric around them."""
    index = pd.MultiIndex.from_product([range(len(values)), range(episodes)], names=["seed", "episode"])
    offsets = np.linspace(-1, 1, episodes)
    return pd.Series([value + offset for value in values for offset in offsets], index)


def test_the_interval_is_student_t_over_seed_means():
    found = estimate(by_seed(10.0, 12.0, 14.0))
    # s = 2, n = 3, t(0.975, 2) = 4.302653: half width 4.302653 * 2 / sqrt(3)
    assert found.mean == pytest.approx(12.0)
    assert found.high - found.mean == pytest.approx(4.968275, abs=1e-5)
    assert found.mean - found.low == pytest.approx(4.968275, abs=1e-5)


def test_intervals_and_p_are_those_of_scipy():
    from scipy import stats

    rng = np.random.default_rng(0)
    for seeds in (2, 3, 6, 20):
        values = rng.normal(1, 1, seeds)
        (pair,) = compare_pairs({"a": by_seed(*values), "b": by_seed(*np.zeros(seeds))})
        (low, high) = stats.t.interval(0.95, seeds - 1, values.mean(), stats.sem(values))
        assert [pair.difference.low, pair.difference.high] == pytest.approx([low, high], rel=1e-9)
        assert pair.p == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue, rel=1e-9)


def test_more_episodes_do_not_make_an_interval_over_seeds_narrower():
    few, many = (estimate(by_seed(10.0, 12.0, 14.0, episodes=n)) for n in (2, 200))
    assert many.high - many.low == pytest.approx(few.high - few.low)


def test_a_difference_is_paired_so_that_what_seeds_share_cancels():
    a, b = by_seed(10.0, 20.0, 30.0), by_seed(9.0, 19.1, 28.9)
    assert estimate(a).high - estimate(a).low > 20
    paired = difference(a, b)
    assert paired.mean == pytest.approx(1.0)
    assert paired.high - paired.low < 0.6


def test_seeds_that_only_one_side_has_are_left_out_of_a_difference():
    assert difference(by_seed(10.0, 12.0, 99.0), by_seed(9.0, 11.0)).seeds == 2


def test_one_seed_gets_an_interval_labelled_as_evaluation_noise():
    found = estimate(by_seed(10.0, episodes=20))
    assert found.evaluation_noise_only
    assert found.low < 10.0 < found.high
    assert "evaluation noise only" in seeds_note(1, "20")
    assert "p < 0.05" in seeds_note(3, "20")
    assert "p < 0.05" not in seeds_note(6, "20")


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    corrected = holm([0.01, float("nan"), 0.02])
    assert corrected[0] == pytest.approx(0.02) and np.isnan(corrected[1]) and corrected[2] == pytest.approx(0.02)
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_every_pair_is_compared_once_and_the_best_group_is_what_cannot_be_told_from_the_best():
    blocks = {"a": by_seed(20.0, 20.1, 19.9), "b": by_seed(19.9, 20.2, 19.8), "c": by_seed(12.0, 12.2, 11.9)}
    pairs = compare_pairs(blocks)
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert best_group(blocks, pairs) == {"a", "b"}


def test_one_seed_tells_no_blocks_apart():
    blocks = {"a": by_seed(20.0), "b": by_seed(10.0)}
    pairs = compare_pairs(blocks)
    assert np.isnan(pairs[0].p)
    assert best_group(blocks, pairs) == {"a", "b"}


def test_the_smallest_difference_shown_is_the_one_whose_corrected_p_is_the_level():
    spread = [-0.2, 0.3, -0.1, 0.0]
    (pair,) = compare_pairs({"a": by_seed(*spread), "b": by_seed(0.0, 0.0, 0.0, 0.0)})
    least = smallest_shown(pair, 10)
    (shifted,) = compare_pairs({"a": by_seed(*(value + least for value in spread)), "b": by_seed(0.0, 0.0, 0.0, 0.0)})
    assert 10 * shifted.p == pytest.approx(0.05)
    assert np.isnan(smallest_shown(compare_pairs({"a": by_seed(1.0), "b": by_seed(0.0)})[0], 1))


def test_the_verdict_needs_a_swap_loss_whose_interval_excludes_zero():
    assert memory_verdict(estimate(by_seed(5.0, 5.5, 6.0)), False) == "uses its memory"
    assert memory_verdict(estimate(by_seed(-0.1, 0.2, 0.1)), False) == "not shown to use its memory"
    assert memory_verdict(estimate(by_seed(0.01, 0.011, 0.012)), False) == "not shown to use its memory"  # to no effect
    assert memory_verdict(estimate(by_seed(5.0)[:0]), False).startswith("not measured")
    assert memory_verdict(estimate(by_seed(5.0, 5.5, 6.0)), True) == "carries none"


def simulated(rng, seeds, effect, episodes=8):
    """Two blocks on the same seeds and episodes: what these share, the effect, and noise of every level."""
    shape = (seeds, episodes)
    shared = rng.normal(20, 3, (seeds, 1)) + rng.normal(0, 2, (1, episodes))
    index = pd.MultiIndex.from_product([range(seeds), range(episodes)], names=["seed", "episode"])
    blocks = [shared + rng.normal(0, 0.7, (seeds, 1)) + rng.normal(0, 1, shape) for _ in range(2)]
    return pd.Series((blocks[0] + effect).ravel(), index), pd.Series(blocks[1].ravel(), index)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_intervals_of_paired_differences_cover_as_often_as_they_say(seeds):
    rng, trials, effect = np.random.default_rng(seeds), 3000, 1.3
    found = [difference(*simulated(rng, seeds, effect)) for _ in range(trials)]
    covered = np.mean([value.low <= effect <= value.high for value in found])
    assert 0.93 <= covered <= 0.97


def test_pooling_episodes_over_seeds_would_not_cover():
    """Why intervals are over seed means: episodes of one trained model are not independent of each other."""
    rng, effect, covered = np.random.default_rng(0), 1.3, []
    for _ in range(500):
        a, b = simulated(rng, 3, effect, episodes=64)
        pooled = (a - b).to_numpy()
        half = 1.96 * pooled.std(ddof=1) / np.sqrt(len(pooled))
        covered.append(abs(pooled.mean() - effect) <= half)
    assert np.mean(covered) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 6])
def test_a_memory_whose_readout_is_ignored_is_said_to_be_used_at_the_stated_rate(seeds):
    """A swap that changes nothing but noise: one-sided, the verdict may be wrong once in forty."""
    rng, trials = np.random.default_rng(seeds), 3000
    verdicts = [memory_verdict(difference(*simulated(rng, seeds, 0.0)), False) for _ in range(trials)]
    wrong = np.mean([verdict == "uses its memory" for verdict in verdicts])
    assert 0.015 <= wrong <= 0.035


@pytest.mark.slow
def test_all_pairs_together_are_wrong_no_more_often_than_one_in_twenty():
    rng, wrong = np.random.default_rng(0), []
    for _ in range(300):
        index = pd.MultiIndex.from_product([range(5), range(4)], names=["seed", "episode"])
        blocks = {name: pd.Series(rng.normal(0, 1, 20), index) for name in "abcde"}
        wrong.append(min(pair.p_holm for pair in compare_pairs(blocks)) < 0.05)
    assert np.mean(wrong) <= 0.06


def test_the_share_of_a_gap_is_a_ratio_of_means_for_each_seed():
    """Seed 0: 2 of 8 dB; seed 1: 6 of 8 dB, whatever single episodes do."""
    index = pd.MultiIndex.from_product([[0, 1], [0, 1], [0]], names=["seed", "episode", "scored"])
    none, ceiling = pd.Series([10.0, 12, 10, 12], index), pd.Series([18.0, 20, 18, 20], index)
    share = share_closed(pd.Series([12.0, 14, 15, 19], index), none, ceiling)
    assert share.mean == pytest.approx(0.5) and share.low < 0.25 < 0.75 < share.high
    assert share_closed(none, none, ceiling).mean == 0 and share_closed(ceiling, none, ceiling).mean == 1
    assert np.isnan(share_closed(none, none, none + 0.5).mean)
    unsure = none + pd.Series([2.0, 2, 12, 12], index)  # 2 dB in one training, 12 in the other
    assert np.isnan(share_closed(none, none, unsure).mean)


def crossed(rng, seeds, episodes, of_seeds, of_episodes, rest=0.5):
    """One table of a crossed design with mean 0: every training is evaluated on every episode."""
    effects = [rng.normal(0, deviation, shape) for deviation, shape in (
        (of_seeds, (seeds, 1)), (of_episodes, (1, episodes)), (rest, (seeds, episodes)))]  # fmt: skip
    index = pd.MultiIndex.from_product([range(seeds), range(episodes)], names=["seed", "episode"])
    return pd.Series(sum(effects).ravel(), index)


@pytest.mark.parametrize(
    ("seeds", "episodes", "of_seeds", "of_episodes"),
    [(3, 32, 0.05, 1.0), (3, 32, 0.3, 0.3), (6, 12, 0.5, 2.0), (3, 12, 1.0, 0.1), (2, 32, 0.1, 1.0)],
)
def test_an_interval_over_episodes_too_covers_the_mean_over_all_trainings_and_episodes(
    seeds, episodes, of_seeds, of_episodes
):
    rng, trials = np.random.default_rng(0), 2000
    found = [over_episodes(crossed(rng, seeds, episodes, of_seeds, of_episodes)) for _ in range(trials)]
    covered = np.mean([estimate.low < 0 < estimate.high for estimate in found])
    assert 0.93 < covered < 0.99, covered


def test_an_interval_over_seeds_alone_does_not_cover_other_episodes():
    rng = np.random.default_rng(0)
    found = [estimate(crossed(rng, 3, 32, 0.05, 1.0)) for _ in range(500)]
    assert np.mean([one.low < 0 < one.high for one in found]) < 0.9


def test_an_interval_over_episodes_too_against_numbers_worked_out_by_hand():
    table = np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]])  # no interaction: rows differ by 2, columns by 1 and 4
    index = pd.MultiIndex.from_product([range(2), range(3)], names=["seed", "episode"])
    found = over_episodes(pd.Series(table.ravel(), index))
    # MS_seeds = 3 * 2 = 6, MS_episodes = 2 * 7 = 14, MS_rest = 0: variance 20 / 6, df = 400 / (36 / 1 + 196 / 2)
    half = 3.1885 * np.sqrt(20 / 6)  # t(0.975, 2.985)
    assert found.mean == pytest.approx(4.0) and found.high - found.mean == pytest.approx(half, rel=2e-3)


def test_one_seed_or_one_episode_has_no_interval_over_both():
    assert np.isnan(over_episodes(by_seed(10.0, episodes=20)).low)
    assert np.isnan(over_episodes(by_seed(10.0, 12.0, episodes=1)).low)
