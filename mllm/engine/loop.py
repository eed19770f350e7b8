"""The decoding loop: sequences in different states (text, image, done) through one cached forward per position.

In: a model and requests. Out: their results, or events while they are decoded. Noise is a function of a request's seed
and of the position, so a result does not depend on the other requests of the batch. Inside an image nothing waits for
the device. Knows ids and codes, no strings and no pixels. The rules of one sequence are in
mllm/engine/state.py, the forward passes in mllm/engine/forward.py; here is the sampling of a step, and the loop.

Letters: N requests, R sequences of the decoder (the N, then the unconditional ones), G sequences of a group, D hidden
width, V text vocabulary, K codebooks, C codes per codebook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mllm.config import MLLMConfig
from mllm.engine.forward import CachedForward, Step
from mllm.engine.request import Done, Event, GenerationRequest, GenerationResult, ImageDone, ImageProgress, TextDelta
from mllm.engine.state import SequenceState, Source
from mllm.heads import CodeDecoder, Guidance
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import TEXT, RowSettings, choose, gumbel, stack_settings
from mllm.sequence import ImageLayout


def generate(
    model: MLLMForConditionalGeneration,
    requests: Sequence[GenerationRequest],
    *,
    on_event: Callable[[Event], None] | None = None,
) -> list[GenerationResult]:
    """Decode all requests to their end, in the order given."""
    results: dict[int, GenerationResult] = {}
    for event in stream(model, requests):
        if isinstance(event, Done):
            results[event.index] = event.result
        if on_event is not None:
            on_event(event)
    return [results[n] for n in range(len(requests))]


@torch.inference_mode()
def stream(model: MLLMForConditionalGeneration, requests: Sequence[GenerationRequest]) -> Iterator[Event]:
    """Decode all requests, yielding what happens as it happens."""
    if not requests:
        return
    for request in requests:
        request.image.check_codebooks(model.config.num_codebooks)
    states = [SequenceState(request, config=model.config, device=model.device) for request in requests]
    forward = CachedForward(model, states)
    sampler = Sampler(model, states, unconditional_rows=forward.unconditional_rows)
    hidden_RD = forward.prefill()
    while True:
        step = sampler.sample(hidden_RD)
        yield from advance(states, step)
        if all(state.finish_reason is not None for state in states):
            return
        hidden_RD = forward.step(step)


def advance(states: Sequence[SequenceState], step: Step) -> Iterator[Event]:
    """Put a step into the sequences, and yield what that means."""
    for n, state in enumerate(states):
        if n in step.codes:
            state.add_codes(step.codes[n])
            yield ImageProgress(index=n, done=state.positions_done, total=state.num_positions)
            if state.positions_done == state.num_positions:
                yield ImageDone(index=n, codes=state.parts[-1], plan=tuple(state.plans[-1]))
        elif n in step.tokens:
            is_text = state.source is Source.SAMPLED_TOKEN and not state.is_in_plan
            state.add_token(step.tokens[n])
            if is_text and step.tokens[n] not in state.layout.opening_ids | {state.eos_id}:
                yield TextDelta(index=n, token_id=step.tokens[n])
        else:
            continue
        if state.finish_reason is not None:
            yield Done(index=n, result=state.result())


@dataclass(frozen=True, slots=True)
class CodeGroup:
    """Sequences that sample image codes together, and what does not change while they do."""

    rows: Tensor | None  # their rows of the decoder, the unconditional ones last; None: all, in order
    guidance: Guidance | None  # numbered within the group
    settings: list[RowSettings]  # per codebook


class Sampler:
    """Chooses the next position of every sequence of a batch: sampled from the heads, or forced.

    Guided pairs are mixed inside the code head. Settings are kept per group, so that a step builds none.
    """

    def __init__(
        self,
        model: MLLMForConditionalGeneration,
        states: Sequence[SequenceState],
        *,
        unconditional_rows: Mapping[int, int],
    ) -> None:
        self.model, self.config, self.device = model, model.config, model.device
        self.states, self.unconditional_rows = states, unconditional_rows
        self.layout = states[0].layout
        self.never_text_ids = torch.tensor(never_text_ids(self.layout, self.config), device=self.device)
        self.code_groups: dict[tuple[int, ...], CodeGroup] = {}
        self.text_settings: dict[tuple[tuple[int, bool], ...], RowSettings] = {}

    def sample(self, hidden_RD: Tensor) -> Step:
        """The next position of every sequence that is not done, from the hidden states after the last one."""
        sources = [state.source for state in self.states]
        if all(source is Source.SAMPLED_CODES for source in sources):
            codes_GK = self.sample_codes(hidden_RD, tuple(range(len(sources))))
            return Step({}, dict(enumerate(codes_GK.unbind())), codes_GK)
        rows = {source: tuple(n for n, of_row in enumerate(sources) if of_row is source) for source in Source}
        tokens = {n: self.states[n].forced_token() for n in rows[Source.FORCED_TOKEN]}
        if text_rows := rows[Source.SAMPLED_TOKEN]:
            tokens |= zip(text_rows, self.sample_text(hidden_RD, text_rows), strict=True)
        codes = {n: self.states[n].forced_codes() for n in rows[Source.FORCED_CODES]}
        if code_rows := rows[Source.SAMPLED_CODES]:
            codes |= zip(code_rows, self.sample_codes(hidden_RD, code_rows).unbind(), strict=True)
        codes = dict(sorted(codes.items()))
        return Step(tokens, codes, torch.stack(list(codes.values())) if codes else None)

    def sample_codes(self, hidden_RD: Tensor, rows: tuple[int, ...]) -> Tensor:
        """The K codes of one image position in each of these sequences; (G, K)."""
        if rows not in self.code_groups:
            self.code_groups[rows] = self._build_code_group(rows)
        group = self.code_groups[rows]
        num_choices = self.config.codebook_size
        noise_GKC = None if group.settings[0].all_greedy else self.noise(rows, self.config.num_codebooks, num_choices)

        def choose_code(k: int, logits_GC: Tensor) -> Tensor:
            return choose(logits_GC, group.settings[k], None if noise_GKC is None else noise_GKC[:, k])

        hidden_GD = hidden_RD if group.rows is None else hidden_RD[group.rows]
        return self.code_decoder.decode(hidden_GD, choose=choose_code, guidance=group.guidance)

    def noise(self, rows: tuple[int, ...], num_codebooks: int, num_choices: int) -> Tensor:
        """Noise (G, K, C) of the next position of these sequences; without codebooks that of text, (G, 1, V)."""
        seeds_G1 = torch.tensor([[self.states[n].request.seed] for n in rows], device=self.device)
        positions_G1 = torch.tensor([[self.states[n].noise_position] for n in rows], device=self.device)
        first = 0 if num_codebooks else TEXT
        codebooks_K = torch.arange(first, first + max(num_codebooks, 1), device=self.device)
        return gumbel(seeds_G1, positions_G1, codebooks_K, num_choices=num_choices)

    @cached_property
    def code_decoder(self) -> CodeDecoder:
        """The code head, made ready when the first image position is sampled."""
        return self.model.code_head.decoder()

    def _build_code_group(self, rows: tuple[int, ...]) -> CodeGroup:
        guided = [n for n in rows if n in self.unconditional_rows]
        decoder_rows = [*rows, *(self.unconditional_rows[n] for n in guided)]
        index = {row: g for g, row in enumerate(decoder_rows)}
        configs = [self.states[n].request.image for n in rows]
        guidance = None
        if guided:
            unconditional = [index[self.unconditional_rows.get(n, n)] for n in rows]
            guidance = Guidance(
                conditional_N=torch.tensor([index[n] for n in rows], device=self.device),
                unconditional_N=torch.tensor(unconditional, device=self.device),
                scale_N=torch.tensor([float(config.guidance) for config in configs], device=self.device),
            )
        is_all = len(decoder_rows) == len(self.states) + len(self.unconditional_rows)
        return CodeGroup(
            rows=None if is_all else torch.tensor(decoder_rows, device=self.device),
            guidance=guidance,
            settings=[
                stack_settings(configs, num_choices=self.config.codebook_size, codebook=k, device=self.device)
                for k in range(self.config.num_codebooks)
            ],
        )

    def sample_text(self, hidden_RD: Tensor, rows: tuple[int, ...]) -> list[int]:
        """One text token in each of these sequences; begin-of-image only where an image is wanted and has room, which
        is also the only end of a plan."""
        states = [self.states[n] for n in rows]
        logits_GV = self.model.text_logits(hidden_RD[torch.tensor(rows, device=self.device)]).float()
        for g, state in enumerate(states):
            if state.request.logits_processors:
                logits_GV[g] = self._process(logits_GV[g], state)
        logits_GV.index_fill_(1, self.never_text_ids, -torch.inf)
        key = tuple((n, state.text_sampling is state.request.plan) for n, state in zip(rows, states, strict=True))
        if key not in self.text_settings:
            configs = [state.text_sampling for state in states]
            self.text_settings[key] = stack_settings(configs, num_choices=logits_GV.shape[-1], device=self.device)
        settings = self.text_settings[key]
        noise_GV = None if settings.all_greedy else self.noise(rows, 0, logits_GV.shape[-1])[:, 0]
        self._note_refusals(states, logits_GV, noise_GV, settings)
        self._forbid(logits_GV, self.layout.begin_image_id, [not state.may_begin_image for state in states])
        if self.layout.begin_plan_id is not None:
            self._forbid(logits_GV, self.layout.begin_plan_id, [not state.may_begin_plan for state in states])
            self._forbid(logits_GV, self.config.eos_token_id, [state.is_in_plan for state in states])
            self._allow_only(logits_GV, sorted(self.layout.opening_ids), [state.must_open for state in states])
        return choose(logits_GV, settings, noise_GV).tolist()

    def _forbid(self, logits_GV: Tensor, token_id: int, is_forbidden_G: list[bool]) -> None:
        """Leave a token out where it is forbidden."""
        if forbidden := [g for g, is_forbidden in enumerate(is_forbidden_G) if is_forbidden]:
            logits_GV[torch.tensor(forbidden, device=self.device), token_id] = -torch.inf

    def _allow_only(self, logits_GV: Tensor, token_ids: list[int], is_limited_G: list[bool]) -> None:
        """Leave out all but these tokens where nothing else may come."""
        if limited := [g for g, is_limited in enumerate(is_limited_G) if is_limited]:
            rows_L1 = torch.tensor(limited, device=self.device)[:, None]
            kept = logits_GV[rows_L1, token_ids]
            logits_GV[rows_L1[:, 0]] = -torch.inf
            logits_GV[rows_L1, token_ids] = kept

    def _process(self, logits_V: Tensor, state: SequenceState) -> Tensor:
        """The logits as the caller's processors leave them; at image positions they see padding."""
        ids = [*state.request.prompt.token_ids_T.tolist(), *state.token_ids]
        ids = [self.config.pad_token_id if id_ == self.config.image_token_id else id_ for id_ in ids]
        ids_1T, logits_1V = torch.tensor([ids], device=self.device), logits_V[None]
        for process in state.request.logits_processors:
            logits_1V = process(ids_1T, logits_1V)
        return logits_1V[0]

    def _note_refusals(
        self, states: list[SequenceState], logits_GV: Tensor, noise_GV: Tensor | None, settings: RowSettings
    ) -> None:
        """Note in which sequences an image would begin now, had it the room."""
        lacks_room = [state.request.mode == "interleaved" and not state.has_room_for_image for state in states]
        if any(lacks_room):
            wanted = choose(logits_GV, settings, noise_GV).tolist()
            for state, lacks, token_id in zip(states, lacks_room, wanted, strict=True):
                state.image_refused |= lacks and token_id in self.layout.opening_ids


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
