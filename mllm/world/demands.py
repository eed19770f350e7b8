"""The questions that a request to draw raises, in the world's own words: what a model that was taught in this world can
be asked about a picture of it.

In: a spec, or the words of a request (read by request_reader.py). Out: questions with the answer that a right picture
gets: yes or no, and the number where it is about how many. Asked are objects, counts, denials, relations, comparisons,
"every" and the background. The world has no question for a place ("in the corner"), nor for "of different colors" or
"of different shapes" beyond what is said of single objects. Words without anything of all this become one question
with all of them. Knows no model and no pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from mllm.world.ask_language import say_question
from mllm.world.questions import Question
from mllm.world.request_reader import read_request
from mllm.world.scene import COLORS, SHAPES, SIZES
from mllm.world.spec import ANY, Alike, Background, Compared, Constraint, Count, Every, Exists, Filter, Related, Spec
from mllm.world.wording import could_mean

T = TypeVar("T")
VALUES = {"shape": SHAPES, "color": COLORS, "size": SIZES}


class Demand(NamedTuple):
    """A question about the picture, and the answer that the request wants."""

    question: str
    expected: str


class Wanted(NamedTuple):
    """The same before it is put into words."""

    question: Question
    expected: str


def demands_of(request: str) -> list[Demand]:
    """What to ask about a picture of this request, without repetition."""
    found = say_demands(read_request(request))
    return found or [Demand(f"Does the picture show {request.strip().rstrip('.!?')}?", "yes")]


def say_demands(spec: Spec) -> list[Demand]:
    """What to ask about a picture of this spec, in the first and plainest words of the world."""
    return [Demand(say_question(question, _Plain()), expected) for question, expected in demands_of_spec(spec)]


class _Plain(Random):
    """Chooses the first of everything and no synonym."""

    def random(self) -> float:
        return 0.5

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]
        return seq[0]


def demands_of_spec(spec: Spec) -> list[Wanted]:
    """What a right picture answers, as values, without repetition."""
    found = [wanted for constraint in spec.constraints for wanted in _ask(constraint, spec)]
    return list(dict.fromkeys([*found, *_count_alike(spec)]))


def _ask(constraint: Constraint, spec: Spec) -> Iterator[Wanted]:
    match constraint:
        case Exists(_, item):
            yield from _exists(_without_denial(item), "yes")
            if _total(spec) == 1:  # then the object that is denied can be no other one
                yield from _deny(item)
        case Count(item, number) if not (item.not_color or item.not_shape):
            if number == 0 or (number == 1 and item != ANY):  # one: how many there are in all leaves no second
                yield from _exists(item, "yes" if number else "no")
            else:
                yield Wanted(Question("count", "count", item), str(number))
        case Every(item):
            yield from _ask_every(item, _total(spec))
        case Alike("size", True):
            yield from (wanted for size in SIZES for wanted in _exists(Filter(size=size), "yes"))
        case Related(a, relation, b):
            yield from _pair("is related", spec, a, b, relation)
        case Compared(a, "same size", b):
            yield from _pair("same size", spec, a, b)
        case Compared(a, comparison, b):
            yield from _pair("is larger", spec, *((a, b) if comparison == "larger" else (b, a)))
        case Background(color):
            yield Wanted(Question("background", "is background", value=color), "yes")
        case _:
            pass  # places, and differences that no question is about


def _exists(item: Filter, expected: str) -> Iterator[Wanted]:
    if item != ANY:
        yield Wanted(Question("existence", "exists", item), expected)


def _without_denial(item: Filter) -> Filter:
    return Filter(item.shape, item.color, item.size)


def _deny(item: Filter) -> Iterator[Wanted]:
    """A picture with nothing but "a circle that is not red" has no red circle."""
    if item.not_color:
        yield from _exists(Filter(item.shape, item.not_color, item.size), "no")
    if item.not_shape:
        yield from _exists(Filter(item.not_shape, item.color, item.size), "no")


def _ask_every(item: Filter, total: int | None) -> Iterator[Wanted]:
    """As many as there are objects; or, where that is open, none that is otherwise."""
    if total is not None:
        yield Wanted(Question("count", "count", item), str(total))
        return
    yield from _exists(item, "yes")
    for name, values in VALUES.items():
        wanted = getattr(item, name)
        for value in values if wanted else ():
            if value != wanted:
                yield from _exists(Filter(**{name: value}), "no")


def _pair(variant: str, spec: Spec, a: int, b: int, value: str | None = None) -> Iterator[Wanted]:
    """A question about two objects, where their descriptions leave no doubt which ones are meant."""
    described = {item.ref: item.filter for item in spec.constraints if isinstance(item, Exists)}
    for ref in (a, b):
        if ref not in described or sum(could_mean(described[ref], other) for other in described.values()) > 1:
            return
    kind = "relation" if variant == "is related" else "comparison"
    yield Wanted(Question(kind, variant, _without_denial(described[a]), _without_denial(described[b]), value), "yes")


def _count_alike(spec: Spec) -> Iterator[Wanted]:
    """Objects that are described in the same words, where all objects are described, are counted."""
    described = Counter(item.filter for item in spec.constraints if isinstance(item, Exists))
    if _total(spec) == described.total():
        for item, number in described.items():
            if number > 1 and sum(could_mean(item, other) for other in described) == 1:
                yield Wanted(Question("count", "count", item), str(number))


def _total(spec: Spec) -> int | None:
    """How many objects there are in all, where the spec says it."""
    return next((item.number for item in spec.constraints if isinstance(item, Count) and item.filter == ANY), None)
