"""95 % bootstrap intervals of any score that is a function of how often each outcome occurs (Efron 1979).

In: the outcomes of items, by stratum, and the score as a function of their counts. Out: an interval. Items are drawn
anew within their stratum; because only counts matter, that is one multinomial draw per stratum and resample, exact and
quick for hundreds of thousands of items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from mllm.evaluation.benchmark import Score

T = TypeVar("T", bound=Hashable)

RESAMPLES = 1000
SEED = 0  # fixed, so that the same answers always give the same interval


def score_with_interval(
    strata: Sequence[Sequence[T]], statistic: Callable[[Sequence[Mapping[T, int]]], float]
) -> Score:
    """The score and the 2.5 % and 97.5 % quantiles of it over resampled items.

    Args:
        strata: outcomes of the items, one sequence per group whose size is fixed by the benchmark.
        statistic: counts of outcomes by stratum -> score; must take counts of zero.
    """
    counts = [Counter(stratum) for stratum in strata]
    value = statistic(counts)
    generator = np.random.default_rng(SEED)
    outcomes = [list(counter) for counter in counts]
    drawn = [
        generator.multinomial(total := sum(counter.values()), [counter[o] / total for o in kinds], size=RESAMPLES)
        for counter, kinds in zip(counts, outcomes, strict=True)
    ]
    resampled = [
        statistic(
            [dict(zip(kinds, draws[n].tolist(), strict=True)) for kinds, draws in zip(outcomes, drawn, strict=True)]
        )
        for n in range(RESAMPLES)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    return Score(value=value, low=low, high=high, count=sum(len(stratum) for stratum in strata))


def mean_with_interval(values: Sequence[float]) -> Score:
    """The mean of one number per item, as a percentage."""
    return score_with_interval([values], lambda counts: 100 * mean_of(counts[0]))


def mean_of(counts: Mapping[float, int]) -> float:
    """The mean of values that occur this often."""
    return sum(value * count for value, count in counts.items()) / sum(counts.values())


def mean_of_many(values: Sequence[float]) -> Score:
    """The mean of continuous values with its interval; quick where hardly two are equal."""
    found, generator = np.asarray(values, dtype=np.float64), np.random.default_rng(SEED)
    means = [found[generator.integers(0, len(found), len(found))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return Score(value=float(found.mean()), low=low, high=high, count=len(found))


def without_interval(value: float, count: int) -> Score:
    """A number of a whole set, such as FID, which resampled items would bias, or one that another tool gives alone."""
    return Score(value=float(value), low=float(value), high=float(value), count=count)
