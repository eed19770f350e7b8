"""How well a score tells right from wrong: the area under the ROC curve (Mann-Whitney), with its interval.

In: scores and verdicts. Out: the probability that a right one scores higher than a wrong one, ties counted half.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mllm.evaluation.bootstrap import RESAMPLES, SEED


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
