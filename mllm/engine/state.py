"""The state machine of one sequence: what comes at each next place.

It forces what the image layout dictates: sizes, new lines and the end of an image are never sampled. It counts the
budget and refuses what cannot be finished. Where a sequence stands is a `Cursor`, a few numbers; `advance` gives the
next one, so that rules hold for guessed places as for those that stand. Knows no logits, no caches, no other sequence.

Letters: K codebooks, N positions of one image.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import numpy as np

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart
from mllm.engine.request import (
    PLAN_BUDGET,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    append_text,
    count_budget,
    given_opening,
    may_plan,
)
from mllm.sampling import SamplingConfig
from mllm.sequence import ImageLayout

IMAGE_STRIDE = 2**20
"""Between the noise positions of two images of an answer."""

Place = int | tuple[int, ...]
"""A token id, or the K codes of an image position."""


class Source(Enum):
    """Where the next place of a sequence comes from."""

    SAMPLED_TOKEN = "the text head"
    FORCED_TOKEN = "the image layout"
    SAMPLED_CODES = "the code head"
    FORCED_CODES = "the request"
    DONE = "nowhere: the sequence is finished"


class Cursor(NamedTuple):
    """Where a sequence stands."""

    num_tokens: int = 0  # places of the answer so far
    num_sampled: int = 0  # text tokens that were sampled
    num_images: int = 0  # images begun
    frame: tuple[int, ...] = ()  # tokens of the image being decoded, or those that every plan begins with
    num_framed: int = 0  # how many of them are placed
    num_positions: int = 0  # image positions so far of the image being decoded, or of the last one
    plan_length: int | None = None  # of the next image's plan, while it is written
    finish_reason: FinishReason | None = None


class SequenceState:
    """One sequence while it is decoded: its rules, where it stands (`cursor`), and what stands so far."""

    def __init__(self, request: GenerationRequest, *, config: MLLMConfig) -> None:
        self.request, self.eos_id, self.num_codebooks = request, config.eos_token_id, config.num_codebooks
        self.layout = layout = ImageLayout.from_config(config)
        self.grid = layout.check(request.grid or layout.default_grid)
        self.num_positions = self.grid[0] * self.grid[1]
        self.image_ids = tuple(layout.token_ids(self.grid))
        self.plan_opening = tuple(layout.plan_opening(self.grid))
        self.budget = count_budget(request, layout=layout, context=config.text_config.max_position_embeddings)
        self.forced_codes = self._read_forced_codes()  # of each position; None where they are sampled
        self.token_ids: list[int] = []
        self.parts: list[list[int] | CodesPart] = []
        self.codes: list[tuple[int, ...]] = []  # of the image being decoded
        self.plan: list[int] = []  # that of the next image, while it is written
        self.plans: list[list[int]] = []  # those of the images so far
        self.image_refused = False
        self.cursor = Cursor()
        self.prefix: list[int] = []  # tokens of the answer that are dictated before anything is sampled
        self.unconditional_prefix: list[int] = []
        if request.mode == "image" and not may_plan(request, layout):
            self._begin_requested_image()

    def _read_forced_codes(self) -> list[tuple[int, ...] | None]:
        given, num_positions = self.request.forced_codes, self.num_positions
        if given is None:
            return [None] * num_positions
        if given.codes_KN.shape[-1] != num_positions or given.is_forced_N.shape != (num_positions,):
            raise ValueError(
                f"forced codes must cover the {num_positions} positions of the image, got {given.codes_KN.shape[-1]} "
                f"codes and a mask of {given.is_forced_N.shape}"
            )
        codes, is_forced = given.codes_KN.T.astype(np.int64).tolist(), given.is_forced_N.tolist()
        return [tuple(codes_K) if forced else None for codes_K, forced in zip(codes, is_forced, strict=True)]

    def _begin_requested_image(self) -> None:
        """Start the image of mode "image"; the tokens before what is sampled first join the prompt."""
        self.plans.append(list(self.request.given_plan or ()))
        num_framed = self.image_ids.index(self.layout.image_token_id)
        self.unconditional_prefix = list(self.image_ids[:num_framed])
        self.prefix = [*given_opening(self.request, self.layout), *self.unconditional_prefix]
        self.token_ids = list(self.prefix)
        self.cursor = Cursor(len(self.prefix), 0, 1, self.image_ids, num_framed)

    # ---- what comes next ----

    def source(self, cursor: Cursor) -> Source:
        """Where the place after the cursor comes from."""
        if cursor.finish_reason is not None:
            return Source.DONE
        if cursor.num_framed == len(cursor.frame):
            return Source.FORCED_TOKEN if self._must_end_plan(cursor) else Source.SAMPLED_TOKEN
        if cursor.frame[cursor.num_framed] != self.layout.image_token_id:
            return Source.FORCED_TOKEN
        return Source.SAMPLED_CODES if self.forced_codes[cursor.num_positions] is None else Source.FORCED_CODES

    def dictated(self, cursor: Cursor) -> Place | None:
        """What comes after the cursor, if it is not sampled."""
        match self.source(cursor):
            case Source.FORCED_TOKEN:
                is_framed = cursor.num_framed < len(cursor.frame)
                return cursor.frame[cursor.num_framed] if is_framed else self.layout.begin_image_id
            case Source.FORCED_CODES:
                return self.forced_codes[cursor.num_positions]
            case _:
                return None

    def must_open(self, cursor: Cursor) -> bool:
        """Whether the next token is one that an image can begin with, and no other."""
        return self.request.mode == "image" and not cursor.num_tokens

    def may_begin_image(self, cursor: Cursor) -> bool:
        """Whether the model may choose to draw now. A plan has words before its image begins."""
        if cursor.plan_length is not None:
            return cursor.plan_length > 0
        return self.must_open(cursor) or (self.request.mode == "interleaved" and self.has_room_for_image(cursor))

    def may_begin_plan(self, cursor: Cursor) -> bool:
        """Whether the model may choose to plan an image now, or to end the description of one that it is shown."""
        if self.request.end_id == self.layout.begin_plan_id:
            return True
        has_room = self._room(cursor) > len(self.image_ids) + len(self.plan_opening)  # for a word of it as well
        is_free = self.request.mode == "interleaved" and cursor.plan_length is None
        return self.must_open(cursor) or (is_free and has_room)

    def has_room_for_image(self, cursor: Cursor) -> bool:
        """Whether an image fits that has no plan."""
        return self._room(cursor) >= len(self.image_ids)

    def _room(self, cursor: Cursor) -> int:
        return self.budget - cursor.num_tokens

    def _must_end_plan(self, cursor: Cursor) -> bool:
        """Whether a plan is as long as it may be, so that the image begins."""
        length = cursor.plan_length
        return length is not None and (length >= PLAN_BUDGET or self._room(cursor) <= len(self.image_ids))

    def text_sampling(self, cursor: Cursor) -> SamplingConfig:
        """How the next text token is sampled."""
        is_plan = cursor.plan_length is not None or self.must_open(cursor)
        return self.request.plan if is_plan else self.request.text

    def noise_position(self, cursor: Cursor) -> int:
        """Which noise belongs to the next place; text and images count apart."""
        if cursor.num_framed == len(cursor.frame):
            return cursor.num_sampled
        return (cursor.num_images - 1) * IMAGE_STRIDE + cursor.num_positions

    @property
    def max_steps(self) -> int:
        """Places that may still be added."""
        if self.request.mode != "image":
            return self._room(self.cursor)
        plan = len(self.plan_opening) + PLAN_BUDGET if self.plan_opening else 0
        return min(len(self.image_ids) + plan, self.budget) - self.cursor.num_tokens

    # ---- what came ----

    def advance(self, cursor: Cursor, place: Place) -> Cursor:
        """The cursor after a place that may come there."""
        num_tokens, is_framed = cursor.num_tokens + 1, cursor.num_framed < len(cursor.frame)
        if not isinstance(place, int):
            num_positions = cursor.num_positions + 1
            is_end = num_positions == self.num_positions and self.request.mode == "image"
            if is_end:  # what frames the end of the image needs no step of the model
                num_tokens += len(cursor.frame) - cursor.num_framed - 1
            return cursor._replace(
                num_tokens=num_tokens,
                num_framed=cursor.num_framed + 1,
                num_positions=num_positions,
                finish_reason="image" if is_end else self._end_of_budget(num_tokens, None),
            )
        finish_reason: FinishReason | None = None
        changed: dict[str, object] = {}
        if is_framed:
            changed = {"num_framed": cursor.num_framed + 1}
        else:
            changed["num_sampled"] = cursor.num_sampled + (not self._must_end_plan(cursor))
            if place in (self.eos_id, self.request.end_id):
                finish_reason = "eos"
            elif place == self.layout.begin_image_id:
                changed |= {"frame": self.image_ids, "num_framed": 1, "num_positions": 0, "plan_length": None}
                changed["num_images"] = cursor.num_images + 1
            elif place == self.layout.begin_plan_id:
                changed |= {"frame": self.plan_opening, "num_framed": 1, "plan_length": 0}
            elif cursor.plan_length is not None:
                changed["plan_length"] = cursor.plan_length + 1
        finish_reason = self._end_of_budget(num_tokens, finish_reason)
        return cursor._replace(num_tokens=num_tokens, finish_reason=finish_reason, **changed)

    def _end_of_budget(self, num_tokens: int, finish_reason: FinishReason | None) -> FinishReason | None:
        return "length" if finish_reason is None and num_tokens >= self.budget else finish_reason

    def add(self, place: Place) -> None:
        """Put what stands at the next place; the last codes complete the image."""
        before, self.cursor = self.cursor, self.advance(self.cursor, place)
        if not isinstance(place, int):
            self.codes.append(place)
            self.token_ids.append(self.layout.image_token_id)
            if len(self.codes) == self.num_positions:
                self.parts.append(CodesPart(np.array(self.codes, dtype=np.uint16).T, self.grid))
                if self.cursor.finish_reason == "image":
                    self.token_ids += before.frame[before.num_framed + 1 :]
            return
        self.token_ids.append(place)
        if before.num_framed < len(before.frame) or self.cursor.finish_reason == "eos":
            return
        if place == self.layout.begin_image_id:
            self.plans.append(self.plan)
            self.plan, self.codes = [], []
        elif place != self.layout.begin_plan_id and before.plan_length is not None:
            self.plan.append(place)
        elif place != self.layout.begin_plan_id:
            append_text(self.parts, place)

    def result(self) -> GenerationResult:
        """The finished sequence."""
        assert self.cursor.finish_reason is not None, "the sequence is still being decoded"
        return GenerationResult(
            self.token_ids,
            self.parts,
            self.cursor.finish_reason,
            self.request.seed,
            self.image_refused,
            self.plans,
        )
