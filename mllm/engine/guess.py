"""Guesses of what a sequence goes on with. They decide how long decoding takes, never what comes out.

Text: what the last pass computed there, else what followed the same words in a text that the request expects, in a
sequence that began alike, or in the prompt.
Codes: of an image of the prompt that has as many positions, else what the last pass computed there, else those of the
row above. How many places are guessed at once follows from how many guesses stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mllm.engine.state import Cursor, Place, SequenceState, Source

if TYPE_CHECKING:
    from mllm.engine.loop import Window

LONGEST_NGRAM = 3
LEAST_TEXT, FIRST_TEXT, LARGEST = 2, 8, 128
MANY_STAND, FEW_STAND = 4, 0.75
"""Of the guesses of codes in a pass: from so many on all positions are guessed, below so many none."""


class Guesser:
    """What one sequence may go on with.

    Args:
        prompt: its places.
        continuation: what another sequence went on with after the same prompt.
    """

    def __init__(self, state: SequenceState, prompt: Sequence[Place], continuation: Sequence[Place]) -> None:
        self.state = state
        words = [place for place in prompt if isinstance(place, int)]
        self.history = words[-LONGEST_NGRAM:]
        """The last tokens that stand."""
        self.followers: dict[tuple[int, ...], int] = {}
        known = [place for place in continuation if isinstance(place, int)]
        self._learn([*self.history, *state.request.expected_text])
        self._learn([*self.history, *known])
        self._learn([*state.plan_opening, *last_plan(words, state.layout.begin_plan_id), state.layout.begin_image_id])
        self._learn(words)
        self.computed: dict[int, Place] = {}
        """Tokens that the last pass chose beyond what stood, by their place in the answer."""
        self.codes: list[Place | None] = [None] * state.num_positions
        codes = [place for place in prompt if not isinstance(place, int)]
        lengths = state.request.prompt.image_lengths_I
        self.has_image = len(lengths) > 0 and lengths[-1] == state.num_positions
        if self.has_image:
            self.codes = list(codes[-state.num_positions :])
        self.text_size, self.mean_standing = FIRST_TEXT, 2.0 * MANY_STAND

    def _learn(self, words: Sequence[int]) -> None:
        """What follows what in a text; what was learned first stays."""
        for n in range(LONGEST_NGRAM, 0, -1):
            for end in range(n, len(words)):
                self.followers.setdefault(tuple(words[end - n : end]), words[end])

    def guess(self, cursor: Cursor, guessed: Sequence[Place]) -> Place | None:
        """What may come after the cursor; None: no idea.

        Args:
            guessed: before it, since the last place that stands.
        """
        state = self.state
        match state.source(cursor):
            case Source.SAMPLED_CODES:
                return self.guess_codes(cursor.num_positions)
            case Source.SAMPLED_TOKEN if state.must_open(cursor):
                return state.layout.begin_image_id if not state.plan_opening else state.plan_opening[0]
            case Source.SAMPLED_TOKEN if cursor.num_tokens in self.computed:
                return self.computed[cursor.num_tokens]
            case Source.SAMPLED_TOKEN:
                words = [*self.history, *(place for place in guessed if isinstance(place, int))]
                for n in range(LONGEST_NGRAM, 0, -1):
                    if (found := self.followers.get(tuple(words[-n:]))) is not None:
                        no_image = state.request.mode == "text" and found in state.layout.opening_ids
                        return None if no_image else found
        return None

    def guess_codes(self, position: int) -> Place:
        """The codes of an image position."""
        known = self.codes[position]
        above = position - self.state.grid[1]
        while known is None and above >= 0:
            known, above = self.codes[above], above - self.state.grid[1]
        if known is None and position > 0:
            known = self.codes[position - 1]
        return (0,) * self.state.num_codebooks if known is None else known

    def limit(self, cursor: Cursor) -> int:
        """How many places may be guessed after the cursor."""
        if self.state.source(cursor) is Source.SAMPLED_TOKEN:
            return self.text_size
        if self.mean_standing >= MANY_STAND:
            return LARGEST
        return 0 if self.mean_standing < FEW_STAND else int(2 * self.mean_standing) + 1

    def stand(self, place: Place) -> None:
        """Take note of a place that stands."""
        if isinstance(place, int):
            self.history = [*self.history, place][-LONGEST_NGRAM:]

    def see(self, window: Window, num_standing: int) -> None:
        """Learn from a pass how many guesses stood, and what was computed beyond them."""
        self.computed = {}
        for after, place in window.chosen.items():
            if isinstance(place, int):
                self.computed[window.cursors[after].num_tokens] = place
            else:
                self.codes[window.cursors[after].num_positions] = place
        is_guessed = len(window.places) > 1
        if self.state.source(window.cursors[0]) is not Source.SAMPLED_TOKEN:
            # without guesses it grows, so that guessing is tried again
            self.mean_standing += 0.3 * (num_standing - self.mean_standing) if is_guessed else 0.05
        elif is_guessed:
            self.text_size = min(max(2 * num_standing + 2, LEAST_TEXT), LARGEST)


def last_plan(words: Sequence[int], marker: int | None) -> Sequence[int]:
    """The description of the last image of a prompt, between two markers."""
    places = [n for n, word in enumerate(words) if word == marker]
    return words[places[-2] + 1 : places[-1]] if len(places) > 1 else []
