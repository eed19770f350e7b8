"""Find what names objects in the words of a request: "two small red circles", "no star", "the other one".

In: words as phrases.normalize_words leaves them. Out: phrases in their order, each with the attributes it names. Knows
no demands: what the phrases together ask for is read in request_reader.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mllm.world.phrases import NUMBER_WORDS
from mllm.world.scene import COLORS, SHAPES, SIZES
from mllm.world.spec import ANY, Filter

NOUNS = (*SHAPES, "shape")
ARTICLES = ("a", "an", "another", "single")
NUMBERS = {word: number for number, word in enumerate(NUMBER_WORDS)} | {str(n): n for n in range(len(NUMBER_WORDS))}
DENIALS = ("no", "without", "any")
LARGER, SMALLER = ("larger", "bigger"), ("smaller",)


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase among the words."""

    filter: Filter
    start: int
    end: int  # behind its last word
    number: int | None = None  # of new objects; None: "the circle", "circles", "no circle"
    is_denied: bool = False
    comparison: str | None = None  # "larger" in "a larger circle"


def find_phrases(words: list[str]) -> list[Phrase]:
    """All noun phrases; bare "shapes" without a number say nothing and are left out."""
    phrases: list[Phrase] = []
    for index, word in enumerate(words):
        if word in NOUNS and not (phrases and index < phrases[-1].end):
            phrase = read_phrase(words, index)
            if phrase.filter != ANY or phrase.number is not None:
                phrases.append(phrase)
    return phrases


def read_phrase(words: list[str], noun: int) -> Phrase:
    """The phrase whose noun stands there: what comes before it, and "that is not red" behind it."""
    named = attributes_of(words[noun])
    comparison, start = None, noun
    while start and words[start - 1] in (*SIZES, *COLORS, *LARGER, *SMALLER):
        start -= 1
        if words[start] in (*LARGER, *SMALLER):
            comparison = "larger" if words[start] in LARGER else "smaller"
        else:
            named = merge(named, attributes_of(words[start]))
    end = noun + 1
    denied, denied_end = read_denied_attribute(words, end)
    if denied is not None:
        named, end = merge(named, denied), denied_end
    before = words[start - 1] if start else ""
    is_denied = before in DENIALS or words[max(start - 2, 0) : start] in (["without", "a"], ["without", "an"])
    is_denied = is_denied or words[max(start - 3, 0) : start] == ["not", "a", "single"]
    if is_denied:
        return Phrase(named, start, end, is_denied=True)
    number = 1 if before in ARTICLES else NUMBERS.get(before)
    return Phrase(named, start, end, number, comparison=comparison)


def read_denied_attribute(words: list[str], start: int) -> tuple[Filter | None, int]:
    """ "that is not red", "that are not a circle", and where it ends; None where nothing of the kind stands there."""
    if words[start : start + 1] != ["that"] or words[start + 2 : start + 3] != ["not"]:
        return None, start
    at = start + 3
    at += words[at : at + 1] in (["a"], ["an"])
    word = words[at] if at < len(words) else ""
    if word in COLORS:
        return Filter(not_color=word), at + 1
    return (Filter(not_shape=word), at + 1) if word in SHAPES else (None, start)


def attributes_of(word: str) -> Filter:
    """What one word says of an object."""
    if word in SHAPES:
        return Filter(shape=word)
    if word in COLORS:
        return Filter(color=word)
    return Filter(size=word) if word in SIZES else ANY


def merge(first: Filter, second: Filter) -> Filter:
    """Attributes of both; where both name one, the first holds."""
    names = ("shape", "color", "size", "not_color", "not_shape")
    return replace(first, **{name: getattr(first, name) or getattr(second, name) for name in names})
