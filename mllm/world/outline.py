"""The outline of a scene: its background and objects as the few words that a model writes before it draws.

"white, large red circle 35, small blue square 62": for every object its size, color and shape, then row and column of
its middle on a board of 8 x 8 squares counted from 0 at the top left; in reading order, as they will be drawn.
"""

from __future__ import annotations

import re

from mllm.world.scene import Scene, SceneObject

BOARD = 8
"""Squares along each side, whatever the size of the picture."""
ITEM = re.compile(r"(.+) ([0-7])([0-7])")
Thing = tuple[str, int, int]
"""Size, color and shape in words, row, column."""


def outline_of(scene: Scene) -> str:
    """The outline of a scene."""
    ordered = sorted(scene.objects, key=lambda item: (square(item), item.shape, item.color, item.size))
    objects = (
        f"{item.size} {item.color} {item.shape} {row}{column}" for item in ordered for row, column in [square(item)]
    )
    return ", ".join((scene.background, *objects))


def square(item: SceneObject) -> tuple[int, int]:
    """(row, column) of the board on which the middle of an object lies."""
    return int(item.y * BOARD), int(item.x * BOARD)


def read_outline(text: str) -> tuple[str, list[Thing]] | None:
    """The background and the things of an outline, None where a text is no outline."""
    background, *items = text.split(", ")
    found = [ITEM.fullmatch(item) for item in items]
    if not found or None in found:
        return None
    return background, [(match[1], int(match[2]), int(match[3])) for match in found if match]


def are_alike(said: str, seen: str | None) -> bool:
    """Whether what is seen is what was said: the same background and things, each at most one square away.

    Free words of a person that are no outline cannot be compared, and count as shown.
    """
    expected, found = read_outline(said), read_outline(seen or "")
    if expected is None:
        return True
    if found is None or found[0] != expected[0] or len(found[1]) != len(expected[1]):
        return False
    left = list(found[1])
    for words, row, column in expected[1]:
        near = (thing for thing in left if thing[0] == words and max(abs(thing[1] - row), abs(thing[2] - column)) <= 1)
        match = next(near, None)
        if match is None:
            return False
        left.remove(match)
    return True
