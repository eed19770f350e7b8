"""The engine: requests in, events out; one scheduler for all that is decoded.

Every turn admits what finds free slots, feeds a chunk of new prompts, and passes over all running sequences once. Rows
stand at different places, and enter and leave at every turn. A pass feeds each sequence its newest place and guesses of
what follows. As noise is a function of the position, what really follows is a function of what is before it: as far as
the guesses are that, they stand, and so does the first place that differs, since all before it was right. Results equal
those of one place at a time, whatever is guessed (a fixed point; with noise held fixed, arXiv 2510.24211, 2603.18599).

Keys and values of ended sequences stay in their slots until these are needed. A new prompt that begins as another
sequence did takes that beginning over, and guesses that it goes on as that did.

Knows ids and codes, no strings and no pixels. Rules of a sequence are in mllm/engine/state.py, passes in
mllm/engine/forward.py, guesses in mllm/engine/guess.py.

Letters: R rows of a pass, W new places of a row, D hidden width, P image positions to be sampled, T text tokens to be
sampled, V text vocabulary, K codebooks, C codes per codebook, N positions of an image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart
from mllm.engine.forward import CachedForward
from mllm.engine.guess import Guesser
from mllm.engine.request import (
    Done,
    Event,
    Failed,
    GenerationRequest,
    GenerationResult,
    ImageDone,
    ImagePreview,
    ImageProgress,
    TextDelta,
)
from mllm.engine.state import Cursor, Place, SequenceState, Source
from mllm.heads import CodeDecoder, Guidance
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import TEXT, RowSettings, SamplingConfig, choose, gumbel, stack_settings
from mllm.sequence import ImageLayout, TokenSequence

NUM_SLOTS = 64
"""Sequences decoded together; a guided request takes two."""
KEPT_SLOTS, KEPT_BYTES = 8, 2**28
"""So many slots are made at once, to keep ended sequences in, unless they take more."""
CAPACITY_STEP = 128
PREFILL_PLACES = 512
"""Places of new prompts that are fed between two passes over what is running."""
LEAST_COPIED = 8
"""A shorter common beginning is computed again."""
PASS_PLACES = 80
"""Places of a pass at most, unless there are more sequences."""


def generate(
    model: MLLMForConditionalGeneration,
    requests: Sequence[GenerationRequest],
    *,
    on_event: Callable[[Event], None] | None = None,
) -> list[GenerationResult]:
    """Decode all requests to their end, in the order given."""
    return Engine(model).generate(requests, on_event=on_event)


def stream(model: MLLMForConditionalGeneration, requests: Iterable[GenerationRequest | None]) -> Iterator[Event]:
    """Decode all requests, yielding what happens as it happens (`Engine.stream`)."""
    return Engine(model).stream(requests)


@dataclass(slots=True, eq=False)
class Slot:
    """One sequence of the decoder."""

    row: int
    """Where its keys and values are."""
    places: list[Place] = field(default_factory=list)
    """What they are of; they stay after the request has ended."""
    prompt: list[Place] = field(default_factory=list)
    embeddings_TD: Tensor | None = None
    """Of the prompt."""
    running: Running | None = None
    """Whose it is; None: free."""
    last_turn: int = 0
    """When it became free."""

    @property
    def num_unfed(self) -> int:
        """Places of the prompt to be fed before the first pass, which feeds its last place."""
        return max(len(self.prompt) - 1 - len(self.places), 0)


@dataclass(slots=True, eq=False)
class Running:
    """One request while it is decoded."""

    number: int
    state: SequenceState
    slots: list[Slot]
    """Its own and, if it is guided, the unconditional one."""
    guesser: Guesser
    pending: Place | None = None
    """What stands but is not fed yet; None: the last place of the prompts."""

    @property
    def is_ready(self) -> bool:
        return not any(slot.num_unfed for slot in self.slots)


@dataclass(slots=True, eq=False)
class Window:
    """What a sequence feeds in a pass: the pending place, then guesses."""

    running: Running
    places: list[Place | None]
    cursors: list[Cursor]
    """After each place."""
    fed: list[list[int]] = field(default_factory=list)
    """For each slot, which of the places it takes: the unconditional one does not see plans."""
    begins: list[int] = field(default_factory=list)
    """For each slot, where its places begin among those of the pass."""
    chosen: dict[int, Place] = field(default_factory=dict)
    """What was sampled after a place."""
    refused: set[int] = field(default_factory=set)
    """After which places an image would begin, had it the room."""


class Target(NamedTuple):
    """What is to be sampled: that which comes after a place of a window."""

    window: Window
    after: int

    @property
    def state(self) -> SequenceState:
        return self.window.running.state

    @property
    def cursor(self) -> Cursor:
        return self.window.cursors[self.after]

    def place(self, slot: int) -> int:
        """Where among the places of the pass the hidden state is."""
        return self.window.begins[slot] + self.window.fed[slot].index(self.after)


class Engine:
    """Decodes requests with one model.

    Args:
        num_slots: sequences decoded together at most.
    """

    def __init__(self, model: MLLMForConditionalGeneration, *, num_slots: int = NUM_SLOTS) -> None:
        self.model, self.config, self.device, self.num_slots = model, model.config, model.device, num_slots
        self.forward = CachedForward(model)
        self.sampler = Sampler(model)
        self.slots: list[Slot] = []
        """By row: those that are ready, then those whose prompt is being fed, then the free ones."""
        self.waiting: deque[tuple[int, SequenceState]] = deque()
        self.running: list[Running] = []
        self.inbox: dict[int, list[Event]] = {}
        """Events of requests that are streamed."""
        self.num_submitted = self.turn = self.num_passes = 0

    # ---- requests ----

    def submit(self, request: GenerationRequest) -> int:
        """Take a request that can be finished, and give it a number."""
        request.image.check_codebooks(self.config.num_codebooks)
        if len(request.prompts) > self.num_slots:
            raise ValueError(f"num_slots must be >= 2 for a guided request, got {self.num_slots}")
        self.waiting.append((self.num_submitted, SequenceState(request, config=self.config)))
        self.num_submitted += 1
        return self.num_submitted - 1

    def cancel(self, number: int) -> None:
        """Forget a request; its slots are free at once."""
        self.waiting = deque(entry for entry in self.waiting if entry[0] != number)
        for running in [running for running in self.running if running.number == number]:
            self._free(running)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def generate(
        self, requests: Sequence[GenerationRequest], *, on_event: Callable[[Event], None] | None = None
    ) -> list[GenerationResult]:
        """Decode all requests to their end, in the order given."""
        results: dict[int, GenerationResult] = {}
        for event in self.stream(requests):
            if on_event is not None:
                on_event(event)
            match event:
                case Done(index=index, result=result):
                    results[index] = result
                case Failed(error=error):
                    raise error
        return [results[n] for n in range(len(requests))]

    def stream(self, requests: Iterable[GenerationRequest | None]) -> Iterator[Event]:
        """Decode all requests, yielding what happens as it happens; closing the iterator cancels what is left.

        Requests are asked for at every turn, so that new ones may follow from events; None: there is none for now.
        Several streams may be read in turns: each turn of one brings all of them forward.
        """
        source = iter(requests)
        numbers: dict[int, int] = {}
        open_numbers: set[int] = set()
        try:
            while True:
                while (request := next(source, None)) is not None:
                    number = self.submit(request)
                    numbers[number], self.inbox[number] = len(numbers), []
                    open_numbers.add(number)
                if not open_numbers:
                    return
                if not any(self.inbox[number] for number in open_numbers):
                    for event in self.step():
                        self.inbox[event.index].append(event)
                for number in sorted(open_numbers):
                    events, self.inbox[number] = self.inbox[number], []
                    for event in events:
                        if isinstance(event, Done | Failed):
                            open_numbers.discard(number)
                        yield replace(event, index=numbers[number])
        finally:
            for number in numbers:
                self.cancel(number)
                self.inbox.pop(number, None)

    # ---- a turn ----

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One turn; the events carry the numbers of their requests."""
        self.turn += 1
        self._admit()
        self._arrange()
        self._prefill()
        self._arrange()
        ready = [running for running in self.running if running.is_ready]
        return self._decode(ready) if ready else []

    def _admit(self) -> None:
        """Give slots to requests that wait, in their order, but for those whose prompt is being fed by another."""
        later = []
        while self.waiting:
            number, state = self.waiting.popleft()
            prompts = [
                [*list_places(prompt, self.config.image_token_id), *prefix]
                for prompt, prefix in zip(
                    state.request.prompts, (state.prefix, state.unconditional_prefix), strict=False
                )
            ]
            num_free = self.num_slots - sum(slot.running is not None for slot in self.slots)
            if num_free < len(prompts):
                later.append((number, state))
                break
            if any(self._will_share(prompt) for prompt in prompts):
                later.append((number, state))
                continue
            self._start(number, state, prompts)
        self.waiting.extendleft(reversed(later))

    def _will_share(self, prompt: list[Place]) -> bool:
        """Whether more of this prompt is being fed by another sequence than has been."""
        fed = max((num_common(slot.places, prompt) for slot in self.slots), default=0)
        filling = [slot.prompt for slot in self.slots if slot.running is not None and slot.num_unfed]
        return any(num_common(other, prompt) > max(2 * fed, fed + LEAST_COPIED) for other in filling)

    def _start(self, number: int, state: SequenceState, prompts: list[list[Place]]) -> None:
        self._make_room(len(prompts), max(map(len, prompts)) + state.max_steps, state.num_positions)
        running = Running(number, state, [], Guesser(state, prompts[0], []))
        for prompt, sequence in zip(prompts, state.request.prompts, strict=False):
            slot, continuation = self._take_slot(prompt)
            slot.running = running
            slot.embeddings_TD = self._embed_prompt(prompt, sequence)
            running.slots.append(slot)
            if len(running.slots) == 1:
                running.guesser = Guesser(state, prompt, continuation)
        self.running.append(running)

    def _make_room(self, num_slots: int, num_places: int, num_positions: int) -> None:
        """Have so many free slots of such a length."""
        num_places = -(-num_places // CAPACITY_STEP) * CAPACITY_STEP
        capacity = max(num_places, self.forward.slots.capacity - 1)
        used = sum(slot.running is not None for slot in self.slots)
        total = len(self.slots)
        if used + num_slots > total:
            total = min(max(2 * total, used + num_slots), self.num_slots)
        kept = min(KEPT_BYTES // (capacity * self.forward.place_bytes), KEPT_SLOTS, self.num_slots)
        total = max(total, kept)
        self.forward.reserve(total, capacity + 1, num_positions)
        self.slots += [Slot(row) for row in range(len(self.slots), total)]

    def _take_slot(self, prompt: list[Place]) -> tuple[Slot, list[Place]]:
        """A free slot with as much of the prompt as any slot has, and what went on there."""
        donor = max(self.slots, key=lambda slot: num_common(self._shareable(slot), prompt))
        num_shared = min(num_common(self._shareable(donor), prompt), len(prompt) - 1)
        continuation = [*donor.places, *([donor.running.pending] if donor.running else [])][len(prompt) :]
        if num_shared < len(prompt) - 1:
            continuation = []
        if donor.running is None and 2 * num_shared >= len(donor.places):
            slot = donor
        else:
            free = [slot for slot in self.slots if slot.running is None]
            slot = min(free, key=lambda slot: (slot is donor, slot.last_turn))
            if num_shared >= LEAST_COPIED and slot is not donor:
                self.forward.copy(donor.row, slot.row, num_shared)
            elif slot is not donor:
                num_shared = 0
        slot.places, slot.prompt = prompt[:num_shared], prompt
        return slot, [place for place in continuation if place is not None]

    def _shareable(self, slot: Slot) -> list[Place]:
        """What another sequence may take over: new positions that see no others are no prompt."""
        return slot.places[: len(slot.prompt)] if self.config.embedding_context == "current" else slot.places

    def _embed_prompt(self, prompt: list[Place], sequence: TokenSequence) -> Tensor:
        """Embeddings (T, D)."""
        image_id = self.config.image_token_id
        ids_1T = torch.tensor([[place if isinstance(place, int) else image_id for place in prompt]], device=self.device)
        if not len(sequence.codes_PK):
            return self.model.embed(ids_1T, None, None)[0]
        codes_PK, lengths_I = (
            torch.from_numpy(a).to(self.device) for a in (sequence.codes_PK, sequence.image_lengths_I)
        )
        return self.model.embed(ids_1T, codes_PK, lengths_I)[0]

    def _free(self, running: Running) -> None:
        self.running.remove(running)
        for slot in running.slots:
            slot.running, slot.embeddings_TD, slot.last_turn = None, None, self.turn

    def _arrange(self) -> None:
        """Put the slots in their order."""
        in_order = sorted(self.slots, key=lambda slot: 2 if slot.running is None else 1 - slot.running.is_ready)
        rank = {id(slot): 2 if slot.running is None else 1 - slot.running.is_ready for slot in self.slots}
        zones = [rank[id(slot)] for slot in in_order]
        for row, zone in enumerate(zones):
            slot = self.slots[row]
            if rank[id(slot)] == zone:
                continue
            others = [other for other in self.slots[row + 1 :] if rank[id(other)] == zone]
            other = min(others, key=lambda other: zones[other.row] != rank[id(slot)])
            self.forward.swap(row, other.row, max(len(slot.places), len(other.places)))
            self.slots[row], self.slots[other.row] = other, slot
            slot.row, other.row = other.row, row

    def _prefill(self) -> None:
        """Feed the next chunk of the prompts that are not fed yet."""
        filling = [slot for slot in self.slots if slot.running is not None and not slot.running.is_ready]
        if not filling:
            return
        num_new = min(max(slot.num_unfed for slot in filling), max(PREFILL_PLACES // len(filling), CAPACITY_STEP))
        embedded_RTD = filling[0].embeddings_TD.new_zeros(len(filling), num_new, self.config.hidden_size)
        counts = [min(slot.num_unfed, num_new) for slot in filling]
        for row, (slot, count) in enumerate(zip(filling, counts, strict=True)):
            begin = len(slot.places)
            embedded_RTD[row, :count] = slot.embeddings_TD[begin : begin + count]
        self._pass(embedded_RTD, filling, counts)
        for slot, count in zip(filling, counts, strict=True):
            slot.places += slot.prompt[len(slot.places) : len(slot.places) + count]

    def _pass(self, embedded_RWD: Tensor, slots: Sequence[Slot], counts: Sequence[int]) -> Tensor:
        """Hidden states (P, D) of new places of neighbouring slots."""
        self.num_passes += 1
        return self.forward(embedded_RWD, [len(slot.places) for slot in slots], counts, first=slots[0].row)

    # ---- one pass over what is running ----

    def _decode(self, ready: Sequence[Running]) -> list[Event]:
        slots = self.slots[: sum(len(running.slots) for running in ready)]
        windows = open_windows(ready)
        fed = {
            slot.row: places
            for window in windows
            for slot, places in zip(window.running.slots, window.fed, strict=True)
        }
        counts = [len(fed[slot.row]) for slot in slots]
        begins = [0, *accumulate(counts)]
        for window in windows:
            window.begins = [begins[slot.row] for slot in window.running.slots]
        hidden_PD = self._pass(self._embed(windows, slots), slots, counts)
        by_source: dict[Source, list[Target]] = {source: [] for source in Source}
        for window in windows:
            for after, cursor in enumerate(window.cursors):
                by_source[window.running.state.source(cursor)].append(Target(window, after))
        failed = self.sampler.sample(hidden_PD, by_source[Source.SAMPLED_TOKEN], by_source[Source.SAMPLED_CODES])
        events: list[Event] = []
        for window in windows:
            if (error := failed.get(window.running.number)) is not None:
                events.append(Failed(index=window.running.number, error=error))
            else:
                events += advance(window)
            if error is not None or window.running.state.cursor.finish_reason is not None:
                self._free(window.running)
        return events

    def _embed(self, windows: Sequence[Window], slots: Sequence[Slot]) -> Tensor:
        """Embeddings (R, W, D) of what the windows feed."""
        shape = len(slots), max(len(fed) for window in windows for fed in window.fed)
        tokens_RW = np.full(shape, self.config.pad_token_id)
        codes_RWK = np.zeros((*shape, self.config.num_codebooks), dtype=np.int64)
        index_RW, columns_R = np.full(shape, -1), np.ones(len(slots), dtype=np.int64)
        for window in windows:
            for slot, fed in zip(window.running.slots, window.fed, strict=True):
                columns_R[slot.row] = window.running.state.grid[1]
                for w, n in enumerate(fed):
                    if isinstance(place := window.places[n], int):
                        tokens_RW[slot.row, w] = place
                    elif place is not None:
                        codes_RWK[slot.row, w] = place
                        index_RW[slot.row, w] = window.cursors[n].num_positions - 1
        to_device = partial(torch.tensor, device=self.device)
        codes = to_device(codes_RWK) if (index_RW >= 0).any() else None
        embedded_RWD = self.forward.embed(to_device(tokens_RW), codes, to_device(index_RW), to_device(columns_R))
        for window in windows:
            if window.places[0] is None:
                for slot in window.running.slots:
                    embedded_RWD[slot.row, 0] = slot.embeddings_TD[-1]
        return embedded_RWD


def list_places(sequence: TokenSequence, image_token_id: int) -> list[Place]:
    """The places of a prompt."""
    codes = iter(map(tuple, sequence.codes_PK.tolist()))
    return [next(codes) if id_ == image_token_id else id_ for id_ in sequence.token_ids_T.tolist()]


def num_common(a: Sequence[Place], b: Sequence[Place]) -> int:
    """How many places two sequences have in common at their beginnings."""
    for n, (ours, theirs) in enumerate(zip(a, b, strict=False)):
        if ours != theirs:
            return n
    return min(len(a), len(b))


def open_windows(ready: Sequence[Running]) -> list[Window]:
    """Windows that share the places of a pass; text, of which little is guessed, comes first."""
    room, windows = PASS_PLACES, {}
    in_order = sorted(ready, key=lambda running: running.state.source(running.state.cursor) is not Source.SAMPLED_TOKEN)
    for n, running in enumerate(in_order):
        window = open_window(running, max(1, room // (len(in_order) - n) // len(running.slots)))
        room -= sum(map(len, window.fed))
        windows[running.number] = window
    return [windows[running.number] for running in ready]


def open_window(running: Running, most: int) -> Window:
    """The pending place and up to `most` - 1 guesses."""
    state, window = running.state, Window(running, [running.pending], [running.state.cursor])
    most = min(most, state.request.window or most, 1 + running.guesser.limit(state.cursor))
    # one image at most: a slot's code embedding holds the keys and values of one
    is_framed = state.cursor.num_framed < len(state.cursor.frame) and state.cursor.plan_length is None
    is_in_image = is_framed or isinstance(running.pending, tuple)
    num_images = state.cursor.num_images + (not is_in_image)
    while len(window.places) < most:
        cursor = window.cursors[-1]
        place = state.dictated(cursor)
        if place is None and not (state.request.logits_processors and state.source(cursor) is Source.SAMPLED_TOKEN):
            place = running.guesser.guess(cursor, window.places[1:])
        if place is None or (not isinstance(place, int) and cursor.num_images != num_images):
            break
        window.places.append(place)
        window.cursors.append(state.advance(cursor, place))
    window.fed.append(list(range(len(window.places))))
    if len(running.slots) > 1:
        window.fed.append([n for n, cursor in enumerate(window.cursors) if cursor.plan_length is None])
    return window


def advance(window: Window) -> Iterator[Event]:
    """Put what stands into the sequence, and yield what that means."""
    running, state = window.running, window.running.state
    for after in range(len(window.places)):
        before = state.cursor
        place = state.dictated(before)
        is_sampled = place is None
        if place is None:
            place = window.chosen[after]
            state.image_refused |= after in window.refused
        state.add(place)
        running.guesser.stand(place)
        yield from tell(running.number, state, before, place, is_sampled=is_sampled)
        if state.cursor.finish_reason is not None:
            yield Done(index=running.number, result=state.result())
        is_guessed = after + 1 < len(window.places) and window.places[after + 1] == place
        if not is_guessed or state.cursor.finish_reason is not None:
            break
    for slot, fed in zip(running.slots, window.fed, strict=True):
        places = [slot.prompt[-1] if window.places[n] is None else window.places[n] for n in fed if n <= after]
        slot.places += places
    running.pending = place
    running.guesser.see(window, after)
    yield from preview(running, first=window.cursors[0])


def preview(running: Running, *, first: Cursor) -> Iterator[Event]:
    """What the image being decoded looks like, where that is due since the cursor."""
    state, every = running.state, running.state.request.preview_every
    done = state.cursor.num_positions
    if every is None or not 0 < done < state.num_positions or done // every == first.num_positions // every:
        return
    codes = [*state.codes, *(running.guesser.guess_codes(n) for n in range(done, state.num_positions))]
    part = CodesPart(np.array(codes, dtype=np.uint16).T, state.grid)
    yield ImagePreview(index=running.number, done=done, codes=part)


def tell(number: int, state: SequenceState, before: Cursor, place: Place, *, is_sampled: bool) -> Iterator[Event]:
    """What it means that a place was put after a cursor."""
    if not isinstance(place, int):
        yield ImageProgress(index=number, done=state.cursor.num_positions, total=state.num_positions)
        if state.cursor.num_positions == state.num_positions:
            yield ImageDone(index=number, codes=state.parts[-1], plan=tuple(state.plans[-1]))
    elif is_sampled and before.plan_length is None and place not in state.layout.opening_ids | {state.eos_id}:
        yield TextDelta(index=number, token_id=place)


class Sampler:
    """Chooses what comes after places, from hidden states. Guided pairs are mixed inside the code head."""

    def __init__(self, model: MLLMForConditionalGeneration) -> None:
        self.model, self.config, self.device = model, model.config, model.device
        self.layout = ImageLayout.from_config(model.config)
        self.never_text_ids = torch.tensor(never_text_ids(self.layout, self.config), device=self.device)
        self.settings: dict[tuple[object, ...], RowSettings] = {}

    def sample(self, hidden_PD: Tensor, texts: list[Target], codes: list[Target]) -> dict[int, Exception]:
        """Put what was chosen into the windows; errors by the number of their requests."""
        failed: dict[int, Exception] = {}
        codes_PK = self.sample_codes(hidden_PD, codes) if codes else None
        tokens_T = self.sample_text(hidden_PD, texts, failed) if texts else None
        if codes_PK is not None:
            for target, chosen in zip(codes, codes_PK.tolist(), strict=True):
                target.window.chosen[target.after] = tuple(chosen)
        if tokens_T is not None:
            for target, token_id in zip(texts, tokens_T.tolist(), strict=True):
                target.window.chosen[target.after] = token_id
        return failed

    def sample_codes(self, hidden_PD: Tensor, targets: list[Target]) -> Tensor:
        """The K codes of image positions, (P, K)."""
        num_codebooks, num_choices = self.config.num_codebooks, self.config.codebook_size
        configs = [target.state.request.image for target in targets]
        settings = self._stack(configs, num_choices, num_codebooks)
        noise_PKC = None
        if not settings.all_greedy:
            noise_PKC = self.noise(targets, torch.arange(num_codebooks, device=self.device), num_choices)

        def choose_code(k: int | None, logits: Tensor) -> Tensor:
            if k is not None:
                of_k = settings.take(slice(k, None, num_codebooks))
                return choose(logits, of_k, None if noise_PKC is None else noise_PKC[:, k])
            noise_XC = None if noise_PKC is None else noise_PKC.flatten(0, 1)
            return choose(logits.flatten(0, 1), settings, noise_XC).view(logits.shape[:2])

        rows = [target.place(0) for target in targets]
        guided = [p for p, target in enumerate(targets) if target.state.request.is_guided]
        guidance = None
        if guided:
            unconditional = list(range(len(rows)))
            for p in guided:
                unconditional[p] = len(rows)
                rows.append(targets[p].place(1))
            guidance = Guidance(
                conditional_N=torch.arange(len(targets), device=self.device),
                unconditional_N=torch.tensor(unconditional, device=self.device),
                scale_N=torch.tensor([float(config.guidance) for config in configs], device=self.device),
            )
        hidden_XD = hidden_PD[torch.tensor(rows, device=self.device)]
        return self.code_decoder.decode(hidden_XD, choose=choose_code, guidance=guidance)

    @cached_property
    def code_decoder(self) -> CodeDecoder:
        """The code head, made ready when the first image position is sampled."""
        return self.model.code_head.decoder()

    def noise(self, targets: list[Target], codebooks_K: Tensor, num_choices: int) -> Tensor:
        """Noise (P, K, C)."""
        counters = [(target.state.request.seed, target.state.noise_position(target.cursor)) for target in targets]
        seeds_P1, positions_P1 = torch.tensor(counters, device=self.device).T[..., None]
        return gumbel(seeds_P1, positions_P1, codebooks_K, num_choices=num_choices)

    def _stack(self, configs: list[SamplingConfig], num_choices: int, num_codebooks: int = 1) -> RowSettings:
        """Settings of these rows, each for all codebooks."""
        distinct = tuple(dict.fromkeys(configs))
        key = (distinct, num_choices, num_codebooks)
        if key not in self.settings:
            self.settings[key] = stack_settings(
                distinct, num_choices=num_choices, num_codebooks=num_codebooks, device=self.device
            )
        order = {config: n for n, config in enumerate(distinct)}
        first_P1 = torch.tensor([[num_codebooks * order[config]] for config in configs])
        return self.settings[key].take((first_P1 + torch.arange(num_codebooks)).flatten().to(self.device))

    def sample_text(self, hidden_PD: Tensor, targets: list[Target], failed: dict[int, Exception]) -> Tensor:
        """Text tokens (T,); begin-of-image only where an image is wanted and has room, which is also the only end of a
        plan."""
        rows_T = torch.tensor([target.place(0) for target in targets], device=self.device)
        logits_TV = self.model.text_logits(hidden_PD[rows_T]).float()
        for t, target in enumerate(targets):
            if target.state.request.logits_processors:
                try:
                    logits_TV[t] = self._process(logits_TV[t], target.state)
                except Exception as error:  # the caller's code: it ends its own request
                    failed[target.window.running.number] = error
        logits_TV.index_fill_(1, self.never_text_ids, -torch.inf)
        settings = self._stack([t.state.text_sampling(t.cursor) for t in targets], logits_TV.shape[-1])
        noise_TV = None
        if not settings.all_greedy:
            noise_TV = self.noise(targets, torch.tensor([TEXT], device=self.device), logits_TV.shape[-1])[:, 0]
        self._note_refusals(targets, logits_TV, noise_TV, settings)
        self._forbid(logits_TV, self.layout.begin_image_id, [not t.state.may_begin_image(t.cursor) for t in targets])
        if self.layout.begin_plan_id is not None:
            self._forbid(logits_TV, self.layout.begin_plan_id, [not t.state.may_begin_plan(t.cursor) for t in targets])
            self._forbid(logits_TV, self.config.eos_token_id, [t.cursor.plan_length is not None for t in targets])
            self._allow_only(logits_TV, sorted(self.layout.opening_ids), [t.state.must_open(t.cursor) for t in targets])
        return choose(logits_TV, settings, noise_TV)

    def _forbid(self, logits_TV: Tensor, token_id: int, is_forbidden_T: list[bool]) -> None:
        """Leave a token out where it is forbidden."""
        if forbidden := [t for t, is_forbidden in enumerate(is_forbidden_T) if is_forbidden]:
            logits_TV[torch.tensor(forbidden, device=self.device), token_id] = -torch.inf

    def _allow_only(self, logits_TV: Tensor, token_ids: list[int], is_limited_T: list[bool]) -> None:
        """Leave out all but these tokens where nothing else may come."""
        if limited := [t for t, is_limited in enumerate(is_limited_T) if is_limited]:
            rows_L1 = torch.tensor(limited, device=self.device)[:, None]
            kept = logits_TV[rows_L1, token_ids]
            logits_TV[rows_L1[:, 0]] = -torch.inf
            logits_TV[rows_L1, token_ids] = kept

    def _process(self, logits_V: Tensor, state: SequenceState) -> Tensor:
        """The logits as the caller's processors leave them; at image positions they see padding."""
        ids = [*state.request.prompt.token_ids_T.tolist(), *state.token_ids]
        ids = [self.config.pad_token_id if id_ == self.config.image_token_id else id_ for id_ in ids]
        ids_1T, logits_1V = torch.tensor([ids], device=self.device), logits_V[None]
        for process in state.request.logits_processors:
            logits_1V = process(ids_1T, logits_1V)
        return logits_1V[0]

    def _note_refusals(
        self, targets: list[Target], logits_TV: Tensor, noise_TV: Tensor | None, settings: RowSettings
    ) -> None:
        """Note after which places an image would begin, had it the room."""
        lacks_room = [
            t.state.request.mode == "interleaved" and not t.state.has_room_for_image(t.cursor) for t in targets
        ]
        if any(lacks_room):
            wanted = choose(logits_TV, settings, noise_TV).tolist()
            for target, lacks, token_id in zip(targets, lacks_room, wanted, strict=True):
                if lacks and token_id in self.layout.opening_ids:
                    target.window.refused.add(target.after)


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
