"""Descriptions of a scene, and reading a description back into facts that can be checked against a scene.

Descriptions go from left to right in fixed words. The reader accepts much more: any order, synonyms, relations inside
or between sentences ("a large red circle to the left of a small blue square on a white background").
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from mllm.world.phrases import NUMBER_WORDS, SPOKEN, full_filter, join, normalize_words, short_reference, with_article
from mllm.world.relations import main_relation
from mllm.world.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, SceneObject
from mllm.world.spec import ANY, Background, Constraint, Count, Exists, Filter, Related, Spec, Verdict, check_scene
from mllm.world.templates import describe as describe_templates


def plain_phrase(item: Filter) -> str:
    """Attributes in their usual order, no synonyms."""
    return " ".join(word for word in (item.size, item.color, item.shape or "shape") if word)


def list_objects(objects: tuple[SceneObject, ...]) -> str:
    """ "a large red circle, a small blue square and another small blue square"."""
    parts: list[str] = []
    for item in objects:
        phrase = plain_phrase(full_filter(item))
        parts.append(f"another {phrase}" if with_article(phrase) in parts else with_article(phrase))
    return join(parts)


def describe_relations(scene: Scene) -> list[str]:
    """A sentence for each two neighbors from left to right that can be named and lie clearly apart."""
    sentences = []
    for a, b in zip(scene.objects, scene.objects[1:], strict=False):
        relation = main_relation(a, b)
        a_name, b_name = short_reference(scene, a), short_reference(scene, b)
        if relation and a_name and b_name:
            words = SPOKEN.get(relation, relation)
            names = {"a": plain_phrase(a_name), "b": plain_phrase(b_name)}
            sentences.append(describe_templates.RELATION.format(relation=words, **names))
    return sentences


def describe(scene: Scene, *, short: bool = False) -> str:
    """The description of a scene; a short one leaves out the relations."""
    listed = list_objects(scene.objects)
    on = describe_templates.BACKGROUND.format(background=scene.background)
    if short:
        return describe_templates.SHORT.format(List=listed[0].upper() + listed[1:], on=on)
    if len(scene.objects) == 1:
        return describe_templates.ONE.format(list=listed, on=on)
    number = NUMBER_WORDS[len(scene.objects)]
    return " ".join([describe_templates.MANY.format(number=number, on=on, list=listed), *describe_relations(scene)])


def say_describe_request(rng: Random, *, short: bool) -> str:
    return rng.choice(describe_templates.SHORT_REQUESTS if short else describe_templates.REQUESTS)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a description claims."""

    objects: tuple[Filter, ...]  # each object once, in the order of mention
    relations: tuple[tuple[int, str, int], ...]  # (object, relation, object)
    background: str | None
    number: int | None  # "there are three shapes"
    problems: tuple[str, ...] = ()  # what could not be understood: references to nothing, relations without objects

    def to_spec(self) -> Spec:
        """The same claims as a spec: these objects and no others."""
        constraints: list[Constraint] = [Exists(ref, item) for ref, item in enumerate(self.objects)]
        constraints.append(Count(ANY, len(self.objects)))
        if self.number is not None and self.number != len(self.objects):
            constraints.append(Count(ANY, self.number))
        constraints += [Related(a, relation, b) for a, relation, b in self.relations]
        if self.background:
            constraints.append(Background(self.background))
        return Spec(tuple(constraints))


RELATION_WORDS = {
    "left": "left of",
    "right": "right of",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
    "underneath": "below",
}
NUMBERS = {word: number for number, word in enumerate(NUMBER_WORDS)} | {str(number): number for number in range(5)}
OPENERS = ("a", "an", "another", *NUMBERS)


class _Reader:
    """Reads a description word by word: noun phrases, and relations between the phrase before and the one after."""

    def __init__(self) -> None:
        self.objects: list[Filter] = []
        self.relations: list[tuple[int, str, int]] = []
        self.problems: list[str] = []
        self.background: str | None = None
        self.number: int | None = None
        self.last: int | None = None  # the object mentioned last
        self.pending: str | None = None  # a relation that waits for its second object
        self.opener = ""
        self.attributes: dict[str, str] = {}

    def read(self, words: list[str]) -> Facts:
        for index, word in enumerate(words):
            if word == "background":
                self.read_background(words, index)
            elif word in OPENERS or word == "the":
                self.opener, self.attributes = word, {}
            elif word in SIZES:
                self.attributes["size"] = word
            elif word in COLORS:
                self.attributes["color"] = word
            elif word in SHAPES or word == "shape":
                self.read_noun(word)
            elif word in RELATION_WORDS and self.last is not None and _is_relation(words, index):
                self.pending = RELATION_WORDS[word]
            elif word in ".;!?":
                self.end_sentence()
        self.end_sentence()
        background = self.background
        return Facts(tuple(self.objects), tuple(self.relations), background, self.number, tuple(self.problems))

    def end_sentence(self) -> None:
        if self.pending:
            self.problems.append(f"{self.pending} nothing")
        self.pending = self.last = None

    def read_background(self, words: list[str], index: int) -> None:
        """ "on a white background" or "the background is white"."""
        near = [*words[max(0, index - 2) : index], *words[index + 1 : index + 3]]
        self.background = next((word for word in near if word in BACKGROUNDS), self.background)
        self.opener, self.attributes = "", {}

    def read_noun(self, noun: str) -> None:
        item = Filter(None if noun == "shape" else noun, self.attributes.get("color"), self.attributes.get("size"))
        count = NUMBERS.get(self.opener, 1)
        if noun == "shape" and not self.attributes:  # "there are three shapes"
            self.number = count if self.opener in NUMBERS else self.number
        elif self.opener == "the":
            self.refer(item)
        else:
            self.mention(item, count)
        self.opener, self.attributes = "", {}

    def refer(self, item: Filter) -> None:
        fitting = [index for index, known in enumerate(self.objects) if _includes(known, item)]
        if len(fitting) == 1:
            self.link(fitting[0])
        elif fitting:
            self.problems.append(f"ambiguous: the {plain_phrase(item)}")
        else:  # "The circle is left of ..." without having been introduced: a mention after all
            self.mention(item, 1)

    def mention(self, item: Filter, count: int) -> None:
        for _ in range(count):
            self.objects.append(item)
        if count == 1:
            self.link(len(self.objects) - 1)

    def link(self, index: int) -> None:
        if self.pending and self.last is not None and self.last != index:
            self.relations.append((self.last, self.pending, index))
        self.pending, self.last = None, index


def _is_relation(words: list[str], index: int) -> bool:
    """Left and right relate only with an "of": "in the top left corner" does not."""
    return words[index] not in ("left", "right") or "of" in words[index + 1 : index + 3]


def _includes(known: Filter, item: Filter) -> bool:
    pairs = ((item.shape, known.shape), (item.color, known.color), (item.size, known.size))
    return all(wanted in (None, given) for wanted, given in pairs)


def parse_description(text: str) -> Facts:
    """What a description claims. Never fails: what cannot be understood is among the problems."""
    return _Reader().read(normalize_words(text))


def check_description(text: str, scene: Scene) -> tuple[Verdict, ...]:
    """Every object named in full, nothing invented, every stated relation true, the background right."""
    facts = parse_description(text)
    complete = bool(facts.objects) and all(item.shape and item.color and item.size for item in facts.objects)
    return (
        Verdict("every object is named with size, color and shape", complete),
        Verdict("the background is named", facts.background is not None),
        Verdict("every reference and relation is clear", not facts.problems),
        *check_scene(facts.to_spec(), scene),
    )
