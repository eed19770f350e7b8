"""What a sentence says about an image, as constraints, and whether a scene satisfies them.

Some constraints name objects by number ("object 0 is a red circle", "object 0 is left of object 1"); checking looks for
an assignment of numbers to objects that satisfies them all. Knows neither words nor pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple, TypeVar

from mllm.world.scene import ATTRIBUTES, MAX_OBJECTS, Pair, Scene, SceneObject, holds, is_placed

T = TypeVar("T")
MAX_ASSIGNED = 2 * MAX_OBJECTS  # an image with more objects than this fails whatever the assignment


@dataclass(frozen=True, slots=True)
class Filter:
    """Attributes an object must have; None leaves one free."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    not_color: str | None = None
    not_shape: str | None = None

    def matches(self, item: SceneObject | Filter) -> bool:
        """Whether an object, or everything that another filter matches, has these attributes."""
        return (
            self.shape in (None, item.shape)
            and self.color in (None, item.color)
            and self.size in (None, item.size)
            and (self.not_color is None or self.not_color != item.color)
            and (self.not_shape is None or self.not_shape != item.shape)
        )

    @classmethod
    def of(cls, item: SceneObject | Filter, names: Iterable[str] = tuple(ATTRIBUTES)) -> Filter:
        """The attributes of an object, or some of them."""
        return cls(**{name: getattr(item, name) for name in names})

    def find_one(self, scene: Scene) -> SceneObject | None:
        """The only object that matches; None if there is none or more than one."""
        found = [item for item in scene.objects if self.matches(item)]
        return found[0] if len(found) == 1 else None

    def count(self, scene: Scene) -> int:
        """How many objects match."""
        return sum(map(self.matches, scene.objects))

    @property
    def pair(self) -> Pair | None:
        """The color-shape pair, if both are named."""
        return (self.color, self.shape) if self.color and self.shape else None


ANY = Filter()


class Exists(NamedTuple):  # object number `ref` has these attributes
    ref: int
    filter: Filter


class Related(NamedTuple):  # object `a` stands in a relation (scene.RELATIONS) to object `b`
    a: int
    relation: str
    b: int


class Placed(NamedTuple):  # object `ref` lies in a place (scene.PLACES)
    ref: int
    place: str


class Compared(NamedTuple):  # object `a` is larger than object `b`, or of the same size
    a: int
    comparison: str  # "larger", "same size"
    b: int


class Count(NamedTuple):  # exactly this many objects match; 0 says that there is none
    filter: Filter
    number: int


class Every(NamedTuple):  # every object matches
    filter: Filter


class Distinct(NamedTuple):  # no two objects agree in an attribute
    attribute: str  # "shape", "color", "size"


class Background(NamedTuple):  # the background has this color
    color: str


Constraint = Exists | Related | Placed | Compared | Count | Every | Distinct | Background
Spec = tuple[Constraint, ...]
"""Everything that a sentence says about an image."""


def plain_phrase(item: Filter) -> str:
    """Attributes in their usual order, without synonyms: "small red circle"."""
    return " ".join(word for word in (item.size, item.color, item.shape or "shape") if word)


def could_mean(reference: Filter, described: Filter) -> bool:
    """Whether a reference could be taken for an object described so; what was not said could be anything."""
    pairs = ((getattr(reference, name), getattr(described, name)) for name in ATTRIBUTES)
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def looks_like(expected: SceneObject, found: SceneObject, *, tolerance: float) -> bool:
    """Whether two objects have the same attributes and nearly the same position."""
    is_same = Filter.of(expected).matches(found)
    return is_same and math.hypot(expected.x - found.x, expected.y - found.y) <= tolerance


def pair_up(expected: Sequence[T], found: Sequence[T], is_same: Callable[[T, T], bool]) -> bool:
    """Whether every expected item has one of its own among what was found, and nothing is left."""
    rest = list(found)
    for item in expected:
        if (at := next((at for at, other in enumerate(rest) if is_same(item, other)), None)) is None:
            return False
        del rest[at]
    return not rest


def enumerate_objects(filters: Sequence[Filter]) -> Spec:
    """These objects and no others."""
    return (*(Exists(ref, item) for ref, item in enumerate(filters)), Count(ANY, len(filters)))


def satisfies(scene: Scene, spec: Spec) -> bool:
    """Whether all constraints hold, under some assignment of numbers to objects."""
    num_refs = 1 + max((item.ref for item in spec if isinstance(item, Exists)), default=-1)
    objects: list[SceneObject | None] = list(scene.objects[:MAX_ASSIGNED])
    objects += [None] * (num_refs - len(objects))
    return any(all(is_met(item, scene, assigned) for item in spec) for assigned in permutations(objects, num_refs))


def is_met(constraint: Constraint, scene: Scene, assigned: Sequence[SceneObject | None]) -> bool:
    """Whether one constraint holds when object numbers stand for the assigned objects (None: missing)."""
    if any(assigned[getattr(constraint, name)] is None for name in ("ref", "a", "b") if hasattr(constraint, name)):
        return False
    match constraint:
        case Exists(ref, item):
            return item.matches(assigned[ref])
        case Placed(ref, place):
            return is_placed(place, assigned[ref])
        case Related(a, relation, b):
            return holds(relation, assigned[a], assigned[b])
        case Compared(a, comparison, b):
            return compare(assigned[a], assigned[b]) == comparison
        case Count(item, number):
            return item.count(scene) == number
        case Every(item):
            return bool(scene.objects) and all(map(item.matches, scene.objects))
        case Distinct(attribute):
            return len({getattr(item, attribute) for item in scene.objects}) == len(scene.objects)
        case Background(color):
            return scene.background == color
        case _:
            raise TypeError(f"constraint must be one of {Constraint}, got {constraint!r}")


def compare(a: SceneObject, b: SceneObject) -> str:
    """How the size of a relates to that of b."""
    if a.size == b.size:
        return "same size"
    return "larger" if a.size == "large" else "smaller"
