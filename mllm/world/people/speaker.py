"""Somebody who words what is meant: names of objects, numbers, and references that single one out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TypeVar

from mllm.world.grammar import Slot, Typing, expand, rule, tidy
from mllm.world.language import NUMBER_WORDS, pluralize
from mllm.world.scene import Scene, SceneObject, is_clear, main_relation
from mllm.world.spec import Filter, find_one

FULL = ("size", "color", "shape")


ASKING = re.compile("(can|could|would|will|may|is|are|do|does|did|what|which|how|where|who|have|any)\\b")
T = TypeVar("T")


@dataclass(slots=True)
class Speaker:
    """Somebody who words what is meant, in a way of their own."""

    rng: Random
    typing: Typing = field(init=False)

    def __post_init__(self) -> None:
        self.typing = Typing.of(self.rng)

    def say(self, name: str, **slots: Slot) -> str:
        """A rule of the grammar."""
        return expand(rule(name), self.rng, slots)

    def pick(self, weights: Mapping[T, float]) -> T:
        return self.rng.choices(tuple(weights), tuple(weights.values()))[0]

    def maybe(self, share: float) -> bool:
        return self.rng.random() < share

    # ---- objects ----

    def noun(self, item: Filter, *, plural: bool = False, short: bool = False) -> str:
        """ "small red circle" and what else it may be called; a short one has nothing behind the noun."""
        shape = self.say(item.shape or "shape")
        shape = pluralize(shape) if plural else shape
        shape = shape.replace("crosss", "crosses").replace("boxs", "boxes").replace("pluss", "pluses")
        size, color = (self.say(name) if name else "" for name in (item.size, item.color))
        verb = "are" if plural else "is"
        if item.not_color:
            return f"{shape} that {verb} not {item.not_color}"
        forms = [(f"{size} {color} {shape}", 24.0)]
        if color and size:
            forms += [(f"{color} {size} {shape}", 2), (f"{size}, {color} {shape}", 0.5)]
        if not short:
            if color:
                forms += [
                    (f"{size} {shape} that {verb} {color}", 1),
                    (f"{size} {shape} in {color}", 1),
                    (f"{size} {shape} of {color} {self.say('color')}", 0.7),
                    (f"{shape} {color} {size}", 0.7),
                    (f"{size} {color} {self.say('color')}ed {shape}", 0.7),
                    (f"{size} {shape} with {color} {self.say('color')}", 0.3),
                ]
            if size:
                forms += [(f"{color} {shape} that {verb} {size}", 1), (f"{color} {shape} ({size})", 0.5)]
                forms += [(f"{color} {shape} {size}", 0.7), (f"{color} {shape} of {size} size", 0.3)]
        texts, weights = zip(*forms, strict=True)
        return tidy(self.rng.choices(texts, weights)[0])

    def number(self, count: int) -> str:
        if count == 2 and self.maybe(0.08):
            return self.rng.choice(("a pair of", "a couple of"))
        return self.rng.choice((NUMBER_WORDS[count],) * 3 + (str(count),) * 2)

    def some(self, item: Filter, count: int = 1, *, short: bool = False) -> str:
        """With an article or a number."""
        if count > 1:
            if self.maybe(0.03):
                return f"{count}x {self.noun(item, short=True)}"
            return f"{self.number(count)} {self.noun(item, plural=True, short=short)}"
        article = self.rng.choices(("a", "one", "1", "", "a single"), (70, 10, 5, 9, 1))[0]
        return tidy(f"{article} {self.noun(item, short=short)}")

    def refer(self, scene: Scene, item: SceneObject, *, without: str | None = None) -> str | None:
        """ "the small circle", "the one on the left": words that single out one object; None where there are none."""
        others = [other for other in scene.objects if other is not item]
        names = [("shape",), ("color",), ("size",), ("color", "shape"), ("size", "shape"), ("size", "color")]
        weights = {("shape",): 8, ("color", "shape"): 6, ("color",): 2, ("size", "shape"): 3, ("size",): 1.5}
        choices: list[tuple[Callable[[], str], float]] = []
        for attributes in [*names, FULL]:
            named = Filter(**{name: getattr(item, name) for name in attributes})
            if without not in attributes and find_one(scene, named):
                ones = "shape" not in attributes and self.maybe(0.6)
                said = " ".join(self.say(getattr(item, name)) for name in attributes) + " one"
                choices.append(
                    (lambda n=named, o=ones, s=said: s if o else self.noun(n, short=True), weights.get(attributes, 1))
                )
        if others and without != "size" and all(other.size != item.size for other in others):
            word = "biggest largest bigger larger" if item.size == "large" else "smallest smaller littlest tiniest"
            noun = f"{self.rng.choice(word.split())} {self.rng.choice(('one', 'one', 'shape'))}"
            choices.append((lambda: noun, 2))
        for axis, low, high in (("x", "left", "right"), ("y", "top upper", "bottom lower")):
            for sign, words in ((1, low), (-1, high)):
                at = sign * getattr(item, axis)
                if others and all(sign * getattr(other, axis) - at > 0.15 for other in others):
                    word = self.rng.choice(words.split())
                    most = f"{word}most" if word in ("left", "right") else word
                    where = f"on the {word}" if axis == "x" else f"at the {word}"
                    kind = self.say(item.shape) if self.maybe(0.4) and without != "shape" else "one"
                    choices.append((partial(self.say, "at the edge", kind=kind, where=where, most=most), 1.2))
        for other in others:
            anchor = find_one(scene, Filter(shape=other.shape))
            relation = main_relation(item, other)
            if (
                anchor
                and relation
                and without is None
                and sum(is_clear(relation, o, other) for o in scene.objects) == 1
            ):
                choices.append((lambda r=relation, o=other: f"one {self.say(r)} the {self.say(o.shape)}", 0.3))
        if not choices:
            return None
        texts, weight = zip(*choices, strict=True)
        return f"the {self.rng.choices(texts, weight)[0]()}"

    # ---- the whole sentence ----

    def type(self, text: str) -> str:
        return self.typing(text, self.rng, asks=ASKING.match(text) is not None)
