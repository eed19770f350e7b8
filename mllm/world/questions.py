"""Questions about a scene as values, and their one right answer. Words for them are in ask_language.py.

The answer is a function of the scene alone, so the same question can be put to a picture that a model drew.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from mllm.world.phrases import NUMBER_WORDS
from mllm.world.relations import OPPOSITE, is_clear, main_relation, offset
from mllm.world.scene import Scene, SceneObject, required
from mllm.world.spec import Filter, compare

# kind -> variants
QUESTION_KINDS: dict[str, tuple[str, ...]] = {
    "count": ("count",),
    "color": ("color of", "color of related"),
    "shape": ("shape of", "shape of related"),
    "size": ("size of",),
    "existence": ("exists",),
    "relation": ("is related", "where is", "which is related"),
    "comparison": ("is larger", "which is larger", "same color", "same size", "more"),
    "background": ("background", "is background"),
}
DIRECTIONS = {"left of": "left", "right of": "right", "above": "above", "below": "below"}


@dataclass(frozen=True, slots=True)
class Question:
    """One question. Which fields are used depends on the variant."""

    kind: str
    variant: str
    first: Filter | None = None  # what is asked about
    second: Filter | None = None  # what it is compared with or related to
    value: str | None = None  # a relation, a background

    @property
    def subject(self) -> Filter:
        return required(self.first, "first")

    @property
    def relation(self) -> str:
        return required(self.value, "value")

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Question:
        filters = {name: Filter(**data[name]) if data.get(name) else None for name in ("first", "second")}
        return cls(**{**data, **filters})


def say_yes(value: bool) -> str:
    return "yes" if value else "no"


def find_one(scene: Scene, item: Filter) -> SceneObject | None:
    """The only object that matches; None if there is none or more than one."""
    found = [candidate for candidate in scene.objects if item.matches(candidate)]
    return found[0] if len(found) == 1 else None


def find_related(scene: Scene, relation: str, anchor: SceneObject) -> SceneObject | None:
    """The only object in this relation to the anchor; None when another one is near enough to doubt."""
    others = [item for item in scene.objects if item is not anchor]
    candidates = [item for item in others if offset(relation, item, anchor) > 0]
    return candidates[0] if len(candidates) == 1 and is_clear(relation, candidates[0], anchor) else None


def answer(question: Question, scene: Scene) -> str | None:
    """The right answer, or None when the scene leaves it open (no such object, several, or no clear margin).

    Only "there is no ..." answers the question for an attribute of something absent.
    """
    first = find_one(scene, question.first) if question.first else None
    second = find_one(scene, question.second) if question.second else None
    match question.variant:
        case "count":
            return str(sum(map(question.subject.matches, scene.objects)))
        case "exists":
            return say_yes(any(map(question.subject.matches, scene.objects)))
        case "background":
            return scene.background
        case "is background":
            return say_yes(scene.background == question.value)
        case "more":
            than = required(question.second, "second")
            counts = [sum(map(item.matches, scene.objects)) for item in (question.subject, than)]
            return say_yes(counts[0] > counts[1])
        case "color of" | "shape of" | "size of":
            if first is None:
                return _deny(question.subject) if not any(map(question.subject.matches, scene.objects)) else None
            return getattr(first, question.kind)
        case "color of related" | "shape of related" | "which is related":
            found = find_related(scene, question.relation, second) if second else None
            return None if found is None else getattr(found, "color" if question.kind == "color" else "shape")
        case _:
            return None if first is None or second is None or first is second else _answer_pair(question, first, second)


def _answer_pair(question: Question, first: SceneObject, second: SceneObject) -> str | None:
    match question.variant:
        case "is related":
            if is_clear(question.relation, first, second):
                return "yes"
            return "no" if is_clear(OPPOSITE[question.relation], first, second) else None
        case "where is":
            relation = main_relation(first, second)
            return DIRECTIONS[relation] if relation else None
        case "is larger":
            return say_yes(compare(first, second) == "larger")
        case "which is larger":
            larger = {"larger": first, "smaller": second}.get(compare(first, second))
            return larger.shape if larger and first.shape != second.shape else None
        case "same color":
            return say_yes(first.color == second.color)
        case "same size":
            return say_yes(first.size == second.size)
        case _:
            raise ValueError(f"question variant {question.variant!r} is unknown; see QUESTION_KINDS")


def possible_answers(question: Question, scene: Scene) -> frozenset[str]:
    """What may be said where the scene leaves the answer open: what such a question could be answered with in it."""
    match question.variant:
        case "where is":
            return frozenset(DIRECTIONS.values())
        case "color of" | "shape of" | "size of":
            meant = [item for item in scene.objects if question.subject.matches(item)]
            return frozenset(getattr(item, question.kind) for item in meant)
        case "color of related" | "shape of related" | "which is related":
            attribute = "color" if question.kind == "color" else "shape"
            anchor = find_one(scene, required(question.second, "second"))
            return frozenset(getattr(item, attribute) for item in scene.objects if item is not anchor)
        case "which is larger":
            compared = (question.subject, required(question.second, "second"))
            return frozenset(item.shape for item in scene.objects if any(each.matches(item) for each in compared))
        case _:
            return frozenset(("yes", "no"))


def _deny(item: Filter) -> str:
    words = " ".join(word for word in (item.size, item.color, item.shape or "shape") if word)
    return f"there is no {words}"


def normalize_answer(text: str) -> str:
    """Lower case without marks and articles, number words as digits: what exact match compares."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    numbers = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"grey": "gray"}
    return " ".join(numbers.get(word, word) for word in words if word not in ("a", "an", "the", "it", "is"))
