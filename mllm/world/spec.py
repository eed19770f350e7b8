"""What a sentence demands of a picture, as plain values, and whether a scene fulfils it.

A spec is a list of constraints. Some name objects by number ("object 0 is a red circle", "object 0 is left of object
1"); checking looks for the assignment of numbers to objects that fulfils the most. Knows neither words nor pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations

from mllm.world.scene import MAX_OBJECTS, Pair, Scene, SceneObject, holds, is_placed

SKILLS = (
    "attribute",
    "scene",
    "spatial relation",
    "counting",
    "comparison",
    "differentiation",
    "negation",
    "universality",
)
MAX_ASSIGNED = 2 * MAX_OBJECTS  # a picture with more objects than this fails whatever the assignment


@dataclass(frozen=True, slots=True)
class Filter:
    """Attributes an object must have; None leaves one free."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    not_color: str | None = None
    not_shape: str | None = None

    def matches(self, item: SceneObject) -> bool:
        return (
            self.shape in (None, item.shape)
            and self.color in (None, item.color)
            and self.size in (None, item.size)
            and self.not_color != item.color
            and self.not_shape != item.shape
        )

    @property
    def pair(self) -> Pair | None:
        """The color-shape pair, if both are named."""
        return (self.color, self.shape) if self.color and self.shape else None


ANY = Filter()


@dataclass(frozen=True, slots=True)
class Exists:
    """Object number `ref` has these attributes."""

    ref: int
    filter: Filter


@dataclass(frozen=True, slots=True)
class Related:
    """Object `a` stands in a relation of relations.RELATIONS to object `b`."""

    a: int
    relation: str
    b: int


@dataclass(frozen=True, slots=True)
class Placed:
    """Object `ref` lies in a place of relations.PLACES."""

    ref: int
    place: str


@dataclass(frozen=True, slots=True)
class Compared:
    """Object `a` is larger, smaller or of the same size as object `b`."""

    a: int
    comparison: str  # "larger", "smaller", "same size"
    b: int


@dataclass(frozen=True, slots=True)
class Count:
    """Exactly this many objects match; 0 says that there is none."""

    filter: Filter
    number: int


@dataclass(frozen=True, slots=True)
class Every:
    """Every object matches."""

    filter: Filter


@dataclass(frozen=True, slots=True)
class Alike:
    """All objects agree in an attribute, or (distinct) no two of them do."""

    attribute: str  # "shape", "color", "size"
    distinct: bool = False


@dataclass(frozen=True, slots=True)
class Background:
    """The background has this color."""

    color: str


Constraint = Exists | Related | Placed | Compared | Count | Every | Alike | Background
_TYPES = {kind.__name__: kind for kind in (Exists, Related, Placed, Compared, Count, Every, Alike, Background)}


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything a sentence says about a picture."""

    constraints: tuple[Constraint, ...]

    @property
    def pairs(self) -> frozenset[Pair]:
        """The color-shape pairs the sentence names."""
        filters = [item.filter for item in self.constraints if isinstance(item, Exists | Count | Every)]
        return frozenset(item.pair for item in filters if item.pair)

    def to_dict(self) -> list[dict]:
        return [{"type": type(item).__name__, **_plain(item)} for item in self.constraints]

    @classmethod
    def from_dict(cls, data: list[dict]) -> Spec:
        constraints = []
        for item in data:
            values = {name: value for name, value in item.items() if name != "type"}
            if "filter" in values:
                values["filter"] = Filter(**values["filter"])
            constraints.append(_TYPES[item["type"]](**values))
        return cls(tuple(constraints))


def _plain(constraint: Constraint) -> dict:
    values = {field.name: getattr(constraint, field.name) for field in fields(constraint)}
    if "filter" in values:
        item = values["filter"]
        named = {field.name: getattr(item, field.name) for field in fields(item)}
        values["filter"] = {name: value for name, value in named.items() if value is not None}
    return values


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one demand was met."""

    demand: str
    holds: bool


def enumerate_objects(filters: Sequence[Filter]) -> tuple[Constraint, ...]:
    """These objects and no others."""
    return (*(Exists(ref, item) for ref, item in enumerate(filters)), Count(ANY, len(filters)))


def is_met(constraint: Constraint, scene: Scene, assigned: Sequence[SceneObject | None]) -> bool:
    """Whether one constraint holds when object numbers stand for the assigned objects (None: missing)."""
    match constraint:
        case Exists(ref, item):
            found = assigned[ref]
            return found is not None and item.matches(found)
        case Placed(ref, place):
            found = assigned[ref]
            return found is not None and is_placed(place, found)
        case Related() | Compared():
            a, b = assigned[constraint.a], assigned[constraint.b]
            return a is not None and b is not None and _is_pair_met(constraint, a, b)
        case Count(item, number):
            return sum(map(item.matches, scene.objects)) == number
        case Every(item):
            return bool(scene.objects) and all(map(item.matches, scene.objects))
        case Alike(attribute, distinct):
            values = [getattr(item, attribute) for item in scene.objects]
            return len(set(values)) == (len(values) if distinct else 1)
        case Background(color):
            return scene.background == color
        case _:
            raise TypeError(f"{constraint!r} is no constraint; use one of {', '.join(_TYPES)}")


def _is_pair_met(constraint: Related | Compared, a: SceneObject, b: SceneObject) -> bool:
    if isinstance(constraint, Related):
        return holds(constraint.relation, a, b)
    return compare(a, b) == constraint.comparison


def compare(a: SceneObject, b: SceneObject) -> str:
    """How the size of a relates to that of b."""
    if a.size == b.size:
        return "same size"
    return "larger" if a.size == "large" else "smaller"


def check_scene(spec: Spec, scene: Scene) -> tuple[Verdict, ...]:
    """A verdict for each constraint, under the assignment of numbers to objects that fulfils the most of them."""
    num_refs = 1 + max((item.ref for item in spec.constraints if isinstance(item, Exists)), default=-1)
    objects: list[SceneObject | None] = list(scene.objects[:MAX_ASSIGNED])
    objects += [None] * (num_refs - len(objects))
    best: list[bool] = []
    for assigned in permutations(objects, num_refs):
        met = [is_met(item, scene, assigned) for item in spec.constraints]
        if not best or sum(met) > sum(best):
            best = met
        if all(met):
            break
    return tuple(Verdict(str(item), value) for item, value in zip(spec.constraints, best, strict=True))
