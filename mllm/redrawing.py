"""Drawing again: a picture that does not show what its own outline says is drawn anew, with other random numbers.

In: rows and what became of them. Out: the same, each picture looked at (mllm/looking.py) and compared with the outline
it was drawn from. Where the two differ, what came before the picture stays and the rest of the answer is written again,
`Row.redraws` times for each picture at most; then it stands as it is. A result still depends on its row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from mllm.conversation import CodesPart, ImagePart, Message
from mllm.generation.loop import DecodingEvent, ImageEvent, RowEvent, TextEvent
from mllm.generation.request import NUM_SEEDS, Generated, Row, add_text
from mllm.layout import ImageLayout
from mllm.looking import look
from mllm.processor import MLLMProcessor
from mllm.sequence import extend_sequence
from mllm.world.outline import are_alike, read_outline

STRIDE = 100_000_007
"""Between the seeds of tries; prime, and far from that of best-of (mllm/best_of.py), so that no two meet."""

Run = Callable[[list[Row]], list[Generated]]


@dataclass(slots=True)
class Draft:
    """An answer whose pictures are being judged, in order."""

    row: Row
    result: Generated
    """What the last try became, without what stood when it began."""
    begun: list[list[int] | CodesPart] = field(default_factory=list)
    """What stood when the last try began."""
    begun_outlines: list[list[int]] = field(default_factory=list)
    accepted: int = 0
    """Pictures that stand."""
    tries: int = 0
    """Of the picture after them, beyond the first."""
    redrawn: int = 0
    """Tries of all pictures."""

    @property
    def parts(self) -> list[list[int] | CodesPart]:
        """Text and pictures of the whole answer."""
        first = self.result.parts[:1]
        if self.begun and first and isinstance(self.begun[-1], list) and isinstance(first[0], list):
            return [*self.begun[:-1], [*self.begun[-1], *first[0]], *self.result.parts[1:]]
        return [*self.begun, *self.result.parts]

    @property
    def outlines(self) -> list[list[int]]:
        """The outlines of its pictures."""
        return [*self.begun_outlines, *self.result.outlines]

    @property
    def unjudged(self) -> list[tuple[CodesPart, list[int]]]:
        """Pictures and outlines that were not looked at yet; none where nothing is drawn again."""
        pictures = [part for part in self.parts if isinstance(part, CodesPart)]
        return list(zip(pictures, self.outlines, strict=True))[self.accepted :] if self.row.redraws else []

    def must_draw_again(self, verdicts: Iterable[bool]) -> bool:
        """Accept pictures up to the first one that must be drawn again; whether there is one."""
        for is_right in verdicts:
            if not is_right and self.tries < self.row.redraws:
                self.tries, self.redrawn = self.tries + 1, self.redrawn + 1
                return True
            self.accepted, self.tries = self.accepted + 1, 0
        return False

    def next_row(self, layout: ImageLayout) -> Row:
        """The row of the next try: it goes on after what stands."""
        parts, outlines = self.parts, self.outlines
        pictures = [place for place, part in enumerate(parts) if isinstance(part, CodesPart)]
        self.begun, self.begun_outlines = parts[: pictures[self.accepted]], outlines[: self.accepted]
        images = [part for part in self.begun if isinstance(part, CodesPart)]
        token_ids = answer_ids(self.begun, self.begun_outlines, layout)
        unguided_ids = answer_ids(self.begun, [[]] * len(images), layout)
        budget, unconditional = self.row.max_new_tokens, self.row.unconditional
        return replace(
            self.row,
            prompt=extend_sequence(self.row.prompt, token_ids, images),
            unconditional=unconditional and extend_sequence(unconditional, unguided_ids, images),
            max_new_tokens=budget and budget - len(token_ids),
            seed=(self.row.seed + self.redrawn * STRIDE) % NUM_SEEDS,
        )

    def whole(self, layout: ImageLayout) -> Generated:
        """The answer, as if it had been written in one go."""
        token_ids = answer_ids(self.begun, self.begun_outlines, layout)
        return replace(
            self.result,
            token_ids=[*token_ids, *self.result.token_ids],
            parts=self.parts,
            outlines=self.outlines,
            seed=self.row.seed,
        )


def redraw(rows: Sequence[Row], results: Sequence[Generated], *, processor: MLLMProcessor, run: Run) -> list[Generated]:
    """Draw again what is unlike its outline, all rows together."""
    layout = ImageLayout.from_config(processor.need_config())
    drafts = [Draft(row, result) for row, result in zip(rows, results, strict=True)]
    while waiting := [draft for draft in drafts if draft.unjudged]:
        verdicts = iter(are_as_outlined([pair for draft in waiting for pair in draft.unjudged], processor, run))
        wrong = [draft for draft in waiting if draft.must_draw_again(list(islice(verdicts, len(draft.unjudged))))]
        for draft, result in zip(wrong, run([draft.next_row(layout) for draft in wrong]), strict=True):
            draft.result = result
    return [draft.whole(layout) for draft in drafts]


def stream_redrawn(
    row: Row, *, processor: MLLMProcessor, run: Run, stream: Callable[[list[Row]], Iterator[DecodingEvent]]
) -> Iterator[DecodingEvent]:
    """The events of one row, with the answer of `redraw`. Of a picture that is drawn again only progress is told."""
    layout = ImageLayout.from_config(processor.need_config())
    draft = Draft(row, empty_result())
    next_row: Row | None = row
    while next_row is not None:
        events, next_row = stream([next_row]), None
        for event in events:
            match event:
                case TextEvent(token_id=token_id):
                    add_text(draft.result.parts, token_id)
                case ImageEvent(image=CodesPart() as image, outline=outline):
                    draft.result.parts.append(image)
                    draft.result.outlines.append(outline)
                    if draft.must_draw_again(are_as_outlined(draft.unjudged, processor, run)):
                        next_row = draft.next_row(layout)
                        draft.result = empty_result()
                        break
                case RowEvent(generated=generated):
                    draft.result = generated
                    event = replace(event, generated=draft.whole(layout))
            yield event


def empty_result() -> Generated:
    """A row before its first token."""
    return Generated(token_ids=[], parts=[], finish_reason="eos", seed=0, image_refused=False, outlines=[])


def are_as_outlined(pictures: Sequence[tuple[CodesPart, list[int]]], processor: MLLMProcessor, run: Run) -> list[bool]:
    """Whether each picture, looked at, shows what its outline says. One without an outline, or with free words of a
    person that cannot be compared, says nothing wrong.
    """
    images = [processor.with_outline(image, outline) for image, outline in pictures]
    are_comparable = [image.outline is not None and read_outline(image.outline) is not None for image in images]
    drawn = processor.decode_images([image for image, is_one in zip(images, are_comparable, strict=True) if is_one])
    looked = iter(look([[Message("user", (ImagePart(picture),))] for picture in drawn], processor, run))
    return [
        not is_one or are_alike(image.outline, next(looked)[0].parts[0].outline)
        for image, is_one in zip(images, are_comparable, strict=True)
    ]


def answer_ids(parts: Sequence[list[int] | CodesPart], outlines: Sequence[list[int]], layout: ImageLayout) -> list[int]:
    """The tokens of an answer, those of its pictures and their outlines included."""
    ids: list[int] = []
    written = iter(outlines)
    for part in parts:
        if isinstance(part, list):
            ids += part
            continue
        if outline := next(written):
            ids += [*layout.outline_opening(part.grid), *outline]
        ids += layout.token_ids(part.grid)
    return ids
