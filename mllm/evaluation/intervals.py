"""Scores and rates with their 95 % intervals: bootstrap (Efron 1979), Wilson (1927), area under the ROC curve.

scipy does the work and is imported where it is used, because the core imports `percent` from here.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mllm.evaluation.protocol import Score

RESAMPLES = 1000
SEED = 0  # fixed, so that the same answers always give the same interval
BATCH_VALUES = 5_000_000
"""Values that are resampled at once; bounds the memory."""

Statistic = Callable[..., NDArray[np.float64]]
"""(one array per stratum, axis=) -> the score along that axis."""


def score_with_interval(strata: Sequence[Sequence[float]], statistic: Statistic) -> Score:
    """A score and its bootstrap interval; items are resampled within their stratum, whose size the benchmark fixes."""
    from scipy.stats import bootstrap

    # scipy refuses a sample of one item; two copies of it resample to the same thing
    samples = [np.asarray(values if len(values) > 1 else [*values] * 2, dtype=np.float64) for values in strata]
    how: dict[str, Any] = {"n_resamples": RESAMPLES, "batch": max(1, BATCH_VALUES // max(map(len, samples)))}
    how |= {"vectorized": True, "method": "percentile", "rng": np.random.default_rng(SEED)}
    interval = bootstrap(samples, statistic, **how).confidence_interval
    value = float(statistic(*samples, axis=-1))
    return Score(value, float(interval.low), float(interval.high), count=sum(map(len, strata)))


def mean_with_interval(values: Sequence[float], *, scale: float = 1.0) -> Score:
    """The mean of one number per item; scale 100 makes it a percentage."""
    return score_with_interval([values], lambda sample, axis: scale * sample.mean(axis=axis))


def means(groups: Mapping[str, Sequence[float]], *, scale: float = 100.0) -> dict[str, Score]:
    """The mean of every group that has values, by default of shares in percent."""
    return {name: mean_with_interval(values, scale=scale) for name, values in groups.items() if values}


def mean_with_deviation(values: Sequence[float]) -> Score:
    """The mean, and the unbiased standard deviation of single items if there are two."""
    return replace(mean_with_interval(values), std=float(np.std(values, ddof=1)) if len(values) > 1 else None)


def without_interval(value: float, count: int) -> Score:
    """A number of a complete set, such as FID, which resampling would bias, or one that another tool reports alone."""
    return Score(value=float(value), low=float(value), high=float(value), count=count)


class Rate(NamedTuple):
    passed: int
    total: int

    @property
    def share(self) -> float:
        """0 to 1; NaN without items."""
        return self.passed / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval, which stays sensible near 0 and 1."""
        if not self.total:
            return math.nan, math.nan
        from scipy.stats import binomtest

        interval = binomtest(self.passed, self.total).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)

    def __str__(self) -> str:
        if not self.total:
            return "no items"
        low, high = self.interval
        return f"{percent(self.share):>5} %  ({100 * low:.1f} to {100 * high:.1f}, n = {self.total})"


def as_values(is_right: Iterable[bool]) -> dict[str, float | int | None]:
    """The rate of what is right, for JSON; `as_rate` reads it."""
    found = [*is_right]
    rate = Rate(sum(found), len(found))
    share, low, high = (rate.share, *rate.interval) if found else (None, None, None)
    return {"rate": share, "low": low, "high": high, "passed": rate.passed, "total": rate.total}


def as_rate(values: dict) -> Rate:
    return Rate(values["passed"], values["total"])


def percent(share: float) -> str:
    """A share of 0 to 1 in percent, with enough digits that 1,999 of 2,000 do not read as 100."""
    digits = 1
    while share < 1 and round(100 * share, digits) == 100:
        digits += 1
    return f"{100 * share:.{digits}f}"


def auroc(scores: Sequence[float], is_right: Sequence[bool]) -> float | None:
    """The probability that a right item scores higher than a wrong one, ties counted half (Mann-Whitney).

    0.5 is chance, 1 is perfect; None if all items are right or all are wrong.
    """
    from scipy.stats import rankdata

    right = np.asarray(is_right, dtype=bool)
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    if not num_right or not num_wrong:
        return None
    rank_sum = rankdata(scores)[right].sum()
    return float((rank_sum - num_right * (num_right + 1) / 2) / (num_right * num_wrong))


def auroc_interval(groups: Sequence[tuple[Sequence[float], Sequence[bool]]]) -> tuple[float, float] | None:
    """Bootstrap interval of the AUROC over groups: the candidates of one item stay together."""
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
