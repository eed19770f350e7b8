"""Rates with their uncertainty. Pure functions of counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
