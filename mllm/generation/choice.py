"""Choose what stands at the next place of every row: sampled from the heads, given, or dictated by the layout.

In: hidden states after the last place. Out: a token or K codes for each row that is not done. Guided rows are mixed
inside the code head, before its linear layer. Keeps per-group settings, so that a step builds none.

Letters: N rows asked for, R rows of the decoder (the N, then the unconditional ones), G rows of a group, D hidden
width, V text vocabulary, K codebooks, C codes per codebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mllm.config import MLLMConfig
from mllm.generation.rows import Kind, RowState
from mllm.heads.code_head import CodeDecoder, Guidance
from mllm.layout import ImageLayout
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import RowSettings, choose, stack_settings


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
        self.begin_image_id, self.begin_outline_id = layout.begin_image_id, layout.begin_outline_id
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
        logits_GV = self.model.lm_head(hidden_RD[torch.tensor(rows, device=self.device)]).float()
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
        if self.begin_outline_id is not None:
            self.forbid(logits_GV, self.begin_outline_id, [not state.may_begin_outline for state in states])
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
