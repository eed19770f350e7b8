"""Rates with their uncertainty. Pure functions of counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mllm.evaluation.protocol import Score

Z_95 = 1.959964  # two-sided 95 % point of the normal distribution


def percent(share: float) -> str:
    """A share of 0 to 1 in percent, with one digit, or as many as it takes not to call 1,999 of 2,000 all of them."""
    digits = 1
    while share < 1 and round(100 * share, digits) == 100:
        digits += 1
    return f"{100 * share:.{digits}f}"


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of a number of items passed."""

    passed: int
    total: int

    @property
    def share(self) -> float:
        """0 to 1; NaN without items."""
        return self.passed / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval (Wilson 1927), which stays sensible near 0 and 1."""
        if not self.total:
            return math.nan, math.nan
        n, p = self.total, self.share
        middle = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
        half = Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n)) / (1 + Z_95**2 / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        if not self.total:
            return "no items"
        low, high = self.interval
        return f"{percent(self.share):>5} %  ({100 * low:.1f} to {100 * high:.1f}, n = {self.total})"


# 95 % bootstrap intervals of any score that is a function of how often each outcome occurs (Efron 1979).
#
# In: the outcomes of items, by stratum, and the score as a function of their counts. Out: an interval. Items are drawn
# anew within their stratum; because only counts matter, that is one multinomial draw per stratum and resample, exact
# and
# quick for hundreds of thousands of items.


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


# How well a score tells right from wrong: the area under the ROC curve (Mann-Whitney), with its interval.
#
# In: scores and verdicts. Out: the probability that a right one scores higher than a wrong one, ties counted half.


def auroc(scores: Sequence[float], is_right: Sequence[bool]) -> float | None:
    """0.5 is chance, 1 perfect; None where all are right or all are wrong."""
    values, right = np.asarray(scores, dtype=np.float64), np.asarray(is_right, dtype=bool)
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    if not num_right or not num_wrong:
        return None
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2  # 1-based; equal values share the mean of their ranks
    rank_sum = mean_ranks[group][right].sum()
    return float((rank_sum - num_right * (num_right + 1) / 2) / (num_right * num_wrong))


def auroc_interval(groups: Sequence[tuple[Sequence[float], Sequence[bool]]]) -> tuple[float, float] | None:
    """2.5 % and 97.5 % quantiles over resampled groups (the candidates of one item stay together)."""
    generator = np.random.default_rng(SEED)
    found = []
    for _ in range(RESAMPLES):
        chosen = [groups[index] for index in generator.integers(0, len(groups), len(groups))]
        area = auroc([s for scores, _ in chosen for s in scores], [r for _, right in chosen for r in right])
        if area is not None:
            found.append(area)
    if not found:
        return None
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return low, high
