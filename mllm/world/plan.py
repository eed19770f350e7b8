"""Plans of scenes: a scene in the few words that a model writes before it draws, and what they are checked by.

"white, large red circle 35, small blue square 62": the background, then for every object its size, color and shape, and
row and column of the square in which its middle lies, counted from 0 at the top left; in reading order, as they will be
drawn. A square is an eighth of the image's shorter side, as sizes of objects are shares of it. With two digits each
("large red circle 3526") every square is a board of 8 x 8 again: 35 is the square, 26 the smaller one within it.

`ScenePlanner` is what a checkpoint of this world names as its planner (mllm/pipeline.py): it compares a plan with what
the model sees in its image, and turns a request into questions whose answers score an image of it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from random import Random
from typing import NamedTuple, Self, TypeVar

from mllm.config import MLLMConfig
from mllm.sequence import Grid
from mllm.world.dialogue import Question, say_question
from mllm.world.scene import ATTRIBUTES, BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, SceneObject
from mllm.world.sentence_reader import read_request
from mllm.world.spec import (
    ANY,
    Background,
    Compared,
    Constraint,
    Count,
    Distinct,
    Every,
    Exists,
    Filter,
    Related,
    Spec,
    could_mean,
    pair_up,
)

BASE = 8
"""Squares along the shorter side, and along a side of a square."""
LEVELS = {1: 1, 2: BASE}
"""Parts of a square's side that are told apart, by the digits that a row or column is written with."""
NUM_DIGITS = 16
"""Rows and columns that a hexadecimal digit can name: enough for a side twice as long as the other."""
PLANNED = re.compile(
    rf"((?:{'|'.join(SIZES)}) (?:{'|'.join(COLORS)}) (?:{'|'.join(SHAPES)})) ([0-9a-f]{{2}})([0-7]{{2}})?"
)
"""An object of a plan: how it is called, the square it lies in, and the square within it."""
SQUARE: Grid = (1, 1)
DRAFTED_PLACES = ("2323", "2525", "5353", "5555", "6666", "6666")
"""Squares in reading order, for objects that may be anywhere."""
DRAFTED_LENGTH = 1000  # characters of a request; objects enough for an image are named by then
TOLERANCE = 1.0
"""Squares between where an object may be planned and seen."""
DECLINES = re.compile(
    r"\b(can't|cannot|can not|can only|couldn't|could not|unable to|not able to|impossible|not possible"
    r"|only (know|draw|make|do)|(don't|do not) (know|draw|make|do))\b",
    re.IGNORECASE,
)
"""Words that say that something cannot be done or drawn."""
T = TypeVar("T")


def plan_of(scene: Scene, *, digits: int = 1, grid: Grid = SQUARE) -> str:
    """The plan of a scene.

    Args:
        grid: (rows, columns) of the image in any unit; only their ratio counts.
    """
    check_grid(grid)
    parts, objects = LEVELS[digits], []
    for item in scene.objects:
        row, column = (int(at) for at in place_among_squares(item, digits, grid))
        within = f"{row % parts}{column % parts}" if digits > 1 else ""
        objects.append((f"{row // parts:x}{column // parts:x}{within}", item.shape, item.color, item.size))
    items = (f"{size} {color} {shape} {position}" for position, shape, color, size in sorted(objects))
    return ", ".join((scene.background, *items))


def check_grid(grid: Grid) -> None:
    """Refuse an image in which plans cannot name every position."""
    if BASE * max(grid) > NUM_DIGITS * min(grid):
        raise ValueError(
            f"images with plans must be at most twice as long as wide, got {grid[0]} rows x {grid[1]} columns"
        )


def centre(item: SceneObject, *, digits: int, grid: Grid = SQUARE) -> SceneObject:
    """The same object in the middle of its smallest square, so that a plan says exactly where it is."""
    y, x = (int(at) + Fraction(1, 2) for at in place_among_squares(item, digits, grid))
    rows, columns = num_squares(digits, grid)
    return replace(item, x=float(x / columns), y=float(y / rows))


def place_among_squares(item: SceneObject, digits: int, grid: Grid) -> tuple[float, float]:
    """(y, x) of an object, in the smallest squares that plans of so many digits can name."""
    rows, columns = num_squares(digits, grid)
    return item.y * rows, item.x * columns


def num_squares(digits: int, grid: Grid) -> tuple[Fraction, Fraction]:
    """How many of these squares lie along the height and the width of an image."""
    along_shorter = BASE * LEVELS[digits]
    return Fraction(along_shorter * grid[0], min(grid)), Fraction(along_shorter * grid[1], min(grid))


class PlannedObject(NamedTuple):
    """One object of a plan."""

    description: str  # size, color and shape
    y: float  # of the middle of its smallest square, in squares from the top
    x: float  # ... and from the left

    def is_like(self, other: Self) -> bool:
        distance = max(abs(self.y - other.y), abs(self.x - other.x))
        return self.description == other.description and distance <= TOLERANCE + 1e-6


def read_plan(text: str) -> tuple[str, list[PlannedObject]] | None:
    """The background and the objects of a plan, None where a text is not one in the words of `plan_of`."""
    background, *items = text.split(", ")
    found = [PLANNED.fullmatch(item) for item in items]
    if background not in BACKGROUNDS or not found or None in found:
        return None
    objects = []
    for description, square, within in (item.groups() for item in found if item):
        y, x = (int(side, 16) for side in square)
        down, right = ((int(part) + 0.5) / BASE for part in within) if within else (0.5, 0.5)
        objects.append(PlannedObject(description, y + down, x + right))
    return background, objects


def agree(plan: str, description: str | None) -> bool:
    """Whether what is seen is what was planned: the same background and objects, each near its position.

    Free words of a person that are no plan cannot be compared, and count as shown.
    """
    expected, found = read_plan(plan), read_plan(description or "")
    if expected is None:
        return True
    return found is not None and found[0] == expected[0] and pair_up(expected[1], found[1], PlannedObject.is_like)


def draft(request: str) -> str:
    """A plan of the objects that a request names, else of two, anywhere: in the form of a plan, and a first guess."""
    spec = read_request(request[:DRAFTED_LENGTH])
    named = [item.filter for item in spec if isinstance(item, Exists)]
    for item in spec:
        named += [item.filter] * item.number if isinstance(item, Count) and item.filter != ANY else []
    number = max(len(named), _total(spec) or 2 * (not named))
    objects = [*named, *[ANY] * number][:number]
    after = {item.b if item.relation in ("left of", "above") else item.a for item in spec if isinstance(item, Related)}
    objects = [*(o for n, o in enumerate(objects) if n not in after), *(objects[n] for n in sorted(after))]
    background = next((item.color for item in spec if isinstance(item, Background)), BACKGROUNDS[0])
    items = (
        f"{o.size or 'small'} {o.color or 'blue'} {o.shape or 'circle'} {place}"
        for o, place in zip(objects, DRAFTED_PLACES, strict=False)
    )
    return ", ".join((background, *items))


# ---- questions about an image of a request ----
# Asked are objects, counts, denials, relations, comparisons, "every" and the background. The world has no question for
# a position ("in the corner"), nor for "of different colors" or "of different shapes" beyond what is said of single
# objects.

Asked = tuple[Question, str]  # with the answer of a right image


def ask_about(request: str) -> list[tuple[str, str]]:
    """What to ask about an image of this request, and the answers that it wants, without repetition.

    A request without anything that the world has a question for becomes one question with all of its words.
    """
    found = say_questions(read_request(request))
    return found or [(f"Does the picture show {request.strip().rstrip('.!?')}?", "yes")]


def say_questions(spec: Spec) -> list[tuple[str, str]]:
    """What to ask about an image of this spec, in the first and plainest words of the world."""
    return [(say_question(question, _Plain()), expected) for question, expected in questions_of(spec)]


class _Plain(Random):
    """Chooses the first of everything and no synonym."""

    def random(self) -> float:
        return 0.5

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]
        return seq[0]


def questions_of(spec: Spec) -> list[Asked]:
    """What a right image answers, as values, without repetition."""
    described = [item.filter for item in spec if isinstance(item, Exists)]
    found = [question for constraint in spec for question in _ask(constraint, spec)]
    if _total(spec) == len(described):  # objects in the same words are counted
        for item, number in Counter(described).items():
            if number > 1 and sum(could_mean(item, other) for other in set(described)) == 1:
                found.append(_count(item, number))
    return list(dict.fromkeys(found))


def _ask(constraint: Constraint, spec: Spec) -> list[Asked]:
    match constraint:
        case Exists(_, item):
            denied = {"color": item.not_color, "shape": item.not_shape} if _total(spec) == 1 else {}
            # an image of one object, "a circle that is not red", has no red circle
            absent = [replace(Filter.of(item), **{name: value}) for name, value in denied.items() if value]
            return [*_exist([Filter.of(item)], "yes"), *_exist(absent, "no")]
        case Count(item, number) if not (item.not_color or item.not_shape):
            if number == 0 or (number == 1 and item != ANY):  # one: how many there are in all leaves no second
                return _exist([item], "yes" if number else "no")
            return [_count(item, number)]
        case Every(item) if (total := _total(spec)) is not None:
            return [_count(item, total)]
        case Every(item):
            named = [name for name in ATTRIBUTES if getattr(item, name)]
            others = [(name, value) for name in named for value in ATTRIBUTES[name] if value != getattr(item, name)]
            return [*_exist([item], "yes"), *_exist([Filter(**{name: value}) for name, value in others], "no")]
        case Distinct("size"):
            return _exist([Filter(size=size) for size in SIZES], "yes")
        case Related(a, relation, b):
            return _compare("relation", "is related", spec, a, b, relation)
        case Compared(a, "same size", b):
            return _compare("comparison", "same size", spec, a, b)
        case Compared(a, _, b):
            return _compare("comparison", "is larger", spec, a, b)
        case Background(color):
            return [(Question("background", "is background", value=color), "yes")]
        case _:
            return []  # positions, and differences that no question is about


def _exist(items: Sequence[Filter], expected: str) -> list[Asked]:
    return [(Question("existence", "exists", item), expected) for item in items if item != ANY]


def _count(item: Filter, number: int) -> Asked:
    return Question("count", "count", item), str(number)


def _compare(kind: str, variant: str, spec: Spec, a: int, b: int, value: str | None = None) -> list[Asked]:
    """A question about two objects, where their descriptions leave no doubt which ones are meant."""
    described = {item.ref: item.filter for item in spec if isinstance(item, Exists)}
    for ref in (a, b):
        if ref not in described or sum(could_mean(described[ref], other) for other in described.values()) > 1:
            return []
    return [(Question(kind, variant, Filter.of(described[a]), Filter.of(described[b]), value), "yes")]


def _total(spec: Spec) -> int | None:
    """How many objects there are in all, where the spec says it."""
    return next((item.number for item in spec if isinstance(item, Count) and item.filter == ANY), None)


class ScenePlanner:
    """The `Planner` of models that were trained on this world."""

    name = "world"
    describes = ()
    agrees = staticmethod(agree)
    questions = staticmethod(ask_about)
    draft = staticmethod(draft)

    def __init__(self, config: MLLMConfig | None = None) -> None:
        """Nothing depends on the config."""

    def can_check(self, plan: str) -> bool:
        """Free words of a person that are no plan cannot be compared with an image."""
        return read_plan(plan) is not None

    def declines(self, words: str) -> bool:
        return DECLINES.search(words) is not None

    def detours(self, prompt: str) -> Sequence[tuple[str, str]]:
        return []

    def changed(self, words: str, seen: Sequence[str]) -> Sequence[str]:
        return []
