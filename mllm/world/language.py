"""Scenes in words: noun phrases, requests to draw with the spec that they state, and descriptions.

In: scenes, and a random generator for the wording. Out: text, and the constraints that it states. The phrases are data
(phrases/*.yaml), read when they are first needed. Questions and edits have files of their own.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import yaml

from mllm.world.scene import (
    ALL_PAIRS,
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    SHAPES,
    SIZES,
    Pair,
    Scene,
    SceneObject,
    main_relation,
    stated_places,
)
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
    Placed,
    Related,
    Spec,
    could_mean,
    enumerate_objects,
    plain_phrase,
)

NUMBER_WORDS = ("zero", "one", "two", "three", "four")
LETTERS = "abcd"  # of the objects in templates
PLAIN_SHARE = 0.88  # how often a word is used as it is rather than replaced by a synonym
DRAWING_WEIGHTS = {
    "full": 60,
    "brief": 8,
    "counting": 8,
    "comparison": 9,  # from here on, many scenes give no occasion and are described fully
    "differentiation": 11,
    "negation": 6,
    "universality": 9,
}
STATEMENT_SHARE = 0.22  # complete sentences rather than noun phrases
SKILL_STATEMENT_SHARE = 0.3  # the same in descriptions that exercise one skill
CANONICAL_SHARE = 0.3  # the first template: "a red circle to the left of a blue square on a white background"
BARE_SHARE = 0.4  # captions without "Draw ..."
MAX_TRIES = 10

MIN_TYPO_LETTERS = 5  # of a mistyped word; of a shorter one too little is left
MIN_CUT_LETTERS = 6  # of a word that may lose a letter
T = TypeVar("T")
Weights = Mapping[str, float]
"""How often which choice is made."""
TYPO_WORDS = re.compile(rf"[A-Za-z]{{{MIN_TYPO_LETTERS},}}")
# Words other than attributes that change what is asked for.
DECISIVE_WORDS = ("background", "larger", "bigger", "smaller", "every", "without", "right", "different")


@cache
def phrases(table: str) -> dict[str, Any]:
    """One of the tables in phrases/."""
    return yaml.safe_load((Path(__file__).parent / "phrases" / f"{table}.yaml").read_text(encoding="utf-8"))


@cache
def canonical_words() -> dict[str, str]:
    """Synonyms of one word, and plurals of nouns, with the word they stand for."""
    synonyms = phrases("words")["synonyms"]
    words = {synonym: word for word, others in synonyms.items() for synonym in others if " " not in synonym}
    nouns = {noun: noun for noun in ("shape", *SHAPES)}
    nouns |= {synonym: word for synonym, word in words.items() if word in nouns}
    return words | {pluralize(noun): word for noun, word in nouns.items()}


def normalize_words(text: str) -> list[str]:
    """Lower-case words with synonyms replaced and plurals undone; sentence marks stay as words of their own."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)?|[0-9]+|[.,:;!?]", text.lower())
    return [canonical_words().get(word, word) for word in words]


def say(word: str, rng: Random) -> str:
    """The word or, now and then, a synonym."""
    words = phrases("words")
    synonyms = words["synonyms"].get(word)
    if synonyms is None or rng.random() < PLAIN_SHARE:
        return words["spoken"].get(word, word)
    return rng.choice(synonyms)


def say_place(place: str, rng: Random) -> str:
    choices = phrases("words")["places"][place]
    return choices[0] if rng.random() < 0.5 else rng.choice(choices)


def pluralize(noun: str) -> str:
    return phrases("words")["plurals"].get(noun, noun + "s")


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def fill(template: str, slots: Mapping[str, str]) -> str:
    """A template in words; a capital first letter of a slot ({Object}) capitalizes what it says."""
    return template.format(**slots, **{capitalize(name): capitalize(words) for name, words in slots.items()})


def pick(weights: Mapping[T, float], rng: Random) -> T:
    return rng.choices(tuple(weights), tuple(weights.values()))[0]


def join(parts: Sequence[str], last: str = " and ") -> str:
    """ "a, b and c"; `last` stands before the last one."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}{last}{parts[-1]}"


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


# Attributes that may refer to an object, the shortest ways first; the first unambiguous one is the plain reference.
REFERENCE_ATTRIBUTES = (("shape",), ("color", "shape"), ("size", "shape"), ("size", "color", "shape"))
LOOSE_ATTRIBUTES = (("color",), ("size",), ("size", "color"))  # "the red shape"


def references(scene: Scene, item: SceneObject, *, without: str | None = None, loose: bool = False) -> list[Filter]:
    """All unambiguous ways to refer to an object by attributes; `without` an attribute that must not be given away."""
    choices = REFERENCE_ATTRIBUTES + (LOOSE_ATTRIBUTES if loose else ())
    filters = [Filter.of(item, names) for names in choices if without not in names]
    return [candidate for candidate in filters if candidate.find_one(scene)]


def choose_reference(choices: Sequence[Filter], rng: Random) -> Filter | None:
    """One of the ways to refer to an object, mostly the shortest; None where there is none."""
    if not choices:
        return None
    return choices[0] if rng.random() < 0.6 else rng.choice(choices)


def add_typo(text: str, rng: Random) -> str:
    """One longer word with two letters exchanged, one doubled or one left out; its first letter stays.

    Number words are left alone and never made: "three" is one typo away from "there".
    """
    words = [found for found in TYPO_WORDS.finditer(text) if found[0].lower() not in NUMBER_WORDS]
    if not words:
        return text
    found = rng.choice(words)
    typed = found[0]
    while typed == found[0] or typed.lower() in NUMBER_WORDS:
        place = rng.randrange(1, len(found[0]) - 1)
        typed = rng.choice(list(_typos_at(found[0], place)))
    return text[: found.start()] + typed + text[found.end() :]


def correct_typos(text: str) -> str:
    """The text with typos in words that say what is in an image corrected; everything else stays."""
    return TYPO_WORDS.sub(lambda found: known_typos().get(found[0].lower(), found[0]), text)


@cache
def known_typos() -> dict[str, str]:
    """Every typo of a decisive word that is no other word, with the word that was meant."""
    known = {"shape", *SHAPES, *COLORS, *BACKGROUNDS, *SIZES, *phrases("words")["synonyms"], *canonical_words()}
    words = known.union(DECISIVE_WORDS)
    meant: dict[str, set[str]] = {}
    for word in words:
        if word.isalpha() and len(word) >= MIN_TYPO_LETTERS:
            for place in range(1, len(word) - 1):
                for typed in _typos_at(word, place):
                    meant.setdefault(typed, set()).add(word)
    other = words.union(NUMBER_WORDS)
    return {typed: min(sources) for typed, sources in meant.items() if len(sources) == 1 and typed not in other}


def _typos_at(word: str, place: int) -> Iterator[str]:
    """Exchange the letter there with the next, double it, leave it out."""
    yield word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    yield word[:place] + word[place] + word[place:]
    if len(word) >= MIN_CUT_LETTERS:
        yield word[:place] + word[place + 1 :]


# ---- templates about a scene ----


class UnsayableError(Exception):
    """Something is not true or not clear in this scene; try other words."""


def need(value: T | None) -> T:
    """The value; raises UnsayableError where there is none or it is false."""
    if not value:
        raise UnsayableError
    return value


class Said(NamedTuple):
    """Words and the constraints that they state."""

    text: str
    constraints: tuple[Constraint, ...] = ()


@dataclass(slots=True)
class Wording:
    """One attempt to put a scene into words: objects in the order a, b, c, d, and what is said of each.

    Slots of templates: {a} {b} {c} {d} objects with their article, {the_a} a reference back, {ab} the relation of a to
    b, {at_a} the place of a, {on} the background phrase, {background} its color, {list} all objects, {number} how many;
    a capital first letter ({The_a}) capitalizes. `extra` adds slots.
    """

    scene: Scene
    objects: Sequence[SceneObject]
    filters: Sequence[Filter]
    rng: Random
    extra: Mapping[str, Said] = field(default_factory=dict)
    _mentioned: list[Filter] = field(default_factory=list)
    _stated: dict[Constraint, None] = field(default_factory=dict)

    def fill(self, template: str) -> Said:
        """The template in words; raises UnsayableError where it does not fit."""
        return Said(template.format_map(self), tuple(self._stated))

    def __getitem__(self, slot: str) -> str:
        words = self.say_slot(slot.lower())
        return capitalize(words) if slot[0].isupper() else words

    def state(self, text: str, *constraints: Constraint) -> str:
        self._stated.update(dict.fromkeys(constraints))
        return text

    def say_slot(self, slot: str) -> str:
        if slot in self.extra:
            return self.state(self.extra[slot].text, *self.extra[slot].constraints)
        background = self.scene.background
        match slot.split("_"):
            case ["on"]:
                text = self.rng.choice(phrases("words")["backgrounds"])
                return self.state(text.format(background=say(background, self.rng)), Background(background))
            case ["background"]:
                return self.state(say(background, self.rng), Background(background))
            case ["number"]:
                number = len(self.scene.objects)
                return self.state(NUMBER_WORDS[number], Count(ANY, number))
            case ["list"]:
                return join([self.mention(index) for index in range(len(self.objects))])
            case ["the", letter]:
                return "the " + self.refer(self.index(letter))
            case ["at", letter]:
                index = self.index(letter)
                place = need(stated_places(self.objects[index]))[0]
                return self.state(say_place(place, self.rng), Placed(index, place))
            case [letter] if len(letter) == 1:
                return self.mention(self.index(letter))
            case [letters]:
                a, b = map(self.index, letters)
                relation = need(main_relation(self.objects[a], self.objects[b]))
                return self.state(say(relation, self.rng), Related(a, relation, b))
        raise KeyError(slot)

    def index(self, letter: str) -> int:
        index = LETTERS.index(letter)
        need(index < len(self.objects))
        return index

    def mention(self, index: int) -> str:
        item = self.filters[index]
        phrase = noun_phrase(item, self.rng)
        text = f"another {phrase}" if item in self._mentioned else with_article(phrase)
        self._mentioned.append(item)
        return self.state(text, Exists(index, item))

    def refer(self, index: int) -> str:
        """A noun phrase that singles out one of the objects as they were described."""
        choices = [Filter.of(self.filters[index], names) for names in REFERENCE_ATTRIBUTES]
        for choice in choices[-1:] if self.rng.random() < 0.3 else choices:
            if sum(could_mean(choice, other) for other in self.filters) == 1:
                return noun_phrase(choice, self.rng)
        raise UnsayableError


# ---- requests to draw ----


class DrawRequest(NamedTuple):
    """What the user says, and what the image must show."""

    text: str
    spec: Spec
    skills: tuple[str, ...]
    kind: str = "full"
    core: str = ""  # the description inside the request
    is_statement: bool = False  # the description is a complete sentence, not a noun phrase


def make_draw_request(
    scene: Scene,
    rng: Random,
    *,
    kind: str | None = None,
    kind_weights: Weights = DRAWING_WEIGHTS,
    allowed_pairs: frozenset[Pair] = ALL_PAIRS,
    statements: bool = True,
) -> DrawRequest:
    """A request that this scene satisfies. Scenes with a held-out pair get a request that names one.

    Most requests describe the scene fully or nearly so; the others exercise one skill each (count, compare, tell apart,
    deny, say "every"). A skill that a scene offers no occasion for falls back to a full description. Without
    `statements`, a full description is always a noun phrase, fit for "Draw ...".
    """
    kind = kind or pick(kind_weights, rng)
    if not scene.pairs.isdisjoint(HELD_OUT_PAIRS):
        kind = "full"
    try:
        core = describe_fully(scene, rng, statements) if kind == "full" else SKILLS[kind](scene, rng, allowed_pairs)
    except UnsayableError:
        kind, core = "full", describe_fully(scene, rng, statements)
    filters = [item.filter for item in core.spec if isinstance(item, Exists | Count)]
    skills = [*core.skills]
    skills += ["attribute"] * any(item.color or item.size for item in filters)
    skills += ["scene"] * any(isinstance(item, Background) for item in core.spec)
    skills += ["spatial relation"] * any(isinstance(item, Related | Placed) for item in core.spec)
    return core._replace(text=say_request(core, rng), skills=tuple(dict.fromkeys(skills)), kind=kind, core=core.text)


def say_request(core: DrawRequest, rng: Random) -> str:
    """Put the description into a request, with the small irregularities of typed text."""
    if core.is_statement:
        text = fill(rng.choice(phrases("draw")["statement_requests"]), {"statement": core.text})
    elif rng.random() < BARE_SHARE:
        text = capitalize(core.text) if rng.random() < 0.4 else core.text
        return text + "." if rng.random() < 0.3 else text
    else:
        text = rng.choice(phrases("draw")["requests"]).format(caption=core.text)
    if text.endswith(".") and rng.random() < 0.25:
        text = text[:-1]
    return text.lower() if rng.random() < 0.1 else text


def describe_fully(scene: Scene, rng: Random, statements: bool) -> DrawRequest:
    """All objects with color and shape, mostly sizes, mostly relations and background."""
    keeps_pairs = not scene.pairs.isdisjoint(HELD_OUT_PAIRS)
    is_statement = statements and rng.random() < STATEMENT_SHARE
    templates = phrases("draw")["statements" if is_statement else "captions"][len(scene.objects)]

    def thin(item: SceneObject) -> Filter:
        size = item.size if rng.random() > 0.1 else None
        return Filter(item.shape, item.color if keeps_pairs or rng.random() > 0.03 else None, size)

    try:
        return compose(scene, rng, templates, thin)._replace(is_statement=is_statement)
    except UnsayableError:
        return compose(scene, rng, ("{list} {on}",), Filter.of)


def describe_briefly(scene: Scene, rng: Random, _: object) -> DrawRequest:
    """Little more than colors and shapes."""
    drops = rng.choice(("size", "size", "size and color"))

    def thin(item: SceneObject) -> Filter:
        return Filter(item.shape, item.color if drops == "size" or rng.random() < 0.4 else None)

    return compose(scene, rng, phrases("draw")["brief"], thin)


def compose(scene: Scene, rng: Random, templates: Sequence[str], thin: Callable[[SceneObject], Filter]) -> DrawRequest:
    """Try templates and orders of the objects until one fits; nothing but the named objects may be there."""
    for attempt in range(MAX_TRIES):
        objects = rng.sample(scene.objects, len(scene.objects))
        wording = Wording(scene, objects, [thin(item) for item in objects], rng)
        is_canonical = attempt == 0 and rng.random() < CANONICAL_SHARE
        try:
            said = wording.fill(templates[0] if is_canonical else rng.choice(templates))
        except UnsayableError:
            continue
        named = Counter(item.filter for item in said.constraints if isinstance(item, Exists))
        if named.total() == len(objects):
            constraints = tuple(dict.fromkeys((*said.constraints, Count(ANY, len(objects)))))
            return DrawRequest(said.text, constraints, ("counting",) if max(named.values()) > 1 else ())
    raise UnsayableError


# ---- requests that exercise one skill: something true of the scene; UnsayableError where it gives no occasion ----


def fill_skill(
    scene: Scene,
    rng: Random,
    skill: str,
    extra: Mapping[str, Said],
    *,
    table: str | None = None,
    always: tuple[Constraint, ...] = (),
    filters: Sequence[Filter] | None = None,
    objects: Sequence[SceneObject] | None = None,
) -> DrawRequest:
    """Fill a caption or statement of a table (default: named like the skill).

    The constraints are those of the slots, and `always` those that every template of the table states.
    """
    objects = objects or scene.objects
    choices = phrases("draw")[table or skill]
    is_statement = "statements" in choices and rng.random() < SKILL_STATEMENT_SHARE
    filters = filters or [Filter(item.shape, item.color) for item in objects]
    for _ in range(4):
        template = rng.choice(choices["statements" if is_statement else "captions"])
        try:
            said = Wording(scene, objects, filters, rng, extra).fill(template)
        except UnsayableError:
            continue
        constraints = [*always, *said.constraints]
        if any(isinstance(item, Exists) for item in said.constraints):
            constraints.append(Count(ANY, len(scene.objects)))
        return DrawRequest(said.text, tuple(dict.fromkeys(constraints)), (skill,), is_statement=is_statement)
    raise UnsayableError


def say_groups(scene: Scene, attributes: tuple[str, ...], rng: Random) -> Said:
    """Objects counted by some of their attributes: "two red circles and a blue square"."""
    counts = Counter(Filter.of(item, attributes) for item in scene.objects)
    order = rng.sample(sorted(counts, key=str), len(counts))
    constraints = [*(Count(item, counts[item]) for item in order), Count(ANY, len(scene.objects))]
    return Said(join([count_phrase(item, counts[item], rng) for item in order]), tuple(dict.fromkeys(constraints)))


def count(scene: Scene, rng: Random, _: object) -> DrawRequest:
    """Say how many there are of each kind; needs more than one of some kind."""
    levels = [("color", "shape"), ("color", "shape"), ("shape",), ("color",), ()]
    number = len(scene.objects)
    fitting = [names for names in levels if len({Filter.of(item, names) for item in scene.objects}) < number]
    need(fitting)
    level = rng.choice([names for names in fitting if names] * 4 + [names for names in fitting if not names])
    return fill_skill(scene, rng, "counting", {"groups": say_groups(scene, level, rng)})


def compare(scene: Scene, rng: Random, _: object) -> DrawRequest:
    """Say which of two objects is larger; more than two are named without sizes before."""
    need(len(scene.objects) > 1)
    if len(scene.objects) > 2:
        order = sorted(rng.sample(scene.objects, len(scene.objects)), key=lambda item: item.size)
        objects = [order[0], order[-1], *order[1:-1]]
        need(objects[0].size != objects[1].size)
        always: tuple[Constraint, ...] = (Compared(0, "larger", 1),)
        return fill_skill(scene, rng, "comparison", {}, table="comparison_among", always=always, objects=objects)
    large, small = sorted(scene.objects, key=lambda item: item.size)
    if large.size == small.size:
        return fill_skill(scene, rng, "comparison", {}, table="same_size", always=(Compared(0, "same size", 1),))
    if large.pair == small.pair:
        shared = Filter.of(large, rng.choice((("shape",), ("shape", "color"), ("shape", "color"))))
        sizes = (replace(shared, size="large"), replace(shared, size="small"))
        noun = Said(noun_phrase(shared, rng), enumerate_objects(sizes))
        return fill_skill(scene, rng, "comparison", {"noun": noun}, table="twins")
    names = ("color", "shape") if large.shape == small.shape or rng.random() < 0.7 else ("shape",)
    kinds = [Filter.of(item, names) for item in (large, small)]
    nouns = [noun_phrase(item, rng) for item in kinds]
    extra: dict[str, Said] = {}
    for ref, (name, word) in enumerate(zip(("larger", "smaller"), nouns, strict=True)):
        named = (Exists(ref, kinds[ref]),)
        extra[name] = Said(with_article(word), named)
        extra[f"the_{name}"] = Said("the " + word)
        extra[f"{name}_noun"] = Said(word, named)
    return fill_skill(scene, rng, "comparison", extra, always=(Compared(0, "larger", 1),), filters=kinds)


def differentiate(scene: Scene, rng: Random, _: object) -> DrawRequest:
    """Say what objects share and then how they differ: "two hearts, one red and one blue"."""
    values = {name: Counter(getattr(item, name) for item in scene.objects) for name in ATTRIBUTES}
    number = len(scene.objects)
    options = [("shape", "color"), ("shape", "size"), ("color", "shape"), ("color", "size")]
    options = [(shared, varied) for shared, varied in options if len(values[shared]) == 1 < len(values[varied])]
    shared, varied = rng.choice(need(options))
    base, counts = Filter.of(scene.objects[0], (shared,)), values[varied]
    always: tuple[Constraint, ...] = (Count(base, number), Count(ANY, number))
    kind = Said(count_phrase(base, number, rng))
    if len(counts) == number and rng.random() < 0.2:
        extra = {"kind": kind, "attribute": Said(varied)}
        always += (Distinct(varied),)
        return fill_skill(scene, rng, "differentiation", extra, table="different", always=always)
    order = rng.sample(sorted(counts), len(counts))
    if varied == "shape":
        ones = [count_phrase(Filter(value), counts[value], rng) for value in order]
    else:
        ones = [f"{NUMBER_WORDS[counts[value]]} {say(value, rng)}" for value in order]
    constraints = tuple(Count(replace(base, **{varied: value}), counts[value]) for value in order)
    extra = {"kind": kind, "ones": Said(join(ones), constraints)}
    return fill_skill(scene, rng, "differentiation", extra, always=always)


def deny(scene: Scene, rng: Random, allowed_pairs: frozenset[Pair]) -> DrawRequest:
    """Say what is there and what is not."""
    first = scene.objects[0]
    if len(scene.objects) == 1 and rng.random() < 0.4:
        if rng.random() < 0.5:
            colors = [name for name in COLORS if name != first.color and (name, first.shape) in allowed_pairs]
            negated = Filter(first.shape, not_color=rng.choice(colors))
        else:
            shapes = [name for name in SHAPES if name != first.shape and (first.color, name) in allowed_pairs]
            negated = Filter(color=first.color, not_shape=rng.choice(shapes))
        said = Said(with_article(noun_phrase(negated, rng)), (Exists(0, negated),))
        return fill_skill(scene, rng, "negation", {"negated": said}, table="negated_object")
    no_colors = [name for name in COLORS if not Filter(color=name).count(scene)]
    no_shapes = [name for name in SHAPES if not Filter(name).count(scene)]
    none = Filter(rng.choice(no_shapes)) if rng.random() < 0.6 else Filter(color=rng.choice(no_colors))
    no_color = rng.choice(no_colors)
    extra = {
        "none": Said(noun_phrase(none, rng, plural=True), (Count(none, 0),)),
        "one": Said(noun_phrase(none, rng), (Count(none, 0),)),
        "groups": say_groups(scene, ("color", "shape") if rng.random() < 0.6 else ("shape",), rng),
        "not_attribute": Said(say(no_color, rng), (Count(Filter(color=no_color), 0),)),
    }
    filters = [Filter.of(item) if rng.random() < 0.6 else Filter(item.shape, item.color) for item in scene.objects]
    return fill_skill(scene, rng, "negation", extra, filters=filters)


def say_every(scene: Scene, rng: Random, _: object) -> DrawRequest:
    """Say what is true of every object."""
    first = scene.objects[0]
    names = ("color", "color", "shape", "size")
    shared = [name for name in names if Filter.of(first, (name,)).count(scene) == len(scene.objects) > 1]
    name = rng.choice(need(shared))
    every = Filter.of(first, (name,))
    plural = Said(noun_phrase(every, rng, plural=True), (Every(every),))
    word = say(getattr(first, name), rng)
    extra = {"plural": plural, "every": Said(with_article(word) if name == "shape" else word, (Every(every),))}
    table = "universality_of_shape" if name == "shape" else None
    return fill_skill(scene, rng, "universality", extra, table=table)


SKILLS: dict[str, Callable[[Scene, Random, frozenset[Pair]], DrawRequest]] = {
    "brief": describe_briefly,
    "counting": count,
    "comparison": compare,
    "differentiation": differentiate,
    "negation": deny,
    "universality": say_every,
}


# ---- descriptions: from left to right in fixed words ----


def describe(scene: Scene, *, short: bool = False) -> str:
    """The description of a scene; a short one leaves out the relations."""
    words, spoken = phrases("describe"), phrases("words")["spoken"]
    on = words["background"].format(background=scene.background)
    listed: list[str] = []
    for item in scene.objects:
        phrase = plain_phrase(Filter.of(item))
        listed.append(f"another {phrase}" if with_article(phrase) in listed else with_article(phrase))
    if short:
        return words["short"].format(List=capitalize(join(listed)), on=on)
    if len(scene.objects) == 1:
        return words["one"].format(list=join(listed), on=on)
    sentences = [words["many"].format(number=NUMBER_WORDS[len(scene.objects)], on=on, list=join(listed))]
    for a, b in pairwise(scene.objects):  # neighbors that can be named and lie clearly apart
        relation, a_names, b_names = main_relation(a, b), references(scene, a), references(scene, b)
        if relation and a_names and b_names:
            names = {"a": plain_phrase(a_names[0]), "b": plain_phrase(b_names[0])}
            sentences.append(words["relation"].format(relation=spoken.get(relation, relation), **names))
    return " ".join(sentences)
