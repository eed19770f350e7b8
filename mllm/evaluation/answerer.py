"""Lets a pipeline answer the items of a benchmark: opens pictures, asks, and gives one text or one picture for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from mllm.conversation import ImagePart, Message, TextPart
from mllm.evaluation.benchmark import Item, Mode
from mllm.pipeline import Pipeline
from mllm.row_builder import Overrides
from tokenizer.image_processor import open_image


@dataclass(frozen=True, slots=True)
class PipelineAnswerer:
    """An `Answer` of the runner."""

    pipeline: Pipeline
    mode: Mode
    sampling: Overrides

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[str | Image.Image]:
        """One answer for each item."""
        dialogues = [[as_message(item)] for item in items]
        answers = self.pipeline.answer(dialogues, self.mode, seeds, **self.sampling)
        return [" ".join(map(str, parts)) if self.mode == "text" else parts[0] for parts in answers]


def as_message(item: Item) -> Message:
    """What the user says: the pictures, then the words."""
    pictures = [ImagePart(open_image(path)) for path in item.images]
    return Message("user", (*pictures, TextPart(item.prompt)))
