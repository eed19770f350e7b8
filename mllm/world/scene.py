"""Scenes of the synthetic world as plain values: one to four flat shapes on a background.

What a scene contains, how to make one at random, where its objects lie, and which split it belongs to. Knows nothing of
pixels or words. Positions and radii are in units of the image: x to the right, y down, both in [0, 1]; a radius is a
share of the shorter side. Every shape fits into the circle of its radius around its position.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Literal

BACKGROUNDS = ("white", "gray", "black", "cream")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple")
SIZES = ("small", "large")
ATTRIBUTES = {"shape": SHAPES, "color": COLORS, "size": SIZES}
MAX_OBJECTS = 4
RADIUS = {"small": 0.1, "large": 0.2}
MIN_GAP = 0.035  # between the circles of two objects: 4.5 pixels at 128
MIN_INSET = 0.02  # between an object's circle and the border

NUM_OBJECTS_WEIGHTS = (25, 30, 25, 20)  # one, two, three, four objects
# What the objects of a scene have in common, so that sentences about counts, "every" and "one ... the other" apply.
THEME_WEIGHTS = {"free": 56, "copies": 12, "same_color": 10, "same_shape": 12, "twins": 10}

Pair = tuple[str, str]  # (color, shape)
Kind = tuple[str, str, str]  # (shape, color, size)
Split = Literal["train", "validation", "test"]
PairGroup = Literal["seen", "held_out"]
SPLIT_SHARES = {"validation": 0.1, "test": 0.1}  # the rest is for training
POSITION_STEPS = 16  # of the coarse grid on which scenes that look alike share a split

ALL_PAIRS: frozenset[Pair] = frozenset((color, shape) for color in COLORS for shape in SHAPES)
# Pairs that training never sees: every color and every shape is held out exactly once.
HELD_OUT_PAIRS = frozenset(zip(("purple", "yellow", "blue", "orange", "red", "green"), SHAPES, strict=True))
SEEN_PAIRS = ALL_PAIRS - HELD_OUT_PAIRS
CLASSES: tuple[Pair, ...] = tuple((c, s) for c in COLORS for s in SHAPES if (c, s) in SEEN_PAIRS)
"""(color, shape) of class 0, 1, ... of class-conditional drawing: one object of one pair, anything else free."""

# A relation is stated only where the margin is clear to any eye; it holds in a drawn image with a smaller margin. What
# lies between is never said of a scene and never decides a question. The same is true of places.
RELATION_AXES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
RELATIONS = tuple(RELATION_AXES)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SIDES = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}  # places
CLEAR_MARGIN = 0.15
HOLDS_MARGIN = 0.04

# Column and row of each place; None leaves that direction free.
PLACES: dict[str, tuple[str | None, str | None]] = {
    "top left": ("low", "low"),
    "top right": ("high", "low"),
    "bottom left": ("low", "high"),
    "bottom right": ("high", "high"),
    "center": ("middle", "middle"),
    "left": ("low", None),
    "right": ("high", None),
    "top": (None, "low"),
    "bottom": (None, "high"),
}
STATED_BOUNDS = {"low": (0.0, 0.36), "middle": (0.42, 0.58), "high": (0.64, 1.0)}
HOLDS_BOUNDS = {"low": (0.0, 0.45), "middle": (0.35, 0.65), "high": (0.55, 1.0)}


@dataclass(frozen=True, slots=True, order=True)
class SceneObject:
    """One flat shape."""

    shape: str
    color: str
    size: str
    x: float
    y: float

    def __post_init__(self) -> None:
        for name, choices in ATTRIBUTES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

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
            raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}, got {self.background!r}")
        ordered = tuple(sorted(self.objects, key=lambda item: (item.x, item.y, item.shape, item.color, item.size)))
        object.__setattr__(self, "objects", ordered)

    @property
    def pairs(self) -> frozenset[Pair]:
        return frozenset(item.pair for item in self.objects)


def is_valid(scene: Scene) -> bool:
    """Whether a scene keeps the world's rules: one to four objects, inside the image, apart from each other."""
    items = scene.objects
    lows = [RADIUS[item.size] + MIN_INSET - 1e-9 for item in items]
    return (
        1 <= len(items) <= MAX_OBJECTS
        and all(low <= at <= 1 - low for item, low in zip(items, lows, strict=True) for at in (item.x, item.y))
        and all(_have_gap(a.x, a.y, a.size, b) for a, b in combinations(items, 2))
    )


def _have_gap(x: float, y: float, size: str, other: SceneObject) -> bool:
    return math.hypot(x - other.x, y - other.y) >= RADIUS[size] + RADIUS[other.size] + MIN_GAP


def random_scene(rng: Random, *, num_objects: int | None = None, allowed_pairs: frozenset[Pair] = ALL_PAIRS) -> Scene:
    """A random valid scene whose color-shape pairs are all allowed."""
    if num_objects is None:
        num_objects = rng.choices(range(1, MAX_OBJECTS + 1), NUM_OBJECTS_WEIGHTS)[0]
    theme = "free" if num_objects == 1 else rng.choices(tuple(THEME_WEIGHTS), tuple(THEME_WEIGHTS.values()))[0]
    pairs = _random_pairs(num_objects, theme, sorted(allowed_pairs), rng)
    sizes = rng.choices(SIZES, k=len(pairs))
    if theme == "twins":
        sizes[:2] = rng.sample(SIZES, 2)
    kinds = [(shape, color, size) for (color, shape), size in zip(pairs, sizes, strict=True)]
    background = rng.choice(BACKGROUNDS)
    for _ in range(12):
        if placed := place_freely(kinds, rng, tries=12):
            return Scene(background, placed)
    return Scene(background, place_in_corners(sorted(kinds, key=lambda kind: kind[2] == "small"), rng))


def random_scene_for(split: Split, rng: Random, *, pairs: PairGroup = "seen", num_objects: int | None = None) -> Scene:
    """A random scene of a split. Held-out scenes have at least one held-out pair."""
    assert split != "train" or pairs == "seen", "held-out pairs are not trained on"
    allowed = allowed_pairs(pairs)
    while True:
        scene = random_scene(rng, num_objects=num_objects, allowed_pairs=allowed)
        is_held_out = not scene.pairs.isdisjoint(HELD_OUT_PAIRS)
        if is_held_out == (pairs == "held_out") and split_of(scene) == split:
            return scene


def class_scene(index: int, rng: Random) -> Scene:
    """A random scene of a class, for training: its object somewhere, large or small, on any background."""
    while True:
        scene = random_scene(rng, num_objects=1, allowed_pairs=frozenset({CLASSES[index]}))
        if split_of(scene) == "train":
            return scene


def random_free_position(
    size: str, taken: Sequence[SceneObject], rng: Random, *, tries: int
) -> tuple[float, float] | None:
    """A random position for one more object, or None when none was found."""
    low = RADIUS[size] + MIN_INSET
    for _ in range(tries):
        x, y = round(rng.uniform(low, 1 - low), 4), round(rng.uniform(low, 1 - low), 4)
        if all(_have_gap(x, y, size, item) for item in taken):
            return x, y
    return None


def _random_pairs(num_objects: int, theme: str, allowed: Sequence[Pair], rng: Random) -> list[Pair]:
    """Colors and shapes of a scene: what they have in common is the theme."""
    first = rng.choice(allowed)
    match theme:
        case "free":
            return [first, *rng.choices(allowed, k=num_objects - 1)]
        case "copies":
            num_copies = rng.randint(2, num_objects)
            return [first] * num_copies + rng.choices(allowed, k=num_objects - num_copies)
        case "twins":
            return [first, first, *rng.choices(allowed, k=num_objects - 2)]
        case "same_color":
            return [first, *rng.choices([pair for pair in allowed if pair[0] == first[0]], k=num_objects - 1)]
        case _:
            pool = [pair for pair in allowed if pair[1] == first[1] and pair != first] or [first]
            return [first, *rng.sample(pool, min(num_objects - 1, len(pool)))]


def place_freely(kinds: Sequence[Kind], rng: Random, *, tries: int) -> tuple[SceneObject, ...] | None:
    """Objects at random positions; None where there was no room for one."""
    placed: list[SceneObject] = []
    for kind in sorted(kinds, key=lambda kind: kind[2] == "small"):  # large ones first: they are hard to fit later
        position = random_free_position(kind[2], placed, rng, tries=tries)
        if position is None:
            return None
        placed.append(SceneObject(*kind, *position))
    return tuple(placed)


def place_in_corners(kinds: Sequence[Kind], rng: Random) -> tuple[SceneObject, ...]:
    """One object per quarter. The free play of two large ones side by side is shared evenly, so that a gap stays."""
    low = RADIUS["large"] + MIN_INSET
    play = (1 - 2 * low - 2 * RADIUS["large"] - MIN_GAP) / 2
    corners = rng.sample([(left, top) for left in (True, False) for top in (True, False)], len(kinds))
    placed = []
    for (shape, color, size), (left, top) in zip(kinds, corners, strict=True):
        x, y = (round(low + rng.uniform(0, play), 4) for _ in range(2))
        placed.append(SceneObject(shape, color, size, x if left else round(1 - x, 4), y if top else round(1 - y, 4)))
    return tuple(placed)


def split_of(scene: Scene) -> Split:
    """A hash of the content with positions on a coarse grid: no test scene is a training scene moved a little."""
    cells = [(item, int(item.x * POSITION_STEPS), int(item.y * POSITION_STEPS)) for item in scene.objects]
    parts = [f"{item.shape},{item.color},{item.size},{x},{y}" for item, x, y in cells]
    content = ";".join([scene.background, *sorted(parts)])
    share = int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big") / 2**64
    if share < SPLIT_SHARES["validation"]:
        return "validation"
    return "test" if share < SPLIT_SHARES["validation"] + SPLIT_SHARES["test"] else "train"


def allowed_pairs(pairs: PairGroup) -> frozenset[Pair]:
    """The pairs that images and sentences of a group may contain."""
    return SEEN_PAIRS if pairs == "seen" else ALL_PAIRS


def offset(relation: str, a: SceneObject, b: SceneObject) -> float:
    """How far a lies from b in the direction of the relation."""
    right, down = RELATION_AXES[relation]
    return right * (a.x - b.x) + down * (a.y - b.y)


def holds(relation: str, a: SceneObject, b: SceneObject) -> bool:
    """Whether a drawn image satisfies the relation."""
    return offset(relation, a, b) >= HOLDS_MARGIN


def is_clear(relation: str, a: SceneObject, b: SceneObject) -> bool:
    """Whether anyone would agree that the relation holds: a clear margin, and not mostly in the other direction."""
    right, down = RELATION_AXES[relation]
    across = down * (a.x - b.x) + right * (a.y - b.y)
    return offset(relation, a, b) >= max(CLEAR_MARGIN, 0.5 * abs(across))


def main_relation(a: SceneObject, b: SceneObject) -> str | None:
    """The relation one would name first, along the longer direction; None when no margin is clear."""
    if abs(a.x - b.x) >= abs(a.y - b.y):
        relation = "left of" if a.x < b.x else "right of"
    else:
        relation = "above" if a.y < b.y else "below"
    return relation if is_clear(relation, a, b) else None


def is_placed(place: str, item: SceneObject) -> bool:
    """Whether a drawn object lies in the place."""
    return _is_within(place, item, HOLDS_BOUNDS)


def stated_places(item: SceneObject) -> tuple[str, ...]:
    """Every place in which anyone would say the object lies, the most exact first."""
    return tuple(place for place in PLACES if _is_within(place, item, STATED_BOUNDS))


def _is_within(place: str, item: SceneObject, bounds: dict[str, tuple[float, float]]) -> bool:
    bands = zip(PLACES[place], (item.x, item.y), strict=True)
    return all(band is None or bounds[band][0] <= value <= bounds[band][1] for band, value in bands)
