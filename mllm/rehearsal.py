"""What a listener hears of answers whose pictures may be drawn again: only what stands in the end.

In: the events of first tries, then the settled answers. Out: text up to the first picture and the progress of drawing
as they come; pictures, what follows them and the end once nothing changes any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from mllm.conversation import CodesPart
from mllm.generation.loop import DecodingEvent, ImageEvent, RowEvent, TextEvent
from mllm.generation.request import Generated, Row


class Rehearsal:
    """Stands between a decoding loop and who listens to it."""

    def __init__(self, rows: Sequence[Row], tell: Callable[[DecodingEvent], None]) -> None:
        self.rows, self.tell = rows, tell
        self.has_drawn = [False] * len(rows)

    def hear(self, event: DecodingEvent) -> None:
        """An event of a first try."""
        if not self.rows[event.row].redraws:
            self.tell(event)
            return
        match event:
            case ImageEvent() if not self.has_drawn[event.row]:
                self.has_drawn[event.row] = event.image is not None
                self.tell(replace(event, image=None))
            case TextEvent() if not self.has_drawn[event.row]:
                self.tell(event)
            case _:
                pass

    def settle(self, results: Sequence[Generated]) -> None:
        """Tell the rest of the answers that were held back."""
        for number, (row, result) in enumerate(zip(self.rows, results, strict=True)):
            if row.redraws:
                for event in self._rest(number, result):
                    self.tell(event)

    def _rest(self, number: int, result: Generated) -> Iterator[DecodingEvent]:
        outlines, has_drawn = iter(result.outlines), False
        for part in result.parts:
            if isinstance(part, CodesPart):
                total = part.codes_KN.shape[1]
                yield ImageEvent(number, total, total, part, next(outlines))
                has_drawn = True
            elif has_drawn:
                yield from (TextEvent(number, token_id) for token_id in part)
        yield RowEvent(number, result)
