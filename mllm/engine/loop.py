"""The decoding loop: rows in different states (text, image, done) through one cached forward per place.

In: a model and rows. Out: what each row became, or events while it becomes. Every row has its own seed and its random
numbers are drawn before they are needed, so a row's result does not depend on its neighbours. Inside an image nothing
waits for the device. Knows ids and codes, no strings and no pictures. The loop is here; the rules of one row are in
mllm/engine/state.py, the forward passes in mllm/engine/forward.py, the choosing in mllm/engine/state.py.

Letters: R rows of the decoder, D hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from mllm.conversation import CodesPart, Message, TextPart
from mllm.engine.forward import CachedForward
from mllm.engine.request import FinishReason, Generated, Row
from mllm.engine.state import Chooser, Chosen, Kind, RowState
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor
from mllm.sequence import ImageLayout
from mllm.vocabulary import decode_text


@dataclass(frozen=True, slots=True)
class TextEvent:
    """A row has a new text token."""

    row: int
    token_id: int


@dataclass(frozen=True, slots=True)
class ImageEvent:
    """A row has a new image position; with the last one come the codes."""

    row: int
    done: int  # positions so far
    total: int  # positions of the image
    image: CodesPart | None  # the finished image
    outline: list[int]  # the words written before it


@dataclass(frozen=True, slots=True)
class RowEvent:
    """A row is finished."""

    row: int
    generated: Generated


DecodingEvent = TextEvent | ImageEvent | RowEvent


def generate(
    model: MLLMForConditionalGeneration, rows: list[Row], *, on_progress: Callable[[DecodingEvent], None] | None = None
) -> list[Generated]:
    """Decode all rows to their end, in the order given."""
    results: dict[int, Generated] = {}
    for event in stream(model, rows):
        if isinstance(event, RowEvent):
            results[event.row] = event.generated
        if on_progress is not None:
            on_progress(event)
    return [results[n] for n in range(len(rows))]


@torch.inference_mode()
def stream(model: MLLMForConditionalGeneration, rows: list[Row]) -> Iterator[DecodingEvent]:
    """Decode all rows, telling what happens as it happens."""
    if not rows:
        return
    config = model.config
    layout, context = ImageLayout.from_config(config), config.text_config.max_position_embeddings
    for row in rows:
        row.image.check_codebooks(config.num_codebooks)
    states = [
        RowState(row, layout=layout, context=context, eos_id=config.eos_token_id, device=model.device) for row in rows
    ]
    forward = CachedForward(model, states)
    chooser = Chooser(model, states, unconditional_rows=forward.unconditional_rows)
    hidden_RD = forward.prefill()
    while True:
        chosen = chooser.choose_next(hidden_RD)
        yield from advance(states, chosen)
        if all(state.finish_reason is not None for state in states):
            return
        hidden_RD = forward.step(chosen)


def advance(states: list[RowState], chosen: Chosen) -> Iterator[DecodingEvent]:
    """Tell the controllers what was chosen, and the caller what that means."""
    for n, state in enumerate(states):
        if n in chosen.codes:
            state.add_codes(chosen.codes[n])
            image = state.parts[-1] if state.positions_done == state.num_positions else None
            yield ImageEvent(n, state.positions_done, state.num_positions, image, state.outlines[-1])
        elif n in chosen.tokens:
            is_text = state.kind is Kind.TEXT and not state.is_in_outline
            state.add_token(chosen.tokens[n])
            if is_text and chosen.tokens[n] not in state.layout.opening_ids | {state.eos_id}:
                yield TextEvent(n, chosen.tokens[n])
        else:
            continue
        if state.finish_reason is not None:
            yield RowEvent(n, state.result())


# Text of ids that come one by one: what is new and will not change any more.
#
# A character may take several byte tokens, which are decoded as one run, and outer spaces do not belong to an answer;
# so
# both are held back.


INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class TextStream:
    """One run of text; all deltas together are the stripped text of the ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.num_shown = 0

    def add(self, token_id: int) -> str:
        """What can be shown now that this id has come; often nothing."""
        self.ids.append(token_id)
        if BYTE_TOKEN.fullmatch(self.tokenizer.convert_ids_to_tokens(token_id) or ""):
            return ""
        text = decode_text(self.tokenizer, self.ids)
        return "" if text.endswith(INCOMPLETE) else self._advance(text)

    def finish(self) -> str:
        """What was held back at the end of the run; a new run begins."""
        rest = self._advance(decode_text(self.tokenizer, self.ids))
        self.ids, self.num_shown = [], 0
        return rest

    def _advance(self, text: str) -> str:
        new, self.num_shown = text[self.num_shown :], max(self.num_shown, len(text))
        return new


# The answer to one request as it comes: ids and codes in, text and pictures out.
#
# Collects the whole answer on the way, so that nothing is decoded twice.


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
                    yield ImageDone(self.processor.decode_images([self.processor.with_plan(codes, outline)])[0])
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
    images = iter(processor.codes_of(generated))
    parts = [
        next(images) if isinstance(part, CodesPart) else TextPart(processor.to_text(part)) for part in generated.parts
    ]
    return Message("assistant", tuple(parts) or (TextPart(""),))
