"""Guesses of what a sequence goes on with. They decide how long decoding takes, never what comes out.

Text: what the last pass computed there, else what followed the same words in a text that the request expects, in a
sequence that began alike, or in the prompt.
Codes: of an image of the prompt that has as many positions, else what the last pass computed there, else those of the
row above. How many places are guessed at once follows from how many guesses stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mllm.engine.state_machine import Cursor, Place, Sampled, SequenceState

LONGEST_NGRAM = 3
LEAST_TEXT, FIRST_TEXT, LARGEST = 2, 8, 128
MANY_STAND, FEW_STAND = 2, 0.75
"""Of the guesses of codes in a pass: from so many on all positions are guessed, below so many none."""


class Guesser:
    """What one sequence may go on with.

    Args:
        continuation: what another sequence went on with after the same prompt.
    """

    def __init__(self, state: SequenceState, continuation: Sequence[Place]) -> None:
        self.state, layout = state, state.layout
        prompt = state.prompts[0]
        words = [place for place in prompt if isinstance(place, int)]
        self.history = words[-LONGEST_NGRAM:]  # the last tokens that stand
        self.followers: dict[tuple[int, ...], int] = {}
        plan = [*state.plan_opening, *last_plan(words, layout.begin_plan_id), layout.begin_image_id]
        for known in (
            [*self.history, *state.request.expected_text],
            [*self.history, *(place for place in continuation if isinstance(place, int))],
            plan,
            words,
        ):  # what was learned first stays
            for n in range(LONGEST_NGRAM, 0, -1):
                for end in range(n, len(known)):
                    self.followers.setdefault(tuple(known[end - n : end]), known[end])
        self.computed: dict[int, Place] = {}  # tokens that the last pass chose beyond what stood, by their place
        self.codes: list[Place | None] = [None] * state.num_positions
        lengths = state.request.prompt.image_lengths_I
        if len(lengths) > 0 and lengths[-1] == state.num_positions:
            self.codes[:] = [place for place in prompt if not isinstance(place, int)][-state.num_positions :]
        self.text_size, self.mean_standing = FIRST_TEXT, 2.0 * MANY_STAND

    def guess(self, cursor: Cursor, guessed: Sequence[Place]) -> Place | None:
        """What may come after a cursor where it is sampled; None: no idea.

        Args:
            guessed: before it, since the last place that stands.
        """
        state = self.state
        if state.next_place(cursor) is Sampled.CODES:
            return self.guess_codes(cursor.num_positions)
        if state.must_open(cursor):
            return state.plan_opening[0] if state.plan_opening else state.layout.begin_image_id
        if cursor.num_tokens in self.computed:
            return self.computed[cursor.num_tokens]
        words = [*self.history, *(place for place in guessed if isinstance(place, int))]
        for n in range(LONGEST_NGRAM, 0, -1):
            if (found := self.followers.get(tuple(words[-n:]))) is not None:
                return None if state.request.mode == "text" and found in state.layout.opening_ids else found
        return None

    def guess_codes(self, position: int) -> Place:
        """The codes of an image position: those known there, else above, else before it."""
        columns = self.state.grid[1]
        places = [*range(position, -1, -columns), *([position - 1] if position else [])]
        known = (self.codes[place] for place in places if self.codes[place] is not None)
        return next(known, (0,) * self.state.num_codebooks)

    def limit(self, cursor: Cursor) -> int:
        """How many places may be guessed after the cursor."""
        if self.state.next_place(cursor) is Sampled.TOKEN:
            return self.text_size
        if self.mean_standing >= MANY_STAND:
            return LARGEST
        return 0 if self.mean_standing < FEW_STAND else int(2 * self.mean_standing) + 1

    def see(self, cursors: Sequence[Cursor], chosen: Mapping[int, Place], standing: Sequence[Place]) -> None:
        """Learn from a pass which places stand, guesses but for the last, and what was computed beyond them.

        Args:
            cursors: after each place that was fed, the first of which stood before.
            chosen: what was sampled after the place of an index.
        """
        num_standing = len(standing) - 1
        self.history = [*self.history, *(place for place in standing if isinstance(place, int))][-LONGEST_NGRAM:]
        self.computed = {}
        for after, place in chosen.items():
            if isinstance(place, int):
                self.computed[cursors[after].num_tokens] = place
            else:
                self.codes[cursors[after].num_positions] = place
        is_guessed = len(cursors) > 1
        if self.state.next_place(cursors[0]) is not Sampled.TOKEN:
            # without guesses it grows, so that guessing is tried again
            self.mean_standing += 0.3 * (num_standing - self.mean_standing) if is_guessed else 0.05
        elif is_guessed:
            self.text_size = min(max(2 * num_standing + 2, LEAST_TEXT), LARGEST)


def last_plan(words: Sequence[int], marker: int | None) -> Sequence[int]:
    """The description of the last image of a prompt, between two markers."""
    places = [n for n, word in enumerate(words) if word == marker]
    return words[places[-2] + 1 : places[-1]] if len(places) > 1 else []
