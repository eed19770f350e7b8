"""Looking: before a model with outlines answers, it writes what it sees in every picture that the user shows.

In: dialogues, and what decodes rows. Out: the same dialogues, their pictures encoded and the user's outlined. What is
seen depends on the picture and on what was said before it, never on the question, so every answer about a picture rests
on the same words. A model without outlines looks at nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mllm.conversation import CodesPart, Marker, Message, Segment, render
from mllm.generation.request import OUTLINE_BUDGET, Generated, Row
from mllm.processor import MLLMProcessor
from mllm.sampling import SamplingConfig
from mllm.sequence import TokenSequence, encode_segments

Place = tuple[int, int]
"""Number of a message, number of a part."""


def look(
    dialogues: Sequence[Sequence[Message]], processor: MLLMProcessor, run: Callable[[list[Row]], list[Generated]]
) -> list[list[Message]]:
    """Outline the pictures that were not looked at yet, in order, all dialogues together."""
    looked = [processor.encode_pictures(dialogue) for dialogue in dialogues]
    marker = processor.need_config().begin_outline_id
    while marker is not None:
        waiting = [(n, place) for n, dialogue in enumerate(looked) if (place := first_unseen(dialogue)) is not None]
        if not waiting:
            break
        rows = [
            Row(
                prompt=look_prompt(up_to(looked[n], place), processor),
                mode="text",
                end_id=marker,
                max_new_tokens=OUTLINE_BUDGET,
                text=SamplingConfig(greedy=True),
            )
            for n, place in waiting
        ]
        for (n, place), result in zip(waiting, run(rows), strict=True):
            looked[n] = outlined(looked[n], place, processor.to_text(result.text_ids))
    return looked


def look_prompt(dialogue: Sequence[Message], processor: MLLMProcessor) -> TokenSequence:
    """The prompt for the outline of the picture with which a dialogue ends: all up to it, and the marker."""
    config = processor.need_config()
    segments = render(dialogue, config.prompt_style)
    last = max(n for n, segment in enumerate(segments) if isinstance(segment.content, CodesPart))
    asked = [*segments[: last + 1], Segment(Marker.OUTLINE)]
    return encode_segments(asked, tokenizer=processor.tokenizer, config=config)


def first_unseen(dialogue: Sequence[Message]) -> Place | None:
    """Where the first picture of the user without an outline stands."""
    for m, message in enumerate(dialogue):
        for p, part in enumerate(message.parts if message.role == "user" else ()):
            if isinstance(part, CodesPart) and part.outline is None:
                return m, p
    return None


def up_to(dialogue: Sequence[Message], place: Place) -> list[Message]:
    """The dialogue as far as the picture at this place."""
    m, p = place
    return [*dialogue[:m], replace(dialogue[m], parts=dialogue[m].parts[: p + 1])]


def outlined(dialogue: Sequence[Message], place: Place, outline: str) -> list[Message]:
    """The dialogue with an outline for the picture at this place."""
    m, p = place
    parts = list(dialogue[m].parts)
    parts[p] = replace(parts[p], outline=outline)
    return [replace(message, parts=tuple(parts)) if n == m else message for n, message in enumerate(dialogue)]
