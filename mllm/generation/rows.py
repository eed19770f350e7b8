"""The controller of one row of a decoding batch: decides what its every next place is.

It forces what the image layout dictates: sizes, new lines and the end of an image are never sampled. It counts the
budget, refuses what cannot be finished, and knows no logits, caches or neighbours.

Letters: K codebooks, N positions of one image.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import torch
from torch import Tensor

from mllm.conversation import CodesPart
from mllm.generation.request import (
    OUTLINE_BUDGET,
    FinishReason,
    Generated,
    Row,
    add_text,
    count_budget,
    given_opening,
    may_outline,
)
from mllm.layout import ImageLayout
from mllm.sampling import SamplingConfig

TEXT_BLOCK = 64
"""Uniform numbers for text are drawn in blocks, so that they do not depend on the token budget."""
TEXT_STREAM = 0x9E3779B9
"""Sets the text's random numbers apart from the images' of the same seed (any constant would do)."""


class Kind(Enum):
    """What the next place of a row is."""

    TEXT = "a text token, to be sampled"
    TOKEN = "a token that the layout dictates"
    CODES = "an image position, to be sampled"
    KNOWN = "an image position whose codes are given"
    DONE = "nothing: the row is finished"


class RowState:
    """One row while it is decoded. `kind` tells what comes next; `add_token` and `add_codes` put it there."""

    def __init__(self, row: Row, *, layout: ImageLayout, context: int, eos_id: int, device: torch.device) -> None:
        self.row, self.layout, self.eos_id, self.device = row, layout, eos_id, device
        self.grid = layout.check(row.grid or layout.default_grid)
        self.num_positions = self.grid[0] * self.grid[1]
        self.image_tokens = layout.num_tokens(self.grid)
        self.outline_opening = layout.outline_opening(self.grid)
        self.budget = count_budget(row, layout=layout, context=context)
        self.token_ids: list[int] = []
        self.parts: list[list[int] | CodesPart] = []
        self.finish_reason: FinishReason | None = None
        self.image_refused = False
        self.plan: list[int] = []  # the tokens of the image being decoded, or those that every outline begins with
        self.place = 0  # how far in the plan
        self.codes: list[Tensor] = []  # codes (K,) of its positions so far; kept until the next image begins
        self.outline: list[int] | None = None  # the words before the next image, while they are written
        self.outlines: list[list[int]] = []  # those of the images so far
        self.uniforms_NK: Tensor | None = None  # its random numbers
        self.text_generator = torch.Generator().manual_seed(row.seed ^ TEXT_STREAM)
        self.image_generator = torch.Generator().manual_seed(row.seed)
        self.text_uniforms: list[float] = []
        self.known_NK, self.is_known = self.read_known_codes()
        self.prefix: list[int] = self.begin_requested_image() if row.mode == "image" else []
        self.unconditional_prefix = self.plan[: self.place]

    def read_known_codes(self) -> tuple[Tensor | None, list[bool]]:
        """Given codes on the device, and at which positions they are given."""
        known, num_positions = self.row.known_codes, self.num_positions
        if known is None:
            return None, [False] * num_positions
        if known.codes_KN.shape[-1] != num_positions or known.is_known_N.shape != (num_positions,):
            raise ValueError(
                f"known codes do not fit the image: found {known.codes_KN.shape[-1]} codes and a mask of "
                f"{known.is_known_N.shape}; use {num_positions} positions"
            )
        codes_NK = torch.from_numpy(known.codes_KN.astype(np.int64).T.copy()).to(self.device)
        return codes_NK, known.is_known_N.astype(bool).tolist()

    def begin_requested_image(self) -> list[int]:
        """Start the image of mode "image"; returns the tokens before what is sampled first, which join the prompt."""
        if may_outline(self.row, self.layout):
            return []
        self.outlines.append(list(self.row.given_outline or ()))
        self.plan = self.layout.token_ids(self.grid)
        self.place = self.plan.index(self.layout.image_token_id)
        self.token_ids = [*given_opening(self.row, self.layout), *self.plan[: self.place]]
        return list(self.token_ids)

    @property
    def must_open(self) -> bool:
        """Whether the next token is one that an image can begin with, and no other."""
        return self.row.mode == "image" and not self.token_ids

    @property
    def is_in_outline(self) -> bool:
        """Whether the words before an image are being written. The unconditional row does not see them."""
        return self.outline is not None

    @property
    def must_begin_image(self) -> bool:
        """Whether an outline is as long as it may be."""
        if self.outline is None:
            return False
        return len(self.outline) >= OUTLINE_BUDGET or self.budget - len(self.token_ids) <= self.image_tokens

    @property
    def text_sampling(self) -> SamplingConfig:
        """How the next text token is sampled."""
        return self.row.outline if self.is_in_outline or self.must_open else self.row.text

    @property
    def kind(self) -> Kind:
        """What the next place is."""
        if self.finish_reason is not None:
            return Kind.DONE
        if self.place == len(self.plan):
            return Kind.TOKEN if self.must_begin_image else Kind.TEXT
        if self.plan[self.place] != self.layout.image_token_id:
            return Kind.TOKEN
        return Kind.KNOWN if self.is_known[len(self.codes)] else Kind.CODES

    @property
    def max_steps(self) -> int:
        """Places that may still be added."""
        if self.row.mode != "image":
            return self.budget - len(self.token_ids)
        outline = len(self.outline_opening) + OUTLINE_BUDGET if self.outline_opening else 0
        return min(self.image_tokens + outline, self.budget) - len(self.token_ids)

    @property
    def positions_done(self) -> int:
        """Positions so far of the image being decoded, or of the last one."""
        return len(self.codes)

    @property
    def may_begin_image(self) -> bool:
        """Whether the model may choose to draw now; otherwise begin-of-image is masked. An outline has words."""
        if self.outline is not None:
            return len(self.outline) > 0
        return self.must_open or (self.row.mode == "interleaved" and self.has_room_for_image)

    @property
    def may_begin_outline(self) -> bool:
        """Whether the model may choose to outline an image now, or to end the outline of one that it looks at."""
        if self.row.end_id == self.layout.begin_outline_id:
            return True
        is_mixed = self.row.mode == "interleaved"
        return self.must_open or (is_mixed and not self.is_in_outline and self.has_room_for_outline)

    @property
    def has_room_for_image(self) -> bool:
        """Whether an image fits that has no outline."""
        return self.budget - len(self.token_ids) >= self.image_tokens

    @property
    def has_room_for_outline(self) -> bool:
        """Whether an image fits with what begins its outline and a word of it."""
        return self.budget - len(self.token_ids) > self.image_tokens + len(self.outline_opening)

    def next_text_uniform(self) -> float:
        """The random number of the next text token."""
        if not self.text_uniforms:
            self.text_uniforms = torch.rand(TEXT_BLOCK, generator=self.text_generator).tolist()[::-1]
        return self.text_uniforms.pop()

    def position_uniforms(self, num_codebooks: int) -> Tensor:
        """The random numbers (K,) of the next image position; those of a whole image are drawn at once."""
        if self.uniforms_NK is None:
            uniforms_NK = torch.rand(self.num_positions, num_codebooks, generator=self.image_generator)
            self.uniforms_NK = uniforms_NK.to(self.device)
        return self.uniforms_NK[len(self.codes)]

    def known_codes(self) -> Tensor:
        """The given codes (K,) of the next image position."""
        assert self.known_NK is not None, "this row has no known codes"
        return self.known_NK[len(self.codes)]

    def planned_token(self) -> int:
        """The token that the layout dictates next."""
        return self.plan[self.place] if self.place < len(self.plan) else self.layout.begin_image_id

    def add_token(self, token_id: int) -> None:
        """Put a token at the next place: the dictated one inside an image, a sampled one in text."""
        self.token_ids.append(token_id)
        if self.place < len(self.plan):
            self.place += 1
        elif token_id in (self.eos_id, self.row.end_id):
            self.finish_reason = "eos"
        elif token_id == self.layout.begin_image_id:
            self.plan, self.place, self.codes = self.layout.token_ids(self.grid), 1, []
            self.outlines.append(self.outline or [])
            self.outline = None
        elif token_id == self.layout.begin_outline_id:
            self.outline = []
            self.plan, self.place = self.outline_opening, 1
        elif self.outline is not None:
            self.outline.append(token_id)
        else:
            add_text(self.parts, token_id)
        if self.finish_reason is None and len(self.token_ids) >= self.budget:
            self.finish_reason = "length"

    def add_codes(self, codes_K: Tensor) -> None:
        """Put the codes of one image position at the next place; the last ones complete the image."""
        self.codes.append(codes_K)
        self.token_ids.append(self.layout.image_token_id)
        self.place += 1
        if len(self.codes) < self.num_positions:
            return
        codes_KN = torch.stack(self.codes, dim=1).to("cpu", torch.int32).numpy().astype(np.uint16)
        self.parts.append(CodesPart(codes_KN, self.grid))
        self.uniforms_NK = None
        if self.row.mode == "image":
            self.token_ids += self.plan[self.place :]  # what frames the end needs no step of the model
            self.finish_reason = "image"

    def result(self) -> Generated:
        """The finished row."""
        assert self.finish_reason is not None, "the row is still being decoded"
        return Generated(
            self.token_ids, self.parts, self.finish_reason, self.row.seed, self.image_refused, self.outlines
        )
