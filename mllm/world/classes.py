"""The world's classes for class-conditional drawing: one object of one color and shape, anything else free.

In: a class number. Out: its color and shape, or a random scene of it. Pairs that training never sees are no classes.
"""

from __future__ import annotations

from random import Random

from mllm.world.scene import COLORS, SHAPES, Pair, Scene, random_scene
from mllm.world.splits import SEEN_PAIRS, Split, split_of

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
