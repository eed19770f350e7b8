"""Guesses of what a sequence goes on with. They decide how long decoding takes, never what comes out.

Text: what the last pass computed there, else what followed the same words in a text that the request expects, in a
sequence that began alike, or in the prompt.
Codes: of an image of the prompt that has as many positions, else what the last pass computed there, else those of the
row above. How many positions are guessed at once follows from how many guesses stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mllm.engine.state_machine import Cursor, Element, Sampled, SequenceState

LONGEST_NGRAM = 3
LEAST_TEXT, FIRST_TEXT, LARGEST = 2, 8, 128
MANY_ACCEPTED, FEW_ACCEPTED = 2, 0.75
"""Of the guesses of codes in a pass: from so many on all positions are guessed, below so many none."""


class Guesser:
    """What one sequence may go on with.

    Args:
        continuation: what another sequence went on with after the same prompt.
    """

    def __init__(self, state: SequenceState, continuation: Sequence[Element]) -> None:
        self.state, layout = state, state.layout
        prompt = state.prompts[0]
        words = [element for element in prompt if isinstance(element, int)]
        self.history = words[-LONGEST_NGRAM:]  # the last tokens that stand
        self.followers: dict[tuple[int, ...], int] = {}
        plan = [*state.plan_opening, *last_plan(words, layout.begin_plan_id), layout.begin_image_id]
        for known in (
            [*self.history, *state.request.expected_text],
            [*self.history, *(element for element in continuation if isinstance(element, int))],
            plan,
            words,
        ):  # what was learned first stays
            for n in range(LONGEST_NGRAM, 0, -1):
                for end in range(n, len(known)):
                    self.followers.setdefault(tuple(known[end - n : end]), known[end])
        self.computed: dict[int, Element] = {}  # tokens that the last pass chose beyond what stood, by position
        self.codes: list[Element | None] = [None] * state.num_positions
        lengths = state.request.prompt.image_lengths_I
        if len(lengths) > 0 and lengths[-1] == state.num_positions:
            self.codes[:] = [element for element in prompt if not isinstance(element, int)][-state.num_positions :]
        self.text_size, self.mean_accepted = FIRST_TEXT, 2.0 * MANY_ACCEPTED

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

    def limit(self, cursor: Cursor) -> int:
        """How many elements may be guessed after the cursor."""
        if self.state.next_element(cursor) is Sampled.TOKEN:
            return self.text_size
        if self.mean_accepted >= MANY_ACCEPTED:
            return LARGEST
        return 0 if self.mean_accepted < FEW_ACCEPTED else int(2 * self.mean_accepted) + 1

    def see(self, cursors: Sequence[Cursor], chosen: Mapping[int, Element], accepted: Sequence[Element]) -> None:
        """Learn from a pass which elements stand, guesses but for the last, and what was computed beyond them.

        Args:
            cursors: after each element that was fed, the first of which stood before.
            chosen: what was sampled after the element of an index.
        """
        num_accepted = len(accepted) - 1
        self.history = [*self.history, *(element for element in accepted if isinstance(element, int))][-LONGEST_NGRAM:]
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


def last_plan(words: Sequence[int], marker: int | None) -> Sequence[int]:
    """The description of the last image of a prompt, between two markers."""
    markers = [n for n, word in enumerate(words) if word == marker]
    return words[markers[-2] + 1 : markers[-1]] if len(markers) > 1 else []
