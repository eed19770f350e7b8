"""Fill a template about a scene: each slot gives its words and the constraints that saying them implies.

Slots: {a} {b} {c} {d} objects with their article, {the_a} a reference back, {ab} the relation of a to b, {at_a} the
place of a, {on} the background phrase, {background} its color, {list} all objects, {number} how many; a capital first
letter ({The_a}) capitalizes. A job adds slots of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from string import Formatter

from mllm.world.phrases import NUMBER_WORDS, capitalize, join, noun_phrase, say, say_background, say_place, with_article
from mllm.world.relations import main_relation, stated_places
from mllm.world.scene import Scene, SceneObject
from mllm.world.spec import ANY, Background, Constraint, Count, Exists, Filter, Placed, Related

LETTERS = "abcd"


class UnsayableError(Exception):
    """A template asks for something that is not true or not clear in this scene; try another template."""


@dataclass(frozen=True, slots=True)
class Said:
    """Words and what they imply."""

    text: str
    constraints: tuple[Constraint, ...] = ()


@lru_cache(maxsize=4096)
def split_template(template: str) -> tuple[tuple[str, str | None], ...]:
    """(literal, slot or None) pairs in order."""
    return tuple((literal, slot) for literal, slot, _, _ in Formatter().parse(template))


@dataclass(slots=True)
class Wording:
    """One attempt to put a scene into words: objects in the order a, b, c, d, and what is said of each."""

    scene: Scene
    objects: Sequence[SceneObject]
    filters: Sequence[Filter]
    rng: Random
    extra: Mapping[str, Said] = field(default_factory=dict)
    _mentioned: list[Filter] = field(default_factory=list)

    def fill(self, template: str) -> Said:
        """The template in words; raises UnsayableError where it does not fit."""
        parts: list[str] = []
        constraints: dict[Constraint, None] = {}
        for literal, slot in split_template(template):
            parts.append(literal)
            if slot is not None:
                said = self.say_slot(slot.lower())
                parts.append(capitalize(said.text) if slot[0].isupper() else said.text)
                constraints.update(dict.fromkeys(said.constraints))
        return Said("".join(parts), tuple(constraints))

    def say_slot(self, slot: str) -> Said:
        if slot in self.extra:
            return self.extra[slot]
        match slot.split("_"):
            case ["on"]:
                return Said(say_background(self.scene.background, self.rng), (Background(self.scene.background),))
            case ["background"]:
                return Said(say(self.scene.background, self.rng), (Background(self.scene.background),))
            case ["number"]:
                number = len(self.scene.objects)
                return Said(NUMBER_WORDS[number], (Count(ANY, number),))
            case ["list"]:
                said = [self.mention(index) for index in range(len(self.objects))]
                return Said(join([part.text for part in said]), sum((part.constraints for part in said), ()))
            case [letter] if len(letter) == 1 and letter in LETTERS:
                return self.mention(self.index(letter))
            case ["the", letter] if len(letter) == 1:
                return Said("the " + self.refer(self.index(letter)))
            case ["at", letter]:
                return self.place(self.index(letter))
            case [letters] if len(letters) == 2 and set(letters) <= set(LETTERS):
                return self.relate(self.index(letters[0]), self.index(letters[1]))
            case _:
                raise UnsayableError(slot)

    def index(self, letter: str) -> int:
        index = LETTERS.index(letter)
        if index >= len(self.objects):
            raise UnsayableError(letter)
        return index

    def mention(self, index: int) -> Said:
        item = self.filters[index]
        phrase = noun_phrase(item, self.rng)
        text = f"another {phrase}" if item in self._mentioned else with_article(phrase)
        self._mentioned.append(item)
        return Said(text, (Exists(index, item),))

    def refer(self, index: int) -> str:
        """A noun phrase that singles out one of the objects as they were described."""
        item = self.filters[index]
        full = Filter(item.shape, item.color, item.size)
        choices = [Filter(item.shape), Filter(item.shape, item.color), Filter(item.shape, None, item.size), full]
        for choice in [full] if self.rng.random() < 0.3 else choices:
            if sum(could_mean(choice, other) for other in self.filters) == 1:
                return noun_phrase(choice, self.rng)
        raise UnsayableError(LETTERS[index])

    def place(self, index: int) -> Said:
        places = stated_places(self.objects[index])
        if not places:
            raise UnsayableError(LETTERS[index])
        place = places[0]
        return Said(say_place(place, self.rng), (Placed(index, place),))

    def relate(self, a: int, b: int) -> Said:
        relation = main_relation(self.objects[a], self.objects[b])
        if relation is None:
            raise UnsayableError(LETTERS[a] + LETTERS[b])
        return Said(say(relation, self.rng), (Related(a, relation, b),))


def could_mean(reference: Filter, described: Filter) -> bool:
    """Whether a reference could be taken for an object described so; what was not said could be anything."""
    pairs = ((reference.shape, described.shape), (reference.color, described.color), (reference.size, described.size))
    return all(wanted is None or given is None or wanted == given for wanted, given in pairs)
