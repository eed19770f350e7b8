"""Words and noun phrases that sentences of every job share: synonyms, articles, plurals, references to one object.

Knows attributes (spec.Filter) and English, but no job and no template.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from random import Random
from string import Formatter
from typing import NamedTuple

from mllm.world.scene import (
    ALL_PAIRS,
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    MAX_OBJECTS,
    OPPOSITE,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Pair,
    Scene,
    SceneObject,
    free_position,
    holds,
    is_clear,
    is_placed,
    is_valid,
    main_relation,
    offset,
    required,
    stated_places,
)
from mllm.world.spec import (
    ANY,
    Alike,
    Background,
    Compared,
    Constraint,
    Count,
    Every,
    Exists,
    Filter,
    Placed,
    Related,
    Spec,
    Verdict,
    check_scene,
    compare,
    enumerate_objects,
)
from mllm.world.templates import describe as describe_templates
from mllm.world.templates import draw as draw_templates
from mllm.world.templates.ask import QUESTIONS
from mllm.world.templates.draw import BRIEF, CAPTIONS, REQUESTS, STATEMENT_REQUESTS, STATEMENTS
from mllm.world.templates.edit import COMPARATIVES, EDITS, VERBS

PLAIN_SHARE = 0.88  # how often a word is used as it is rather than replaced by a synonym

SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("little", "tiny"),
    "large": ("big", "huge"),
    "purple": ("violet",),
    "gray": ("grey",),
    "cream": ("beige", "cream-colored"),
    "circle": ("disk", "disc"),
    "cross": ("plus",),
    "shape": ("object", "figure"),
    "left of": ("left of", "on the left of", "on the left side of"),
    "right of": ("right of", "on the right of", "on the right side of"),
    "above": ("over", "higher than"),
    "below": ("under", "beneath", "underneath"),
}
SPOKEN = {"left of": "to the left of", "right of": "to the right of"}  # the usual way to say a relation
PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "top left": ("in the top left corner", "in the top left", "at the top left", "in the upper left corner"),
    "top right": ("in the top right corner", "in the top right", "at the top right", "in the upper right corner"),
    "bottom left": (
        "in the bottom left corner",
        "in the bottom left",
        "at the bottom left",
        "in the lower left corner",
    ),
    "bottom right": (
        "in the bottom right corner",
        "in the bottom right",
        "at the bottom right",
        "in the lower right corner",
    ),
    "center": ("in the center", "in the middle", "at the center"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
}
BACKGROUND_PHRASES = (
    "on a {background} background",
    "on a {background} background",
    "on a {background} background",
    "against a {background} background",
    "in front of a {background} background",
    "on a {background} canvas",
)
NUMBER_WORDS = ("zero", "one", "two", "three", "four")
PLURALS = {"cross": "crosses", "plus": "pluses"}
CANONICAL = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms if " " not in synonym}


def say(word: str, rng: Random) -> str:
    """The word or, now and then, a synonym."""
    synonyms = SYNONYMS.get(word)
    if synonyms is None or rng.random() < PLAIN_SHARE:
        return SPOKEN.get(word, word)
    return rng.choice(synonyms)


def say_place(place: str, rng: Random) -> str:
    phrases = PLACE_PHRASES[place]
    return phrases[0] if rng.random() < 0.5 else rng.choice(phrases)


def say_background(background: str, rng: Random) -> str:
    return rng.choice(BACKGROUND_PHRASES).format(background=say(background, rng))


def pluralize(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def join(parts: Sequence[str], conjunction: str = "and") -> str:
    """Comma-separated, the last one joined by the conjunction."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {conjunction} {parts[-1]}"


def noun_phrase(item: Filter, rng: Random, *, plural: bool = False) -> str:
    """Attributes in their usual order, without an article: "small red circle"."""
    noun = say(item.shape or "shape", rng)
    words = [say(word, rng) for word in (item.size, item.color) if word]
    phrase = " ".join([*words, pluralize(noun) if plural else noun])
    verb = "are" if plural else "is"
    if item.not_color:
        phrase += f" that {verb} not {say(item.not_color, rng)}"
    if item.not_shape:
        other = say(item.not_shape, rng)
        phrase += f" that {verb} not {pluralize(other) if plural else with_article(other)}"
    return phrase


def count_phrase(item: Filter, number: int, rng: Random) -> str:
    """ "two red circles", "a red circle"."""
    if number == 1:
        phrase = noun_phrase(item, rng)
        return f"one {phrase}" if rng.random() < 0.25 else with_article(phrase)
    number_text = NUMBER_WORDS[number] if rng.random() < 0.85 else str(number)
    return f"{number_text} {noun_phrase(item, rng, plural=True)}"


def full_filter(item: SceneObject) -> Filter:
    return Filter(item.shape, item.color, item.size)


def is_unique(item: Filter, scene: Scene) -> bool:
    """Whether exactly one object of the scene matches."""
    return sum(map(item.matches, scene.objects)) == 1


# Attributes that may refer to an object, the shortest ways first; the first unambiguous one is the plain reference.
REFERENCE_ATTRIBUTES = (("shape",), ("color", "shape"), ("size", "shape"), ("size", "color", "shape"))
LOOSE_ATTRIBUTES = (("color",), ("size",), ("size", "color"))  # "the red shape"


def references(scene: Scene, item: SceneObject, *, without: str | None = None, loose: bool = False) -> list[Filter]:
    """All unambiguous ways to refer to an object by attributes; `without` an attribute that must not be given away."""
    choices = REFERENCE_ATTRIBUTES + (LOOSE_ATTRIBUTES if loose else ())
    filters = [Filter(**{name: getattr(item, name) for name in names}) for names in choices if without not in names]
    return [candidate for candidate in filters if is_unique(candidate, scene)]


def short_reference(scene: Scene, item: SceneObject) -> Filter | None:
    """The shortest unambiguous reference by shape, color and size; None for one of two twins."""
    return next(iter(references(scene, item)), None)


def normalize_words(text: str) -> list[str]:
    """Lower-case words with synonyms replaced and plurals undone; sentence marks stay as words of their own."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)?|[0-9]+|[.,:;!?]", text.lower())
    return [_normalize_word(word) for word in words]


_SINGULARS = {pluralize(word): word for word in ("shape", "circle", "square", "triangle", "star", "cross", "heart")}
_SINGULARS |= {pluralize(synonym): CANONICAL[synonym] for synonym in ("disk", "disc", "plus", "object", "figure")}


def _normalize_word(word: str) -> str:
    return _SINGULARS.get(word) or CANONICAL.get(word, word)


# Fill a template about a scene: each slot gives its words and the constraints that saying them implies.
#
# Slots: {a} {b} {c} {d} objects with their article, {the_a} a reference back, {ab} the relation of a to b, {at_a} the
# place of a, {on} the background phrase, {background} its color, {list} all objects, {number} how many; a capital first
# letter ({The_a}) capitalizes. A job adds slots of its own.


LETTERS = "abcd"


class UnsayableError(Exception):
    """A template asks for something that is not true or not clear in this scene; try another template."""


@dataclass(frozen=True, slots=True)
class Said:
    """Words and what they imply."""

    text: str
    constraints: tuple[Constraint, ...] = ()


@lru_cache(maxsize=4096)
def split_template(template: str) -> tuple[tuple[str, str | None], ...]:
    """(literal, slot or None) pairs in order."""
    return tuple((literal, slot) for literal, slot, _, _ in Formatter().parse(template))


@dataclass(slots=True)
class Wording:
    """One attempt to put a scene into words: objects in the order a, b, c, d, and what is said of each."""

    scene: Scene
    objects: Sequence[SceneObject]
    filters: Sequence[Filter]
    rng: Random
    extra: Mapping[str, Said] = field(default_factory=dict)
    _mentioned: list[Filter] = field(default_factory=list)

    def fill(self, template: str) -> Said:
        """The template in words; raises UnsayableError where it does not fit."""
        parts: list[str] = []
        constraints: dict[Constraint, None] = {}
        for literal, slot in split_template(template):
            parts.append(literal)
            if slot is not None:
                said = self.say_slot(slot.lower())
                parts.append(capitalize(said.text) if slot[0].isupper() else said.text)
                constraints.update(dict.fromkeys(said.constraints))
        return Said("".join(parts), tuple(constraints))

    def say_slot(self, slot: str) -> Said:
        if slot in self.extra:
            return self.extra[slot]
        match slot.split("_"):
            case ["on"]:
                return Said(say_background(self.scene.background, self.rng), (Background(self.scene.background),))
            case ["background"]:
                return Said(say(self.scene.background, self.rng), (Background(self.scene.background),))
            case ["number"]:
                number = len(self.scene.objects)
                return Said(NUMBER_WORDS[number], (Count(ANY, number),))
            case ["list"]:
                said = [self.mention(index) for index in range(len(self.objects))]
                return Said(join([part.text for part in said]), sum((part.constraints for part in said), ()))
            case [letter] if len(letter) == 1 and letter in LETTERS:
                return self.mention(self.index(letter))
            case ["the", letter] if len(letter) == 1:
                return Said("the " + self.refer(self.index(letter)))
            case ["at", letter]:
                return self.place(self.index(letter))
            case [letters] if len(letters) == 2 and set(letters) <= set(LETTERS):
                return self.relate(self.index(letters[0]), self.index(letters[1]))
            case _:
                raise UnsayableError(slot)

    def index(self, letter: str) -> int:
        index = LETTERS.index(letter)
        if index >= len(self.objects):
            raise UnsayableError(letter)
        return index

    def mention(self, index: int) -> Said:
        item = self.filters[index]
        phrase = noun_phrase(item, self.rng)
        text = f"another {phrase}" if item in self._mentioned else with_article(phrase)
        self._mentioned.append(item)
        return Said(text, (Exists(index, item),))

    def refer(self, index: int) -> str:
        """A noun phrase that singles out one of the objects as they were described."""
        item = self.filters[index]
        full = Filter(item.shape, item.color, item.size)
        choices = [Filter(item.shape), Filter(item.shape, item.color), Filter(item.shape, None, item.size), full]
        for choice in [full] if self.rng.random() < 0.3 else choices:
            if sum(could_mean(choice, other) for other in self.filters) == 1:
                return noun_phrase(choice, self.rng)
        raise UnsayableError(LETTERS[index])

    def place(self, index: int) -> Said:
        places = stated_places(self.objects[index])
        if not places:
            raise UnsayableError(LETTERS[index])
        place = places[0]
        return Said(say_place(place, self.rng), (Placed(index, place),))

    def relate(self, a: int, b: int) -> Said:
        relation = main_relation(self.objects[a], self.objects[b])
        if relation is None:
            raise UnsayableError(LETTERS[a] + LETTERS[b])
        return Said(say(relation, self.rng), (Related(a, relation, b),))


def could_mean(reference: Filter, described: Filter) -> bool:
    """Whether a reference could be taken for an object described so; what was not said could be anything."""
    pairs = ((reference.shape, described.shape), (reference.color, described.color), (reference.size, described.size))
    return all(wanted is None or given is None or wanted == given for wanted, given in pairs)


# Descriptions that exercise one skill: counting, comparison, differentiation, negation, universality.
#
# Each function says something true of the scene with its skill, or returns None where the scene gives no occasion.


SKILL_STATEMENT_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Core:
    """A description without the request around it."""

    text: str
    spec: Spec
    skills: tuple[str, ...]
    is_statement: bool  # a whole sentence, not a noun phrase


def _fill(
    scene: Scene,
    rng: Random,
    skill: str,
    choices: tuple[tuple[str, ...], tuple[str, ...]],
    extra: Mapping[str, Said],
    *,
    always: tuple[Constraint, ...] = (),
    filters: list[Filter] | None = None,
    objects: Sequence[SceneObject] | None = None,
) -> Core | None:
    """Fill a caption or statement template. Its constraints are those of its slots and those that `always` hold."""
    objects = objects or scene.objects
    captions, statements = choices
    is_statement = bool(statements) and (not captions or rng.random() < SKILL_STATEMENT_SHARE)
    filters = filters or [Filter(item.shape, item.color) for item in objects]
    for _ in range(4):
        try:
            said = Wording(scene, objects, filters, rng, extra).fill(
                rng.choice(statements if is_statement else captions)
            )
        except UnsayableError:
            continue
        constraints = tuple(dict.fromkeys((*always, *said.constraints)))
        if any(isinstance(item, Exists) for item in said.constraints):
            constraints = tuple(dict.fromkeys((*constraints, Count(ANY, len(scene.objects)))))
        return Core(said.text, Spec(constraints), (skill,), is_statement)
    return None


def _groups(scene: Scene, attributes: tuple[str, ...], rng: Random) -> Said:
    """Objects counted by some of their attributes: "two red circles and a blue square"."""
    counts = Counter(Filter(**{name: getattr(item, name) for name in attributes}) for item in scene.objects)
    order = rng.sample(sorted(counts, key=str), len(counts))
    text = join([count_phrase(item, counts[item], rng) for item in order])
    total = Count(ANY, len(scene.objects))
    return Said(text, tuple(dict.fromkeys((*(Count(item, counts[item]) for item in order), total))))


def count(scene: Scene, rng: Random, allowed: frozenset[Pair]) -> Core | None:
    """Say how many there are of each kind; needs more than one of some kind."""
    levels: list[tuple[str, ...]] = [("color", "shape"), ("color", "shape"), ("shape",), ("color",), ()]
    fitting = [
        names
        for names in levels
        if len({tuple(getattr(item, name) for name in names) for item in scene.objects}) < len(scene.objects)
    ]
    if not fitting:
        return None
    level = rng.choice([names for names in fitting if names] * 4 + [names for names in fitting if not names])
    extra = {"groups": _groups(scene, level, rng)}
    return _fill(scene, rng, "counting", (draw_templates.COUNTING, draw_templates.COUNTING_STATEMENTS), extra)


def compare_two(scene: Scene, rng: Random, allowed: frozenset[Pair]) -> Core | None:
    """Say which of two objects is larger."""
    if len(scene.objects) > 2:
        return _compare_among(scene, rng)
    if len(scene.objects) < 2:
        return None
    large, small = sorted(scene.objects, key=lambda item: item.size)
    if large.size == small.size:
        return _fill(
            scene, rng, "comparison", (draw_templates.SAME_SIZE, ()), {}, always=(Compared(0, "same size", 1),)
        )
    if large.pair == small.pair:
        names = rng.choice((("shape",), ("shape", "color"), ("shape", "color")))
        shared = {name: getattr(large, name) for name in names}
        sizes = (Filter(**shared, size="large"), Filter(**shared, size="small"))
        said = Said(noun_phrase(Filter(**shared), rng), enumerate_objects(sizes))
        return _fill(scene, rng, "comparison", (draw_templates.TWINS, ()), {"noun": said})
    if large.shape == small.shape or rng.random() < 0.7:
        kinds = [Filter(large.shape, large.color), Filter(small.shape, small.color)]
    else:
        kinds = [Filter(large.shape), Filter(small.shape)]
    nouns = [noun_phrase(item, rng) for item in kinds]
    extra: dict[str, Said] = {}
    for ref, (name, noun) in enumerate(zip(("larger", "smaller"), nouns, strict=True)):
        named = (Exists(ref, kinds[ref]),)
        extra |= {
            name: Said(with_article(noun), named),
            f"the_{name}": Said("the " + noun),
            f"{name}_noun": Said(noun, named),
        }
    choices = (draw_templates.COMPARISON, draw_templates.COMPARISON_STATEMENTS)
    return _fill(scene, rng, "comparison", choices, extra, always=(Compared(0, "larger", 1),), filters=kinds)


def _compare_among(scene: Scene, rng: Random) -> Core | None:
    """Name all objects without sizes and say which of two is larger."""
    order = sorted(rng.sample(scene.objects, len(scene.objects)), key=lambda item: item.size)
    objects = [order[0], order[-1], *order[1:-1]]
    if objects[0].size == objects[1].size:
        return None
    choices = (draw_templates.COMPARISON_AMONG, draw_templates.COMPARISON_AMONG_STATEMENTS)
    return _fill(scene, rng, "comparison", choices, {}, always=(Compared(0, "larger", 1),), objects=objects)


def differentiate(scene: Scene, rng: Random, allowed: frozenset[Pair]) -> Core | None:
    """Say what objects share and then how they differ: "two hearts, one red and one blue"."""
    values = {name: {getattr(item, name) for item in scene.objects} for name in ("shape", "color", "size")}
    number = len(scene.objects)
    options = [
        (shared, varied)
        for shared, varied in (("shape", "color"), ("shape", "size"), ("color", "shape"), ("color", "size"))
        if len(values[shared]) == 1 and len(values[varied]) > 1
    ]
    if number < 2 or not options:
        return None
    shared, varied = rng.choice(options)
    base = {shared: values[shared].pop()}
    always: tuple[Constraint, ...] = (Count(Filter(**base), number), Count(ANY, number))
    kind = Said(count_phrase(Filter(**base), number, rng))
    if len(values[varied]) == number and rng.random() < 0.2:
        extra = {"kind": kind, "attribute": Said(varied)}
        always += (Alike(varied, distinct=True),)
        return _fill(scene, rng, "differentiation", (draw_templates.DIFFERENT, ()), extra, always=always)
    counts = Counter(getattr(item, varied) for item in scene.objects)
    order = rng.sample(sorted(counts), len(counts))
    ones = join([_one_of(counts[value], value, varied, rng) for value in order])
    constraints = tuple(Count(Filter(**base, **{varied: value}), counts[value]) for value in order)
    extra = {"kind": kind, "ones": Said(ones, constraints)}
    return _fill(scene, rng, "differentiation", (draw_templates.DIFFERENTIATION, ()), extra, always=always)


def _one_of(number: int, value: str, attribute: str, rng: Random) -> str:
    if attribute == "shape":
        return count_phrase(Filter(shape=value), number, rng)
    return f"{NUMBER_WORDS[number]} {say(value, rng)}"


def deny(scene: Scene, rng: Random, allowed: frozenset[Pair]) -> Core | None:
    """Say what is there and what is not."""
    first = scene.objects[0]
    if len(scene.objects) == 1 and rng.random() < 0.4:
        if rng.random() < 0.5:
            colors = [name for name in COLORS if name != first.color and (name, first.shape) in allowed]
            negated = Filter(shape=first.shape, not_color=rng.choice(colors))
        else:
            shapes = [name for name in SHAPES if name != first.shape and (first.color, name) in allowed]
            negated = Filter(color=first.color, not_shape=rng.choice(shapes))
        extra = {"negated": Said(with_article(noun_phrase(negated, rng)), (Exists(0, negated),))}
        return _fill(scene, rng, "negation", (draw_templates.NEGATED_OBJECT, ()), extra)
    no_colors = [name for name in COLORS if all(item.color != name for item in scene.objects)]
    no_shapes = [name for name in SHAPES if all(item.shape != name for item in scene.objects)]
    none = Filter(shape=rng.choice(no_shapes)) if rng.random() < 0.6 else Filter(color=rng.choice(no_colors))
    no_color = rng.choice(no_colors)
    absent = (Count(none, 0),)
    extra = {
        "none": Said(noun_phrase(none, rng, plural=True), absent),
        "one": Said(noun_phrase(none, rng), absent),
        "groups": _groups(scene, ("color", "shape") if rng.random() < 0.6 else ("shape",), rng),
        "not_attribute": Said(say(no_color, rng), (Count(Filter(color=no_color), 0),)),
    }
    filters = [full_filter(item) if rng.random() < 0.6 else Filter(item.shape, item.color) for item in scene.objects]
    choices = (draw_templates.NEGATION, draw_templates.NEGATION_STATEMENTS)
    return _fill(scene, rng, "negation", choices, extra, filters=filters)


def say_every(scene: Scene, rng: Random, allowed: frozenset[Pair]) -> Core | None:
    """Say what is true of every object."""
    first = scene.objects[0]
    shared = [
        name
        for name in ("color", "color", "shape", "size")
        if all(getattr(item, name) == getattr(first, name) for item in scene.objects)
    ]
    if len(scene.objects) < 2 or not shared:
        return None
    name = rng.choice(shared)
    value = getattr(first, name)
    every = Filter(**{name: value})
    demand = (Every(every),)
    extra = {"plural": Said(noun_phrase(every, rng, plural=True), demand)}
    if name == "shape":
        captions = tuple(text for text in draw_templates.UNIVERSALITY if "{plural}" in text)
        extra["every"] = Said(with_article(say(value, rng)), demand)
        choices: tuple[tuple[str, ...], tuple[str, ...]] = (captions, draw_templates.UNIVERSALITY_SHAPE_STATEMENTS)
    else:
        extra["every"] = Said(say(value, rng), demand)
        choices = (draw_templates.UNIVERSALITY, draw_templates.UNIVERSALITY_STATEMENTS)
    return _fill(scene, rng, "universality", choices, extra)


SKILL_KINDS: dict[str, Callable[[Scene, Random, frozenset[Pair]], Core | None]] = {
    "counting": count,
    "comparison": compare_two,
    "differentiation": differentiate,
    "negation": deny,
    "universality": say_every,
}


# Requests to draw a scene, with the skills they need and the spec that a drawn picture must meet.
#
# Most requests describe the scene fully or nearly so; the others exercise one skill each (count, compare, tell apart,
# deny, say "every"). A skill that a scene offers no occasion for falls back to a full description.


DRAWING_WEIGHTS = {
    "full": 60,
    "brief": 8,
    "counting": 8,
    "comparison": 9,  # from here on, many scenes give no occasion and are described fully
    "differentiation": 11,
    "negation": 6,
    "universality": 9,
}
STATEMENT_SHARE = 0.22  # whole sentences rather than noun phrases
CANONICAL_SHARE = (
    0.3  # the first template: "a large red circle to the left of a small blue square on a white background"
)
BARE_SHARE = 0.4  # captions without "Draw ..."
TRIES = 10


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """What the user says, the caption alone where there is one, and what the picture must show."""

    text: str
    spec: Spec
    skills: tuple[str, ...]
    kind: str
    core: str  # the description inside the request
    is_statement: bool


def make_draw_request(
    scene: Scene,
    rng: Random,
    *,
    kind: str | None = None,
    kind_weights: Mapping[str, float] = DRAWING_WEIGHTS,
    allowed_pairs: frozenset[Pair] = ALL_PAIRS,
    statements: bool = True,
) -> DrawRequest:
    """A request that this scene fulfils. Scenes with a held-out pair get a request that names one.

    Without `statements`, a full description is always a noun phrase, fit for "Draw ...".
    """
    if kind is None:
        kind = rng.choices(tuple(kind_weights), tuple(kind_weights.values()))[0]
    if not scene.pairs.isdisjoint(HELD_OUT_PAIRS):
        kind = "full"
    core = None
    if kind == "brief":
        core = describe_briefly(scene, rng)
    elif kind != "full":
        core = SKILL_KINDS[kind](scene, rng, allowed_pairs)
    if core is None:
        kind, core = "full", describe_fully(scene, rng, statements=statements)
    skills = dict.fromkeys((*core.skills, *plain_skills(core.spec)))
    return DrawRequest(say_request(core, rng), core.spec, tuple(skills), kind, core.text, core.is_statement)


def plain_skills(spec: Spec) -> list[str]:
    """The skills that follow from the kinds of constraints."""
    skills = []
    filters = [item.filter for item in spec.constraints if isinstance(item, Exists | Count)]
    if any(item.color or item.size for item in filters):
        skills.append("attribute")
    if any(isinstance(item, Background) for item in spec.constraints):
        skills.append("scene")
    if any(isinstance(item, Related | Placed) for item in spec.constraints):
        skills.append("spatial relation")
    return skills


def describe_fully(scene: Scene, rng: Random, *, statements: bool = True) -> Core:
    """All objects with color and shape, mostly sizes, mostly relations and background."""
    keeps_pairs = not scene.pairs.isdisjoint(HELD_OUT_PAIRS)
    is_statement = statements and rng.random() < STATEMENT_SHARE
    templates = (STATEMENTS if is_statement else CAPTIONS)[len(scene.objects)]

    def thin(item: SceneObject) -> Filter:
        size = item.size if rng.random() > 0.1 else None
        return Filter(item.shape, item.color if keeps_pairs or rng.random() > 0.03 else None, size)

    core = compose(scene, rng, templates, thin)
    if core is None:
        return required(compose(scene, rng, ("{list} {on}",), full_filter), "a list, which is always possible,")
    return replace(core, is_statement=is_statement)


def describe_briefly(scene: Scene, rng: Random) -> Core | None:
    """Little more than colors and shapes."""
    drops = rng.choice(("size", "size", "size and color"))

    def thin(item: SceneObject) -> Filter:
        return Filter(item.shape, item.color if drops == "size" or rng.random() < 0.4 else None)

    return compose(scene, rng, BRIEF, thin)


def compose(scene: Scene, rng: Random, templates: Sequence[str], thin: Callable[[SceneObject], Filter]) -> Core | None:
    """Try templates and orders of the objects until one fits; nothing but the named objects is wanted."""
    for attempt in range(TRIES):
        objects = rng.sample(scene.objects, len(scene.objects))
        wording = Wording(scene, objects, [thin(item) for item in objects], rng)
        is_canonical = attempt == 0 and rng.random() < CANONICAL_SHARE
        template = templates[0] if is_canonical else rng.choice(templates)
        try:
            said = wording.fill(template)
        except UnsayableError:
            continue
        named = [item for item in said.constraints if isinstance(item, Exists)]
        if len(named) == len(objects):
            extra = () if Count(ANY, len(objects)) in said.constraints else (Count(ANY, len(objects)),)
            skills = ("counting",) if max(Counter(item.filter for item in named).values()) > 1 else ()
            return Core(said.text, Spec(said.constraints + extra), skills, False)
    return None


def say_request(core: Core, rng: Random) -> str:
    """Put the description into a request, with the small irregularities of typed text."""
    if core.is_statement:
        template = rng.choice(STATEMENT_REQUESTS)
        text = template.format(statement=core.text, Statement=capitalize(core.text))
    elif rng.random() < BARE_SHARE:
        text = capitalize(core.text) if rng.random() < 0.4 else core.text
        return text + "." if rng.random() < 0.3 else text
    else:
        text = rng.choice(REQUESTS).format(caption=core.text)
    if text.endswith(".") and rng.random() < 0.25:
        text = text[:-1]
    return text.lower() if rng.random() < 0.1 else text


# Questions about a scene as values, and their one right answer. Words for them are in ask_language.py.
#
# The answer is a function of the scene alone, so the same question can be put to a picture that a model drew.


# kind -> variants
QUESTION_KINDS: dict[str, tuple[str, ...]] = {
    "count": ("count",),
    "color": ("color of", "color of related"),
    "shape": ("shape of", "shape of related"),
    "size": ("size of",),
    "existence": ("exists",),
    "relation": ("is related", "where is", "which is related"),
    "comparison": ("is larger", "which is larger", "same color", "same size", "more"),
    "background": ("background", "is background"),
}
DIRECTIONS = {"left of": "left", "right of": "right", "above": "above", "below": "below"}


@dataclass(frozen=True, slots=True)
class Question:
    """One question. Which fields are used depends on the variant."""

    kind: str
    variant: str
    first: Filter | None = None  # what is asked about
    second: Filter | None = None  # what it is compared with or related to
    value: str | None = None  # a relation, a background

    @property
    def subject(self) -> Filter:
        return required(self.first, "first")

    @property
    def relation(self) -> str:
        return required(self.value, "value")

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Question:
        filters = {name: Filter(**data[name]) if data.get(name) else None for name in ("first", "second")}
        return cls(**{**data, **filters})


def say_yes(value: bool) -> str:
    return "yes" if value else "no"


def find_one(scene: Scene, item: Filter) -> SceneObject | None:
    """The only object that matches; None if there is none or more than one."""
    found = [candidate for candidate in scene.objects if item.matches(candidate)]
    return found[0] if len(found) == 1 else None


def find_related(scene: Scene, relation: str, anchor: SceneObject) -> SceneObject | None:
    """The only object in this relation to the anchor; None when another one is near enough to doubt."""
    others = [item for item in scene.objects if item is not anchor]
    candidates = [item for item in others if offset(relation, item, anchor) > 0]
    return candidates[0] if len(candidates) == 1 and is_clear(relation, candidates[0], anchor) else None


def answer(question: Question, scene: Scene) -> str | None:
    """The right answer, or None when the scene leaves it open (no such object, several, or no clear margin).

    Only "there is no ..." answers the question for an attribute of something absent.
    """
    first = find_one(scene, question.first) if question.first else None
    second = find_one(scene, question.second) if question.second else None
    match question.variant:
        case "count":
            return str(sum(map(question.subject.matches, scene.objects)))
        case "exists":
            return say_yes(any(map(question.subject.matches, scene.objects)))
        case "background":
            return scene.background
        case "is background":
            return say_yes(scene.background == question.value)
        case "more":
            than = required(question.second, "second")
            counts = [sum(map(item.matches, scene.objects)) for item in (question.subject, than)]
            return say_yes(counts[0] > counts[1])
        case "color of" | "shape of" | "size of":
            if first is None:
                return _deny(question.subject) if not any(map(question.subject.matches, scene.objects)) else None
            return getattr(first, question.kind)
        case "color of related" | "shape of related" | "which is related":
            found = find_related(scene, question.relation, second) if second else None
            return None if found is None else getattr(found, "color" if question.kind == "color" else "shape")
        case _:
            return None if first is None or second is None or first is second else _answer_pair(question, first, second)


def _answer_pair(question: Question, first: SceneObject, second: SceneObject) -> str | None:
    match question.variant:
        case "is related":
            if is_clear(question.relation, first, second):
                return "yes"
            return "no" if is_clear(OPPOSITE[question.relation], first, second) else None
        case "where is":
            relation = main_relation(first, second)
            return DIRECTIONS[relation] if relation else None
        case "is larger":
            return say_yes(compare(first, second) == "larger")
        case "which is larger":
            larger = {"larger": first, "smaller": second}.get(compare(first, second))
            return larger.shape if larger and first.shape != second.shape else None
        case "same color":
            return say_yes(first.color == second.color)
        case "same size":
            return say_yes(first.size == second.size)
        case _:
            raise ValueError(f"question variant {question.variant!r} is unknown; see QUESTION_KINDS")


def possible_answers(question: Question, scene: Scene) -> frozenset[str]:
    """What may be said where the scene leaves the answer open: what such a question could be answered with in it."""
    match question.variant:
        case "where is":
            return frozenset(DIRECTIONS.values())
        case "color of" | "shape of" | "size of":
            meant = [item for item in scene.objects if question.subject.matches(item)]
            return frozenset(getattr(item, question.kind) for item in meant)
        case "color of related" | "shape of related" | "which is related":
            attribute = "color" if question.kind == "color" else "shape"
            anchor = find_one(scene, required(question.second, "second"))
            return frozenset(getattr(item, attribute) for item in scene.objects if item is not anchor)
        case "which is larger":
            compared = (question.subject, required(question.second, "second"))
            return frozenset(item.shape for item in scene.objects if any(each.matches(item) for each in compared))
        case _:
            return frozenset(("yes", "no"))


def _deny(item: Filter) -> str:
    words = " ".join(word for word in (item.size, item.color, item.shape or "shape") if word)
    return f"there is no {words}"


def normalize_answer(text: str) -> str:
    """Lower case without marks and articles, number words as digits: what exact match compares."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    numbers = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"grey": "gray"}
    return " ".join(numbers.get(word, word) for word in words if word not in ("a", "an", "the", "it", "is"))


# Think of a question about a scene with one clear answer, balanced over answers, and put it into words.


QUESTION_WEIGHTS = {
    "count": 16,
    "color": 16,
    "shape": 14,
    "size": 10,
    "existence": 14,
    "relation": 18,
    "comparison": 12,
    "background": 8,
}
ABSENT_SHARE = 0.06  # questions for an attribute of something that is not there
QUESTION_TRIES = 8
# Variants that need two objects.
PAIR_VARIANTS = frozenset(QUESTION_KINDS["relation"] + QUESTION_KINDS["comparison"]) | {
    "color of related",
    "shape of related",
}


def propose_question(
    scene: Scene,
    rng: Random,
    *,
    kind: str | None = None,
    kind_weights: Mapping[str, float] = QUESTION_WEIGHTS,
    allowed_pairs: frozenset[Pair] = ALL_PAIRS,
) -> Question:
    """A question with one clear answer. Yes and no come equally often where the scene permits both.

    Args:
        kind: of the question, where the scene has one; default: chosen at random by `kind_weights`.
    """
    for _ in range(QUESTION_TRIES):
        chosen = kind or rng.choices(tuple(kind_weights), tuple(kind_weights.values()))[0]
        variant = rng.choice(QUESTION_KINDS[chosen])
        if variant in PAIR_VARIANTS and len(scene.objects) < 2:
            continue
        wanted = rng.choice(("yes", "no"))
        for attempt in range(QUESTION_TRIES):
            question = _propose(scene, chosen, variant, rng)
            if question is None or not names_allowed(question, allowed_pairs):
                continue
            right = answer(question, scene)
            if right is not None and (right not in ("yes", "no") or right == wanted or attempt == QUESTION_TRIES - 1):
                return question
    if kind is not None:
        return propose_question(scene, rng, allowed_pairs=allowed_pairs)
    return Question("background", "background")


def names_allowed(question: Question, allowed_pairs: frozenset[Pair]) -> bool:
    """Whether every color-shape pair in the question may be named."""
    pairs = [item.pair for item in (question.first, question.second) if item and item.pair]
    return allowed_pairs.issuperset(pairs)


def _refer(scene: Scene, item: SceneObject, rng: Random, without: str | None = None) -> Filter | None:
    """One of the unambiguous ways to refer to an object, mostly the shortest."""
    choices = references(scene, item, without=without, loose=without == "shape")
    if not choices:
        return None
    return choices[0] if rng.random() < 0.6 else rng.choice(choices)


def _propose(scene: Scene, kind: str, variant: str, rng: Random) -> Question | None:
    match variant:
        case "count":
            return Question(kind, variant, _random_filter(scene, rng, allow_any=True))
        case "exists":
            return Question(kind, variant, _random_filter(scene, rng, allow_any=False))
        case "background":
            return Question(kind, variant)
        case "is background":
            return Question(kind, variant, value=rng.choice((scene.background, rng.choice(BACKGROUNDS))))
        case "more":
            attribute, choices = rng.choice((("shape", SHAPES), ("color", COLORS), ("size", SIZES)))
            here = [getattr(item, attribute) for item in scene.objects]
            first, second = rng.choice(here), rng.choice((rng.choice(here), rng.choice(choices)))
            more, less = (Filter(**{attribute: value}) for value in rng.sample((first, second), 2))
            return None if first == second else Question(kind, variant, more, less)
        case "color of" | "size of" if rng.random() < ABSENT_SHARE:
            return _propose_absent(scene, kind, variant, rng)
        case "color of" | "shape of" | "size of":
            first = _refer(scene, rng.choice(scene.objects), rng, without=kind)
            return Question(kind, variant, first) if first else None
        case "color of related" | "shape of related" | "which is related":
            second = _refer(scene, rng.choice(scene.objects), rng)
            return Question(kind, variant, None, second, rng.choice(RELATIONS)) if second else None
        case _:
            return _propose_pair(scene, kind, variant, rng)


def _propose_pair(scene: Scene, kind: str, variant: str, rng: Random) -> Question | None:
    if len(scene.objects) < 2:
        return None
    without = {"same color": "color", "same size": "size"}.get(variant)
    if "larger" in variant:
        without = "size"
    items = rng.sample(scene.objects, 2)
    first, second = (_refer(scene, item, rng, without=without) for item in items)
    if first is None or second is None:
        return None
    return Question(kind, variant, first, second, rng.choice(RELATIONS) if variant == "is related" else None)


def _propose_absent(scene: Scene, kind: str, variant: str, rng: Random) -> Question | None:
    absent = [name for name in SHAPES if all(item.shape != name for item in scene.objects)]
    return Question(kind, variant, Filter(shape=rng.choice(absent)))


def _random_filter(scene: Scene, rng: Random, *, allow_any: bool) -> Filter:
    """Attributes to count or look for: those of an object, or those with one attribute changed, or any at all."""
    if allow_any and rng.random() < 0.2:
        return ANY
    item = rng.choice(scene.objects)
    names = rng.choice(
        (("shape",), ("color",), ("color", "shape"), ("size", "shape"), ("size",), ("size", "color", "shape"))
    )
    values = {name: getattr(item, name) for name in names}
    if rng.random() < 0.5:
        name = rng.choice(names)
        values[name] = rng.choice({"shape": SHAPES, "color": COLORS, "size": SIZES}[name])
    return Filter(**values)


def say_question(question: Question, rng: Random, *, pronoun: bool = False) -> str:
    """The question in words. With a pronoun the only object of the picture is called "it"."""
    slots: dict[str, str] = {}
    for name, item in (("first", question.first), ("second", question.second)):
        if item is not None:
            slots[name] = noun_phrase(item, rng)
            slots[f"{name}s"] = noun_phrase(item, rng, plural=True)
            slots[f"a_{name}"] = with_article(slots[name])
    if question.variant == "shape of":
        slots["attribute"] = " ".join(
            say(word, rng) for word in (question.subject.size, question.subject.color) if word
        )
    if question.value is not None:
        slots["relation" if question.value in RELATIONS else "value"] = say(question.value, rng)
    template = rng.choice(QUESTIONS[question.variant])
    if pronoun and question.variant in ("color of", "size of"):
        template = template.replace("The {first}", "It").replace("the {first}", "it")
    text = template.format(**slots)
    return text.lower() if rng.random() < 0.1 else text


def says_it(words: str) -> bool:
    """Whether a question with a pronoun calls its object "it"; some templates have no place for one."""
    return "it" in re.findall("[a-z]+", words.lower())


# Descriptions of a scene, and reading a description back into facts that can be checked against a scene.
#
# Descriptions go from left to right in fixed words. The reader accepts much more: any order, synonyms, relations inside
# or between sentences ("a large red circle to the left of a small blue square on a white background").


def plain_phrase(item: Filter) -> str:
    """Attributes in their usual order, no synonyms."""
    return " ".join(word for word in (item.size, item.color, item.shape or "shape") if word)


def list_objects(objects: tuple[SceneObject, ...]) -> str:
    """ "a large red circle, a small blue square and another small blue square"."""
    parts: list[str] = []
    for item in objects:
        phrase = plain_phrase(full_filter(item))
        parts.append(f"another {phrase}" if with_article(phrase) in parts else with_article(phrase))
    return join(parts)


def describe_relations(scene: Scene) -> list[str]:
    """A sentence for each two neighbors from left to right that can be named and lie clearly apart."""
    sentences = []
    for a, b in zip(scene.objects, scene.objects[1:], strict=False):
        relation = main_relation(a, b)
        a_name, b_name = short_reference(scene, a), short_reference(scene, b)
        if relation and a_name and b_name:
            words = SPOKEN.get(relation, relation)
            names = {"a": plain_phrase(a_name), "b": plain_phrase(b_name)}
            sentences.append(describe_templates.RELATION.format(relation=words, **names))
    return sentences


def describe(scene: Scene, *, short: bool = False) -> str:
    """The description of a scene; a short one leaves out the relations."""
    listed = list_objects(scene.objects)
    on = describe_templates.BACKGROUND.format(background=scene.background)
    if short:
        return describe_templates.SHORT.format(List=listed[0].upper() + listed[1:], on=on)
    if len(scene.objects) == 1:
        return describe_templates.ONE.format(list=listed, on=on)
    number = NUMBER_WORDS[len(scene.objects)]
    return " ".join([describe_templates.MANY.format(number=number, on=on, list=listed), *describe_relations(scene)])


def say_describe_request(rng: Random, *, short: bool) -> str:
    return rng.choice(describe_templates.SHORT_REQUESTS if short else describe_templates.REQUESTS)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a description claims."""

    objects: tuple[Filter, ...]  # each object once, in the order of mention
    relations: tuple[tuple[int, str, int], ...]  # (object, relation, object)
    background: str | None
    number: int | None  # "there are three shapes"
    problems: tuple[str, ...] = ()  # what could not be understood: references to nothing, relations without objects

    def to_spec(self) -> Spec:
        """The same claims as a spec: these objects and no others."""
        constraints: list[Constraint] = [Exists(ref, item) for ref, item in enumerate(self.objects)]
        constraints.append(Count(ANY, len(self.objects)))
        if self.number is not None and self.number != len(self.objects):
            constraints.append(Count(ANY, self.number))
        constraints += [Related(a, relation, b) for a, relation, b in self.relations]
        if self.background:
            constraints.append(Background(self.background))
        return Spec(tuple(constraints))


RELATION_WORDS = {
    "left": "left of",
    "right": "right of",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
    "underneath": "below",
}
NUMBERS = {word: number for number, word in enumerate(NUMBER_WORDS)} | {str(number): number for number in range(5)}
OPENERS = ("a", "an", "another", *NUMBERS)


class _Reader:
    """Reads a description word by word: noun phrases, and relations between the phrase before and the one after."""

    def __init__(self) -> None:
        self.objects: list[Filter] = []
        self.relations: list[tuple[int, str, int]] = []
        self.problems: list[str] = []
        self.background: str | None = None
        self.number: int | None = None
        self.last: int | None = None  # the object mentioned last
        self.pending: str | None = None  # a relation that waits for its second object
        self.opener = ""
        self.attributes: dict[str, str] = {}

    def read(self, words: list[str]) -> Facts:
        for index, word in enumerate(words):
            if word == "background":
                self.read_background(words, index)
            elif word in OPENERS or word == "the":
                self.opener, self.attributes = word, {}
            elif word in SIZES:
                self.attributes["size"] = word
            elif word in COLORS:
                self.attributes["color"] = word
            elif word in SHAPES or word == "shape":
                self.read_noun(word)
            elif word in RELATION_WORDS and self.last is not None and _is_relation(words, index):
                self.pending = RELATION_WORDS[word]
            elif word in ".;!?":
                self.end_sentence()
        self.end_sentence()
        background = self.background
        return Facts(tuple(self.objects), tuple(self.relations), background, self.number, tuple(self.problems))

    def end_sentence(self) -> None:
        if self.pending:
            self.problems.append(f"{self.pending} nothing")
        self.pending = self.last = None

    def read_background(self, words: list[str], index: int) -> None:
        """ "on a white background" or "the background is white"."""
        near = [*words[max(0, index - 2) : index], *words[index + 1 : index + 3]]
        self.background = next((word for word in near if word in BACKGROUNDS), self.background)
        self.opener, self.attributes = "", {}

    def read_noun(self, noun: str) -> None:
        item = Filter(None if noun == "shape" else noun, self.attributes.get("color"), self.attributes.get("size"))
        count = NUMBERS.get(self.opener, 1)
        if noun == "shape" and not self.attributes:  # "there are three shapes"
            self.number = count if self.opener in NUMBERS else self.number
        elif self.opener == "the":
            self.refer(item)
        else:
            self.mention(item, count)
        self.opener, self.attributes = "", {}

    def refer(self, item: Filter) -> None:
        fitting = [index for index, known in enumerate(self.objects) if _includes(known, item)]
        if len(fitting) == 1:
            self.link(fitting[0])
        elif fitting:
            self.problems.append(f"ambiguous: the {plain_phrase(item)}")
        else:  # "The circle is left of ..." without having been introduced: a mention after all
            self.mention(item, 1)

    def mention(self, item: Filter, count: int) -> None:
        for _ in range(count):
            self.objects.append(item)
        if count == 1:
            self.link(len(self.objects) - 1)

    def link(self, index: int) -> None:
        if self.pending and self.last is not None and self.last != index:
            self.relations.append((self.last, self.pending, index))
        self.pending, self.last = None, index


def _is_relation(words: list[str], index: int) -> bool:
    """Left and right relate only with an "of": "in the top left corner" does not."""
    return words[index] not in ("left", "right") or "of" in words[index + 1 : index + 3]


def _includes(known: Filter, item: Filter) -> bool:
    pairs = ((item.shape, known.shape), (item.color, known.color), (item.size, known.size))
    return all(wanted in (None, given) for wanted, given in pairs)


def parse_description(text: str) -> Facts:
    """What a description claims. Never fails: what cannot be understood is among the problems."""
    return _Reader().read(normalize_words(text))


def check_description(text: str, scene: Scene) -> tuple[Verdict, ...]:
    """Every object named in full, nothing invented, every stated relation true, the background right."""
    facts = parse_description(text)
    complete = bool(facts.objects) and all(item.shape and item.color and item.size for item in facts.objects)
    return (
        Verdict("every object is named with size, color and shape", complete),
        Verdict("the background is named", facts.background is not None),
        Verdict("every reference and relation is clear", not facts.problems),
        *check_scene(facts.to_spec(), scene),
    )


# Changes to a scene as values: propose one at random, apply it. Sentences for them live in edit_language.py.


EDIT_KINDS = ("recolor", "remove", "add", "resize", "reshape", "background")


@dataclass(frozen=True, slots=True)
class Edit:
    """One change. Indices count the objects of the scene before, from left to right. Which fields are set depends on
    the kind; `target`, `new_value` and `new_object` are for the kinds that have them.
    """

    kind: str
    index: int | None = None  # the object that changes (recolor, remove, resize, reshape)
    value: str | None = None  # the new color, size, shape or background
    added: SceneObject | None = None  # the new object (add)
    place: str | None = None  # where the new object goes, as said in words: a place ...
    relation: str | None = None  # ... or a relation to an anchor
    anchor: int | None = None

    @property
    def target(self) -> int:
        return required(self.index, "index")

    @property
    def new_value(self) -> str:
        return required(self.value, "value")

    @property
    def new_object(self) -> SceneObject:
        return required(self.added, "added")

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Edit:
        added = data.get("added")
        return cls(**{**data, "added": SceneObject(**added) if added else None})


def is_distinct(scene: Scene, index: int) -> bool:
    """Whether size, color and shape single out one object, so that a sentence can refer to it."""
    item = scene.objects[index]
    same = [other for other in scene.objects if (other.pair, other.size) == (item.pair, item.size)]
    return len(same) == 1


def replace_object(scene: Scene, index: int, *new: SceneObject) -> Scene:
    objects = scene.objects
    return Scene(scene.background, objects[:index] + new + objects[index + 1 :])


def apply_edit(scene: Scene, edit: Edit) -> Scene:
    """The scene after the change; everything else stays where it is."""
    match edit.kind:
        case "background":
            return Scene(edit.new_value, scene.objects)
        case "add":
            return Scene(scene.background, (*scene.objects, edit.new_object))
        case "remove":
            return replace_object(scene, edit.target)
        case "recolor":
            return replace_object(scene, edit.target, replace(scene.objects[edit.target], color=edit.new_value))
        case "resize":
            return replace_object(scene, edit.target, replace(scene.objects[edit.target], size=edit.new_value))
        case "reshape":
            return replace_object(scene, edit.target, replace(scene.objects[edit.target], shape=edit.new_value))
        case _:
            raise ValueError(f"edit kind {edit.kind!r} is unknown; choose one of {', '.join(EDIT_KINDS)}")


def propose_edit(scene: Scene, rng: Random, *, allowed_pairs: frozenset[Pair] = ALL_PAIRS) -> Edit:
    """A random change that leaves a valid scene with allowed pairs and can be said in words without ambiguity."""
    for _ in range(30):
        edit = _propose_edits(scene, rng.choice(EDIT_KINDS), rng)
        if edit is None:
            continue
        after = apply_edit(scene, edit)
        if is_valid(after) and after.pairs <= allowed_pairs:
            return edit
    return _propose_background(scene, rng)  # always possible


def _propose_edits(scene: Scene, kind: str, rng: Random) -> Edit | None:
    match kind:
        case "background":
            return _propose_background(scene, rng)
        case "add":
            return _propose_add(scene, rng)
    index = rng.randrange(len(scene.objects))
    if not is_distinct(scene, index):
        return None
    item = scene.objects[index]
    match kind:
        case "remove":
            return Edit(kind, index)
        case "recolor":
            return Edit(kind, index, rng.choice([color for color in COLORS if color != item.color]))
        case "reshape":
            return Edit(kind, index, rng.choice([shape for shape in SHAPES if shape != item.shape]))
        case "resize":
            return Edit(kind, index, "small" if item.size == "large" else "large")
        case _:
            raise ValueError(f"edit kind {kind!r} is unknown; choose one of {', '.join(EDIT_KINDS)}")


def _propose_background(scene: Scene, rng: Random) -> Edit:
    return Edit("background", value=rng.choice([name for name in BACKGROUNDS if name != scene.background]))


def _propose_add(scene: Scene, rng: Random) -> Edit | None:
    """A new object with its place in words: relative to one that can be named, or in the picture."""
    if len(scene.objects) == MAX_OBJECTS:
        return None
    size = rng.choice(SIZES)
    position = free_position(size, scene.objects, rng, tries=10)
    if position is None:
        return None
    added = SceneObject(rng.choice(SHAPES), rng.choice(COLORS), size, *position)
    relations = [
        (relation, anchor)
        for anchor, item in enumerate(scene.objects)
        for relation in RELATIONS
        if is_clear(relation, added, item) and is_distinct(scene, anchor)
    ]
    places = [place for place in stated_places(added) if None not in PLACES[place]]
    if relations and (not places or rng.random() < 0.5):
        relation, anchor = rng.choice(relations)
        return Edit("add", added=added, relation=relation, anchor=anchor)
    return Edit("add", added=added, place=rng.choice(places)) if places else None


# Instructions for an edit in words, and whether a picture after an edit shows the change and nothing else.


NUM_PLAIN = 5  # the first templates of each kind are imperatives
POSITION_TOLERANCE = 0.06  # how far an untouched object may seem to have moved, as a share of the side


class Instruction(NamedTuple):
    """An edit in words, and how these name the object that they speak of; None where they name none."""

    text: str
    reference: Filter | None


def choose_reference(scene: Scene, index: int, rng: Random) -> Filter:
    """Attributes that single out an object; mostly the fewest."""
    item = scene.objects[index]
    choices = references(scene, item, loose=True) or [full_filter(item)]
    return choices[0] if rng.random() < 0.6 else rng.choice(choices)


def edit_sentence(edit: Edit, scene: Scene, rng: Random, *, plain: bool = False, pronoun: bool = False) -> Instruction:
    """The instruction for an edit of this scene. A plain one is an imperative; a pronoun calls the only object "it"."""
    slots = {"old": say(scene.background, rng)}
    reference: Filter | None = None
    if edit.index is not None:
        reference = choose_reference(scene, edit.index, rng)
        slots["bare"] = noun_phrase(reference, rng)
        slots["object"] = "it" if pronoun else "the " + slots["bare"]
        slots["Object"] = capitalize(slots["object"])
    if edit.value is not None:
        slots["value"] = say(edit.value, rng)
        slots["a_value"] = with_article(slots["value"])
    if edit.kind == "resize":
        slots["comparative"] = rng.choice(COMPARATIVES[edit.new_value])
        slots["verb"] = rng.choice(VERBS[edit.new_value])
        slots["Verb"] = capitalize(slots["verb"])
    if edit.kind == "add":
        slots["added"] = with_article(noun_phrase(full_filter(edit.new_object), rng))
        slots["where"], reference = say_where(edit, scene, rng)
        slots["Where"] = capitalize(slots["where"])
    templates = EDITS[edit.kind]
    template = rng.choice(templates[:NUM_PLAIN] if plain else templates)
    text = template.format(**slots)
    if not plain:
        text = text[:-1] if text.endswith(".") and rng.random() < 0.15 else text
        text = text.lower() if rng.random() < 0.1 else text
    says_it = pronoun and edit.index is not None and "{bare}" not in template
    return Instruction(text, ANY if says_it else reference)


def say_where(edit: Edit, scene: Scene, rng: Random) -> tuple[str, Filter | None]:
    """Where the new object goes, and how the object is named that it goes next to."""
    if edit.place:
        return say_place(edit.place, rng), None
    relation = say(required(edit.relation, "relation"), rng)
    reference = choose_reference(scene, required(edit.anchor, "anchor"), rng)
    return f"{relation} the {noun_phrase(reference, rng)}", reference


def check_edit(before: Scene, edit: Edit, after: Scene) -> tuple[Verdict, ...]:
    """The change was made and the rest is untouched. An added object may lie anywhere its words allow."""
    expected = apply_edit(before, edit)
    rest = [item for item in after.objects]
    added: SceneObject | None = None
    if edit.kind == "add":
        added = next((item for item in rest if _is_the_added(before, edit, item, rest)), None)
        rest = [item for item in rest if item is not added]
    kept = before.objects if edit.kind == "add" else expected.objects
    changed = None if edit.index is None or edit.kind == "remove" else _changed_object(before, edit)
    made = {
        "background": after.background == expected.background,
        "add": added is not None,
        "remove": len(rest) < len(before.objects),
    }.get(edit.kind, changed is not None and any(_looks_like(changed, item) for item in rest))
    return (
        Verdict("the change was made", made),
        Verdict("the other objects are untouched", _match_all(list(kept), rest, ignore=changed)),
        Verdict("there is nothing else", len(after.objects) == len(expected.objects)),
        Verdict("the background is right", after.background == expected.background),
    )


def _changed_object(before: Scene, edit: Edit) -> SceneObject:
    alone = Scene(before.background, (before.objects[edit.target],))
    return apply_edit(alone, Edit(edit.kind, 0, edit.value)).objects[0]


def _looks_like(expected: SceneObject, found: SceneObject) -> bool:
    same = full_filter(expected).matches(found)
    return same and math.hypot(expected.x - found.x, expected.y - found.y) <= POSITION_TOLERANCE


def _match_all(expected: list[SceneObject], found: list[SceneObject], *, ignore: SceneObject | None) -> bool:
    """Whether every expected object, save the changed one, is found in its place."""
    return all(item == ignore or any(_looks_like(item, other) for other in found) for item in expected)


def _is_the_added(before: Scene, edit: Edit, item: SceneObject, objects: list[SceneObject]) -> bool:
    """Whether an object is the new one: right attributes, where the words say, and none of the old objects."""
    if not full_filter(edit.new_object).matches(item):
        return False
    if any(_looks_like(old, item) for old in before.objects):
        return False
    if edit.place:
        return is_placed(edit.place, item)
    expected = before.objects[required(edit.anchor, "anchor")]
    anchor = next((other for other in objects if _looks_like(expected, other)), None)
    return anchor is not None and holds(required(edit.relation, "relation"), item, anchor)
