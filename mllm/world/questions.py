"""Questions about a scene: think of one with a clear answer, put it into words, answer it.

The answer is a function of the scene alone, so the same question can be asked about an image that a model drew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from mllm.world.language import (
    NUMBER_WORDS,
    choose_reference,
    noun_phrase,
    phrases,
    pick,
    references,
    say,
    with_article,
)
from mllm.world.scene import (
    ALL_PAIRS,
    ATTRIBUTES,
    BACKGROUNDS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    Pair,
    Scene,
    SceneObject,
    is_clear,
    main_relation,
    offset,
)
from mllm.world.spec import ANY, Filter, compare, plain_phrase

_KINDS = {  # how often, and variants
    "count": (16, ("count",)),
    "color": (16, ("color of", "color of related")),
    "shape": (14, ("shape of", "shape of related")),
    "size": (10, ("size of",)),
    "existence": (14, ("exists",)),
    "relation": (18, ("is related", "where is", "which is related")),
    "comparison": (12, ("is larger", "which is larger", "same color", "same size", "more")),
    "background": (8, ("background", "is background")),
}
QUESTION_KINDS = {kind: variants for kind, (_, variants) in _KINDS.items()}
QUESTION_WEIGHTS = {kind: weight for kind, (weight, _) in _KINDS.items()}
# Variants that need two objects.
RELATED = ("color of related", "shape of related", "which is related")
PAIR_VARIANTS = {*QUESTION_KINDS["relation"], *QUESTION_KINDS["comparison"], *RELATED}
NOT_GIVEN_AWAY = {"same color": "color", "same size": "size", "is larger": "size", "which is larger": "size"}
"""The attribute that references in questions of a variant leave out."""
COUNTED = (("shape",), ("color",), ("color", "shape"), ("size", "shape"), ("size",), ("size", "color", "shape"))
ABSENT_SHARE = 0.06  # questions for an attribute of something that is not there
MAX_TRIES = 8


@dataclass(frozen=True, slots=True)
class Question:
    """One question. Which fields are used depends on the variant."""

    kind: str
    variant: str
    first: Filter | None = None  # what is asked about
    second: Filter | None = None  # what it is compared with or related to
    value: str | None = None  # a relation, a background


# ---- answers ----


def answer(question: Question, scene: Scene) -> str | None:
    """The right answer, or None when the scene leaves it open (no such object, several, or no clear margin).

    Only "there is no ..." answers the question for an attribute of something absent.
    """
    first = question.first.find_one(scene) if question.first else None
    second = question.second.find_one(scene) if question.second else None
    match question.variant:
        case "count":
            return str(question.first.count(scene))
        case "exists":
            return _yes(question.first.count(scene) > 0)
        case "background":
            return scene.background
        case "is background":
            return _yes(scene.background == question.value)
        case "more":
            return _yes(question.first.count(scene) > question.second.count(scene))
        case "color of" | "shape of" | "size of":
            if first is None and question.first.count(scene) == 0:
                return f"there is no {plain_phrase(question.first)}"
            return first and getattr(first, question.kind)
        case "color of related" | "shape of related" | "which is related":
            found = find_related(scene, question.value, second) if second else None
            return found and getattr(found, _asked_attribute(question))
    if first is None or second is None or first is second:
        return None
    match question.variant:
        case "is related":
            if is_clear(question.value, first, second):
                return "yes"
            return "no" if is_clear(OPPOSITE[question.value], first, second) else None
        case "where is":
            relation = main_relation(first, second)
            return relation and relation.removesuffix(" of")
        case "is larger":
            return _yes(compare(first, second) == "larger")
        case "which is larger":
            larger = {"larger": first, "smaller": second}.get(compare(first, second))
            return larger.shape if larger and first.shape != second.shape else None
        case "same color" | "same size":
            attribute = question.variant.removeprefix("same ")
            return _yes(getattr(first, attribute) == getattr(second, attribute))
        case _:
            raise ValueError(f"question variant must be one of QUESTION_KINDS, got {question.variant!r}")


def possible_answers(question: Question, scene: Scene) -> frozenset[str]:
    """What may be said where the scene leaves the answer open: what such a question could be answered with in it."""
    items, attribute = scene.objects, _asked_attribute(question)
    match question.variant:
        case "where is":
            return frozenset(relation.removesuffix(" of") for relation in RELATIONS)
        case "color of" | "shape of" | "size of":
            items, attribute = [item for item in items if question.first.matches(item)], question.kind
        case "color of related" | "shape of related" | "which is related":
            anchor = question.second.find_one(scene)
            items = [item for item in items if item is not anchor]
        case "which is larger":
            items = [item for item in items if question.first.matches(item) or question.second.matches(item)]
        case _:
            return frozenset(("yes", "no"))
    return frozenset(getattr(item, attribute) for item in items)


def find_related(scene: Scene, relation: str, anchor: SceneObject) -> SceneObject | None:
    """The only object in this relation to the anchor; None when another one is near enough to doubt."""
    candidates = [item for item in scene.objects if item is not anchor and offset(relation, item, anchor) > 0]
    return candidates[0] if len(candidates) == 1 and is_clear(relation, candidates[0], anchor) else None


def normalize_answer(text: str) -> str:
    """Lower case without marks and articles, number words as digits: what exact match compares."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    numbers = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"grey": "gray"}
    return " ".join(numbers.get(word, word) for word in words if word not in ("a", "an", "the", "it", "is"))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _asked_attribute(question: Question) -> str:
    return "color" if question.kind == "color" else "shape"


# ---- questions at random ----


def propose_question(
    scene: Scene,
    rng: Random,
    *,
    kind: str | None = None,
    kind_weights: Mapping[str, float] = QUESTION_WEIGHTS,
    allowed_pairs: frozenset[Pair] = ALL_PAIRS,
) -> Question:
    """A question with one clear answer. Yes and no come equally often where the scene permits both.

    Args:
        kind: of the question, where the scene has one; default: chosen at random by `kind_weights`.
        allowed_pairs: the color-shape pairs that may be named.
    """
    for _ in range(MAX_TRIES):
        chosen = kind or pick(kind_weights, rng)
        variant = rng.choice(QUESTION_KINDS[chosen])
        if variant in PAIR_VARIANTS and len(scene.objects) < 2:
            continue
        wanted = rng.choice(("yes", "no"))
        for attempt in range(MAX_TRIES):
            question = _propose(scene, chosen, variant, rng)
            if question is None:
                continue
            named = {item.pair for item in (question.first, question.second) if item and item.pair}
            right = answer(question, scene) if named <= allowed_pairs else None
            if right is not None and (right not in ("yes", "no") or right == wanted or attempt == MAX_TRIES - 1):
                return question
    if kind is not None:
        return propose_question(scene, rng, allowed_pairs=allowed_pairs)
    return Question("background", "background")


def _propose(scene: Scene, kind: str, variant: str, rng: Random) -> Question | None:
    match variant:
        case "count" | "exists":
            return Question(kind, variant, _random_filter(scene, rng, allow_any=variant == "count"))
        case "background":
            return Question(kind, variant)
        case "is background":
            return Question(kind, variant, value=rng.choice((scene.background, rng.choice(BACKGROUNDS))))
        case "more":
            attribute, choices = rng.choice(tuple(ATTRIBUTES.items()))
            here = [getattr(item, attribute) for item in scene.objects]
            values = rng.choice(here), rng.choice((rng.choice(here), rng.choice(choices)))
            more, less = (Filter(**{attribute: value}) for value in rng.sample(values, 2))
            return None if more == less else Question(kind, variant, more, less)
        case "color of" | "size of" if rng.random() < ABSENT_SHARE:
            absent = [name for name in SHAPES if not Filter(name).count(scene)]
            return Question(kind, variant, Filter(rng.choice(absent)))
        case "color of" | "shape of" | "size of":
            item = rng.choice(scene.objects)
            first = choose_reference(references(scene, item, without=kind, loose=kind == "shape"), rng)
            return Question(kind, variant, first) if first else None
        case "color of related" | "shape of related" | "which is related":
            second = choose_reference(references(scene, rng.choice(scene.objects)), rng)
            return Question(kind, variant, None, second, rng.choice(RELATIONS)) if second else None
        case _:
            items, without = rng.sample(scene.objects, 2), NOT_GIVEN_AWAY.get(variant)
            first, second = (choose_reference(references(scene, item, without=without), rng) for item in items)
            if first is None or second is None:
                return None
            return Question(kind, variant, first, second, rng.choice(RELATIONS) if variant == "is related" else None)


def _random_filter(scene: Scene, rng: Random, *, allow_any: bool) -> Filter:
    """Attributes to count or look for: those of an object, or those with one attribute changed, or any at all."""
    if allow_any and rng.random() < 0.2:
        return ANY
    item, names = rng.choice(scene.objects), rng.choice(COUNTED)
    values = {name: getattr(item, name) for name in names}
    if rng.random() < 0.5:
        name = rng.choice(names)
        values[name] = rng.choice(ATTRIBUTES[name])
    return Filter(**values)


# ---- questions in words ----


def say_question(question: Question, rng: Random, *, pronoun: bool = False) -> str:
    """The question in words. With a pronoun the only object of the image is called "it"."""
    slots: dict[str, str] = {}
    for name, item in (("first", question.first), ("second", question.second)):
        if item is not None:
            slots[name] = noun_phrase(item, rng)
            slots[f"{name}s"] = noun_phrase(item, rng, plural=True)
            slots[f"a_{name}"] = with_article(slots[name])
    if question.variant == "shape of":
        slots["attribute"] = " ".join(say(word, rng) for word in (question.first.size, question.first.color) if word)
    if question.value is not None:
        slots["relation" if question.value in RELATIONS else "value"] = say(question.value, rng)
    template = rng.choice(phrases("ask")[question.variant])
    if pronoun and question.variant in ("color of", "size of"):
        template = template.replace("The {first}", "It").replace("the {first}", "it")
    text = template.format(**slots)
    return text.lower() if rng.random() < 0.1 else text


def says_it(words: str) -> bool:
    """Whether a question with a pronoun calls its object "it"; some templates have no room for one."""
    return "it" in re.findall("[a-z]+", words.lower())
