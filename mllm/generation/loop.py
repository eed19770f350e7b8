"""The decoding loop: rows in different states (text, image, done) through one cached forward per place.

In: a model and rows. Out: what each row became, or events while it becomes. Every row has its own seed and its random
numbers are drawn before they are needed, so a row's result does not depend on its neighbours. Inside an image nothing
waits for the device. Knows ids and codes, no strings and no pictures. The loop is here; the rules of one row are in
mllm/generation/rows.py, the forward passes in mllm/generation/forward.py, the choosing in mllm/generation/choice.py.

Letters: R rows of the decoder, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mllm.conversation import CodesPart
from mllm.generation.choice import Chooser, Chosen
from mllm.generation.forward import CachedForward
from mllm.generation.request import Generated, Row
from mllm.generation.rows import Kind, RowState
from mllm.layout import ImageLayout
from mllm.model import MLLMForConditionalGeneration


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
