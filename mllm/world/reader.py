"""Read what a request to draw demands, as far as the language of the world goes.

In: the words of a request, typed by anyone. Out: a `Spec` with what was understood: objects and how many there are,
what must not be there, relations, comparisons, "every", "different", the background. Words it does not know say
nothing. As in the whole world, nothing but the named objects is wanted, so how many there are in all is part of the
spec where the words leave no doubt. Places ("in the corner") are not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple, TypeVar

from mllm.world.dialogue import undo_slips
from mllm.world.language import NUMBER_WORDS, Question, could_mean, normalize_words, say_question
from mllm.world.scene import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES
from mllm.world.spec import ANY, Alike, Background, Compared, Constraint, Count, Every, Exists, Filter, Related, Spec

# Find what names objects in the words of a request: "two small red circles", "no star", "the other one".
#
# In: words as phrases.normalize_words leaves them. Out: phrases in their order, each with the attributes it names.
# Knows
# no demands: what the phrases together ask for is read in request_reader.py.


NOUNS = (*SHAPES, "shape")
ARTICLES = ("a", "an", "another", "single")
NUMBERS = {word: number for number, word in enumerate(NUMBER_WORDS)} | {str(n): n for n in range(len(NUMBER_WORDS))}
DENIALS = ("no", "without", "any")
LARGER, SMALLER = ("larger", "bigger"), ("smaller",)


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase among the words."""

    filter: Filter
    start: int
    end: int  # behind its last word
    number: int | None = None  # of new objects; None: "the circle", "circles", "no circle"
    is_denied: bool = False
    comparison: str | None = None  # "larger" in "a larger circle"


def find_phrases(words: list[str]) -> list[Phrase]:
    """All noun phrases; bare "shapes" without a number say nothing and are left out."""
    phrases: list[Phrase] = []
    for index, word in enumerate(words):
        if word in NOUNS and not (phrases and index < phrases[-1].end):
            phrase = read_phrase(words, index)
            if phrase.filter != ANY or phrase.number is not None:
                phrases.append(phrase)
    return phrases


def read_phrase(words: list[str], noun: int) -> Phrase:
    """The phrase whose noun stands there: what comes before it, and "that is not red" behind it."""
    named = attributes_of(words[noun])
    comparison, start = None, noun
    while start and words[start - 1] in (*SIZES, *COLORS, *LARGER, *SMALLER):
        start -= 1
        if words[start] in (*LARGER, *SMALLER):
            comparison = "larger" if words[start] in LARGER else "smaller"
        else:
            named = merge(named, attributes_of(words[start]))
    end = noun + 1
    denied, denied_end = read_denied_attribute(words, end)
    if denied is not None:
        named, end = merge(named, denied), denied_end
    before = words[start - 1] if start else ""
    is_denied = before in DENIALS or words[max(start - 2, 0) : start] in (["without", "a"], ["without", "an"])
    is_denied = is_denied or words[max(start - 3, 0) : start] == ["not", "a", "single"]
    if is_denied:
        return Phrase(named, start, end, is_denied=True)
    number = 1 if before in ARTICLES else NUMBERS.get(before)
    return Phrase(named, start, end, number, comparison=comparison)


def read_denied_attribute(words: list[str], start: int) -> tuple[Filter | None, int]:
    """ "that is not red", "that are not a circle", and where it ends; None where nothing of the kind stands there."""
    if words[start : start + 1] != ["that"] or words[start + 2 : start + 3] != ["not"]:
        return None, start
    at = start + 3
    at += words[at : at + 1] in (["a"], ["an"])
    word = words[at] if at < len(words) else ""
    if word in COLORS:
        return Filter(not_color=word), at + 1
    return (Filter(not_shape=word), at + 1) if word in SHAPES else (None, start)


def attributes_of(word: str) -> Filter:
    """What one word says of an object."""
    if word in SHAPES:
        return Filter(shape=word)
    if word in COLORS:
        return Filter(color=word)
    return Filter(size=word) if word in SIZES else ANY


def merge(first: Filter, second: Filter) -> Filter:
    """Attributes of both; where both name one, the first holds."""
    names = ("shape", "color", "size", "not_color", "not_shape")
    return replace(first, **{name: getattr(first, name) or getattr(second, name) for name in names})


BACKGROUND_NOUNS = ("background", "canvas")
INNER_WORDS = {relation.split()[0]: relation for relation in RELATIONS} | {"higher": "above"}
LINKS = frozenset("to the a an another is are on lies side of that which placed being than".split())
"""Words that may stand between two objects beside the one that relates them."""
SUBJECTS = frozenset({"of", "them", "one", "is", "are", "the", "a", "an", "shape", *NUMBERS})
"""Words that may stand between "every" and what is true of every object."""
ATTRIBUTES = {"color": "color", "colors": "color", "shape": "shape", "size": "size", "sizes": "size"}
EQUAL_SIZES = ("of the same size", "of equal size", "equally large")


@dataclass(frozen=True, slots=True)
class Predicate:
    """What is said of every object, or of none."""

    filter: Filter
    start: int
    end: int
    is_denied: bool


def read_request(request: str) -> Spec:
    """What was understood; no constraints where nothing was."""
    words = normalize_words(undo_slips(request))
    predicates = list(find_predicates(words))
    phrases = [
        phrase
        for phrase in find_phrases(words)
        if not any(phrase.start < said.end and said.start < phrase.end for said in predicates)
    ]
    total, new = count_objects(words, phrases)
    single = [phrase for phrase in new if phrase.number == 1 and phrase.filter != ANY]
    found: list[Constraint] = [Exists(ref, phrase.filter) for ref, phrase in enumerate(single)]
    found += [Count(phrase.filter, phrase.number) for phrase in new if phrase.number and phrase.number > 1]
    found += [Count(phrase.filter, 0) for phrase in phrases if phrase.is_denied]
    found += [Count(said.filter, 0) if said.is_denied else Every(said.filter) for said in predicates]
    found += [] if total is None else [Count(ANY, total)]
    found += [*relate(words, phrases, single), *compare(words, phrases, single)]
    found += [Alike(attribute, distinct=True) for attribute in find_differences(words)]
    found += [Background(color) for color in find_backgrounds(words)]
    return Spec(tuple(dict.fromkeys(found)))


# ---- how many ----


def count_objects(words: list[str], phrases: Sequence[Phrase]) -> tuple[int | None, list[Phrase]]:
    """How many objects there are in all, None where that is open; and the phrases that name new ones."""
    new = [phrase for phrase in phrases if phrase.number is not None]
    short = find_short_forms(words)
    for head in new:
        parts = sorted((p for p in (*new, *short) if p.start > head.start), key=lambda phrase: phrase.start)
        if is_head(head, parts, short):
            return head.number, [head, *(replace(p, filter=merge(p.filter, head.filter)) for p in parts)]
    for phrase in short:  # "one large and one small heart"
        whole = next((p for p in new if p.start > phrase.start), None)
        if whole is not None:
            new.append(replace(phrase, filter=merge(phrase.filter, whole.filter)))
    counts = [phrase.number or 0 for phrase in new if phrase.filter == ANY]
    vague = [phrase for phrase in phrases if is_vague(words, phrase, new)]
    of_them = [
        NUMBERS[words[at - 1]]
        for at in range(1, len(words))
        if words[at : at + 2] == ["of", "them"] and words[at - 1] in NUMBERS
    ]
    if vague and of_them and not new:  # "only stars, three of them"
        return of_them[0], [replace(phrase, number=of_them[0]) for phrase in vague]
    total = None if vague or not new else sum(phrase.number or 0 for phrase in new)
    new = sorted([*new, *(replace(phrase, number=1) for phrase in vague)], key=lambda phrase: phrase.start)
    return (counts[0] if len(counts) == 1 else total), new


def is_vague(words: list[str], phrase: Phrase, new: Sequence[Phrase]) -> bool:
    """Whether a phrase names objects for the first time without a number: "stars", "the star" out of nowhere."""
    if phrase.number is not None or phrase.is_denied:
        return False
    is_definite = words[phrase.start - 1 : phrase.start] == ["the"]
    return not is_definite or not any(could_mean(phrase.filter, other.filter) for other in new)


def find_short_forms(words: list[str]) -> list[Phrase]:
    """Numbers with an attribute and no noun: "one red and two blue"."""
    return [
        Phrase(attributes_of(words[at + 1]), at + 1, at + 2, NUMBERS[word])
        for at, word in enumerate(words[:-1])
        if word in NUMBERS
        and words[at + 1] in (*COLORS, *SIZES)
        and words[at + 2 : at + 3] != ["shape"]
        and not any(attributes_of(next_) != ANY for next_ in words[at + 2 : at + 3])
    ]


def is_head(head: Phrase, parts: Sequence[Phrase], short: Sequence[Phrase]) -> bool:
    """Whether a phrase counts what the following ones tell apart: "two hearts, one red and one blue"."""
    if not parts or sum(part.number or 0 for part in parts) != head.number:
        return False
    if head.number == 1 and head.filter != ANY:
        return False
    return all(part in short or (head.filter.shape is None and part.filter.shape is not None) for part in parts)


# ---- two objects ----


def find_ref(words: list[str], phrase: Phrase, single: Sequence[Phrase]) -> int | None:
    """The number of the object that a phrase names, new or again."""
    again = [ref for ref, other in enumerate(single) if other.start == phrase.start]
    if again or phrase.is_denied or phrase.number is not None:
        return again[0] if again else None
    meant = [ref for ref, other in enumerate(single) if could_mean(phrase.filter, other.filter)]
    return meant[0] if len(meant) == 1 and words[phrase.start - 1 : phrase.start] == ["the"] else None


def relate(words: list[str], phrases: Sequence[Phrase], single: Sequence[Phrase]) -> Iterator[Related]:
    """What is left of what, ..."""
    for place, phrase in enumerate(phrases):
        ref = find_ref(words, phrase, single)
        before = find_ref(words, phrases[place - 1], single) if place else None
        if ref is None or before is None or ref == before:
            continue
        between = words[phrases[place - 1].end : phrase.start]
        if relation := relation_in(between):
            yield Related(before, relation, ref)
        elif between[-3:-1] == ["there", "is"] and (relation := relation_in(links_before(words, phrases[place - 1]))):
            yield Related(ref, relation, before)  # "above a star there is a circle"
        behind = words[phrase.end : phrase.end + 7]
        if "it" in behind and (relation := relation_in(behind[: behind.index("it")])):
            yield Related(ref, relation, before)  # "a star with a circle above it"


def relation_in(words: Sequence[str]) -> str | None:
    """The relation that these words say, if they say nothing else."""
    words = words[1:] if words[:2] in ([",", "which"], [",", "and"]) else words
    inner = [word for word in words if word in INNER_WORDS]
    return INNER_WORDS[inner[0]] if len(inner) == 1 and LINKS.issuperset(set(words) - set(inner)) else None


def links_before(words: list[str], phrase: Phrase) -> list[str]:
    """The words of a relation that stand before a phrase."""
    start = phrase.start
    while start and (words[start - 1] in LINKS or words[start - 1] in INNER_WORDS):
        start -= 1
    return words[start : phrase.start]


def compare(words: list[str], phrases: Sequence[Phrase], single: Sequence[Phrase]) -> Iterator[Compared]:
    """What is larger than what, or as large."""
    for place, phrase in enumerate(phrases):
        ref = find_ref(words, phrase, single)
        if len(single) == 2 and ref is not None and words[phrase.end : phrase.end + 2] == ["is", "the"]:
            yield from compare_by(words[phrase.end + 2 : phrase.end + 3], ref, 1 - ref)
        before = find_ref(words, phrases[place - 1], single) if place else None
        if ref is None or before is None or ref == before:
            continue
        between = words[phrases[place - 1].end : phrase.start]
        if "than" in between:
            yield from compare_by([word for word in between if word not in LINKS], before, ref)
        elif between[:3] == ["as", "large", "as"]:
            yield Compared(before, "same size", ref)
        elif phrase.comparison:
            yield from compare_by([phrase.comparison], ref, before)
    if len(single) == 2:
        text = " ".join(words)
        if any(said in text for said in EQUAL_SIZES) and not list(find_differences(words)):
            yield Compared(0, "same size", 1)
        for word in (*LARGER, *SMALLER):
            if f"the first {word} than the second" in text:
                yield from compare_by([word], 0, 1)


def compare_by(words: Sequence[str], a: int, b: int) -> Iterator[Compared]:
    """One word that compares a with b; others say nothing."""
    if len(words) == 1 and words[0] in (*LARGER, *SMALLER):
        yield Compared(a, "larger", b) if words[0] in LARGER else Compared(b, "larger", a)


# ---- all objects ----


def find_predicates(words: list[str]) -> Iterator[Predicate]:
    """ "All of them are red", "every shape is a star", "none of them is small"."""
    for at, word in enumerate(words):
        is_denied = word == "none" or words[at : at + 3] == ["no", "shape", "is"]
        if not is_denied and word not in ("all", "every", "each", "everything"):
            continue
        start = at + 1
        while start < len(words) and words[start] in SUBJECTS:
            start += 1
        said, end = ANY, start
        while end < len(words) and attributes_of(words[end]) != ANY:
            said, end = merge(said, attributes_of(words[end])), end + 1
        is_subject = words[end : end + 1] in (["shape"], ["is"], ["are"])
        if said != ANY and not is_subject:
            yield Predicate(said, start, end, is_denied)


def find_differences(words: list[str]) -> Iterator[str]:
    """Attributes in which no two objects agree."""
    for at, word in enumerate(words):
        if word in ("different", "differ") or words[at : at + 2] == ["no", "two"]:
            yield from [ATTRIBUTES[near] for near in words[at + 1 : at + 6] if near in ATTRIBUTES][:1]


def find_backgrounds(words: list[str]) -> list[str]:
    """Colors of the background that are named: "a white background", "the background is white"."""
    found = []
    for at, color in enumerate(words):
        is_before = words[at + 1 : at + 2] and words[at + 1] in BACKGROUND_NOUNS
        is_behind = words[max(at - 2, 0) : at] == ["background", "is"]
        if color in BACKGROUNDS and (is_before or is_behind):
            found.append(color)
    return found


# The questions that a request to draw raises, in the world's own words: what a model that was taught in this world can
# be asked about a picture of it.
#
# In: a spec, or the words of a request (read by request_reader.py). Out: questions with the answer that a right picture
# gets: yes or no, and the number where it is about how many. Asked are objects, counts, denials, relations,
# comparisons,
# "every" and the background. The world has no question for a place ("in the corner"), nor for "of different colors" or
# "of different shapes" beyond what is said of single objects. Words without anything of all this become one question
# with all of them. Knows no model and no pixels.


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
