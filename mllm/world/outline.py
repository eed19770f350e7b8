"""The outline of a scene: its background and objects as the few words that a model writes before it draws.

"white, large red circle 35, small blue square 62": for every object its size, color and shape, then row and column of
the square in which its middle lies, on a board of 8 x 8 squares counted from 0 at the top left; in reading order, as
they will be drawn. With two digits each ("large red circle 3526") every square is a board again: 35 is the square, 26
the square within it, an eighth of a position of the bundled model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mllm.world.scene import Scene, SceneObject

BASE = 8
"""Squares along each side of a board."""
DIGITS = "01234567"
BOARDS = {1: BASE, 2: BASE * BASE}
"""Squares along each side of the picture, whatever its size, by the digits that a row or column is written with."""
NEAR = 1 / 8
"""How far apart, as a share of the side, one thing may be said and seen."""


def outline_of(scene: Scene, *, digits: int = 1) -> str:
    """The outline of a scene."""
    ordered = sorted(scene.objects, key=lambda item: (place_of(item, digits), item.shape, item.color, item.size))
    objects = (f"{item.size} {item.color} {item.shape} {place_of(item, digits)}" for item in ordered)
    return ", ".join((scene.background, *objects))


def place_of(item: SceneObject, digits: int) -> str:
    """Row and column of the square that the middle of an object lies in, then of the square within it."""
    board = BOARDS[digits]
    row, column = int(item.y * board), int(item.x * board)
    levels = [BASE**level for level in reversed(range(digits))]
    return "".join(f"{row // level % BASE}{column // level % BASE}" for level in levels)


def centre(item: SceneObject, digits: int) -> SceneObject:
    """The same object in the middle of its square, so that an outline says exactly where it is."""
    board = BOARDS[digits]
    return replace(item, x=(int(item.x * board) + 0.5) / board, y=(int(item.y * board) + 0.5) / board)


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
    digits = len(place) // 2
    if not words or len(place) % 2 or digits not in BOARDS or not set(place) <= set(DIGITS):
        return None
    row, column = int(place[::2], BASE), int(place[1::2], BASE)
    return Thing(words, (row + 0.5) / BOARDS[digits], (column + 0.5) / BOARDS[digits])


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
