"""Read sentences: what a request to draw asks for, and what a description claims.

In: words, typed by anyone or written by a model. Out: a `Spec` with what was understood. As everywhere in this world,
nothing but the named objects may be there, so how many there are in all is part of the spec where the words leave no
doubt. Unknown words say nothing. Requests: objects and how many, what must not be there, relations, comparisons,
"every", "different" and the background are read, places ("in the corner") are not. Descriptions: any order, synonyms,
relations within or between sentences.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mllm.world.language import NUMBER_WORDS, correct_typos, normalize_words
from mllm.world.scene import ATTRIBUTES, BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Scene
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
    enumerate_objects,
    satisfies,
)

NOUNS = (*SHAPES, "shape")
ARTICLES = ("a", "an", "another", "single")
NUMBERS = {word: number for number, word in enumerate(NUMBER_WORDS)} | {str(n): n for n in range(len(NUMBER_WORDS))}
DENIALS = ("no", "without", "any")
COMPARATIVES = {"larger": "larger", "bigger": "larger", "smaller": "smaller"}
DENIED = re.compile(rf"that \S+ not (?:an? )?({'|'.join((*COLORS, *SHAPES))})( |$)")
BACKGROUND_NOUNS = ("background", "canvas")
RELATION_WORDS = {relation.split()[0]: relation for relation in RELATIONS}
LINKS = frozenset("to the a an another is are on lies side of that which placed being than".split())
"""Words that may stand between two objects next to the one that relates them."""
SUBJECTS = frozenset({"of", "them", "one", "is", "are", "the", "a", "an", "shape", *NUMBERS})
"""Words that may stand between "every" and what is true of every object."""
DIFFERING = {"color": "color", "colors": "color", "shape": "shape", "size": "size", "sizes": "size"}
EQUAL_SIZES = ("of the same size", "of equal size", "equally large")


# ---- requests to draw ----


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase among the words, or what is said of every object or of none."""

    filter: Filter
    start: int
    end: int  # behind its last word
    number: int | None = None  # of new objects; None: "the circle", "circles", "no circle"
    is_denied: bool = False
    comparison: str | None = None  # "larger" in "a larger circle"


def read_request(request: str) -> Spec:
    """What a request to draw asks for; no constraints where nothing was understood."""
    words = normalize_words(correct_typos(request))
    predicates = list(find_predicates(words))
    taken = {at for said in predicates for at in range(said.start, said.end)}
    phrases = [phrase for phrase in find_phrases(words) if taken.isdisjoint(range(phrase.start, phrase.end))]
    total, new = count_objects(words, phrases)
    single = [phrase for phrase in new if phrase.number == 1 and phrase.filter != ANY]
    found: list[Constraint] = [Exists(ref, phrase.filter) for ref, phrase in enumerate(single)]
    found += [Count(phrase.filter, phrase.number) for phrase in new if phrase.number and phrase.number > 1]
    found += [Count(phrase.filter, 0) for phrase in phrases if phrase.is_denied]
    found += [Count(said.filter, 0) if said.is_denied else Every(said.filter) for said in predicates]
    found += [] if total is None else [Count(ANY, total)]
    found += [*find_relations(words, phrases, single), *find_comparisons(words, phrases, single)]
    found += [Distinct(attribute) for attribute in find_differences(words)]
    found += [Background(color) for color in find_backgrounds(words)]
    return tuple(dict.fromkeys(found))


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
    """The phrase around a noun: what comes before it, and "that is not red" behind it."""
    named = attributes_of(words[noun])
    comparison, start, end = None, noun, noun + 1
    while start and words[start - 1] in (*SIZES, *COLORS, *COMPARATIVES):
        start -= 1
        comparison = COMPARATIVES.get(words[start], comparison)
        named = merge(named, attributes_of(words[start]))
    if denied := DENIED.match(" ".join(words[end : end + 5])):
        key = "not_color" if denied[1] in COLORS else "not_shape"
        named, end = merge(named, Filter(**{key: denied[1]})), end + len(denied[0].split())
    before = words[start - 1] if start else ""
    if before in DENIALS or re.search(r"(^| )(without an?|not a single)$", " ".join(words[max(start - 3, 0) : start])):
        return Phrase(named, start, end, is_denied=True)
    number = 1 if before in ARTICLES else NUMBERS.get(before)
    return Phrase(named, start, end, number, comparison=comparison)


def attributes_of(word: str) -> Filter:
    """What one word says of an object."""
    return next((Filter(**{name: word}) for name, values in ATTRIBUTES.items() if word in values), ANY)


def merge(first: Filter, second: Filter) -> Filter:
    """Attributes of both; where both name one, the first holds."""
    names = ("shape", "color", "size", "not_color", "not_shape")
    return replace(first, **{name: getattr(first, name) or getattr(second, name) for name in names})


def count_objects(words: list[str], phrases: Sequence[Phrase]) -> tuple[int | None, list[Phrase]]:
    """How many objects there are in all, None where that is open; and the phrases that name new ones."""
    new = [phrase for phrase in phrases if phrase.number is not None]
    short = find_short_forms(words)
    for head in new:
        parts = sorted((p for p in (*new, *short) if p.start > head.start), key=lambda phrase: phrase.start)
        if is_head(head, parts, short):
            return head.number, [head, *(replace(p, filter=merge(p.filter, head.filter)) for p in parts)]
    for phrase in short:  # "one large and one small heart"
        complete = next((p for p in new if p.start > phrase.start), None)
        if complete is not None:
            new.append(replace(phrase, filter=merge(phrase.filter, complete.filter)))
    vague = [phrase for phrase in phrases if is_vague(words, phrase, new)]
    triples = zip(words, words[1:], words[2:], strict=False)
    of_them = [NUMBERS[first] for first, *rest in triples if first in NUMBERS and rest == ["of", "them"]]
    if vague and of_them and not new:  # "only stars, three of them"
        return of_them[0], [replace(phrase, number=of_them[0]) for phrase in vague]
    counts = [phrase.number or 0 for phrase in new if phrase.filter == ANY]
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
        and not any(after == "shape" or attributes_of(after) != ANY for after in words[at + 2 : at + 3])
    ]


def is_head(head: Phrase, parts: Sequence[Phrase], short: Sequence[Phrase]) -> bool:
    """Whether a phrase counts what the following ones tell apart: "two hearts, one red and one blue"."""
    if not parts or sum(part.number or 0 for part in parts) != head.number:
        return False
    if head.number == 1 and head.filter != ANY:
        return False
    return all(part in short or (head.filter.shape is None and part.filter.shape is not None) for part in parts)


def find_ref(words: list[str], phrase: Phrase, single: Sequence[Phrase]) -> int | None:
    """The number of the object that a phrase names, new or again."""
    again = [ref for ref, other in enumerate(single) if other.start == phrase.start]
    if again or phrase.is_denied or phrase.number is not None:
        return again[0] if again else None
    meant = [ref for ref, other in enumerate(single) if could_mean(phrase.filter, other.filter)]
    return meant[0] if len(meant) == 1 and words[phrase.start - 1 : phrase.start] == ["the"] else None


def find_relations(words: list[str], phrases: Sequence[Phrase], single: Sequence[Phrase]) -> Iterator[Related]:
    """What is left of what, ..."""
    for earlier, phrase in zip(phrases, phrases[1:], strict=False):
        before, ref = find_ref(words, earlier, single), find_ref(words, phrase, single)
        if ref is None or before is None or ref == before:
            continue
        between = words[earlier.end : phrase.start]
        if relation := relation_in(between):
            yield Related(before, relation, ref)
        elif between[-3:-1] == ["there", "is"]:  # "above a star there is a circle"
            start = earlier.start
            while start and (words[start - 1] in LINKS or words[start - 1] in (*RELATION_WORDS, "higher")):
                start -= 1
            if relation := relation_in(words[start : earlier.start]):
                yield Related(ref, relation, before)
        behind = words[phrase.end : phrase.end + 7]
        if "it" in behind and (relation := relation_in(behind[: behind.index("it")])):
            yield Related(ref, relation, before)  # "a star with a circle above it"


def relation_in(words: Sequence[str]) -> str | None:
    """The relation that these words say, if they say nothing else."""
    words = words[1:] if words[:2] in ([",", "which"], [",", "and"]) else words
    words = ["above" if word == "higher" else word for word in words]
    inner = [word for word in words if word in RELATION_WORDS]
    return RELATION_WORDS[inner[0]] if len(inner) == 1 and LINKS.issuperset(set(words) - set(inner)) else None


def find_comparisons(words: list[str], phrases: Sequence[Phrase], single: Sequence[Phrase]) -> Iterator[Compared]:
    """What is larger than what, or as large."""
    for index, phrase in enumerate(phrases):
        ref = find_ref(words, phrase, single)
        if len(single) == 2 and ref is not None and words[phrase.end : phrase.end + 2] == ["is", "the"]:
            yield from compare_by(words[phrase.end + 2 : phrase.end + 3], ref, 1 - ref)
        before = find_ref(words, phrases[index - 1], single) if index else None
        if ref is None or before is None or ref == before:
            continue
        between = words[phrases[index - 1].end : phrase.start]
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
        for word in COMPARATIVES:
            if f"the first {word} than the second" in text:
                yield from compare_by([word], 0, 1)


def compare_by(words: Sequence[str], a: int, b: int) -> Iterator[Compared]:
    """One word that compares a with b; others say nothing."""
    if len(words) == 1 and words[0] in COMPARATIVES:
        yield Compared(a, "larger", b) if COMPARATIVES[words[0]] == "larger" else Compared(b, "larger", a)


def find_predicates(words: list[str]) -> Iterator[Phrase]:
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
        if said != ANY and words[end : end + 1] not in (["shape"], ["is"], ["are"]):
            yield Phrase(said, start, end, is_denied=is_denied)


def find_differences(words: list[str]) -> Iterator[str]:
    """Attributes in which no two objects agree."""
    for at, word in enumerate(words):
        if word in ("different", "differ") or words[at : at + 2] == ["no", "two"]:
            yield from [DIFFERING[near] for near in words[at + 1 : at + 6] if near in DIFFERING][:1]


def find_backgrounds(words: list[str]) -> Iterator[str]:
    """Colors of the background that are named: "a white background", "the background is white"."""
    for at, color in enumerate(words):
        is_before = any(word in BACKGROUND_NOUNS for word in words[at + 1 : at + 2])
        if color in BACKGROUNDS and (is_before or words[max(at - 2, 0) : at] == ["background", "is"]):
            yield color


# ---- descriptions ----


def check_description(text: str, scene: Scene) -> bool:
    """Whether every object is named in full, nothing invented, every stated relation true, the background right."""
    spec, is_clear = read_description(text)
    objects = [item.filter for item in spec if isinstance(item, Exists)]
    return (
        is_clear
        and bool(objects)
        and all(item.shape and item.color and item.size for item in objects)
        and any(isinstance(item, Background) for item in spec)
        and satisfies(scene, spec)
    )


def read_description(text: str) -> tuple[Spec, bool]:
    """What a description claims: these objects and no others; and whether it refers clearly, neither to one of several
    objects nor to none that a relation needs.
    """
    objects: list[Filter] = []  # each object once, in the order of mention
    relations: list[Related] = []
    is_clear = True
    background = number = None  # number: "there are three shapes"
    last = pending = None  # the object mentioned last, and a relation that waits for its second object
    opener, named = "", ANY  # "a", "two" or "the" ..., and the attributes behind it
    words = [*normalize_words(text), "."]
    for index, word in enumerate(words):
        if word == "background":
            near = [*words[max(0, index - 2) : index], *words[index + 1 : index + 3]]
            background = next((word for word in near if word in BACKGROUNDS), background)
            opener, named = "", ANY
        elif word in NUMBERS or word in ("a", "an", "another", "the"):
            opener, named = word, ANY
        elif word in SIZES or word in COLORS:
            named = merge(attributes_of(word), named)
        elif word == "shape" and named == ANY:
            number, opener = NUMBERS.get(opener, number), ""
        elif word in NOUNS:
            item = merge(attributes_of(word), named)
            known = [ref for ref, other in enumerate(objects) if item.matches(other)] if opener == "the" else []
            count = 0 if known else NUMBERS.get(opener, 1)  # "the circle" not introduced is a mention after all
            objects += [item] * count
            if len(known) > 1:
                is_clear = False
            elif known or count == 1:
                ref = known[0] if known else len(objects) - 1
                if pending and last not in (None, ref):
                    relations.append(Related(last, pending, ref))
                pending, last = None, ref
            opener, named = "", ANY
        elif word in RELATION_WORDS and last is not None:
            # left and right relate only with an "of": "in the top left corner" does not
            if word not in ("left", "right") or "of" in words[index + 1 : index + 3]:
                pending = RELATION_WORDS[word]
        elif word in ".;!?":
            is_clear &= pending is None
            pending = last = None
    said = [Count(ANY, number)] if number not in (None, len(objects)) else []
    return (*enumerate_objects(objects), *said, *relations, *([Background(background)] if background else [])), is_clear
