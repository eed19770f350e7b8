"""Slips of the keyboard: what people type is not what they meant to type, and is understood all the same."""

from __future__ import annotations

import re
from random import Random

from mllm.world.phrases import NUMBER_WORDS

SHARE = 0.06
"""Of the requests that have one."""
SHORTEST = 5
"""Letters of a word that is mistyped; of a shorter one too little is left."""
SHORTEST_CUT = 6
"""Letters of a word that may lose one."""
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
    place = rng.randrange(1, len(word) - 1)
    match rng.choice(("exchange", "double", "leave out") if len(word) >= SHORTEST_CUT else ("exchange", "double")):
        case "exchange":
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        case "double":
            return word[:place] + word[place] + word[place:]
        case _:
            return word[:place] + word[place + 1 :]
