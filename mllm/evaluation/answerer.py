"""Lets a pipeline answer the items of a benchmark: opens pictures, asks, and gives one text or one picture for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from mllm.best_of import candidate_seeds, keep_best
from mllm.conversation import ClassPart, ImagePart, Message, TextPart
from mllm.evaluation.benchmark import Item, Mode
from mllm.generation.row_builder import Overrides
from mllm.pipeline import Pipeline
from tokenizer.image_processor import open_image


@dataclass(frozen=True, slots=True)
class PipelineAnswerer:
    """An `Answer` of the runner."""

    pipeline: Pipeline
    mode: Mode
    sampling: Overrides
    best_of: int = 1  # candidates for each picture, among which the model chooses itself

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[str | Image.Image]:
        """One answer for each item."""
        if self.best_of > 1 and self.mode == "image":
            return list(self.draw_best(items, seeds))
        dialogues = [[as_message(item)] for item in items]
        answers = self.pipeline.answer(dialogues, self.mode, seeds, **self.sampling)
        return [" ".join(map(str, parts)) if self.mode == "text" else parts[0] for parts in answers]

    def draw_best(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Image.Image]:
        """The best of several pictures for each item."""
        jobs = [(item, s) for item, seed in zip(items, seeds, strict=True) for s in candidate_seeds(seed, self.best_of)]
        dialogues = [[as_message(item)] for item, _ in jobs]
        answers = self.pipeline.answer(dialogues, "image", [seed for _, seed in jobs], **self.sampling)
        pictures = [part for parts in answers for part in parts if isinstance(part, Image.Image)]
        scores = self.pipeline.judge(pictures, [item.prompt for item, _ in jobs])
        return keep_best(pictures, scores, best_of=self.best_of)


def as_message(item: Item) -> Message:
    """What the user says: the pictures, then the words; or the number of a class."""
    if "class" in item.fields:
        return Message("user", (ClassPart(item.fields["class"]),))
    pictures = [ImagePart(open_image(path)) for path in item.images]
    return Message("user", (*pictures, TextPart(item.prompt)))
