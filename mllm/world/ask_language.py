"""Think of a question about a scene with one clear answer, balanced over answers, and put it into words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random

from mllm.world.phrases import noun_phrase, references, say, with_article
from mllm.world.questions import QUESTION_KINDS, Question, answer
from mllm.world.relations import RELATIONS
from mllm.world.scene import ALL_PAIRS, BACKGROUNDS, COLORS, SHAPES, SIZES, Pair, Scene, SceneObject
from mllm.world.spec import ANY, Filter
from mllm.world.templates.ask import QUESTIONS

QUESTION_WEIGHTS = {
    "count": 16,
    "color": 16,
    "shape": 14,
    "size": 10,
    "existence": 14,
    "relation": 18,
    "comparison": 12,
    "background": 8,
}
ABSENT_SHARE = 0.06  # questions for an attribute of something that is not there
TRIES = 8
# Variants that need two objects.
PAIR_VARIANTS = frozenset(QUESTION_KINDS["relation"] + QUESTION_KINDS["comparison"]) | {
    "color of related",
    "shape of related",
}


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
    """
    for _ in range(TRIES):
        chosen = kind or rng.choices(tuple(kind_weights), tuple(kind_weights.values()))[0]
        variant = rng.choice(QUESTION_KINDS[chosen])
        if variant in PAIR_VARIANTS and len(scene.objects) < 2:
            continue
        wanted = rng.choice(("yes", "no"))
        for attempt in range(TRIES):
            question = _propose(scene, chosen, variant, rng)
            if question is None or not names_allowed(question, allowed_pairs):
                continue
            right = answer(question, scene)
            if right is not None and (right not in ("yes", "no") or right == wanted or attempt == TRIES - 1):
                return question
    if kind is not None:
        return propose_question(scene, rng, allowed_pairs=allowed_pairs)
    return Question("background", "background")


def names_allowed(question: Question, allowed_pairs: frozenset[Pair]) -> bool:
    """Whether every color-shape pair in the question may be named."""
    pairs = [item.pair for item in (question.first, question.second) if item and item.pair]
    return allowed_pairs.issuperset(pairs)


def _refer(scene: Scene, item: SceneObject, rng: Random, without: str | None = None) -> Filter | None:
    """One of the unambiguous ways to refer to an object, mostly the shortest."""
    choices = references(scene, item, without=without, loose=without == "shape")
    if not choices:
        return None
    return choices[0] if rng.random() < 0.6 else rng.choice(choices)


def _propose(scene: Scene, kind: str, variant: str, rng: Random) -> Question | None:
    match variant:
        case "count":
            return Question(kind, variant, _random_filter(scene, rng, allow_any=True))
        case "exists":
            return Question(kind, variant, _random_filter(scene, rng, allow_any=False))
        case "background":
            return Question(kind, variant)
        case "is background":
            return Question(kind, variant, value=rng.choice((scene.background, rng.choice(BACKGROUNDS))))
        case "more":
            attribute, choices = rng.choice((("shape", SHAPES), ("color", COLORS), ("size", SIZES)))
            here = [getattr(item, attribute) for item in scene.objects]
            first, second = rng.choice(here), rng.choice((rng.choice(here), rng.choice(choices)))
            more, less = (Filter(**{attribute: value}) for value in rng.sample((first, second), 2))
            return None if first == second else Question(kind, variant, more, less)
        case "color of" | "size of" if rng.random() < ABSENT_SHARE:
            return _propose_absent(scene, kind, variant, rng)
        case "color of" | "shape of" | "size of":
            first = _refer(scene, rng.choice(scene.objects), rng, without=kind)
            return Question(kind, variant, first) if first else None
        case "color of related" | "shape of related" | "which is related":
            second = _refer(scene, rng.choice(scene.objects), rng)
            return Question(kind, variant, None, second, rng.choice(RELATIONS)) if second else None
        case _:
            return _propose_pair(scene, kind, variant, rng)


def _propose_pair(scene: Scene, kind: str, variant: str, rng: Random) -> Question | None:
    if len(scene.objects) < 2:
        return None
    without = {"same color": "color", "same size": "size"}.get(variant)
    if "larger" in variant:
        without = "size"
    items = rng.sample(scene.objects, 2)
    first, second = (_refer(scene, item, rng, without=without) for item in items)
    if first is None or second is None:
        return None
    return Question(kind, variant, first, second, rng.choice(RELATIONS) if variant == "is related" else None)


def _propose_absent(scene: Scene, kind: str, variant: str, rng: Random) -> Question | None:
    absent = [name for name in SHAPES if all(item.shape != name for item in scene.objects)]
    return Question(kind, variant, Filter(shape=rng.choice(absent)))


def _random_filter(scene: Scene, rng: Random, *, allow_any: bool) -> Filter:
    """Attributes to count or look for: those of an object, or those with one attribute changed, or any at all."""
    if allow_any and rng.random() < 0.2:
        return ANY
    item = rng.choice(scene.objects)
    names = rng.choice(
        (("shape",), ("color",), ("color", "shape"), ("size", "shape"), ("size",), ("size", "color", "shape"))
    )
    values = {name: getattr(item, name) for name in names}
    if rng.random() < 0.5:
        name = rng.choice(names)
        values[name] = rng.choice({"shape": SHAPES, "color": COLORS, "size": SIZES}[name])
    return Filter(**values)


def say_question(question: Question, rng: Random, *, pronoun: bool = False) -> str:
    """The question in words. With a pronoun the only object of the picture is called "it"."""
    slots: dict[str, str] = {}
    for name, item in (("first", question.first), ("second", question.second)):
        if item is not None:
            slots[name] = noun_phrase(item, rng)
            slots[f"{name}s"] = noun_phrase(item, rng, plural=True)
            slots[f"a_{name}"] = with_article(slots[name])
    if question.variant == "shape of":
        slots["attribute"] = " ".join(
            say(word, rng) for word in (question.subject.size, question.subject.color) if word
        )
    if question.value is not None:
        slots["relation" if question.value in RELATIONS else "value"] = say(question.value, rng)
    template = rng.choice(QUESTIONS[question.variant])
    if pronoun and question.variant in ("color of", "size of"):
        template = template.replace("The {first}", "It").replace("the {first}", "it")
    text = template.format(**slots)
    return text.lower() if rng.random() < 0.1 else text


def says_it(words: str) -> bool:
    """Whether a question with a pronoun calls its object "it"; some templates have no place for one."""
    return "it" in re.findall("[a-z]+", words.lower())
