"""Time several ways of doing one thing side by side: warmed up, interleaved, in an order that flips every round.

In: functions by name. Out: seconds per round of each. On a CPU the process's own seconds count, so that neighbours on
the machine disturb little; on a GPU events around the whole call. Absolute times move with the machine, ratios hold.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of every round."""

    rounds: tuple[float, ...]

    @property
    def least(self) -> float:
        return min(self.rounds)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def time_interleaved(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device
) -> dict[str, Timing]:
    """Run each variant once per round, forwards and backwards in turn, after `WARM_UPS` rounds that do not count."""
    measure = seconds_on_gpu if device.type == "cuda" else seconds_of_process
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(WARM_UPS + rounds):
        order = list(variants) if number % 2 == 0 else list(variants)[::-1]
        for name in order:
            taken = measure(variants[name])
            if number >= WARM_UPS:
                seconds[name].append(taken)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def seconds_of_process(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def seconds_on_gpu(work: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One thing, timed in several ways."""

    name: str
    facts: dict[str, Any]  # sizes and settings
    checks: dict[str, bool]  # equalities that were shown before anything was timed
    timings: dict[str, Timing]  # "ours" among them
    gate: str | None = None  # the variant that "ours" is asked to beat, if any
    floor: float | None = None  # seconds that the machine's memory and arithmetic need at least

    def speed_up(self, variant: str) -> float:
        """How many times longer the variant takes than ours, by the least of the rounds."""
        return self.timings[variant].least / self.timings["ours"].least

    def median_speed_up(self, variant: str) -> float:
        return self.timings[variant].median / self.timings["ours"].median
