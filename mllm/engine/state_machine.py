"""The state machine of one sequence: what may come at each next position, and where its token budget ends.

It forces what the image layout dictates: sizes, new lines and the end of an image are never sampled. An image that the
budget could not finish never begins: the request is refused (`count_budget`), or the model may not begin it
(`forbidden`). Where a sequence stands is a `Cursor`, a few numbers; `advance` gives the next one, so that rules hold
for guessed elements as for those that stand. Knows no logits, no caches, no other sequence.

Letters: K codebooks, N positions of one image.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

import numpy as np

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart
from mllm.engine.request import (
    PLAN_BUDGET,
    Done,
    Event,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    ImageDone,
    ImageProgress,
    TextDelta,
    append_text,
)
from mllm.sampling import SamplingConfig
from mllm.sequence import ImageLayout, TokenSequence

IMAGE_STRIDE = 2**20  # between the noise positions of two images of an answer

Element = int | tuple[int, ...]  # what a position holds: a token id, or the K codes of an image position


class Sampled(Enum):
    """What comes next where nothing dictates it."""

    TOKEN = "from the text head"
    CODES = "from the code head"


class Cursor(NamedTuple):
    """Where a sequence stands."""

    num_tokens: int = 0  # positions of the answer so far
    num_sampled: int = 0  # text tokens that were sampled
    num_images: int = 0  # images begun
    frame: tuple[int, ...] = ()  # tokens of the image being decoded, or those that every plan begins with
    num_framed: int = 0  # how many of them stand
    num_positions: int = 0  # image positions so far of the image being decoded, or of the last one
    plan_length: int | None = None  # of the next image's plan, while it is written
    finish_reason: FinishReason | None = None

    @property
    def is_framed(self) -> bool:
        return self.num_framed < len(self.frame)


class SequenceState:
    """One sequence while it is decoded: its rules, where it stands (`cursor`), and what stands so far.

    Args:
        number: what events call the request.
    """

    def __init__(self, request: GenerationRequest, *, config: MLLMConfig, number: int = 0) -> None:
        self.request, self.number = request, number
        self.eos_id, self.num_codebooks = config.eos_token_id, config.num_codebooks
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
        self.prompts = [list_elements(prompt, layout.image_token_id) for prompt in request.prompts]
        self.sources = list(map(last_image, request.prompts))  # by prompt: the image before the one being decoded
        if request.mode == "image" and not may_plan(request, layout):
            # what is dictated before anything is sampled joins the prompt; the unconditional one sees no plan
            self.plans.append(list(request.given_plan or ()))
            opening = list(self.image_ids[: self.image_ids.index(layout.image_token_id)])
            self.token_ids = [*given_opening(request, layout), *opening]
            for prompt, prefix in zip(self.prompts, (self.token_ids, opening), strict=False):
                prompt += prefix
            self.cursor = Cursor(len(self.token_ids), 0, 1, self.image_ids, len(opening))

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

    # ---- what comes next ----

    def next_element(self, cursor: Cursor) -> Element | Sampled | None:
        """What comes after the cursor, if it is dictated, or from where it is sampled; None: nothing does."""
        if cursor.finish_reason is not None:
            return None
        if not cursor.is_framed:
            return self.layout.begin_image_id if self._must_end_plan(cursor) else Sampled.TOKEN
        if (token_id := cursor.frame[cursor.num_framed]) != self.layout.image_token_id:
            return token_id
        codes = self.forced_codes[cursor.num_positions]
        return Sampled.CODES if codes is None else codes

    def must_open(self, cursor: Cursor) -> bool:
        """Whether the next token is one that an image can begin with, and no other."""
        return self.request.mode == "image" and not cursor.num_tokens

    def forbidden(self, cursor: Cursor) -> list[int]:
        """Tokens that may not be sampled next: an image without room, a plan without words, an end in a plan."""
        is_plan, is_interleaved = cursor.plan_length is not None, self.request.mode == "interleaved"
        can_begin_image = self.must_open(cursor) or (is_interleaved and self.has_room_for_image(cursor))
        if is_plan:
            can_begin_image = cursor.plan_length > 0
        room_of_plan = len(self.image_ids) + len(self.plan_opening)  # and a word of it
        can_begin_plan = (
            self.must_open(cursor)
            or (is_interleaved and not is_plan and self._room(cursor) > room_of_plan)
            or self.request.end_id == self.layout.begin_plan_id  # ends the description of an image that is shown
        )
        ids = (self.layout.begin_image_id, self.layout.begin_plan_id, self.eos_id)
        may_come = (can_begin_image, can_begin_plan, not is_plan)
        return [id_ for id_, may in zip(ids, may_come, strict=True) if id_ is not None and not may]

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
        is_plan = cursor.plan_length is not None or self.must_open(cursor)
        return self.request.plan if is_plan else self.request.text

    def noise_position(self, cursor: Cursor) -> int:
        """Which noise belongs to the next position; text and images count apart."""
        if not cursor.is_framed:
            return cursor.num_sampled
        return (cursor.num_images - 1) * IMAGE_STRIDE + cursor.num_positions

    @property
    def max_steps(self) -> int:
        """Positions that may still be added."""
        if self.request.mode != "image":
            return self._room(self.cursor)
        plan = len(self.plan_opening) + PLAN_BUDGET if self.plan_opening else 0
        return min(len(self.image_ids) + plan, self.budget) - self.cursor.num_tokens

    # ---- what came ----

    def advance(self, cursor: Cursor, element: Element) -> Cursor:
        """The cursor after an element that may come there."""
        changed: dict[str, object] = {"num_framed": cursor.num_framed + cursor.is_framed}
        num_tokens, finish_reason = cursor.num_tokens + 1, None
        if not isinstance(element, int):
            changed["num_positions"] = num_positions = cursor.num_positions + 1
            if num_positions == self.num_positions and self.request.mode == "image":
                finish_reason = "image"
                num_tokens += len(cursor.frame) - cursor.num_framed - 1  # its end needs no step of the model
        elif not cursor.is_framed:
            changed["num_sampled"] = cursor.num_sampled + (not self._must_end_plan(cursor))
            if element in (self.eos_id, self.request.end_id):
                finish_reason = "eos"
            elif element == self.layout.begin_image_id:
                changed |= {"frame": self.image_ids, "num_framed": 1, "num_positions": 0, "plan_length": None}
                changed["num_images"] = cursor.num_images + 1
            elif element == self.layout.begin_plan_id:
                changed |= {"frame": self.plan_opening, "num_framed": 1, "plan_length": 0}
            elif cursor.plan_length is not None:
                changed["plan_length"] = cursor.plan_length + 1
        if finish_reason is None and num_tokens >= self.budget:
            finish_reason = "length"
        return cursor._replace(num_tokens=num_tokens, finish_reason=finish_reason, **changed)

    def add(self, element: Element) -> Iterator[Event]:
        """Put what stands at the next position, and tell what that means; the last codes complete the image."""
        before, self.cursor = self.cursor, self.advance(self.cursor, element)
        is_image = not isinstance(element, int)
        self.token_ids.append(self.layout.image_token_id if is_image else element)
        if is_image:
            self.codes.append(element)
            yield ImageProgress(index=self.number, done=len(self.codes), total=self.num_positions)
            if len(self.codes) == self.num_positions:
                self.parts.append(CodesPart(np.array(self.codes, dtype=np.uint16).T, self.grid))
                self.sources = [self.codes] * len(self.prompts)
                if self.cursor.finish_reason == "image":
                    self.token_ids += before.frame[before.num_framed + 1 :]
                yield ImageDone(index=self.number, codes=self.parts[-1], plan=tuple(self.plans[-1]))
        elif before.is_framed or self.cursor.finish_reason == "eos":
            pass
        elif element == self.layout.begin_image_id:
            self.plans.append(self.plan)
            self.plan, self.codes = [], []
        elif element == self.layout.begin_plan_id:
            pass
        elif before.plan_length is not None:
            self.plan.append(element)
        else:
            append_text(self.parts, element)
            yield TextDelta(index=self.number, token_id=element)
        if self.cursor.finish_reason is not None:
            yield Done(index=self.number, result=self.result())

    def result(self) -> GenerationResult:
        assert self.cursor.finish_reason is not None, "the sequence is still being decoded"
        seed, reason = self.request.seed, self.cursor.finish_reason
        return GenerationResult(self.token_ids, self.parts, reason, seed, self.image_refused, self.plans)


def list_elements(sequence: TokenSequence, image_token_id: int) -> list[Element]:
    codes = iter(map(tuple, sequence.codes_PK.tolist()))
    return [next(codes) if id_ == image_token_id else id_ for id_ in sequence.token_ids_T.tolist()]


def last_image(sequence: TokenSequence) -> list[tuple[int, ...]]:
    """The codes of the last image, by position; none where there is no image."""
    lengths_I = sequence.image_lengths_I[-1:]
    return [*map(tuple, sequence.codes_PK[len(sequence.codes_PK) - lengths_I.sum() :].tolist())]


def never_text_ids(layout: ImageLayout, config: MLLMConfig) -> list[int]:
    """Tokens that no text contains: padding, begin of sequence, and those that stand inside an image."""
    ids = {layout.image_token_id, layout.end_image_id, config.pad_token_id, config.bos_token_id}
    if layout.kind == "grid":
        ids.add(layout.new_line_id)
        for first_id in (layout.first_row_size_id, layout.first_column_size_id):
            ids.update(range(first_id, first_id + layout.max_side))
    if config.first_class_id is not None:
        ids.update(range(config.first_class_id, config.class_token_id(None) + 1))
    return sorted(id_ for id_ in ids if 0 <= id_ < config.vocab_size and id_ != config.eos_token_id)


# ---- the budget ----


class NoRoomError(ValueError):
    """A prompt, or the image that is asked for, does not fit into the context."""


def count_budget(request: GenerationRequest, *, layout: ImageLayout, context: int) -> int:
    """Positions a request may add.

    Raises:
        NoRoomError: a prompt or an image does not fit.
    """
    used = max(len(prompt) for prompt in request.prompts)
    if used >= context:
        raise NoRoomError(
            f"the prompt must be shorter than the context of {context} tokens, got {used} tokens, images included; "
            "shorten it"
        )
    budget = min(context - used, request.max_new_tokens or context)
    grid = request.grid or layout.default_grid
    needed = layout.num_tokens(grid) + len(given_opening(request, layout))
    needed += len(layout.plan_opening(grid)) if may_plan(request, layout) else 0
    if request.mode == "image" and budget < needed:
        raise NoRoomError(
            f"an image must have room for its {needed} tokens, got {budget} left (prompt {used}, context {context}, "
            f"max_new_tokens {request.max_new_tokens}); shorten the prompt or raise the budget"
        )
    return budget


def may_plan(request: GenerationRequest, layout: ImageLayout) -> bool:
    """Whether the model chooses if the image that is asked for begins with a plan; some kinds of image have none."""
    is_free = request.forced_codes is None and request.given_plan is None
    return request.mode == "image" and layout.begin_plan_id is not None and is_free


def given_opening(request: GenerationRequest, layout: ImageLayout) -> list[int]:
    """The given plan of an image with what begins it."""
    if request.given_plan is None:
        return []
    if layout.begin_plan_id is None:
        raise ValueError("a plan must be for a model that plans, got one for a model that does not; leave it out")
    return [*layout.plan_opening(request.grid or layout.default_grid), *request.given_plan]
