"""The outline of a scene: its background and objects as the few words that a model writes before it draws.

"white, large red circle 35, small blue square 62": for every object its size, color and shape, then row and column of
its middle on a board of 8 x 8 squares counted from 0 at the top left; in reading order, as they will be drawn. With two
digits each ("large red circle 4370") it is a board of 100 x 100.
"""

from __future__ import annotations

from dataclasses import dataclass

from mllm.world.scene import Scene, SceneObject

BOARDS = {1: 8, 2: 100}
"""Squares along each side, whatever the size of the picture, by the digits that a row or column is written with."""
NEAR = 1 / 8
"""How far apart, as a share of the side, one thing may be said and seen."""


def outline_of(scene: Scene, *, digits: int = 1) -> str:
    """The outline of a scene."""
    board = BOARDS[digits]
    ordered = sorted(scene.objects, key=lambda item: (square(item, board), item.shape, item.color, item.size))
    objects = (
        f"{item.size} {item.color} {item.shape} {row:0{digits}}{column:0{digits}}"
        for item in ordered
        for row, column in [square(item, board)]
    )
    return ", ".join((scene.background, *objects))


def square(item: SceneObject, board: int) -> tuple[int, int]:
    """(row, column) of the board on which the middle of an object lies."""
    return int(item.y * board), int(item.x * board)


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of an outline."""

    words: str  # size, color and shape
    y: float  # of the middle of its square, 0 at the top, 1 at the bottom
    x: float

    def is_near(self, other: Thing) -> bool:
        return max(abs(self.y - other.y), abs(self.x - other.x)) <= NEAR + 1e-6


def read_outline(text: str) -> tuple[str, list[Thing]] | None:
    """The background and the things of an outline, None where a text is no outline."""
    background, *items = text.split(", ")
    things = [read_thing(item) for item in items]
    found = [thing for thing in things if thing is not None]
    return (background, found) if found and len(found) == len(things) else None


def read_thing(item: str) -> Thing | None:
    """What one item says, None where it is no object with a place on a board."""
    words, _, place = item.rpartition(" ")
    board = BOARDS.get(len(place) // 2)
    if not words or not place.isdecimal() or len(place) % 2 or board is None:
        return None
    row, column = int(place[: len(place) // 2]), int(place[len(place) // 2 :])
    return Thing(words, (row + 0.5) / board, (column + 0.5) / board) if max(row, column) < board else None


def are_alike(said: str, seen: str | None) -> bool:
    """Whether what is seen is what was said: the same background and things, each near its place.

    Free words of a person that are no outline cannot be compared, and count as shown.
    """
    expected, found = read_outline(said), read_outline(seen or "")
    if expected is None:
        return True
    if found is None or found[0] != expected[0] or len(found[1]) != len(expected[1]):
        return False
    left = list(found[1])
    for thing in expected[1]:
        match = next((other for other in left if other.words == thing.words and other.is_near(thing)), None)
        if match is None:
            return False
        left.remove(match)
    return True
