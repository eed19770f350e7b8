"""Intervals: what resampling by hand gives, what theory says, strata kept apart."""

import math
import random

import numpy as np
import pytest

from mllm.evaluation.intervals import Rate, auroc, auroc_interval, mean_with_interval, percent, score_with_interval


def test_the_bootstrap_equals_resampling_items_one_by_one() -> None:
    rng = random.Random(0)
    values = [rng.choice([0.0, 0.3, 0.6, 1.0]) for _ in range(211)]
    score = mean_with_interval(values, scale=100)
    means = sorted(100 * sum(rng.choices(values, k=211)) / 211 for _ in range(4000))
    assert score.value == pytest.approx(100 * sum(values) / 211)
    assert score.low == pytest.approx(means[100], abs=0.6) and score.high == pytest.approx(means[3900], abs=0.6)
    assert score.count == 211
    assert mean_with_interval(values, scale=100) == score
    for values in ([1.0] * 9, [1.0]):
        score = mean_with_interval(values, scale=100)
        assert (score.low, score.value, score.high, score.count) == (100.0, 100.0, 100.0, len(values))


def test_strata_are_resampled_apart() -> None:
    strata = [[0.0, 1.0, 1.0], [7.0]]

    def statistic(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        assert first.shape[axis] == 3 and set(np.unique(first)) <= {0.0, 1.0} and (second == 7).all()
        return first.mean(axis=axis) + second.mean(axis=axis)

    score = score_with_interval(strata, statistic)
    assert score.value == pytest.approx(2 / 3 + 7) and score.count == 4
    assert (score.low, score.high) == (7.0, 8.0)


def test_rates_have_the_interval_of_wilson() -> None:
    for passed, total in ((0, 3), (3, 3), (480, 500), (17, 40)):
        share, z = passed / total, 1.959964
        middle = (share + z * z / (2 * total)) / (1 + z * z / total)
        half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
        low, high = Rate(passed, total).interval
        assert (low, high) == (pytest.approx(max(0, middle - half), abs=1e-6), pytest.approx(middle + half, abs=1e-6))
    assert str(Rate(480, 500)) == " 96.0 %  (93.9 to 97.4, n = 500)" and str(Rate(0, 0)) == "no items"
    assert percent(1999 / 2000) == "99.95" and percent(1.0) == "100.0"


def test_auroc_equals_counting_pairs() -> None:
    rng = random.Random(1)
    scores, right = [rng.randrange(9) / 9 for _ in range(60)], [rng.random() < 0.4 for _ in range(60)]
    rights, wrongs = ([s for s, r in zip(scores, right, strict=True) if r == kind] for kind in (True, False))
    pairs = [(a > b) + 0.5 * (a == b) for a in rights for b in wrongs]
    assert auroc(scores, right) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc([1.0, 2.0], [True, True]) is None
    low, high = auroc_interval([(scores[n : n + 4], right[n : n + 4]) for n in range(0, 60, 4)])
    assert low < auroc(scores, right) < high and auroc_interval([([1.0], [True])]) is None
