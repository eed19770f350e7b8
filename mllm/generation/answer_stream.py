"""The answer to one request as it comes: ids and codes in, text and pictures out.

Collects the whole answer on the way, so that nothing is decoded twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from mllm.conversation import CodesPart, Message, TextPart
from mllm.generation.loop import DecodingEvent, ImageEvent, RowEvent, TextEvent
from mllm.generation.request import FinishReason, Generated
from mllm.generation.text_stream import TextStream
from mllm.processor import MLLMProcessor


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """A picture is being drawn."""

    done: int  # positions so far
    total: int


@dataclass(frozen=True, slots=True)
class ImageDone:
    """A picture of the answer."""

    image: Image.Image


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete."""

    message: Message  # all of it, to be put into the history; pictures are codes, so that nothing is lost
    finish_reason: FinishReason  # "length": it was cut off by the budget or the context
    seed: int
    image_refused: bool  # the model wanted to draw (again), and no room was left for a whole picture


Event = TextDelta | ImageProgress | ImageDone | Done


class AnswerStream:
    """Translates the events of one row."""

    def __init__(self, processor: MLLMProcessor) -> None:
        self.processor = processor
        self.text = TextStream(processor.tokenizer)

    def translate(self, event: DecodingEvent) -> Iterator[Event]:
        """What a person sees of an event of the decoding loop; sometimes nothing."""
        match event:
            case TextEvent(token_id=token_id):
                if delta := self.text.add(token_id):
                    yield TextDelta(delta)
            case ImageEvent(done=done, total=total, image=codes, outline=outline):
                yield from self.finish_text()
                yield ImageProgress(done, total)
                if codes is not None:
                    yield ImageDone(self.processor.decode_images([self.processor.with_outline(codes, outline)])[0])
            case RowEvent(generated=generated):
                yield from self.finish_text()
                message = answer_message(generated, self.processor)
                yield Done(message, generated.finish_reason, generated.seed, generated.image_refused)

    def finish_text(self) -> Iterator[Event]:
        """What was held back of a run of text that is over."""
        if rest := self.text.finish():
            yield TextDelta(rest)


def answer_message(generated: Generated, processor: MLLMProcessor) -> Message:
    """A result as the assistant's message."""
    images = iter(processor.images_of(generated))
    parts = [
        next(images) if isinstance(part, CodesPart) else TextPart(processor.to_text(part)) for part in generated.parts
    ]
    return Message("assistant", tuple(parts) or (TextPart(""),))
