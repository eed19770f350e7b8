"""What looks at the model whenever it is validated: sheets of samples, benchmarks, the world's scores.

In: the model as it would be saved now (train/checkpoint/as_saved.py). Out: what each observer writes, and numbers for
the log. The first process works and the others wait; all get the numbers, by which the best checkpoint may be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.processor import MLLMProcessor
from train.batch_source import Tokenizers


class Observer(Protocol):
    names: Sequence[str]
    """Of the numbers it gives."""

    def __call__(self, pipeline: Pipeline, step: int) -> dict[str, float]: ...


class Observers:
    """Called with a step, on every process."""

    def __init__(
        self, model: MLLMForConditionalGeneration, tokenizers: Tokenizers, observers: Sequence[Observer]
    ) -> None:
        self.model, self.tokenizers, self.observers = model, tokenizers, observers

    def __len__(self) -> int:
        return len(self.observers)

    @property
    def names(self) -> list[str]:
        """Of all numbers."""
        return [name for observer in self.observers for name in observer.names]

    def __call__(self, step: int) -> dict[str, float]:
        numbers: dict[str, float] = {}
        if PartialState().is_main_process:
            was_training = self.model.training
            pipeline = Pipeline(
                self.model, MLLMProcessor(self.tokenizers.text, self.tokenizers.image, self.model.config)
            )
            for observer in self.observers:
                numbers |= observer(pipeline, step)
            self.model.train(was_training)
        return broadcast_object_list([numbers])[0]
