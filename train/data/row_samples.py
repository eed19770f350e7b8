"""A prepared row as training sees it: which caption, which direction, whether the instruction is dropped.

In: a row and random numbers. Out: messages, ready for mllm/sequence.py. Knows no ids and no batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from mllm.conversation import Message, TextPart, has_image, unconditional
from train.data.shard_format import Row

SHORT_CAPTION_SHARE = 0.2
"""Where a picture has a short and a long caption; UniTok's choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleOptions:
    prompt_dropout: float = 0.1
    """Share of the samples that draw whose instruction is dropped, so that guidance has its other branch."""
    describe_share: float = 0.0
    """Share of the captioned pictures that are learned the other way round: the caption from the picture."""


def sample_of(row: Row, rng: Random, options: SampleOptions) -> list[Message]:
    """The messages that are learned from a row this time."""
    match row.kind:
        case "document":
            return list(row.messages)
        case "chat":
            messages = list(row.messages)
        case "pair" | "draw":
            asked, answered = row.messages
            caption = _choose_caption([part for part in asked.parts if isinstance(part, TextPart)], rng)
            if row.kind == "pair" and rng.random() < options.describe_share:
                return [Message("user", answered.parts), Message("assistant", (caption,))]
            messages = [Message("user", (caption,)), answered]
        case _:
            raise ValueError(
                f"unknown kind of record: found {row.kind!r}; prepare the data with this toolkit's version"
            )
    # only where the whole answer is one picture: guidance has no other use for an instruction that is left out
    draws = len(messages) == 2 and has_image(messages[1]) and len(messages[1].parts) == 1
    return unconditional(messages) if draws and rng.random() < options.prompt_dropout else messages


def _choose_caption(captions: Sequence[TextPart], rng: Random) -> TextPart:
    """The short one (the first) or a longer one."""
    if len(captions) == 1 or rng.random() < SHORT_CAPTION_SHARE:
        return captions[0]
    return rng.choice(captions[1:])
