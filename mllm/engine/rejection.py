"""Rejection sampling of images: an image that fails a check is sampled again, with other random numbers.

In: requests, a function that decodes them and one that checks images. Out: the events of the answers that stand.
Where an image fails, what came before it stays and the rest of the answer is sampled again, `resamples` times for each
image at most; then it stands as it is. A check may also put another image in its place, or have the answer go on in
words. A result still depends on its request alone. Knows ids and codes; what is checked, and how, is the caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal

from mllm.conversation import CodesPart
from mllm.engine.request import (
    NUM_SEEDS,
    Done,
    Event,
    Failed,
    GenerationRequest,
    GenerationResult,
    ImageDone,
    ImagePreview,
    ImageProgress,
    TextDelta,
    append_text,
)
from mllm.sequence import ImageLayout, extend_sequence

END: Any = object()
SEED_STRIDE = 100_000_007
"""Between the seeds of tries; prime, and far from that of best-of (mllm/pipeline.py), so that no two meet."""

CHECKED_TOGETHER = 16  # images are checked when so many wait, or a quarter of all, or when nothing else goes on

Stream = Callable[[Iterable[GenerationRequest | None]], Iterator[Event]]
"""Decodes requests, asking for new ones at every turn (mllm/engine/loop.py `Engine.stream`)."""
Verdict = bool | CodesPart | Literal["words"]
"""Of an image: it stands, or is sampled again; this other image stands; or the answer goes on in words, without it."""
Check = Callable[[Sequence[ImageDone], Sequence[GenerationRequest]], Sequence[Verdict]]
"""The verdicts on images, given the requests that they are answers to."""


def stream_accepted(
    requests: Iterable[GenerationRequest | None], *, stream: Stream, check: Check, layout: ImageLayout
) -> Iterator[Event]:
    """The events of `stream`, without images that fail the check and what follows them; of those only progress is told.

    The next try of an answer begins at once, beside all others.
    """
    source, is_exhausted, numbers = iter(requests), False, count()
    active: dict[int, Attempt] = {}  # by the index of their request in the stream
    rejected: deque[Attempt] = deque()
    ready: deque[Event] = deque()

    def check_waiting() -> None:
        waiting = {index: attempt for index, attempt in active.items() if attempt.held}
        pairs = [(image, attempt.request) for attempt in waiting.values() for image in attempt.unchecked]
        enough = min(CHECKED_TOGETHER, max(1, len(active) // 4))
        if not pairs or (len(pairs) < enough and len(waiting) < len(active)):
            return
        verdicts = iter(check([image for image, _ in pairs], [request for _, request in pairs]))
        for index, attempt in waiting.items():
            ready.extend(attempt.release([next(verdicts) for _ in attempt.unchecked]))
            if attempt.is_rejected:
                rejected.append(active.pop(index))
            elif attempt.is_finished:
                del active[index]

    def next_requests() -> Iterator[GenerationRequest | None]:
        """What the stream asks for at every turn: images of the same turn are checked together."""
        nonlocal is_exhausted
        num_tries = 0
        while True:
            check_waiting()
            if rejected:
                attempt = rejected.popleft()
            elif (request := next(source, END)) is None or request is END:
                is_exhausted = request is END
                yield None
                continue
            else:
                attempt = Attempt(next(numbers), request)
            active[num_tries], num_tries = attempt, num_tries + 1
            yield attempt.next_request(layout)

    while not is_exhausted:  # a source that had none for now may have more when the last answer is told
        for event in stream(next_requests()):
            while ready:
                yield ready.popleft()
            if attempt := active.get(event.index):  # not of a try that was rejected
                yield from attempt.take(event)
                if attempt.is_finished:
                    del active[event.index]
            if is_exhausted and not active and not rejected:
                break  # what follows rejected images is of no use
        while ready:
            yield ready.popleft()


@dataclass(slots=True)
class Attempt:
    """The current try of one answer."""

    index: int  # of the request among all
    request: GenerationRequest
    parts: list[list[int] | CodesPart] = field(default_factory=list)  # text and images of the answer that stand
    plans: list[list[int]] = field(default_factory=list)  # those of the images that stand
    held: list[Event] = field(default_factory=list)  # what came from the first unchecked image on
    tries: int = 0  # of the next image, beyond the first
    resampled: int = 0  # tries of all images, beyond the first ones
    prefix: list[int] = field(default_factory=list)  # the tokens that stood when this try began
    is_rejected: bool = False
    is_refused: bool = False  # it goes on in words
    is_finished: bool = False

    @property
    def unchecked(self) -> list[ImageDone]:
        """Images that wait for their check."""
        return [event for event in self.held if isinstance(event, ImageDone)]

    def next_request(self, layout: ImageLayout) -> GenerationRequest:
        """The request of the next try: it continues what stands."""
        self.is_rejected = False
        if not self.resampled:
            return self.request
        images = [part for part in self.parts if isinstance(part, CodesPart)]
        self.prefix = answer_ids(self.parts, self.plans, layout)
        unguided_ids = answer_ids(self.parts, [[]] * len(images), layout)
        budget, unconditional = self.request.max_new_tokens, self.request.unconditional
        return replace(
            self.request,
            prompt=extend_sequence(self.request.prompt, self.prefix, images),
            unconditional=unconditional and extend_sequence(unconditional, unguided_ids, images),
            max_new_tokens=budget and budget - len(self.prefix),
            seed=(self.request.seed + self.resampled * SEED_STRIDE) % NUM_SEEDS,
            mode="text" if self.is_refused else self.request.mode,
        )

    def take(self, event: Event) -> Iterator[Event]:
        """Pass on an event of the decoding loop, or hold it until the image before it is checked."""
        if self.held or (isinstance(event, ImageDone) and self.request.resamples):
            self.held.append(event)
        else:
            yield self._accept(event)

    def release(self, verdicts: Sequence[Verdict]) -> Iterator[Event]:
        """Pass on what was held, up to the first image after which the answer must be sampled again."""
        held, self.held = self.held, []
        found = iter(verdicts)
        for number, event in enumerate(held):
            if isinstance(event, ImageDone):
                verdict = next(found)
                if verdict == "words" or (verdict is False and self.tries < self.request.resamples):
                    self.is_refused = verdict == "words"
                    self.tries, self.resampled, self.is_rejected = self.tries + 1, self.resampled + 1, True
                    return
                self.tries = 0
                if isinstance(verdict, CodesPart):
                    yield self._accept(replace(event, codes=verdict))
                    if not all(isinstance(later, Done) for later in held[number + 1 :]):  # what follows saw the other
                        self.resampled, self.is_rejected = self.resampled + 1, True
                        return
                    continue
            yield self._accept(event)

    def _accept(self, event: Event) -> Event:
        """Add an event to what stands; the event as the caller sees it."""
        match event:
            case TextDelta(token_id=int(token_id)):
                append_text(self.parts, token_id)
            case ImageDone(codes=codes, plan=plan):
                self.parts.append(codes)
                self.plans.append(list(plan))
            case ImageProgress() | ImagePreview():
                pass
            case Failed():
                self.is_finished = True
            case Done(result=result):
                self.is_finished = True
                event = replace(event, result=self._complete(result))
        return replace(event, index=self.index)

    def _complete(self, result: GenerationResult) -> GenerationResult:
        """The result of the last try as that of the complete answer."""
        return replace(
            result,
            token_ids=[*self.prefix, *result.token_ids],
            parts=self.parts,
            plans=self.plans,
            seed=self.request.seed,
        )


def answer_ids(parts: Sequence[list[int] | CodesPart], plans: Sequence[list[int]], layout: ImageLayout) -> list[int]:
    """The tokens of an answer, those of its images and their plans included."""
    ids: list[int] = []
    written = iter(plans)
    for part in parts:
        if isinstance(part, list):
            ids += part
            continue
        if plan := next(written):
            ids += [*layout.plan_opening(part.grid), *plan]
        ids += layout.token_ids(part.grid)
    return ids
