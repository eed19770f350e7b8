"""The state machine of one sequence: what comes at each next position.

It forces what the image layout dictates: sizes, new lines and the end of an image are never sampled. It counts the
budget and refuses what cannot be finished. In: a request, then what was sampled. Out: what comes next, and at the end
the result. Knows no logits, no caches and no other sequence.

Letters: K codebooks, N positions of one image.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import torch
from torch import Tensor

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


class Source(Enum):
    """Where the next position of a sequence comes from."""

    SAMPLED_TOKEN = "the text head"
    FORCED_TOKEN = "the image layout"
    SAMPLED_CODES = "the code head"
    FORCED_CODES = "the request"
    DONE = "nowhere: the sequence is finished"


class SequenceState:
    """One sequence while it is decoded. `source` tells what comes next; `add_token` and `add_codes` put it there."""

    def __init__(self, request: GenerationRequest, *, config: MLLMConfig, device: torch.device) -> None:
        self.request, self.device, self.eos_id = request, device, config.eos_token_id
        self.layout = layout = ImageLayout.from_config(config)
        self.grid = layout.check(request.grid or layout.default_grid)
        self.num_positions = self.grid[0] * self.grid[1]
        self.image_tokens = layout.num_tokens(self.grid)
        self.plan_opening = layout.plan_opening(self.grid)
        self.budget = count_budget(request, layout=layout, context=config.text_config.max_position_embeddings)
        self.token_ids: list[int] = []
        self.parts: list[list[int] | CodesPart] = []
        self.finish_reason: FinishReason | None = None
        self.image_refused = False
        self.forced: list[int] = []  # the tokens of the image being decoded, or those that every plan begins with
        self.num_forced = 0  # how many of them are placed
        self.codes: list[Tensor] = []  # codes (K,) of its positions so far; kept until the next image begins
        self.plan: list[int] | None = None  # that of the next image, while it is written
        self.plans: list[list[int]] = []  # those of the images so far
        self.num_sampled = 0  # text tokens that were sampled
        self.forced_codes_NK, self.is_forced = self._read_forced_codes()
        self.prefix: list[int] = self._begin_requested_image() if request.mode == "image" else []
        self.unconditional_prefix = self.forced[: self.num_forced]

    def _read_forced_codes(self) -> tuple[Tensor | None, list[bool]]:
        """Given codes on the device, and at which positions they are given."""
        given, num_positions = self.request.forced_codes, self.num_positions
        if given is None:
            return None, [False] * num_positions
        if given.codes_KN.shape[-1] != num_positions or given.is_forced_N.shape != (num_positions,):
            raise ValueError(
                f"forced codes must cover the {num_positions} positions of the image, got {given.codes_KN.shape[-1]} "
                f"codes and a mask of {given.is_forced_N.shape}"
            )
        codes_NK = torch.from_numpy(given.codes_KN.astype(np.int64).T.copy()).to(self.device)
        return codes_NK, given.is_forced_N.astype(bool).tolist()

    def _begin_requested_image(self) -> list[int]:
        """Start the image of mode "image"; returns the tokens before what is sampled first, which join the prompt."""
        if may_plan(self.request, self.layout):
            return []
        self.plans.append(list(self.request.given_plan or ()))
        self.forced = self.layout.token_ids(self.grid)
        self.num_forced = self.forced.index(self.layout.image_token_id)
        self.token_ids = [*given_opening(self.request, self.layout), *self.forced[: self.num_forced]]
        return list(self.token_ids)

    # ---- what comes next ----

    @property
    def source(self) -> Source:
        """Where the next position comes from."""
        if self.finish_reason is not None:
            return Source.DONE
        if self.num_forced == len(self.forced):
            return Source.FORCED_TOKEN if self._must_end_plan else Source.SAMPLED_TOKEN
        if self.forced[self.num_forced] != self.layout.image_token_id:
            return Source.FORCED_TOKEN
        return Source.FORCED_CODES if self.is_forced[len(self.codes)] else Source.SAMPLED_CODES

    @property
    def is_in_plan(self) -> bool:
        """Whether the plan of an image is being written. The unconditional sequence does not see it."""
        return self.plan is not None

    @property
    def must_open(self) -> bool:
        """Whether the next token is one that an image can begin with, and no other."""
        return self.request.mode == "image" and not self.token_ids

    @property
    def may_begin_image(self) -> bool:
        """Whether the model may choose to draw now. A plan has words before its image begins."""
        if self.plan is not None:
            return len(self.plan) > 0
        return self.must_open or (self.request.mode == "interleaved" and self.has_room_for_image)

    @property
    def may_begin_plan(self) -> bool:
        """Whether the model may choose to plan an image now, or to end the description of one that it is shown."""
        if self.request.end_id == self.layout.begin_plan_id:
            return True
        has_room = self._room > self.image_tokens + len(self.plan_opening)  # for a word of it as well
        return self.must_open or (self.request.mode == "interleaved" and not self.is_in_plan and has_room)

    @property
    def has_room_for_image(self) -> bool:
        """Whether an image fits that has no plan."""
        return self._room >= self.image_tokens

    @property
    def _room(self) -> int:
        return self.budget - len(self.token_ids)

    @property
    def _must_end_plan(self) -> bool:
        """Whether a plan is as long as it may be, so that the image begins."""
        return self.plan is not None and (len(self.plan) >= PLAN_BUDGET or self._room <= self.image_tokens)

    @property
    def text_sampling(self) -> SamplingConfig:
        """How the next text token is sampled."""
        return self.request.plan if self.is_in_plan or self.must_open else self.request.text

    @property
    def max_steps(self) -> int:
        """Places that may still be added."""
        if self.request.mode != "image":
            return self._room
        plan = len(self.plan_opening) + PLAN_BUDGET if self.plan_opening else 0
        return min(self.image_tokens + plan, self.budget) - len(self.token_ids)

    @property
    def positions_done(self) -> int:
        """Positions so far of the image being decoded, or of the last one."""
        return len(self.codes)

    def forced_token(self) -> int:
        """The token that the layout dictates next."""
        return self.forced[self.num_forced] if self.num_forced < len(self.forced) else self.layout.begin_image_id

    def forced_codes(self) -> Tensor:
        """The given codes (K,) of the next image position."""
        assert self.forced_codes_NK is not None, "this sequence has no forced codes"
        return self.forced_codes_NK[len(self.codes)]

    @property
    def noise_position(self) -> int:
        """Which noise belongs to the next position; text and images count apart."""
        if self.source is Source.SAMPLED_TOKEN:
            return self.num_sampled
        return (len(self.plans) - 1) * IMAGE_STRIDE + len(self.codes)

    # ---- what came ----

    def add_token(self, token_id: int) -> None:
        """Put a token at the next position: a forced one inside an image, a sampled one in text."""
        self.num_sampled += self.source is Source.SAMPLED_TOKEN
        self.token_ids.append(token_id)
        if self.num_forced < len(self.forced):
            self.num_forced += 1
        elif token_id in (self.eos_id, self.request.end_id):
            self.finish_reason = "eos"
        elif token_id == self.layout.begin_image_id:
            self.forced, self.num_forced, self.codes = self.layout.token_ids(self.grid), 1, []
            self.plans.append(self.plan or [])
            self.plan = None
        elif token_id == self.layout.begin_plan_id:
            self.plan = []
            self.forced, self.num_forced = self.plan_opening, 1
        elif self.plan is not None:
            self.plan.append(token_id)
        else:
            append_text(self.parts, token_id)
        if self.finish_reason is None and len(self.token_ids) >= self.budget:
            self.finish_reason = "length"

    def add_codes(self, codes_K: Tensor) -> None:
        """Put the codes of one image position at the next position; the last ones complete the image."""
        self.codes.append(codes_K)
        self.token_ids.append(self.layout.image_token_id)
        self.num_forced += 1
        if len(self.codes) < self.num_positions:
            return
        codes_KN = torch.stack(self.codes, dim=1).to("cpu", torch.int32).numpy().astype(np.uint16)
        self.parts.append(CodesPart(codes_KN, self.grid))
        if self.request.mode == "image":
            self.token_ids += self.forced[self.num_forced :]  # what frames the end needs no step of the model
            self.finish_reason = "image"

    def result(self) -> GenerationResult:
        """The finished sequence."""
        assert self.finish_reason is not None, "the sequence is still being decoded"
        return GenerationResult(
            self.token_ids, self.parts, self.finish_reason, self.request.seed, self.image_refused, self.plans
        )
