"""Intervals: what resampling by hand gives, what theory says, strata kept apart."""

from __future__ import annotations

import math
import random

import pytest

from mllm.evaluation.intervals import mean_of, mean_with_interval, score_with_interval


def test_equals_resampling_items_one_by_one() -> None:
    rng = random.Random(0)
    values = [rng.choice([0.0, 0.3, 0.6, 1.0]) for _ in range(211)]
    score = mean_with_interval(values)
    means = sorted(100 * sum(rng.choices(values, k=211)) / 211 for _ in range(4000))
    assert score.value == pytest.approx(100 * sum(values) / 211)
    assert score.low == pytest.approx(means[100], abs=0.6) and score.high == pytest.approx(means[3900], abs=0.6)
    assert score.count == 211


def test_is_as_wide_as_theory_says() -> None:
    score = mean_with_interval([1.0] * 300 + [0.0] * 700)
    half = 1.96 * 100 * math.sqrt(0.3 * 0.7 / 1000)
    assert score.low == pytest.approx(30 - half, abs=0.4) and score.high == pytest.approx(30 + half, abs=0.4)


def test_the_same_answers_give_the_same_interval() -> None:
    assert mean_with_interval([1.0, 0.0, 0.5]) == mean_with_interval([1.0, 0.0, 0.5])
    certain = mean_with_interval([1.0] * 9)
    assert (certain.low, certain.value, certain.high) == (100.0, 100.0, 100.0)


def test_strata_keep_their_sizes() -> None:
    seen = set()

    def statistic(counts):
        seen.add(tuple(sum(stratum.values()) for stratum in counts))
        return sum(mean_of(stratum) for stratum in counts)

    score = score_with_interval([[0, 1, 1], [0, 2, 2, 2, 2]], statistic)
    assert seen == {(3, 5)} and score.value == pytest.approx(2 / 3 + 8 / 5) and score.count == 8


def test_many_items_are_quick() -> None:
    score = mean_with_interval([0.3, 0.6, 0.9, 1.0] * 50_000)
    assert score.high - score.low < 0.3
