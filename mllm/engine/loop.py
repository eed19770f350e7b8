"""The engine: requests in, events out; one scheduler for all that is decoded.

Every turn admits what finds free slots, and passes over all running sequences once. Rows stand at different positions,
and enter and leave at every turn. A pass feeds new sequences chunks of their prompts, and each other one its newest
element and guesses of what follows. As noise is a function of the position, what really follows is a function of what
is before it: as far as the guesses are that, they stand, and so does the first element that differs, since all before
it was right. Results equal those of one position at a time, whatever is guessed (a fixed point; with noise held fixed,
arXiv 2510.24211, 2603.18599).

Several threads may ask at once: the first that waits for an event makes a turn for all, and the others find their
events when it has ended. Nothing runs when nobody waits.

Keys and values of ended sequences stay in their slots until these are needed. A new prompt that begins as another
sequence did takes that beginning over, and guesses that it goes on as that did.

Knows ids and codes, no strings and no pixels.

Letters: R rows of a pass, W new positions of a row, P positions of a pass, D hidden width, X image positions to be
sampled, Y text tokens to be sampled, V text vocabulary, K codebooks, C codes per codebook, N positions of an image.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Condition
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mllm.conversation import CodesPart
from mllm.engine.forward import Bucket, CachedForward, DrawnPositions, Placement
from mllm.engine.guess import Guesser
from mllm.engine.request import Done, Event, Failed, GenerationRequest, GenerationResult, ImagePreview
from mllm.engine.state_machine import Cursor, Element, Sampled, SequenceState
from mllm.engine.step import CodeTargets, Fed, Noise, StaticStep, Step, StepInputs, TextTargets, power_of_two, round_up
from mllm.heads import Guidance
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import RowSettings, SamplingConfig, stack_settings
from mllm.sequence import TokenSequence

NUM_SLOTS = 64  # sequences decoded together; a guided request takes two
KEPT_SLOTS, KEPT_BYTES = 8, 2**28  # so many slots are made at once, to keep ended sequences in, unless they take more
CAPACITY_STEP = 128
PREFILL_POSITIONS = 512  # positions of new prompts that a pass feeds at most, beside what is running
LEAST_COPIED = 8  # a shorter common beginning is computed again
PASS_POSITIONS = 80  # positions of a pass at most, unless there are more sequences


@dataclass(slots=True, eq=False)
class Slot:
    """One sequence of the decoder."""

    row: int  # where its keys and values are
    elements: list[Element] = field(default_factory=list)  # what they are of; they stay after the request has ended
    prompt: list[Element] = field(default_factory=list)
    embeddings_TD: Tensor | None = None  # of the prompt
    running: Running | None = None  # whose it is; None: free
    last_turn: int = 0  # when it became free
    num_prefilled: int = 0  # elements of the prompt that it takes in the current pass, before those of the window
    fed: list[int] = field(default_factory=list)  # which elements of the window it takes in the current pass
    begin: int = 0  # where these begin in the pass

    @property
    def num_unfed(self) -> int:
        """Elements of the prompt to be fed before its last one, which is the first of a window."""
        return max(len(self.prompt) - 1 - len(self.elements), 0)


@dataclass(slots=True, eq=False)
class Running:
    """One request while it is decoded, and its window: what it feeds in a pass, the pending element and guesses."""

    state: SequenceState
    slots: list[Slot] = field(default_factory=list)  # its own and, if it is guided, the unconditional one
    guesser: Guesser = field(init=False)
    pending: Element | None = None  # what stands but is not fed yet; None: the last element of the prompts
    elements: list[Element | None] = field(default_factory=list)  # of the window
    cursors: list[Cursor] = field(default_factory=list)  # after each of them
    chosen: dict[int, Element] = field(default_factory=dict)  # what was sampled after the element of an index
    refused: set[int] = field(default_factory=set)  # after which elements an image would begin, had it the room

    @property
    def is_ready(self) -> bool:
        """Whether all of the prompts is fed with the current pass, which then has a window."""
        return all(slot.num_unfed == slot.num_prefilled for slot in self.slots)

    def open_window(self, most: int) -> None:
        """The pending element and up to `most` - 1 guesses."""
        state, cursor, pending = self.state, self.state.cursor, self.pending
        self.elements, self.cursors, self.chosen, self.refused = [pending], [cursor], {}, set()
        most, guessed = min(most, state.request.window or most), Counter[Sampled]()
        # one image at most: a slot's code embedding holds the keys and values of one
        is_in_image = (cursor.is_framed and cursor.plan_length is None) or isinstance(pending, tuple)
        num_images = cursor.num_images + (not is_in_image)
        while len(self.elements) < most:
            cursor = self.cursors[-1]
            element = state.next_element(cursor)
            if isinstance(element, Sampled):
                is_processed = element is Sampled.TOKEN and state.request.logits_processors
                if is_processed or guessed[element] >= self.guesser.limit(element, guessed):
                    break
                guessed[element] += 1
                element = self.guesser.guess(cursor, self.elements[1:])
            if element is None or (not isinstance(element, int) and cursor.num_images != num_images):
                break
            self.elements.append(element)
            self.cursors.append(state.advance(cursor, element))
        for slot in self.slots:  # the unconditional one does not see plans
            sees_all = slot is self.slots[0]
            slot.fed = [n for n, cursor in enumerate(self.cursors) if sees_all or cursor.plan_length is None]

    def advance(self) -> Iterator[Event]:
        """Put what stands into the sequence, and yield what that means."""
        state = self.state
        accepted: list[Element] = []
        for guess in [*self.elements[1:], None]:
            element = state.next_element(state.cursor)
            if isinstance(element, Sampled):
                element = self.chosen[len(accepted)]
                state.image_refused |= len(accepted) in self.refused
            yield from state.add(element)
            accepted.append(element)
            if element != guess or state.cursor.finish_reason is not None:
                break
        for slot in self.slots:
            fed = [self.elements[n] for n in slot.fed if n < len(accepted)]
            slot.elements += [slot.prompt[-1] if element is None else element for element in fed]
        self.pending = accepted[-1]
        self.guesser.see(self.cursors, self.chosen, accepted)
        yield from self.preview()

    def preview(self) -> Iterator[Event]:
        """What the image being decoded looks like, where that is due since the window began."""
        state, every, done = self.state, self.state.request.preview_every, self.state.cursor.num_positions
        if every is None or not 0 < done < state.num_positions:
            return
        if done // every != self.cursors[0].num_positions // every:
            codes = [*state.codes, *(self.guesser.guess_codes(n) for n in range(done, state.num_positions))]
            part = CodesPart(np.array(codes, dtype=np.uint16).T, state.grid)
            yield ImagePreview(index=state.number, done=done, codes=part)


class Engine:
    """Decodes requests with one model, those of all threads together.

    Args:
        num_slots: sequences decoded together at most.
        compile: compute passes in few sizes, each compiled (on a CPU) or captured (on a GPU) when it is seen first.
    """

    def __init__(
        self, model: MLLMForConditionalGeneration, *, num_slots: int = NUM_SLOTS, compile: bool = False
    ) -> None:
        self.model, self.config, self.device, self.num_slots = model, model.config, model.device, num_slots
        self.forward = CachedForward(model)
        step = Step(model, self.forward)
        self.static = StaticStep(step) if compile else None
        self.sampler = Sampler(step, is_static=compile)
        self.slots: list[Slot] = []  # by row: in the order of their ranks
        self.waiting: deque[SequenceState] = deque()
        self.running: list[Running] = []
        self.inbox: dict[int, list[Event]] = {}  # by the number of a request, what nobody has taken yet
        self.cancelled: set[int] = set()  # requests to be forgotten before the next turn
        self.num_submitted = self.turn = 0
        self.turned = Condition()  # its lock guards what is above; only the thread that makes a turn needs none
        self.is_turning = False

    # ---- requests ----

    def submit(self, request: GenerationRequest) -> int:
        """Take a request that can be finished, and give it a number."""
        request.image.check_codebooks(self.config.num_codebooks)
        if len(request.prompts) > self.num_slots:
            raise ValueError(f"num_slots must be >= 2 for a guided request, got {self.num_slots}")
        state = SequenceState(request, config=self.config)
        with self.turned:
            state.number, self.num_submitted = self.num_submitted, self.num_submitted + 1
            self.inbox[state.number] = []
            self.waiting.append(state)
        return state.number

    def cancel(self, number: int) -> None:
        """Forget a request, unless it has ended. Its slots are free at once, or when the current turn has ended: a
        garbage collector may close a stream in the middle of one."""
        with self.turned:
            self.inbox.pop(number, None)
            self.cancelled.add(number)
            if not self.is_turning:
                self._forget_cancelled()

    def _forget_cancelled(self) -> None:
        cancelled, self.cancelled = self.cancelled, set()
        for state in [state for state in self.waiting if state.number in cancelled]:
            self.waiting.remove(state)
        for running in [running for running in self.running if running.state.number in cancelled]:
            self._free(running)

    def poll(self, numbers: Iterable[int]) -> list[Event]:
        """What happened to these requests since this was last asked. Where that is nothing, one turn is made, in which
        nothing may happen to them; while another thread makes a turn, its end is waited for."""
        with self.turned:
            while self.is_turning and not any(self.inbox[number] for number in numbers):
                self.turned.wait()
            if any(self.inbox[number] for number in numbers):
                return self._open(numbers)
            self.is_turning = True
        try:
            events = self.step()
            with self.turned:
                for event in events:
                    if event.index in self.inbox:
                        self.inbox[event.index].append(event)
                return self._open(numbers)
        finally:
            with self.turned:
                self.is_turning = False
                self._forget_cancelled()
                self.turned.notify_all()

    def _open(self, numbers: Iterable[int]) -> list[Event]:
        """Empty the inboxes of these requests."""
        found: list[Event] = []
        for number in numbers:
            events, self.inbox[number] = self.inbox[number], []
            if events and isinstance(events[-1], Done | Failed):
                del self.inbox[number]
            found += events
        return found

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
        index_of: dict[int, int] = {}  # by number: the index in the stream, of those that have not ended
        num_taken = 0
        try:
            while True:
                while (request := next(source, None)) is not None:
                    index_of[self.submit(request)] = num_taken
                    num_taken += 1
                if not index_of:
                    return
                for event in self.poll(list(index_of)):
                    index = index_of[event.index]
                    if isinstance(event, Done | Failed):
                        del index_of[event.index]
                    yield replace(event, index=index)
        finally:
            for number in index_of:
                self.cancel(number)

    # ---- a turn ----

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One turn; the events carry the numbers of their requests. `poll` is for several threads."""
        self.turn += 1
        events = self._admit()
        self._arrange()
        # prompts do not suit passes whose rows are padded to one length
        beginning = [running for running in self.running if self._begins_apart(running)]
        if rows := beginning or self.running:
            events += self._pass(rows)
        return events

    def _begins_apart(self, running: Running) -> bool:
        return running.pending is None and (self.static is not None or not self.forward.is_ragged)

    def _admit(self) -> list[Event]:
        """Give slots to requests that wait, in their order, but for those whose prompt is being fed by another."""
        later, failed = [], []
        while self.waiting:
            state = self.waiting.popleft()
            if self.num_slots - sum(slot.running is not None for slot in self.slots) < len(state.prompts):
                later.append(state)
                break
            if any(self._will_share(prompt) for prompt in state.prompts):
                later.append(state)
            else:
                try:
                    self._start(state)
                except Exception as error:  # such as of ids that do not exist; another thread may make this turn
                    failed.append(Failed(index=state.number, error=error))
        self.waiting.extendleft(reversed(later))
        return failed

    def _will_share(self, prompt: list[Element]) -> bool:
        """Whether more of this prompt is being fed by another sequence than has been."""
        fed = max((num_common(slot.elements, prompt) for slot in self.slots), default=0)
        filling = [slot.prompt for slot in self.slots if slot.running is not None and slot.num_unfed]
        return any(num_common(other, prompt) > max(2 * fed, fed + LEAST_COPIED) for other in filling)

    def _start(self, state: SequenceState) -> None:
        self._make_room(len(state.prompts), max(map(len, state.prompts)) + state.max_steps, state.num_positions)
        running, continuations = Running(state), []
        embeddings = list(map(self._embed_prompt, state.prompts, state.request.prompts))
        for prompt, embeddings_TD in zip(state.prompts, embeddings, strict=True):
            slot, continuation = self._take_slot(prompt)
            slot.running, slot.embeddings_TD = running, embeddings_TD
            running.slots.append(slot)
            continuations.append(continuation)
        running.guesser = Guesser(state, continuations[0], is_on_cpu=self.device.type == "cpu")
        self.running.append(running)

    def _make_room(self, num_slots: int, length: int, num_positions: int) -> None:
        """Have so many free slots of such a length."""
        length = -(-length // CAPACITY_STEP) * CAPACITY_STEP
        if self.static is not None:
            length, num_positions = power_of_two(length), power_of_two(num_positions)
        capacity = max(length, self.forward.capacity - 1)
        needed = sum(slot.running is not None for slot in self.slots) + num_slots
        total = len(self.slots)
        if needed > total:
            total = min(max(2 * total, needed), self.num_slots)
        kept = min(KEPT_BYTES // (capacity * self.forward.bytes_per_position), KEPT_SLOTS, self.num_slots)
        total = max(total, kept)
        self.forward.reserve(total, capacity + 1, num_positions)
        self.slots += [Slot(row) for row in range(len(self.slots), total)]

    def _take_slot(self, prompt: list[Element]) -> tuple[Slot, list[Element]]:
        """A free slot with as much of the prompt as any slot has, and what went on there."""
        donor = max(self.slots, key=lambda slot: num_common(self._shareable(slot), prompt))
        num_shared = min(num_common(self._shareable(donor), prompt), len(prompt) - 1)
        continuation = [*donor.elements, *([donor.running.pending] if donor.running else [])][len(prompt) :]
        if num_shared < len(prompt) - 1:
            continuation = []
        if donor.running is None and 2 * num_shared >= len(donor.elements):
            slot = donor
        else:
            free = [slot for slot in self.slots if slot.running is None]
            slot = min(free, key=lambda slot: (slot is donor, slot.last_turn))
            if num_shared >= LEAST_COPIED and slot is not donor:
                self.forward.copy(donor.row, slot.row, num_shared)
            elif slot is not donor:
                num_shared = 0
        slot.elements, slot.prompt = prompt[:num_shared], prompt
        return slot, [element for element in continuation if element is not None]

    def _shareable(self, slot: Slot) -> list[Element]:
        """What another sequence may take over: new positions that see no others are no prompt."""
        return slot.elements[: len(slot.prompt)] if self.config.embedding_context == "current" else slot.elements

    def _embed_prompt(self, prompt: list[Element], sequence: TokenSequence) -> Tensor:
        image_id = self.config.image_token_id
        ids_1T = torch.tensor(
            [[element if isinstance(element, int) else image_id for element in prompt]], device=self.device
        )
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
        """Put the slots in the order of their ranks, as a pass is over neighbours."""
        ranks = [2 if slot.running is None else int(self._begins_apart(slot.running)) for slot in self.slots]
        for row, rank in enumerate(sorted(ranks)):
            if ranks[row] != rank:
                source = max(n for n, other in enumerate(ranks) if other == rank)  # a hole is filled at once
                slot, other = self.slots[row], self.slots[source]
                self.forward.swap(row, source, max(len(slot.elements), len(other.elements)))
                self.slots[row], self.slots[source], slot.row, other.row = other, slot, source, row
                ranks[row], ranks[source] = rank, ranks[row]

    # ---- one pass over what is running ----

    def _pass(self, rows: Sequence[Running]) -> list[Event]:
        """Feed prompts and windows of these requests, whose slots are neighbours."""
        slots = sorted((slot for running in rows for slot in running.slots), key=lambda slot: slot.row)
        unfed = [slot for slot in slots if slot.num_unfed]
        for slot in slots:
            slot.num_prefilled = min(slot.num_unfed, max(PREFILL_POSITIONS // max(len(unfed), 1), CAPACITY_STEP))
            slot.fed = []  # until its window is open
        ready = [running for running in rows if running.is_ready]
        open_windows(ready)
        first, lengths = slots[0].row, [len(slot.elements) for slot in slots]
        counts = [slot.num_prefilled + len(slot.fed) for slot in slots]
        static = None if rows[0].pending is None else self.static
        bucket = (static or self.forward).bucket(lengths, counts)
        placement, begins = self.forward.arrange(lengths, counts, first=first, bucket=bucket)
        for slot, begin in zip(slots, begins, strict=True):
            slot.begin = begin + slot.num_prefilled
        fed = self._list_fed(rows, len(placement.position_P), bucket if static else None)
        failed = self.sampler.sample(ready, fed, placement, static)
        for slot in slots:
            slot.elements += slot.prompt[len(slot.elements) : len(slot.elements) + slot.num_prefilled]
        events: list[Event] = []
        for running in ready:
            if (error := failed.get(running.state.number)) is not None:
                events.append(Failed(index=running.state.number, error=error))
            else:
                events += running.advance()
            if error is not None or running.state.cursor.finish_reason is not None:
                self._free(running)
        return events

    def _list_fed(self, rows: Sequence[Running], pass_length: int, bucket: Bucket | None) -> Fed:
        """What prompts and windows feed."""
        tokens_P = np.full(pass_length, self.config.pad_token_id)
        # by slot: index in the pass, in the image, codes, those that the next position has in the image before
        drawn: dict[int, list[tuple[int, int, Element, Element | None]]] = {}
        given: list[tuple[range, Tensor]] = []  # of prompts
        columns: dict[int, int] = {}
        for running, slot in [(each, slot) for each in rows for slot in each.slots]:
            columns[slot.row] = running.state.grid[1]
            source = running.state.sources[running.slots.index(slot)]
            if running.pending is None:
                num_given = slot.num_prefilled + bool(slot.fed)
                begin = slot.begin - slot.num_prefilled
                embeddings = slot.embeddings_TD[len(slot.elements) : len(slot.elements) + num_given]
                given.append((range(begin, begin + num_given), embeddings))
            for at, n in enumerate(slot.fed, slot.begin):
                element = running.elements[n]
                if isinstance(element, int):
                    tokens_P[at] = element
                elif element is not None:
                    num_positions = running.cursors[n].num_positions
                    of_next = source[num_positions] if num_positions < len(source) else None
                    drawn.setdefault(slot.row, []).append((at, num_positions - 1, element, of_next))
        given_indices = [index for indices, _ in given for index in indices]
        to_device = partial(torch.tensor, device=self.device)
        return Fed(
            tokens_P=to_device(tokens_P),
            drawn=self._list_drawn(drawn, columns, pass_length, bucket) if drawn else None,
            given=(to_device(given_indices), torch.cat([each for _, each in given])) if given else None,
        )

    def _list_drawn(
        self,
        drawn: dict[int, list[tuple[int, int, Element, Element | None]]],
        columns: dict[int, int],
        pass_length: int,
        bucket: Bucket | None,
    ) -> DrawnPositions:
        """Image positions, by slot: the index in the pass and in the image, the codes, and those of the source."""
        slots = [*drawn] if bucket is None else [*range(bucket.num_rows)]
        shape = len(slots), max(map(len, drawn.values())) if bucket is None else bucket.num_new
        codes_RWK = np.zeros((*shape, self.config.num_codebooks), dtype=np.int64)
        index_RW, pass_index_RW = np.full(shape, -1), np.full(shape, pass_length)
        sources_RWK = np.full_like(codes_RWK, -1)
        for r, slot in enumerate(slots):
            for w, (pass_index, index, codes, of_next) in enumerate(drawn.get(slot, ())):
                codes_RWK[r, w], index_RW[r, w], pass_index_RW[r, w] = codes, index, pass_index
                sources_RWK[r, w] = -1 if of_next is None else of_next
        to_device = partial(torch.tensor, device=self.device)
        return DrawnPositions(
            *map(to_device, (codes_RWK, index_RW, [columns.get(slot, 1) for slot in slots], slots, pass_index_RW)),
            sources_RWK=to_device(sources_RWK) if self.config.image_source_embedding else None,
        )


def num_common(a: Sequence[Element], b: Sequence[Element]) -> int:
    """How many elements two sequences have in common at their beginnings."""
    num_equal, end = 0, min(len(a), len(b))
    while num_equal < end:  # compared slice by slice, which takes far less time than one by one
        middle = (num_equal + end + 1) // 2
        if a[num_equal:middle] == b[num_equal:middle]:
            num_equal = middle
        else:
            end = middle - 1
    return num_equal


def open_windows(ready: Sequence[Running]) -> None:
    """Open windows that share the positions of a pass; text, of which little is guessed, comes first."""
    room = PASS_POSITIONS
    is_image = [running.state.next_element(running.state.cursor) is not Sampled.TOKEN for running in ready]
    in_order = sorted(range(len(ready)), key=is_image.__getitem__)
    for n, running in enumerate(ready[k] for k in in_order):
        running.open_window(max(1, room // (len(ready) - n) // len(running.slots)))
        room -= sum(len(slot.fed) for slot in running.slots)


class Target(NamedTuple):
    """What is to be sampled: that which comes after an element of a window."""

    running: Running
    after: int

    @property
    def state(self) -> SequenceState:
        return self.running.state

    @property
    def cursor(self) -> Cursor:
        return self.running.cursors[self.after]

    @property
    def lacks_room(self) -> bool:
        """Whether an image could begin here, had it the room."""
        return self.state.request.mode == "interleaved" and not self.state.has_room_for_image(self.cursor)

    def pass_index(self, slot: int) -> int:
        """Where in the pass the hidden state is."""
        return self.running.slots[slot].begin + self.running.slots[slot].fed.index(self.after)


class Sampler:
    """Says what is to be sampled after the positions of a pass, and puts what was into the windows."""

    def __init__(self, step: Step, *, is_static: bool) -> None:
        self.step, self.device = step, step.device
        self.is_static = is_static
        self.config = step.model.config
        self.to_device = partial(torch.tensor, device=self.device)
        self.settings: dict[tuple[object, ...], RowSettings] = {}

    def sample(
        self, ready: Sequence[Running], fed: Fed, placement: Placement, static: StaticStep | None
    ) -> dict[int, Exception]:
        """Compute the pass; errors by the number of their requests. `static`: what computes it, if not each operation
        by itself."""
        codes, texts, processed = [], [], []
        for target in [Target(running, after) for running in ready for after in range(len(running.elements))]:
            source = target.state.next_element(target.cursor)
            if source is Sampled.CODES:
                codes.append(target)
            elif source is Sampled.TOKEN:
                (processed if target.state.request.logits_processors else texts).append(target)
        outputs = (static or self.step)(
            StepInputs(fed, placement, self.describe_codes(codes), self.describe_texts(texts))
        )
        if codes:
            for target, codes_K in zip(codes, outputs.codes_XK.tolist(), strict=False):
                target.running.chosen[target.after] = tuple(codes_K)
        if texts:
            put_tokens(texts, outputs.tokens_Y, outputs.wanted_Y)
        return self.sample_processed(outputs.hidden_PD, processed) if processed else {}

    def describe_codes(self, targets: list[Target]) -> CodeTargets | None:
        """The image positions to be sampled, and again the last one up to a size that a static step has."""
        if not targets:
            return None
        targets = self._fill_up(targets)
        configs = [target.state.request.image for target in targets]
        settings = self._stack(configs, self.config.codebook_size, self.config.num_codebooks)
        rows, guidance = [target.pass_index(0) for target in targets], None
        if any(target.state.request.is_guided for target in targets):
            unconditional = list(range(len(rows)))
            for x, target in enumerate(targets):
                if target.state.request.is_guided:
                    unconditional[x] = len(rows)
                    rows.append(target.pass_index(1))
            if self.is_static:
                rows += rows[-1:] * (2 * len(targets) - len(rows))
            guidance = Guidance(
                conditional_N=torch.arange(len(targets), device=self.device),
                unconditional_N=self.to_device(unconditional),
                scale_N=self.to_device([float(config.guidance) for config in configs]),
            )
        return CodeTargets(self.to_device(rows), guidance, settings, self._noise(targets, settings))

    def describe_texts(self, targets: list[Target]) -> TextTargets | None:
        """The text tokens to be sampled, and again the last one up to a size that a static step has."""
        if not targets:
            return None
        targets = self._fill_up(targets)
        settings = self._stack([t.state.text_sampling(t.cursor) for t in targets], self.config.vocab_size)
        forbidden = [target.state.forbidden(target.cursor) for target in targets]
        return TextTargets(
            pass_index_Y=self.to_device([target.pass_index(0) for target in targets]),
            settings=settings,
            noise=self._noise(targets, settings),
            is_forbidden_YS=self.to_device([[id_ in ids for id_ in self.step.forbidden_ids] for ids in forbidden]),
            must_open_Y=self.to_device([target.state.must_open(target.cursor) for target in targets]),
            asks_wanted=any(target.lacks_room for target in targets),
        )

    def _fill_up(self, targets: list[Target]) -> list[Target]:
        return targets + targets[-1:] * (round_up(len(targets)) - len(targets)) if self.is_static else targets

    def _noise(self, targets: list[Target], settings: RowSettings) -> Noise | None:
        if settings.all_greedy:
            return None
        counters = [(target.state.request.seed, target.state.noise_position(target.cursor)) for target in targets]
        return Noise(*self.to_device(counters).T[..., None])

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

    def sample_processed(self, hidden_PD: Tensor, targets: list[Target]) -> dict[int, Exception]:
        """Put text tokens of requests with logits processors into the windows; errors by the number of the request."""
        failed: dict[int, Exception] = {}
        described = self.describe_texts(targets)
        logits_YV = self.step.model.text_logits(hidden_PD.index_select(0, described.pass_index_Y)).float()
        for y, target in enumerate(targets):
            try:
                logits_YV[y] = self._process(logits_YV[y], target.state)
            except Exception as error:  # the caller's code: it ends its own request
                failed[target.state.number] = error
        put_tokens(targets, *self.step.choose_tokens(logits_YV, described))
        return failed

    def _process(self, logits_V: Tensor, state: SequenceState) -> Tensor:
        """The logits as the caller's processors leave them; at image positions they see padding."""
        ids = [*state.request.prompt.token_ids_T.tolist(), *state.token_ids]
        ids = [self.config.pad_token_id if id_ == self.config.image_token_id else id_ for id_ in ids]
        ids_1T, logits_1V = torch.tensor([ids], device=self.device), logits_V[None]
        for process in state.request.logits_processors:
            logits_1V = process(ids_1T, logits_1V)
        return logits_1V[0]


def put_tokens(targets: list[Target], tokens_Y: Tensor, wanted_Y: Tensor | None) -> None:
    """Put text tokens into the windows, and note after which elements an image would begin, had it the room."""
    chosen = tokens_Y.tolist()
    wanted = chosen if wanted_Y is None else wanted_Y.tolist()
    for target, chosen_id, wanted_id in zip(targets, chosen, wanted, strict=False):  # targets are filled up
        target.running.chosen[target.after] = chosen_id
        if target.lacks_room and wanted_id in target.state.layout.opening_ids:
            target.running.refused.add(target.after)
