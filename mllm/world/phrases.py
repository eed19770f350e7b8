"""Words and noun phrases that sentences of every job share: synonyms, articles, plurals, references to one object.

Knows attributes (spec.Filter) and English, but no job and no template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from mllm.world.scene import Scene, SceneObject
from mllm.world.spec import Filter

PLAIN_SHARE = 0.88  # how often a word is used as it is rather than replaced by a synonym

SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("little", "tiny"),
    "large": ("big", "huge"),
    "purple": ("violet",),
    "gray": ("grey",),
    "cream": ("beige", "cream-colored"),
    "circle": ("disk", "disc"),
    "cross": ("plus",),
    "shape": ("object", "figure"),
    "left of": ("left of", "on the left of", "on the left side of"),
    "right of": ("right of", "on the right of", "on the right side of"),
    "above": ("over", "higher than"),
    "below": ("under", "beneath", "underneath"),
}
SPOKEN = {"left of": "to the left of", "right of": "to the right of"}  # the usual way to say a relation
PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "top left": ("in the top left corner", "in the top left", "at the top left", "in the upper left corner"),
    "top right": ("in the top right corner", "in the top right", "at the top right", "in the upper right corner"),
    "bottom left": (
        "in the bottom left corner",
        "in the bottom left",
        "at the bottom left",
        "in the lower left corner",
    ),
    "bottom right": (
        "in the bottom right corner",
        "in the bottom right",
        "at the bottom right",
        "in the lower right corner",
    ),
    "center": ("in the center", "in the middle", "at the center"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
}
BACKGROUND_PHRASES = (
    "on a {background} background",
    "on a {background} background",
    "on a {background} background",
    "against a {background} background",
    "in front of a {background} background",
    "on a {background} canvas",
)
NUMBER_WORDS = ("zero", "one", "two", "three", "four")
PLURALS = {"cross": "crosses", "plus": "pluses"}
CANONICAL = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms if " " not in synonym}


def say(word: str, rng: Random) -> str:
    """The word or, now and then, a synonym."""
    synonyms = SYNONYMS.get(word)
    if synonyms is None or rng.random() < PLAIN_SHARE:
        return SPOKEN.get(word, word)
    return rng.choice(synonyms)


def say_place(place: str, rng: Random) -> str:
    phrases = PLACE_PHRASES[place]
    return phrases[0] if rng.random() < 0.5 else rng.choice(phrases)


def say_background(background: str, rng: Random) -> str:
    return rng.choice(BACKGROUND_PHRASES).format(background=say(background, rng))


def pluralize(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def join(parts: Sequence[str], conjunction: str = "and") -> str:
    """Comma-separated, the last one joined by the conjunction."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {conjunction} {parts[-1]}"


def noun_phrase(item: Filter, rng: Random, *, plural: bool = False) -> str:
    """Attributes in their usual order, without an article: "small red circle"."""
    noun = say(item.shape or "shape", rng)
    words = [say(word, rng) for word in (item.size, item.color) if word]
    phrase = " ".join([*words, pluralize(noun) if plural else noun])
    verb = "are" if plural else "is"
    if item.not_color:
        phrase += f" that {verb} not {say(item.not_color, rng)}"
    if item.not_shape:
        other = say(item.not_shape, rng)
        phrase += f" that {verb} not {pluralize(other) if plural else with_article(other)}"
    return phrase


def count_phrase(item: Filter, number: int, rng: Random) -> str:
    """ "two red circles", "a red circle"."""
    if number == 1:
        phrase = noun_phrase(item, rng)
        return f"one {phrase}" if rng.random() < 0.25 else with_article(phrase)
    number_text = NUMBER_WORDS[number] if rng.random() < 0.85 else str(number)
    return f"{number_text} {noun_phrase(item, rng, plural=True)}"


def full_filter(item: SceneObject) -> Filter:
    return Filter(item.shape, item.color, item.size)


def is_unique(item: Filter, scene: Scene) -> bool:
    """Whether exactly one object of the scene matches."""
    return sum(map(item.matches, scene.objects)) == 1


# Attributes that may refer to an object, the shortest ways first; the first unambiguous one is the plain reference.
REFERENCE_ATTRIBUTES = (("shape",), ("color", "shape"), ("size", "shape"), ("size", "color", "shape"))
LOOSE_ATTRIBUTES = (("color",), ("size",), ("size", "color"))  # "the red shape"


def references(scene: Scene, item: SceneObject, *, without: str | None = None, loose: bool = False) -> list[Filter]:
    """All unambiguous ways to refer to an object by attributes; `without` an attribute that must not be given away."""
    choices = REFERENCE_ATTRIBUTES + (LOOSE_ATTRIBUTES if loose else ())
    filters = [Filter(**{name: getattr(item, name) for name in names}) for names in choices if without not in names]
    return [candidate for candidate in filters if is_unique(candidate, scene)]


def short_reference(scene: Scene, item: SceneObject) -> Filter | None:
    """The shortest unambiguous reference by shape, color and size; None for one of two twins."""
    return next(iter(references(scene, item)), None)


def normalize_words(text: str) -> list[str]:
    """Lower-case words with synonyms replaced and plurals undone; sentence marks stay as words of their own."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)?|[0-9]+|[.,:;!?]", text.lower())
    return [_normalize_word(word) for word in words]


_SINGULARS = {pluralize(word): word for word in ("shape", "circle", "square", "triangle", "star", "cross", "heart")}
_SINGULARS |= {pluralize(synonym): CANONICAL[synonym] for synonym in ("disk", "disc", "plus", "object", "figure")}


def _normalize_word(word: str) -> str:
    return _SINGULARS.get(word) or CANONICAL.get(word, word)
