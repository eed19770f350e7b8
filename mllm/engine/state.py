"""The controller of one row of a decoding batch: decides what its every next place is.

It forces what the image layout dictates: sizes, new lines and the end of an image are never sampled. It counts the
budget, refuses what cannot be finished, and knows no logits, caches or neighbours.

Letters: K codebooks, N positions of one image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart
from mllm.engine.request import (
    OUTLINE_BUDGET,
    FinishReason,
    Generated,
    Row,
    add_text,
    count_budget,
    given_opening,
    may_outline,
)
from mllm.heads import CodeDecoder, Guidance
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import RowSettings, SamplingConfig, choose, stack_settings
from mllm.sequence import ImageLayout

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
        self.plan_opening = layout.plan_opening(self.grid)
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
        outline = len(self.plan_opening) + OUTLINE_BUDGET if self.plan_opening else 0
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
        if self.row.end_id == self.layout.begin_plan_id:
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
        return self.budget - len(self.token_ids) > self.image_tokens + len(self.plan_opening)

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
        elif token_id == self.layout.begin_plan_id:
            self.outline = []
            self.plan, self.place = self.plan_opening, 1
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


# Choose what stands at the next place of every row: sampled from the heads, given, or dictated by the layout.
#
# In: hidden states after the last place. Out: a token or K codes for each row that is not done. Guided rows are mixed
# inside the code head, before its linear layer. Keeps per-group settings, so that a step builds none.
#
# Letters: N rows asked for, R rows of the decoder (the N, then the unconditional ones), G rows of a group, D hidden
# width, V text vocabulary, K codebooks, C codes per codebook.


@dataclass(frozen=True, slots=True)
class Chosen:
    """What stands at the next place of each row that is not done; a row is in one of the two."""

    tokens: dict[int, int]  # row -> token id
    codes: dict[int, Tensor]  # row -> codes (K,), in the order of codes_GK
    codes_GK: Tensor | None


@dataclass(frozen=True, slots=True)
class CodeGroup:
    """Rows that sample image codes together, and what does not change while they do."""

    decoder_rows: Tensor | None  # the decoder rows that take part, the unconditional ones last; None: all, in order
    guidance: Guidance | None  # numbered within the group
    settings: list[RowSettings]  # per codebook


class Chooser:
    """Samples for the rows of one batch."""

    def __init__(
        self, model: MLLMForConditionalGeneration, states: list[RowState], *, unconditional_rows: Mapping[int, int]
    ) -> None:
        self.model, self.config, self.device = model, model.config, model.device
        self.states, self.unconditional_rows = states, unconditional_rows
        layout = states[0].layout
        self.begin_image_id, self.begin_plan_id = layout.begin_image_id, layout.begin_plan_id
        self.opening_ids = layout.opening_ids
        self.never_text_ids = torch.tensor(never_text_ids(layout, self.config), device=self.device)
        self.code_groups: dict[tuple[int, ...], CodeGroup] = {}
        self.text_settings: dict[tuple[tuple[int, bool], ...], RowSettings] = {}

    def choose_next(self, hidden_RD: Tensor) -> Chosen:
        """Choose what stands at the next place of every row: sampled, given, or dictated by the layout."""
        kinds = [state.kind for state in self.states]
        if all(kind is Kind.CODES for kind in kinds):
            codes_GK = self.sample_codes(hidden_RD, tuple(range(len(kinds))))
            return Chosen({}, dict(enumerate(codes_GK.unbind())), codes_GK)
        rows = {kind: tuple(n for n, of_row in enumerate(kinds) if of_row is kind) for kind in Kind}
        tokens = {n: self.states[n].planned_token() for n in rows[Kind.TOKEN]}
        if rows[Kind.TEXT]:
            tokens |= zip(rows[Kind.TEXT], self.sample_text(hidden_RD, rows[Kind.TEXT]), strict=True)
        codes = {n: self.states[n].known_codes() for n in rows[Kind.KNOWN]}
        if rows[Kind.CODES]:
            codes |= zip(rows[Kind.CODES], self.sample_codes(hidden_RD, rows[Kind.CODES]).unbind(), strict=True)
        codes = dict(sorted(codes.items()))
        return Chosen(tokens, codes, torch.stack(list(codes.values())) if codes else None)

    def sample_codes(self, hidden_RD: Tensor, rows: tuple[int, ...]) -> Tensor:
        """Draw the K codes of one image position in each of these rows; (G, K)."""
        if rows not in self.code_groups:
            self.code_groups[rows] = self.build_code_group(rows)
        group = self.code_groups[rows]
        uniforms_KG = None
        if not group.settings[0].all_greedy:
            uniforms = [self.states[n].position_uniforms(self.config.num_codebooks) for n in rows]
            uniforms_KG = torch.stack(uniforms, dim=1)

        def choose_code(k: int, logits_GC: Tensor) -> Tensor:
            return choose(logits_GC, group.settings[k], None if uniforms_KG is None else uniforms_KG[k])

        hidden_GD = hidden_RD if group.decoder_rows is None else hidden_RD[group.decoder_rows]
        return self.code_decoder.decode(hidden_GD, choose=choose_code, guidance=group.guidance)

    @cached_property
    def code_decoder(self) -> CodeDecoder:
        """The code head, made ready when the first image position is drawn."""
        return self.model.code_head.decoder()

    def build_code_group(self, rows: tuple[int, ...]) -> CodeGroup:
        """Gather what these rows need while they draw together."""
        guided = [n for n in rows if n in self.unconditional_rows]
        decoder_rows = [*rows, *(self.unconditional_rows[n] for n in guided)]
        place = {row: g for g, row in enumerate(decoder_rows)}
        configs = [self.states[n].row.image for n in rows]
        guidance = None
        if guided:
            pairs = [(place[n], place[self.unconditional_rows.get(n, n)]) for n in rows]
            guidance = Guidance(
                conditional_N=torch.tensor([pair[0] for pair in pairs], device=self.device),
                unconditional_N=torch.tensor([pair[1] for pair in pairs], device=self.device),
                scale_N=torch.tensor([float(config.guidance) for config in configs], device=self.device),
            )
        num_choices = self.config.codebook_size
        return CodeGroup(
            decoder_rows=None
            if len(decoder_rows) == len(self.states) + len(self.unconditional_rows)
            else torch.tensor(decoder_rows, device=self.device),
            guidance=guidance,
            settings=[
                stack_settings(configs, num_choices=num_choices, codebook=k, device=self.device)
                for k in range(self.config.num_codebooks)
            ],
        )

    def sample_text(self, hidden_RD: Tensor, rows: tuple[int, ...]) -> list[int]:
        """Draw one text token in each of these rows; begin-of-image only where an image is wanted and has room, which
        is also the only end of an outline."""
        states = [self.states[n] for n in rows]
        logits_GV = self.model.text_logits(hidden_RD[torch.tensor(rows, device=self.device)]).float()
        for g, state in enumerate(states):
            if state.row.text_processors:
                logits_GV[g] = self.process(logits_GV[g], state)
        logits_GV.index_fill_(1, self.never_text_ids, -torch.inf)
        key = tuple((n, state.text_sampling is state.row.outline) for n, state in zip(rows, states, strict=True))
        if key not in self.text_settings:
            configs = [state.text_sampling for state in states]
            self.text_settings[key] = stack_settings(configs, num_choices=logits_GV.shape[-1], device=self.device)
        settings = self.text_settings[key]
        uniforms_G = torch.tensor([state.next_text_uniform() for state in states], device=self.device)
        for state, is_refused in zip(states, self.refusals(states, logits_GV, uniforms_G, settings), strict=True):
            state.image_refused |= is_refused
        self.forbid(logits_GV, self.begin_image_id, [not state.may_begin_image for state in states])
        if self.begin_plan_id is not None:
            self.forbid(logits_GV, self.begin_plan_id, [not state.may_begin_outline for state in states])
            self.forbid(logits_GV, self.config.eos_token_id, [state.is_in_outline for state in states])
            self.allow_only(logits_GV, sorted(self.opening_ids), [state.must_open for state in states])
        return choose(logits_GV, settings, uniforms_G).tolist()

    def forbid(self, logits_GV: Tensor, token_id: int, is_forbidden_G: list[bool]) -> None:
        """Leave a token out where it is forbidden."""
        if forbidden := [g for g, is_forbidden in enumerate(is_forbidden_G) if is_forbidden]:
            logits_GV[torch.tensor(forbidden, device=self.device), token_id] = -torch.inf

    def allow_only(self, logits_GV: Tensor, token_ids: list[int], is_limited_G: list[bool]) -> None:
        """Leave out all but these tokens where nothing else may come."""
        if limited := [g for g, is_limited in enumerate(is_limited_G) if is_limited]:
            rows_L1 = torch.tensor(limited, device=self.device)[:, None]
            kept = logits_GV[rows_L1, token_ids]
            logits_GV[rows_L1[:, 0]] = -torch.inf
            logits_GV[rows_L1, token_ids] = kept

    def process(self, logits_V: Tensor, state: RowState) -> Tensor:
        """The logits as the caller's processors leave them; at image positions they see padding."""
        ids = [*state.row.prompt.token_ids_T.tolist(), *state.token_ids]
        ids = [self.config.pad_token_id if id_ == self.config.image_token_id else id_ for id_ in ids]
        ids_1T, logits_1V = torch.tensor([ids], device=self.device), logits_V[None]
        for process in state.row.text_processors:
            logits_1V = process(ids_1T, logits_1V)
        return logits_1V[0]

    def refusals(
        self, states: list[RowState], logits_GV: Tensor, uniforms_G: Tensor, settings: RowSettings
    ) -> list[bool]:
        """Which rows would begin an image now, had they the room."""
        lacks_room = [state.row.mode == "interleaved" and not state.has_room_for_image for state in states]
        if not any(lacks_room):
            return lacks_room
        wanted = choose(logits_GV, settings, uniforms_G).tolist()
        return [lacks and wants in self.opening_ids for lacks, wants in zip(lacks_room, wanted, strict=True)]


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
