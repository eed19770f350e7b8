"""The yes/no questions that a request to draw raises, in the world's own form: what a model that was taught in this
world can be asked about a picture of it.

In: the words of a request. Out: questions with the answer that a right picture gets. Reads noun phrases, denials, the
background and relations between neighbouring phrases; what it cannot read (comparisons, "every") it does not ask. Words
without any such phrase become one question with all of them. Knows no model and no pixels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from mllm.world.phrases import normalize_words, with_article
from mllm.world.relations import RELATIONS
from mllm.world.scene import BACKGROUNDS, COLORS, SHAPES, SIZES

NOUNS = (*SHAPES, "shape")
DENIALS = ("no", "without")
BACKGROUND_NOUNS = ("background", "canvas")
FILLERS = frozenset({"to", "the", "a", "an", "is", "are", "on", "lies", "side", "of"})


class Demand(NamedTuple):
    """A question about the picture, and the answer that the request wants."""

    question: str
    expected: Literal["yes", "no"]


class Phrase(NamedTuple):
    """A noun phrase among the words."""

    text: str
    start: int
    end: int  # behind its last word
    is_denied: bool


def demands_of(request: str) -> list[Demand]:
    """What to ask about a picture of this request, without repetition."""
    words = normalize_words(request)
    phrases = find_phrases(words)
    found = [Demand(f"Is there {with_article(p.text)}?", "no" if p.is_denied else "yes") for p in phrases]
    found += [Demand(f"Is the background {color}?", "yes") for color in find_backgrounds(words)]
    for first, second in zip(phrases, phrases[1:], strict=False):
        relation = relation_between(words[first.end : second.start])
        if relation and first.text != second.text and not (first.is_denied or second.is_denied):
            found.append(Demand(f"Is the {first.text} {relation} the {second.text}?", "yes"))
    return list(dict.fromkeys(found)) or [Demand(f"Does the picture show {request.strip().rstrip('.!?')}?", "yes")]


def find_phrases(words: list[str]) -> list[Phrase]:
    """Runs of size, color and noun; a bare "shape" says nothing and is left out."""
    phrases = []
    for end, word in enumerate(words, start=1):
        if word not in NOUNS:
            continue
        start = end - 1
        while start > 0 and words[start - 1] in (*SIZES, *COLORS):
            start -= 1
        if word != "shape" or start < end - 1:
            is_denied = start > 0 and words[start - 1] in DENIALS
            phrases.append(Phrase(" ".join(words[start:end]), start, end, is_denied))
    return phrases


def find_backgrounds(words: list[str]) -> list[str]:
    """Colors of the background that are named."""
    return [
        color
        for color, noun in zip(words, words[1:], strict=False)
        if color in BACKGROUNDS and noun in BACKGROUND_NOUNS
    ]


def relation_between(words: list[str]) -> str | None:
    """The relation that these words say, if they say nothing else."""
    for relation in RELATIONS:
        inner = relation.split()[0]
        if inner in words and all(word == inner or word in FILLERS for word in words):
            return {"left of": "to the left of", "right of": "to the right of"}.get(relation, relation)
    return None
