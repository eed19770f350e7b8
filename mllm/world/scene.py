"""What a scene is: a background and one to four flat shapes, as plain values, and how to draw one at random.

Knows nothing of pixels or words. Positions and radii are in units of the picture: x to the right, y down, both in
[0, 1]; a radius is a share of the shorter side. Every shape fits into the circle of its radius around its position.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar

BACKGROUNDS = ("white", "gray", "black", "cream")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple")
SIZES = ("small", "large")
MAX_OBJECTS = 4

RGB = {
    "white": (255, 255, 255),
    "gray": (140, 140, 140),
    "black": (0, 0, 0),
    "cream": (245, 225, 175),
    "red": (215, 30, 40),
    "orange": (250, 130, 20),
    "yellow": (255, 220, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 220),
    "purple": (145, 40, 165),
}
RADIUS = {"small": 0.1, "large": 0.2}
GAP = 0.035  # least distance between the circles of two objects: 4.5 pixels at 128
INSET = 0.02  # least distance between an object's circle and the border

T = TypeVar("T")
Pair = tuple[str, str]  # (color, shape)
ALL_PAIRS: frozenset[Pair] = frozenset((color, shape) for color in COLORS for shape in SHAPES)

NUM_OBJECTS_WEIGHTS = (25, 30, 25, 20)  # one, two, three, four objects
# What the objects of a scene have in common, so that sentences about counts, "every" and "one ... the other" apply.
THEME_WEIGHTS = {"free": 56, "copies": 12, "same_color": 10, "same_shape": 12, "twins": 10}


@dataclass(frozen=True, slots=True, order=True)
class SceneObject:
    """One flat shape."""

    shape: str
    color: str
    size: str
    x: float
    y: float

    def __post_init__(self) -> None:
        for value, choices in ((self.shape, SHAPES), (self.color, COLORS), (self.size, SIZES)):
            if value not in choices:
                raise ValueError(f"an object needs one of {', '.join(choices)}, but got {value!r}; choose one of them")

    @property
    def radius(self) -> float:
        """Radius of the circle the shape fits into, as a share of the shorter side."""
        return RADIUS[self.size]

    @property
    def pair(self) -> Pair:
        return (self.color, self.shape)


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and its objects, always kept from left to right, so that equal content is equal and hashes alike."""

    background: str
    objects: tuple[SceneObject, ...]

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background {self.background!r} is unknown; choose one of {', '.join(BACKGROUNDS)}")
        ordered = tuple(sorted(self.objects, key=lambda item: (item.x, item.y, item.shape, item.color, item.size)))
        object.__setattr__(self, "objects", ordered)

    @property
    def pairs(self) -> frozenset[Pair]:
        return frozenset(item.pair for item in self.objects)

    def to_dict(self) -> dict:
        fields = ("shape", "color", "size", "x", "y")
        objects = [{name: getattr(item, name) for name in fields} for item in self.objects]
        return {"background": self.background, "objects": objects}

    @classmethod
    def from_dict(cls, data: dict) -> Scene:
        return cls(data["background"], tuple(SceneObject(**item) for item in data["objects"]))


def required(value: T | None, name: str) -> T:
    """A value that may be None in general but not here."""
    assert value is not None, f"{name} is missing"
    return value


def have_gap(x0: float, y0: float, size0: str, x1: float, y1: float, size1: str) -> bool:
    """Whether two objects at these places leave a visible gap."""
    return math.hypot(x0 - x1, y0 - y1) >= RADIUS[size0] + RADIUS[size1] + GAP


def is_inside(x: float, y: float, size: str) -> bool:
    """Whether an object lies fully inside the picture."""
    low = RADIUS[size] + INSET - 1e-9
    return low <= x <= 1 - low and low <= y <= 1 - low


def is_valid(scene: Scene) -> bool:
    """Whether a scene keeps the world's rules: one to four objects, inside, apart."""
    items = scene.objects
    if not 1 <= len(items) <= MAX_OBJECTS or not all(is_inside(item.x, item.y, item.size) for item in items):
        return False
    return all(
        have_gap(a.x, a.y, a.size, b.x, b.y, b.size) for index, a in enumerate(items) for b in items[index + 1 :]
    )


def random_position(size: str, rng: Random) -> tuple[float, float]:
    low = RADIUS[size] + INSET
    return round(rng.uniform(low, 1 - low), 4), round(rng.uniform(low, 1 - low), 4)


def free_position(
    size: str, taken: Sequence[SceneObject], rng: Random, *, tries: int = 40
) -> tuple[float, float] | None:
    """A random place for one more object, or None when none was found."""
    for _ in range(tries):
        x, y = random_position(size, rng)
        if all(have_gap(x, y, size, item.x, item.y, item.size) for item in taken):
            return x, y
    return None


def place(kinds: Sequence[tuple[str, str, str]], rng: Random) -> tuple[SceneObject, ...]:
    """Give objects (shape, color, size) random places: darts first, and jittered corners for crowded scenes."""
    order = sorted(kinds, key=lambda kind: kind[2] == "small")  # large ones first: they are hard to fit later
    for _ in range(12):
        placed: list[SceneObject] = []
        for shape, color, size in order:
            position = free_position(size, placed, rng, tries=12)
            if position is None:
                break
            placed.append(SceneObject(shape, color, size, *position))
        if len(placed) == len(order):
            return tuple(placed)
    return place_in_corners(order, rng)


def place_in_corners(kinds: Sequence[tuple[str, str, str]], rng: Random) -> tuple[SceneObject, ...]:
    """One object per quarter. The free play of two large ones side by side is shared evenly, so that a gap stays."""
    large = RADIUS["large"]
    low = large + INSET
    play = (1 - 2 * low - 2 * large - GAP) / 2
    corners = rng.sample([(left, top) for left in (True, False) for top in (True, False)], len(kinds))
    placed = []
    for (shape, color, size), (left, top) in zip(kinds, corners, strict=True):
        x, y = (round(low + rng.uniform(0, play), 4) for _ in range(2))
        placed.append(SceneObject(shape, color, size, x if left else round(1 - x, 4), y if top else round(1 - y, 4)))
    return tuple(placed)


def random_pairs(num_objects: int, theme: str, allowed: Sequence[Pair], rng: Random) -> list[Pair]:
    """Colors and shapes of a scene: what they have in common is the theme."""
    first = rng.choice(allowed)
    match theme:
        case "free":
            pool: Sequence[Pair] = allowed
        case "copies":
            num_copies = rng.randint(2, num_objects)
            return [first] * num_copies + rng.choices(allowed, k=num_objects - num_copies)
        case "twins":
            return [first, first] + rng.choices(allowed, k=num_objects - 2)
        case "same_color":
            pool = [pair for pair in allowed if pair[0] == first[0]]
        case "same_shape":
            pool = [pair for pair in allowed if pair[1] == first[1] and pair != first] or [first]
            return [first] + rng.sample(pool, min(num_objects - 1, len(pool)))
        case _:
            raise ValueError(f"theme {theme!r} is unknown; choose one of {', '.join(THEME_WEIGHTS)}")
    return [first] + rng.choices(pool, k=num_objects - 1)


def random_scene(rng: Random, *, num_objects: int | None = None, allowed_pairs: frozenset[Pair] = ALL_PAIRS) -> Scene:
    """A random valid scene whose color-shape pairs are all allowed."""
    if num_objects is None:
        num_objects = rng.choices(range(1, MAX_OBJECTS + 1), NUM_OBJECTS_WEIGHTS)[0]
    if not 1 <= num_objects <= MAX_OBJECTS:
        raise ValueError(f"a scene has 1 to {MAX_OBJECTS} objects, but {num_objects} were asked for; ask for fewer")
    if not allowed_pairs:
        raise ValueError("no color-shape pair is allowed; allow at least one")
    theme = "free" if num_objects == 1 else rng.choices(tuple(THEME_WEIGHTS), tuple(THEME_WEIGHTS.values()))[0]
    pairs = random_pairs(num_objects, theme, sorted(allowed_pairs), rng)
    sizes = rng.choices(SIZES, k=len(pairs))
    if theme == "twins":
        sizes[:2] = rng.sample(SIZES, 2)
    kinds = [(shape, color, size) for (color, shape), size in zip(pairs, sizes, strict=True)]
    return Scene(rng.choice(BACKGROUNDS), place(kinds, rng))


# Where objects lie: relative to each other (left of, right of, above, below) and in the picture (top left, center).
#
# Two strictnesses. A sentence is *stated* only where the margin is clear to any eye; it *holds* in a drawn picture
# with a
# smaller margin. What lies between is never said of a scene and never decides a question.


RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CLEAR_MARGIN = 0.15
HOLDS_MARGIN = 0.04

# Column and row of each place; None leaves that direction free.
PLACES: dict[str, tuple[str | None, str | None]] = {
    "top left": ("left", "top"),
    "top right": ("right", "top"),
    "bottom left": ("left", "bottom"),
    "bottom right": ("right", "bottom"),
    "center": ("middle", "middle"),
    "left": ("left", None),
    "right": ("right", None),
    "top": (None, "top"),
    "bottom": (None, "bottom"),
}
# Bounds of a third in which a place is stated, and in which it still holds.
STATED_BOUNDS = {
    "left": (0.0, 0.36),
    "top": (0.0, 0.36),
    "middle": (0.42, 0.58),
    "right": (0.64, 1.0),
    "bottom": (0.64, 1.0),
}
HOLDS_BOUNDS = {
    "left": (0.0, 0.45),
    "top": (0.0, 0.45),
    "middle": (0.35, 0.65),
    "right": (0.55, 1.0),
    "bottom": (0.55, 1.0),
}


def offset(relation: str, a: SceneObject, b: SceneObject) -> float:
    """How far a lies from b in the direction of the relation."""
    match relation:
        case "left of":
            return b.x - a.x
        case "right of":
            return a.x - b.x
        case "above":
            return b.y - a.y
        case "below":
            return a.y - b.y
        case _:
            raise ValueError(f"relation {relation!r} is unknown; choose one of {', '.join(RELATIONS)}")


def holds(relation: str, a: SceneObject, b: SceneObject) -> bool:
    """Whether a drawn picture satisfies the relation."""
    return offset(relation, a, b) >= HOLDS_MARGIN


def is_clear(relation: str, a: SceneObject, b: SceneObject) -> bool:
    """Whether anyone would agree that the relation holds: a clear margin, and not mostly in the other direction."""
    across = a.y - b.y if relation in ("left of", "right of") else a.x - b.x
    return offset(relation, a, b) >= max(CLEAR_MARGIN, 0.5 * abs(across))


def main_relation(a: SceneObject, b: SceneObject) -> str | None:
    """The relation one would name first, along the longer direction; None when no margin is clear."""
    if abs(a.x - b.x) >= abs(a.y - b.y):
        relation = "left of" if a.x < b.x else "right of"
    else:
        relation = "above" if a.y < b.y else "below"
    return relation if is_clear(relation, a, b) else None


def _is_in(place: str, item: SceneObject, bounds: dict[str, tuple[float, float]]) -> bool:
    column, row = PLACES[place]
    for band, value in ((column, item.x), (row, item.y)):
        if band is not None and not bounds[band][0] <= value <= bounds[band][1]:
            return False
    return True


def is_placed(place: str, item: SceneObject) -> bool:
    """Whether a drawn object lies in the place."""
    return _is_in(place, item, HOLDS_BOUNDS)


def stated_places(item: SceneObject) -> tuple[str, ...]:
    """Every place in which anyone would say the object lies, the most exact first."""
    return tuple(place for place in PLACES if _is_in(place, item, STATED_BOUNDS))


# Which scenes are for training, validation and test, and which color-shape pairs training never sees.
#
# The split of a scene is a hash of its content with positions rounded to a coarse grid, so that no test scene is a
# training scene moved by a hair.


Split = Literal["train", "validation", "test"]
PairGroup = Literal["seen", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# Every color and every shape is held out exactly once.
HELD_OUT_PAIRS: frozenset[Pair] = frozenset(
    {
        ("purple", "circle"),
        ("yellow", "square"),
        ("blue", "triangle"),
        ("orange", "star"),
        ("red", "cross"),
        ("green", "heart"),
    }
)
SEEN_PAIRS: frozenset[Pair] = ALL_PAIRS - HELD_OUT_PAIRS
POSITION_STEPS = 16
SHARES = {"validation": 0.1, "test": 0.1}  # the rest is for training


def content_key(scene: Scene) -> str:
    """A text that is equal for scenes that look alike: positions are rounded to a coarse grid."""
    parts = [
        f"{item.shape},{item.color},{item.size},{int(item.x * POSITION_STEPS)},{int(item.y * POSITION_STEPS)}"
        for item in scene.objects
    ]
    return ";".join([scene.background, *sorted(parts)])


def split_of(scene: Scene) -> Split:
    """The one split a scene belongs to."""
    digest = hashlib.blake2b(content_key(scene).encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    if share < SHARES["validation"]:
        return "validation"
    return "test" if share < SHARES["validation"] + SHARES["test"] else "train"


def allowed_pairs(pairs: PairGroup) -> frozenset[Pair]:
    """The pairs that pictures and sentences of a group may contain."""
    if pairs not in ("seen", "held_out"):
        raise ValueError(f"pair group {pairs!r} is unknown; choose seen or held_out")
    return SEEN_PAIRS if pairs == "seen" else ALL_PAIRS


def belongs(scene: Scene, split: Split, pairs: PairGroup) -> bool:
    """Whether a scene may be used in a split and pair group."""
    is_held_out = not scene.pairs.isdisjoint(HELD_OUT_PAIRS)
    return is_held_out == (pairs == "held_out") and split_of(scene) == split


def check_group(split: Split, pairs: PairGroup) -> None:
    """Refuse what would leak held-out pairs into training."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    allowed_pairs(pairs)
    if split == "train" and pairs == "held_out":
        raise ValueError("held-out pairs were asked for in training; use the validation or test split for them")


def random_scene_for(split: Split, rng: Random, *, pairs: PairGroup = "seen", num_objects: int | None = None) -> Scene:
    """A random scene of a split. Held-out scenes have at least one held-out pair."""
    check_group(split, pairs)
    allowed = allowed_pairs(pairs)
    while True:
        scene = random_scene(rng, num_objects=num_objects, allowed_pairs=allowed)
        if belongs(scene, split, pairs):
            return scene


# The world's classes for class-conditional drawing: one object of one color and shape, anything else free.
#
# In: a class number. Out: its color and shape, or a random scene of it. Pairs that training never sees are no classes.


CLASSES: tuple[Pair, ...] = tuple(
    (color, shape) for color in COLORS for shape in SHAPES if (color, shape) in SEEN_PAIRS
)
"""(color, shape) of class 0, 1, ..."""


def class_scene(index: int, rng: Random, *, split: Split = "train") -> Scene:
    """A random scene of a class: its object somewhere, large or small, on any background."""
    while True:
        scene = random_scene(rng, num_objects=1, allowed_pairs=frozenset({CLASSES[index]}))
        if split_of(scene) == split:
            return scene


def is_of_class(scene: Scene | None, index: int) -> bool:
    """Whether a scene that was read from a picture is of a class."""
    return scene is not None and [item.pair for item in scene.objects] == [CLASSES[index]]
