"""Guesses of what a sequence goes on with. They decide how long decoding takes, never what comes out.

Text: what the last pass computed there, else the next word of a draft (a text that the request expects, what a sequence
that began alike went on with, or the last plan of the prompt), else what followed the same words in the prompt.
Codes: of an image of the prompt that has as many positions, else what the last pass computed there, else those of the
row above. How many positions are guessed at once follows from how many guesses stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mllm.engine.state_machine import Cursor, Element, Sampled, SequenceState

LONGEST_NGRAM = 3
LEAST_TEXT, FIRST_TEXT, LARGEST = 8, 8, 128
"""Words guessed in a pass: at least, at first beside those of the draft, and at most."""
CODES_ON_CPU = 24
"""Image positions guessed in a pass beside as many as usually stand. On a CPU a pass takes as long as 15 positions in
it; elsewhere positions cost next to nothing."""
FEW_ACCEPTED = 0.75
"""Below so many accepted guesses of codes in a pass nothing is guessed for a while."""
PLAN_END = 6
"""Guessed words before an image in a pass, at most, with which codes of it are guessed, too."""


class Guesser:
    """What one sequence may go on with.

    Args:
        continuation: what another sequence went on with after the same prompt.
        is_on_cpu: where the sequence is decoded.
    """

    def __init__(self, state: SequenceState, continuation: Sequence[Element], *, is_on_cpu: bool) -> None:
        self.state, layout = state, state.layout
        prompt = state.prompts[0]
        words = [element for element in prompt if isinstance(element, int)]
        self.history = words[-LONGEST_NGRAM:]  # the last tokens that stand
        expected = [*state.request.expected_text] or last_plan(words, layout.begin_plan_id)
        if state.request.mode != "text":
            expected = [*state.plan_opening, *expected, layout.begin_image_id]
        self.draft = [element for element in continuation if isinstance(element, int)] or expected
        self.num_drafted = 0  # words of the draft before the next one
        self.followers: dict[tuple[int, ...], int] = {}
        for known in ([*self.history, *self.draft], words):  # what was learned first stays
            for n in range(LONGEST_NGRAM, 0, -1):
                for end in range(n, len(known)):
                    self.followers.setdefault(tuple(known[end - n : end]), known[end])
        self.computed: dict[int, Element] = {}  # tokens that the last pass chose beyond what stood, by position
        source, num_positions = state.sources[0], state.num_positions
        self.codes: list[Element | None] = [*source] if len(source) == num_positions else [None] * num_positions
        self.text_size, self.mean_accepted = FIRST_TEXT + len(self.draft), 4.0
        self.more_codes = CODES_ON_CPU if is_on_cpu else LARGEST

    def guess(self, cursor: Cursor, guessed: Sequence[Element]) -> Element | None:
        """What may come after a cursor where it is sampled; None: no idea.

        Args:
            guessed: before it, since the last element that stands.
        """
        state = self.state
        if state.next_element(cursor) is Sampled.CODES:
            return self.guess_codes(cursor.num_positions)
        if state.must_open(cursor):
            return state.plan_opening[0] if state.plan_opening else state.layout.begin_image_id
        if cursor.num_tokens in self.computed:
            return self.computed[cursor.num_tokens]
        words = [*self.history, *(element for element in guessed if isinstance(element, int))]
        drafted = self.num_drafted + len(words) - len(self.history)
        is_drafted = cursor.plan_length is not None or state.request.mode == "text"  # a chat may go on in words
        if is_drafted and drafted < len(self.draft):
            return self.draft[drafted]
        for n in range(LONGEST_NGRAM, 0, -1):
            if (found := self.followers.get(tuple(words[-n:]))) is not None:
                return None if state.request.mode == "text" and found in state.layout.opening_ids else found
        return None

    def guess_codes(self, position: int) -> Element:
        """The codes of an image position: those known there, else above, else before it."""
        columns = self.state.grid[1]
        sources = [*range(position, -1, -columns), *([position - 1] if position else [])]
        known = (self.codes[source] for source in sources if self.codes[source] is not None)
        return next(known, (0,) * self.state.num_codebooks)

    def limit(self, source: Sampled, guessed: Mapping[Sampled, int]) -> int:
        """How many elements of a source may be guessed in a window.

        Args:
            guessed: in it so far, by source.
        """
        if source is Sampled.TOKEN:
            return self.text_size
        if guessed[Sampled.TOKEN] > PLAN_END or self.mean_accepted < FEW_ACCEPTED:
            return 0
        return min(int(self.mean_accepted) + self.more_codes, LARGEST)

    def see(self, cursors: Sequence[Cursor], chosen: Mapping[int, Element], accepted: Sequence[Element]) -> None:
        """Learn from a pass which elements stand, guesses but for the last, and what was computed beyond them.

        Args:
            cursors: after each element that was fed, the first of which stood before.
            chosen: what was sampled after the element of an index.
        """
        num_accepted = len(accepted) - 1
        words = [element for element in accepted if isinstance(element, int)]
        self.history = [*self.history, *words][-LONGEST_NGRAM:]
        self.num_drafted += len(words)
        if words and self.draft[self.num_drafted - 1 : self.num_drafted] != words[-1:]:
            self._align()
        self.computed = {}
        for after, element in chosen.items():
            if isinstance(element, int):
                self.computed[cursors[after].num_tokens] = element
            else:
                self.codes[cursors[after].num_positions] = element
        is_guessed = len(cursors) > 1
        if self.state.next_element(cursors[0]) is not Sampled.TOKEN:
            # without guesses it grows, so that guessing is tried again
            self.mean_accepted += 0.3 * (num_accepted - self.mean_accepted) if is_guessed else 0.05
        elif is_guessed:
            self.text_size = min(max(2 * num_accepted + 2, LEAST_TEXT), LARGEST)

    def _align(self) -> None:
        """Go on in the draft behind the last words, at the nearest place where it has all of them, else where it is."""
        n = len(self.history)
        ends = [end for end in range(n, len(self.draft) + 1) if self.draft[end - n : end] == self.history]
        self.num_drafted = min(ends, key=lambda end: abs(end - self.num_drafted), default=self.num_drafted)


def last_plan(words: Sequence[int], marker: int | None) -> Sequence[int]:
    """The description of the last image of a prompt, between two markers."""
    markers = [n for n, word in enumerate(words) if word == marker]
    return words[markers[-2] + 1 : markers[-1]] if len(markers) > 1 else []
