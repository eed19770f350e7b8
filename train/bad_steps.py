"""What is done when a step goes wrong: a loss or gradient that is no number, or a loss far above the recent ones.

In: the loss of a step over all ranks, then its gradient norm. Out: whether the step may change the weights. More bad
steps than allowed end the run with one sentence, before anything of the bad step is written.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

WINDOW = 50
"""Recent losses that a spike is judged against."""
MIN_SEEN = 10
"""Losses before a spike can be judged."""
FILE = "bad_steps.json"
"""In a checkpoint: what was seen so far."""


@dataclass(frozen=True, kw_only=True)
class BadSteps:
    allowed: int = 0
    """Steps of a run that may be skipped; one more ends it."""
    spike: float | None = None
    """A loss above this many times the median of the last 50 is bad; None: only what is no number is."""

    def __post_init__(self) -> None:
        if self.allowed < 0 or (self.spike is not None and self.spike <= 1):
            raise ValueError(f"bad_steps has allowed {self.allowed} and spike {self.spike}; use 0 or more, and above 1")


class BadStepsError(ValueError):
    """A run went wrong more often than its recipe allows."""


class StepJudge:
    """Counts the bad steps of a run, over all its stops: `save` and `load` carry the count and the recent losses."""

    def __init__(self, rule: BadSteps) -> None:
        self.rule = rule
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.num_bad = 0

    def fault_of_loss(self, loss: float) -> str | None:
        """What is wrong with the loss of a step, in words; a good loss is remembered."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self.rule.spike is not None and len(self.recent) >= MIN_SEEN:
            median = statistics.median(self.recent)
            if loss > self.rule.spike * median:
                return f"the loss is {loss:.4g}, the median of the last {len(self.recent)} is {median:.4g}"
        self.recent.append(loss)
        return None

    def fault_of_gradient(self, norm: float) -> str | None:
        """What is wrong with the gradient of a step, in words."""
        return None if math.isfinite(norm) else f"the gradient norm is {norm}"

    def count(self, fault: str, *, step: int) -> None:
        """Count a bad step.

        Raises:
            BadStepsError: it was one too many.
        """
        self.num_bad += 1
        if self.num_bad > self.rule.allowed:
            raise BadStepsError(
                f"training went wrong at step {step}: {fault}, after {self.num_bad - 1} skipped steps; nothing of this "
                "step was saved, so lower the learning rate or look at the data, then run the recipe again to go on "
                "from the newest checkpoint (bad_steps.allowed skips a few such steps)"
            )
        logger.warning("step %d is skipped (%d of %d): %s", step, self.num_bad, self.rule.allowed, fault)

    def save(self, folder: Path) -> None:
        """Write what was seen so far into a checkpoint."""
        (folder / FILE).write_text(json.dumps({"num_bad": self.num_bad, "recent": list(self.recent)}) + "\n")

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; older ones hold nothing of this."""
        if (folder / FILE).is_file():
            seen = json.loads((folder / FILE).read_text())
            self.num_bad, self.recent = seen["num_bad"], deque(seen["recent"], maxlen=WINDOW)
