"""The outline of a scene: its background and objects as the few words that a model writes before it draws.

"white, large red circle 35, small blue square 62": for every object its size, color and shape, then row and column of
the square in which its middle lies, counted from 0 at the top left; in reading order, as they will be drawn. A square
is an eighth of the picture's shorter side, as sizes of objects are shares of it. With two digits each ("large red
circle 3526") every square is a board of 8 x 8 again: 35 is the square, 26 the smaller one within it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from mllm.sequence import Grid
from mllm.world.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, SceneObject

BASE = 8
"""Squares along the shorter side, and along a side of a square."""
LEVELS = {1: 1, 2: BASE}
"""Parts of a square's side that are told apart, by the digits that a row or column is written with."""
DIGITS = "0123456789abcdef"
"""Of rows and columns: enough for a side twice as long as the other."""
THINGS = {f"{size} {color} {shape}" for size in SIZES for color in COLORS for shape in SHAPES}
"""How an outline calls an object."""
SQUARE: Grid = (1, 1)
NEAR = 1.0
"""Squares between where one thing may be said and seen."""


def outline_of(scene: Scene, *, digits: int = 1, grid: Grid = SQUARE) -> str:
    """The outline of a scene.

    Args:
        grid: (rows, columns) of the picture in any unit; only their ratio counts.
    """
    ordered = sorted(
        (place_of(item, digits=digits, grid=grid), item.shape, item.color, item.size) for item in scene.objects
    )
    return ", ".join((scene.background, *(f"{size} {color} {shape} {place}" for place, shape, color, size in ordered)))


def place_of(item: SceneObject, *, digits: int, grid: Grid = SQUARE) -> str:
    """Row and column of the square that the middle of an object lies in, then of the square within it."""
    check_grid(grid)
    row, column = fine_square(item, digits=digits, grid=grid)
    parts = LEVELS[digits]
    within = (row % parts, column % parts) if digits > 1 else ()
    return "".join(DIGITS[number] for number in (row // parts, column // parts, *within))


def check_grid(grid: Grid) -> None:
    """Refuse a picture in which outlines cannot name every place."""
    if BASE * max(grid) > len(DIGITS) * min(grid):
        raise ValueError(
            f"outlines cannot name places in a picture of {grid[0]} rows x {grid[1]} columns; its longer side may be "
            "twice as long as the other at most"
        )


def centre(item: SceneObject, *, digits: int, grid: Grid = SQUARE) -> SceneObject:
    """The same object in the middle of its smallest square, so that an outline says exactly where it is."""
    row, column = fine_square(item, digits=digits, grid=grid)
    rows, columns = num_fine_squares(digits, grid)
    return replace(item, x=float((column + Fraction(1, 2)) / columns), y=float((row + Fraction(1, 2)) / rows))


def fine_square(item: SceneObject, *, digits: int, grid: Grid) -> tuple[int, int]:
    """(row, column) of the smallest square that outlines of so many digits can name."""
    rows, columns = num_fine_squares(digits, grid)
    return int(item.y * rows), int(item.x * columns)


def num_fine_squares(digits: int, grid: Grid) -> tuple[Fraction, Fraction]:
    """How many of these squares lie along the height and the width of a picture."""
    along_shorter = BASE * LEVELS[digits]
    return Fraction(along_shorter * grid[0], min(grid)), Fraction(along_shorter * grid[1], min(grid))


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of an outline."""

    words: str  # size, color and shape
    y: float  # of the middle of its smallest square, in squares from the top
    x: float  # ... and from the left

    def is_near(self, other: Thing) -> bool:
        return max(abs(self.y - other.y), abs(self.x - other.x)) <= NEAR + 1e-6


def read_outline(text: str) -> tuple[str, list[Thing]] | None:
    """The background and the things of an outline, None where a text is no outline in the words of `outline_of`."""
    background, *items = text.split(", ")
    things = [read_thing(item) for item in items]
    found = [thing for thing in things if thing is not None]
    return (background, found) if background in BACKGROUNDS and found and len(found) == len(things) else None


def read_thing(item: str) -> Thing | None:
    """What one item says, None where it is no object with a place on a board."""
    words, _, place = item.rpartition(" ")
    digits = len(place) // 2
    if words not in THINGS or len(place) % 2 or digits not in LEVELS or not set(place) <= set(DIGITS):
        return None
    row, column, *within = (DIGITS.index(digit) for digit in place)
    if not within:
        return Thing(words, row + 0.5, column + 0.5)
    if max(within) >= BASE:
        return None
    return Thing(words, row + (within[0] + 0.5) / BASE, column + (within[1] + 0.5) / BASE)


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
