"""The statistics of the report: pure functions from frames to estimates with intervals.

A block's value for a seed is the mean over frames, then over episodes. Intervals are over seeds, because only seeds are
independent: they hold for the episodes that were evaluated. `over_episodes` gives the wider interval that holds for
other episodes of the same kind too. Differences are paired within a seed (same trunk, same episodes, same sampling
noise).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # scipy.stats has the same, and takes half a second to import

LEVEL = 0.95
LEAST_LOSS = 0.1  # dB; a smaller loss is too small to matter, even if it is significant
LEAST_GAP = 1.0  # dB between none and attention; the share of a smaller gap is noise
RESAMPLES = 2000  # of the bootstrap over episodes, used with a single seed
SEEDS_FOR_PERMUTATION = (
    6  # fewest seeds n for which a paired sign-flip test can reach p < 0.05; its smallest p is 2 / 2^n
)


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; bounds are NaN without an interval."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def evaluation_noise_only(self) -> bool:
        """True for a single seed, whose interval says nothing about training."""
        return self.seeds == 1


def episode_means(frames: pd.DataFrame, column: str = "psnr") -> pd.Series:
    """Return means of `column`, indexed by (seed, episode, scored), where `scored` identifies the set of frames."""
    scored = (frames["truth"] * (frames["frame"] + 1)).groupby([frames["seed"], frames["episode"]]).transform("sum")
    return frames.assign(scored=scored).groupby(["seed", "episode", "scored"])[column].mean()


def estimate(by_episode: pd.Series) -> Estimate:
    """Return the mean over episodes, then seeds, with a Student t interval over seeds.

    The first index of `by_episode` is the seed. With one seed the interval is a bootstrap over its episodes.
    """
    values = by_episode.dropna().groupby("seed").mean().to_numpy()
    if len(values) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    if len(values) == 1:
        return Estimate(float(values[0]), *_bootstrap(by_episode.dropna().to_numpy()), 1)
    half = stdtrit(len(values) - 1, 0.5 + LEVEL / 2) * _standard_error(values)
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half), len(values))


def by_seed(values: Mapping[Any, float]) -> Estimate:
    """Estimate the mean of one value per seed; a single seed has no interval."""
    finite = [value for value in values.values() if np.isfinite(value)]
    if len(finite) < 2:
        return Estimate(finite[0] if finite else np.nan, np.nan, np.nan, len(finite))
    index = pd.MultiIndex.from_product([range(len(finite)), [0]], names=["seed", "episode"])
    return estimate(pd.Series(finite, index))


def over_episodes(by_episode: pd.Series) -> Estimate:
    """Return the mean with an interval over trainings and episodes together; NaN bounds with one seed or one episode.

    Seeds and episodes are crossed random effects: every training is evaluated on every episode. The variance of the
    mean is (MS_seeds + MS_episodes - MS_rest) / (seeds x episodes), its degrees of freedom are Satterthwaite's
    (Brennan 2001, Generalizability Theory, ch. 6). Only episodes that all seeds have are used.
    """
    table = by_episode.dropna().unstack("seed").dropna().to_numpy()  # [episodes, seeds]
    E, S = table.shape
    if not table.size:
        return Estimate(np.nan, np.nan, np.nan, 0)
    mean = float(table.mean())
    if min(E, S) < 2:
        return Estimate(mean, np.nan, np.nan, S)
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + mean
    squares = np.array([E * table.mean(0).var(ddof=1), S * table.mean(1).var(ddof=1)])
    degrees = np.array([S - 1, E - 1])
    rest_degrees = (S - 1) * (E - 1)
    rest_square = float((rest**2).sum()) / rest_degrees
    total = float(squares.sum()) - rest_square
    if total > squares.max():
        df = total**2 / float((squares**2 / degrees).sum() + rest_square**2 / rest_degrees)
    else:  # one of the effects is not seen: the other alone decides
        total, df = float(squares.max()), float(degrees[squares.argmax()])
    half = float(stdtrit(df, 0.5 + LEVEL / 2)) * np.sqrt(total / (S * E))
    return Estimate(mean, mean - half, mean + half, S)


def difference(a: pd.Series, b: pd.Series) -> Estimate:
    """Estimate a - b, paired by seed and episode, over equal sets of frames."""
    return estimate((a - b).dropna())


def share_closed(block: pd.Series, none: pd.Series, attention: pd.Series) -> Estimate:
    """Estimate (block - none) / (attention - none), a ratio of means for each seed.

    Unlike decibels, this share can be compared between worlds and papers. It is NaN if attention is not shown to be
    better than none: a share of a gap that may be none is noise.
    """
    if not difference(attention, none).low > 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    means = pd.concat([block, none, attention], axis=1, join="inner").dropna().groupby("seed").mean().to_numpy()
    if not len(means) or (means[:, 2] - means[:, 1]).min() < LEAST_GAP:
        return Estimate(np.nan, np.nan, np.nan, 0)
    shares = (means[:, 0] - means[:, 1]) / (means[:, 2] - means[:, 1])
    return by_seed(dict(enumerate(shares)))


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    means = generator.choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Pair:
    """The comparison of two blocks."""

    first: str
    second: str
    difference: Estimate  # first - second
    over_episodes: Estimate  # the same, with an interval that holds for other episodes too
    p: float  # of the paired t test over seeds, before correction; NaN with fewer than two seeds
    p_holm: float


def compare_pairs(by_block: dict[str, pd.Series]) -> list[Pair]:
    """Compare every block with every other: paired t over seeds, Holm-corrected over all pairs."""
    pairs = []
    for first, second in itertools.combinations(by_block, 2):
        gap = (by_block[first] - by_block[second]).dropna()
        values = gap.groupby("seed").mean().to_numpy()
        if len(values) < 2:
            p = np.nan
        elif np.ptp(values):
            t = values.mean() / _standard_error(values)
            p = float(2 * stdtr(len(values) - 1, -abs(t)))
        else:
            p = float(values[0] == 0)
        pairs.append((first, second, estimate(gap), over_episodes(gap), p))
    corrected = holm([p for *_, p in pairs])
    return [Pair(*pair, q) for pair, q in zip(pairs, corrected, strict=True)]


def find_pair(first: str, second: str, pairs: Sequence[Pair]) -> Pair | None:
    """Return the comparison `first` - `second`, stored in either order; None if they have no common frames."""
    for pair in pairs:
        if pair.difference.seeds and (pair.first, pair.second) == (first, second):
            return pair
        if pair.difference.seeds and (pair.first, pair.second) == (second, first):
            return Pair(first, second, _negative(pair.difference), _negative(pair.over_episodes), pair.p, pair.p_holm)
    return None


def _negative(value: Estimate) -> Estimate:
    return Estimate(-value.mean, -value.high, -value.low, value.seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; NaN stays NaN and does not count."""
    p = np.asarray(p_values, float)
    corrected = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p) if np.isfinite(p[i])]
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[i]))
        corrected[i] = running
    return corrected.tolist()


def best_group(by_block: dict[str, pd.Series], pairs: Sequence[Pair]) -> set[str]:
    """Return the best block and all that are not distinguishable from it at 5 % after correction."""
    if not by_block:
        return set()
    best = max(by_block, key=lambda block: estimate(by_block[block]).mean)
    worse = {
        pair.second if pair.first == best else pair.first
        for pair in pairs
        if best in (pair.first, pair.second) and pair.p_holm < 1 - LEVEL
    }
    return set(by_block) - worse


def memory_verdict(swap_drop: Estimate, memoryless: bool) -> str:
    """Say whether a block uses its memory, from its loss with another episode's memory (swap)."""
    if memoryless:
        return "carries none"
    if np.isnan(swap_drop.mean):
        return "not measured: no revisits, or no swap"
    if swap_drop.low > 0 and swap_drop.mean >= LEAST_LOSS:
        return "uses its memory" + (" (one seed)" if swap_drop.evaluation_noise_only else "")
    return "not shown to use its memory"


def smallest_shown(pair: Pair, pairs: int) -> float:
    """Return the smallest mean difference that is distinguishable from zero, given a pair's spread over seeds.

    Uses the strictest level of Holm's correction over `pairs` pairs. NaN with a single seed.
    """
    d = pair.difference
    if d.seeds < 2:
        return np.nan
    sem = (d.high - d.low) / 2 / stdtrit(d.seeds - 1, 0.5 + LEVEL / 2)
    return float(stdtrit(d.seeds - 1, 1 - (1 - LEVEL) / (2 * pairs)) * sem)


def seeds_note(seeds: int, episodes: str) -> str:
    """Say what the number of seeds allows to conclude; `episodes` is the number of held-out episodes."""
    if seeds == 1:
        return (
            f"One seed: intervals are a bootstrap over {episodes} held-out episodes and show evaluation noise only, "
            "not training noise."
        )
    note = (
        f"{seeds} seeds: intervals are Student t over seed means, differences are paired by seed. All seeds share one "
        f"set of held-out episodes and one draw of sampling noise: intervals are over trainings, for these {episodes} "
        "episodes and this sampling noise. Where an interval is said to hold for other episodes too, it is over "
        "trainings and episodes together, and for other sampling noise too: each episode has noise of its own."
    )
    if seeds < SEEDS_FOR_PERMUTATION:
        smallest = 2 / 2**seeds
        note += (
            f" With fewer than {SEEDS_FOR_PERMUTATION} seeds no distribution-free paired test can reach p < 0.05"
            f" (its smallest p is {smallest:.2g}), so these p-values depend on the assumption of the t test."
        )
    return note
