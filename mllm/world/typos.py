"""Slips of the keyboard: what people type is not what they meant to type, and is understood all the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from random import Random

from mllm.world.phrases import CANONICAL, NUMBER_WORDS, SYNONYMS, pluralize
from mllm.world.scene import BACKGROUNDS, COLORS, SHAPES, SIZES

SHARE = 0.06
"""Of the requests that have one."""
SHORTEST = 5
"""Letters of a word that is mistyped; of a shorter one too little is left."""
SHORTEST_CUT = 6
"""Letters of a word that may lose one."""
OTHERS = ("background", "larger", "bigger", "smaller", "every", "without", "right", "different")
"""Words beside attributes that change what is asked for."""
WORDS = re.compile(rf"[A-Za-z]{{{SHORTEST},}}")


def mistype(text: str, rng: Random) -> str:
    """One longer word with two letters exchanged, one doubled or one left out; its first letter stays.

    Number words are left alone and never made: "three" is one slip away from "there".
    """
    words = [found for found in WORDS.finditer(text) if found[0].lower() not in NUMBER_WORDS]
    if not words:
        return text
    found = rng.choice(words)
    slipped = found[0]
    while slipped == found[0] or slipped.lower() in NUMBER_WORDS:
        slipped = slip(found[0], rng)
    return text[: found.start()] + slipped + text[found.end() :]


def slip(word: str, rng: Random) -> str:
    """One of the word's slips, the word itself where two equal letters change places."""
    place = rng.randrange(1, len(word) - 1)
    return rng.choice(list(slips_at(word, place)))


def slips_at(word: str, place: int) -> Iterator[str]:
    """Exchange the letter there with the next, double it, leave it out."""
    yield word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    yield word[:place] + word[place] + word[place:]
    if len(word) >= SHORTEST_CUT:
        yield word[:place] + word[place + 1 :]


def undo_slips(text: str) -> str:
    """The text with slips in words that say what is in a picture put right; what else there is stays."""
    return WORDS.sub(lambda found: known_slips().get(found[0].lower(), found[0]), text)


@cache
def known_slips() -> dict[str, str]:
    """Every slip of these words that is no other word, with the word that was meant."""
    nouns = ("shape", *SHAPES, *(word for word in CANONICAL if CANONICAL[word] in ("shape", *SHAPES)))
    words = {*nouns, *map(pluralize, nouns), *COLORS, *BACKGROUNDS, *SIZES, *SYNONYMS, *CANONICAL, *OTHERS}
    meant: dict[str, set[str]] = {}
    for word in words:
        if word.isalpha() and len(word) >= SHORTEST:
            for place in range(1, len(word) - 1):
                for slipped in slips_at(word, place):
                    meant.setdefault(slipped, set()).add(word)
    return {
        slipped: next(iter(sources))
        for slipped, sources in meant.items()
        if len(sources) == 1 and slipped not in words and slipped not in NUMBER_WORDS
    }
