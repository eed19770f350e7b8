"""How many processes share a work, which of them this is, and waiting for the others.

One process alone needs nothing. Several are those of `torchrun` or `accelerate launch`, joined by accelerate.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch

from mllm.checkpoint import choose_device

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""Processes wait for the slowest at the end of a long preparation."""
WAIT_IN_TRAINING = timedelta(hours=6)
"""Long enough for the first process to encode, draw, answer or compute rFID alone; one that hangs is noticed then."""


class Processes:
    """This process among its equals."""

    def __init__(self) -> None:
        self.count, self.index, self.state = 1, 0, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            self.state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
            self.count, self.index = self.state.num_processes, self.state.process_index

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        if self.state is not None:
            return self.state.device
        return choose_device(None)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What of a list is this process's."""
        return items[self.index :: self.count]

    def wait(self) -> None:
        """Until all are here."""
        if self.state is not None:
            self.state.wait_for_everyone()
