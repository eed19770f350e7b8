"""Requests as people make them: what is meant first, then the words of phrases/people.yaml.

In: scenes and a random generator. Out: turns of a conversation, each with the right answer and its exact meaning in the
form of files of requests (docs/evaluation.md), so that the checker judges every answer. What the world lacks is declined
in words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations
from random import Random
from typing import Any

from mllm.world.dialogue import ImageRef
from mllm.world.grammar import Slot, Typing, alternatives, expand, listed, rule, tidy
from mllm.world.language import NUMBER_WORDS, describe, phrases, pluralize
from mllm.world.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    MAX_OBJECTS,
    MIN_GAP,
    MIN_INSET,
    OPPOSITE,
    PLACES,
    RADIUS,
    RELATIONS,
    SEEN_PAIRS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    Split,
    is_clear,
    is_valid,
    main_relation,
    random_free_position,
    random_scene_for,
    split_of,
    stated_places,
)
from mllm.world.spec import ANY, Filter, find_one, full_filter

VERTICAL = ("above", "below")
FULL = ("size", "color", "shape")
YES = {"yes": ["yes", "no"], "no": ["no", "yes"]}
MAX_TRIES = 40
DECLINES = {
    "thing": "I can only draw circles, squares, triangles, stars, crosses and hearts.",
    "color": "I can't draw that color. I can only use red, orange, yellow, green, blue and purple.",
    "count": "I can't draw that many. I can only draw up to four shapes.",
    "background": "I can't do that background. It can only be white, gray, black or cream.",
    "move": "I can't move shapes. I can only add, remove, recolor, resize and replace them.",
    "rotate": "I can't rotate or mirror shapes. I can only draw them upright.",
    "touch": "I can't draw shapes inside or over each other. I can only draw them side by side.",
    "text": "I can't write text in a picture. I can only draw shapes.",
    "style": "I can't do that. I can only draw flat, plain shapes.",
    "chat": "I can't help with that. I can only draw and talk about pictures of shapes.",
    "missing": "I can't see that in the picture.",
}
ANSWERS = {
    "greet": "Hello! What shall I draw?",
    "thank": "You are welcome!",
    "praise": "I am glad that you like it.",
    "bye": "Goodbye!",
    "okay": "All right. What shall I do next?",
    "dislike": "Sorry. What should be different?",
    "like": "Yes, very much.",
    "who": "I am a small model that draws, describes and edits pictures of flat shapes.",
    "can": "I can draw shapes, answer questions about a picture, describe it and change it.",
    "can draw": "I can draw circles, squares, triangles, stars, crosses and hearts.",
    "can color": "I can use red, orange, yellow, green, blue and purple.",
    "can size": "I can draw small and large shapes.",
    "can background": "The background can be white, gray, black or cream.",
    "can count": "I can draw up to four shapes.",
}


@dataclass(frozen=True, slots=True)
class PeopleTurn:
    """What somebody says, the right answer, and what any answer must be."""

    user: str
    answer: str | Scene
    expect: dict[str, Any]
    shown: Scene | None = None  # an image that comes with the words
    kind: str = ""


@dataclass(slots=True)
class Speaker:
    """Somebody who words what is meant, in a way of their own."""

    rng: Random
    typing: Typing = field(init=False)

    def __post_init__(self) -> None:
        self.typing = Typing.of(self.rng)

    def say(self, name: str, **slots: Slot) -> str:
        """A rule of the grammar."""
        return expand(rule(name), self.rng, slots)

    def choose(self, text: str, **slots: Slot) -> str:
        """The same of alternatives that are written out."""
        return expand(alternatives(text), self.rng, slots)

    def maybe(self, share: float) -> bool:
        return self.rng.random() < share

    # ---- objects ----

    def noun(self, item: Filter, *, plural: bool = False, short: bool = False) -> str:
        """ "small red circle" and what else it may be called; a short one has nothing behind the noun."""
        shape = self.say(item.shape or "shape")
        shape = pluralize(shape) if plural else shape
        shape = shape.replace("crosss", "crosses").replace("boxs", "boxes").replace("pluss", "pluses")
        size, color = (self.say(name) if name else "" for name in (item.size, item.color))
        verb = "are" if plural else "is"
        if item.not_color:
            return f"{shape} that {verb} not {item.not_color}"
        forms = [(f"{size} {color} {shape}", 24.0)]
        if color and size:
            forms += [(f"{color} {size} {shape}", 2), (f"{size}, {color} {shape}", 0.5)]
        if not short:
            if color:
                forms += [
                    (f"{size} {shape} that {verb} {color}", 1),
                    (f"{size} {shape} in {color}", 1),
                    (f"{size} {shape} of {color} {self.say('color')}", 0.7),
                    (f"{shape} {color} {size}", 0.7),
                    (f"{size} {color} {self.say('color')}ed {shape}", 0.7),
                    (f"{size} {shape} with {color} {self.say('color')}", 0.3),
                ]
            if size:
                forms += [(f"{color} {shape} that {verb} {size}", 1), (f"{color} {shape} ({size})", 0.5)]
                forms += [(f"{color} {shape} {size}", 0.7), (f"{color} {shape} of {size} size", 0.3)]
        texts, weights = zip(*forms, strict=True)
        return tidy(self.rng.choices(texts, weights)[0])

    def number(self, count: int) -> str:
        if count == 2 and self.maybe(0.08):
            return self.rng.choice(("a pair of", "a couple of"))
        return self.rng.choice((NUMBER_WORDS[count],) * 3 + (str(count),) * 2)

    def some(self, item: Filter, count: int = 1, *, short: bool = False) -> str:
        """With an article or a number."""
        if count > 1:
            if self.maybe(0.03):
                return f"{count}x {self.noun(item, short=True)}"
            return f"{self.number(count)} {self.noun(item, plural=True, short=short)}"
        article = self.rng.choices(("a", "one", "1", "", "a single"), (70, 10, 5, 9, 1))[0]
        return tidy(f"{article} {self.noun(item, short=short)}")

    def refer(self, scene: Scene, item: SceneObject, *, without: str | None = None) -> str | None:
        """ "the small circle", "the one on the left": words that single out one object; None where there are none."""
        others = [other for other in scene.objects if other is not item]
        names = [("shape",), ("color",), ("size",), ("color", "shape"), ("size", "shape"), ("size", "color")]
        weights = {("shape",): 8, ("color", "shape"): 6, ("color",): 2, ("size", "shape"): 3, ("size",): 1.5}
        choices: list[tuple[Callable[[], str], float]] = []
        for attributes in [*names, FULL]:
            named = Filter(**{name: getattr(item, name) for name in attributes})
            if without not in attributes and find_one(scene, named):
                ones = "shape" not in attributes and self.maybe(0.6)
                said = " ".join(self.say(getattr(item, name)) for name in attributes) + " one"
                choices.append((lambda n=named, o=ones, s=said: s if o else self.noun(n, short=True), weights.get(attributes, 1)))
        if others and without != "size" and all(other.size != item.size for other in others):
            word = "biggest largest bigger larger" if item.size == "large" else "smallest smaller littlest tiniest"
            noun = f"{self.rng.choice(word.split())} {self.rng.choice(('one', 'one', 'shape'))}"
            choices.append((lambda: noun, 2))
        for axis, low, high in (("x", "left", "right"), ("y", "top upper", "bottom lower")):
            for sign, words in ((1, low), (-1, high)):
                at = sign * getattr(item, axis)
                if others and all(sign * getattr(other, axis) - at > 0.15 for other in others):
                    word = self.rng.choice(words.split())
                    most = f"{word}most" if word in ("left", "right") else word
                    where = f"on the {word}" if axis == "x" else f"at the {word}"
                    kind = self.say(item.shape) if self.maybe(0.4) and without != "shape" else "one"
                    choices.append((lambda w=where, m=most, k=kind: self.choose("[" + f"{k} {w}|{m} {k}]"), 1.2))
        for other in others:
            anchor = find_one(scene, Filter(shape=other.shape))
            relation = main_relation(item, other)
            if anchor and relation and without is None and sum(is_clear(relation, o, other) for o in scene.objects) == 1:
                choices.append((lambda r=relation, o=other: f"one {self.say(r)} the {self.say(o.shape)}", 0.3))
        if not choices:
            return None
        texts, weight = zip(*choices, strict=True)
        return f"the {self.rng.choices(texts, weight)[0]()}"

    # ---- the whole sentence ----

    def type(self, text: str, *, asks: bool = False) -> str:
        return self.typing(text, self.rng, asks=asks)


# ---- scenes for what people describe ----


def scene_of(
    kinds: Sequence[tuple[str, str, str]], rng: Random, *, layout: str | None = None, background: str | None = None
) -> Scene | None:
    """A scene of these objects (shape, color, size), anywhere or in a row or a column; None where there is no room."""
    background = background or rng.choice(BACKGROUNDS)
    placed: list[SceneObject] = []
    if layout is None:
        for kind in sorted(kinds, key=lambda kind: kind[2] == "small"):
            position = random_free_position(kind[2], placed, rng, tries=20)
            if position is None:
                return None
            placed.append(SceneObject(*kind, *position))
    else:
        free = 1 - 2 * MIN_INSET - sum(2 * RADIUS[size] for *_, size in kinds) - (MIN_GAP + 0.02) * (len(kinds) - 1)
        if free < 0:
            return None
        cuts = sorted(rng.uniform(0, free) for _ in kinds)
        across, at = rng.uniform(0.3, 0.7), MIN_INSET
        for index, kind in enumerate(kinds):
            radius = RADIUS[kind[2]]
            along = at + radius + cuts[index]
            other = min(max(across + rng.uniform(-0.06, 0.06), radius + MIN_INSET), 1 - radius - MIN_INSET)
            position = (along, other) if layout == "row" else (other, along)
            placed.append(SceneObject(*kind, *(round(value, 4) for value in position)))
            at += 2 * radius + MIN_GAP + 0.02
    scene = Scene(background, tuple(placed))
    return scene if is_valid(scene) else None


# ---- requests to draw ----


def drawn(scene: Scene, filters: Sequence[Filter], **more: Any) -> dict[str, Any]:
    """What an image must show where these objects are named; `relations` between them by their numbers."""
    relations, expect = more.pop("relations", []), {"total": len(scene.objects), "background": None, "none": [], **more}
    unique = list(dict.fromkeys(filters))
    objects = [{**as_record(item), "count": sum(map(item.matches, scene.objects))} for item in unique]
    at = [unique.index(item) for item in filters]
    expect["relations"] = [
        [at[a], relation, at[b]]
        for a, relation, b in relations
        if objects[at[a]]["count"] == objects[at[b]]["count"] == 1
    ]
    return {"scene": {"objects": objects, **expect}}


def as_record(item: Filter) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in ("shape", "color", "size")}
    if item.not_color:
        values["color"] = [name for name in COLORS if name != item.not_color]
    return {name: value for name, value in values.items() if value}


def draw_turn(speaker: Speaker, split: Split) -> tuple[str, Scene, dict[str, Any]]:
    """A request in words, a scene that fits it, and what it asks for."""
    rng = speaker.rng
    forms = {list_objects: 34, relate: 26, group: 14, share: 12, arrange: 9, compare_sizes: 8, leave_open: 8, single: 18}
    while True:
        made = rng.choices(list(forms), list(forms.values()))[0](speaker, split)
        if made is None:
            continue
        text, is_sentence, scene, expect = made
        if split_of(scene) != split or not scene.pairs <= SEEN_PAIRS:
            continue
        background = speaker.say(scene.background)
        said = rng.random()
        if said < 0.42:
            expect["scene"]["background"] = scene.background
        if said < 0.25 and not is_sentence and "\n" not in text:
            text += " " + speaker.say("bgphrase", b=background)
            said = 1.0
        elif said < 0.3 and not is_sentence:
            text = speaker.choose("[on a {b} background[:|,|] {x}|{b} background[, |: |. ]{x}]", b=background, x=text)
            said = 1.0
        text = tidy(speaker.say("sentence", s=text) if is_sentence else speaker.say("draw", x=text))
        if said < 0.42:
            mark = rng.choice((". ", ". ", ", ", "; ", "\n"))
            text = text.rstrip(".") + mark + speaker.say("bgsentence", b=background)
        return text, scene, expect


Drawn = tuple[str, bool, Scene, dict[str, Any]] | None


def random_filters(scene: Scene, speaker: Speaker, order: Sequence[SceneObject]) -> list[Filter]:
    """What is said of each object: mostly shape and color, with sizes for all or for some."""
    level = speaker.rng.choices(("full", "mixed", "color", "shape"), (34, 22, 34, 6))[0]
    made = []
    for item in order:
        size = item.size if level == "full" or (level == "mixed" and speaker.maybe(0.5)) else None
        made.append(Filter(item.shape, None if level == "shape" else item.color, size))
    plain = [replace(item, size=None) for item in made]
    return made if level != "mixed" or len(set(plain)) == len(plain) else plain


def count_groups(filters: Sequence[Filter]) -> list[tuple[Filter, int]]:
    return [(item, filters.count(item)) for item in dict.fromkeys(filters)]


def single(speaker: Speaker, split: Split) -> Drawn:
    """One object, with some of its attributes, perhaps corrected while it is said, perhaps in a place."""
    rng = speaker.rng
    scene = random_scene_for(split, rng, num_objects=1)
    item = scene.objects[0]
    names = rng.choices((FULL, ("color", "shape"), ("size", "shape"), ("shape",), ("color",)), (40, 40, 6, 8, 3))[0]
    named = Filter(**{name: getattr(item, name) for name in names})
    expect = drawn(scene, [named])
    if speaker.maybe(0.14) and "shape" in names:
        name = rng.choice([name for name in names])
        wrong = replace(named, **{name: rng.choice([v for v in ATTRIBUTES[name] if v != getattr(item, name)])})
        if wrong.pair in HELD_OUT_PAIRS:
            return None
        value = speaker.say(getattr(item, name))
        right = f"a {value}" if name == "shape" else rng.choice((value, f"a {value} one"))
        if speaker.maybe(0.3):
            right = speaker.some(named)
        text = speaker.choose(
            "{w}[, no|, no wait|. no wait|, sorry|, sorry i mean|, i mean|, oops i mean|. actually|, actually|, er|"
            ", scratch that|. scratch that|, wait|, or rather|, hmm no|. no][,|] [make that |make it |i mean |*4]{r}",
            w=speaker.some(wrong, short=True), r=right,
        )
        return text, False, scene, expect
    if speaker.maybe(0.12) and len(names) > 1:
        bare = replace(named, color=None, size=None)
        said = [speaker.say(getattr(item, name)) for name in names if name != "shape"]
        rng.shuffle(said)
        rest = " and ".join(said)
        text = speaker.choose(
            "{x}[. it should be | that is |, which should be |, and it should be |. make it |, |. it must be |"
            ". i want it |. the {n} is ]{r}", x=speaker.some(bare), r=rest, n=speaker.say(item.shape))
        return text, False, scene, expect
    text = speaker.some(named)
    places = [place for place in stated_places(item) if None not in PLACES[place]] or list(stated_places(item))
    if places and speaker.maybe(0.3):
        text = f"{text} {speaker.say(places[0])}"
        expect["place"] = places[0]
    elif speaker.maybe(0.1):
        text += rng.choice((" and nothing else", ", nothing else", ", just that", " only", " alone"))
    elif speaker.maybe(0.06):
        text = rng.choice(("just ", "only ", "simply ", "nothing but ")) + text
    return text, False, scene, expect


def list_objects(speaker: Speaker, split: Split) -> Drawn:
    """Several objects in a row of words, alike ones counted, with relations or denials behind them."""
    rng = speaker.rng
    scene = random_scene_for(split, rng, num_objects=rng.choice((2, 2, 2, 3, 3, 4)))
    order = rng.sample(scene.objects, len(scene.objects))
    filters = random_filters(scene, speaker, order)
    groups = count_groups(filters)
    if any(item is not other and item.shape == other.shape and None in (item.color, other.color) and item.color != other.color
           for (item, _), (other, _) in combinations(groups, 2)):
        return None
    late = speaker.maybe(0.16) and all(item.color for item in filters)
    shown = [replace(item, color=None) for item in filters] if late else filters
    if late and len({item.shape for item in shown}) < len(groups):
        return None
    text = listed([speaker.some(item, count) for item, count in count_groups(shown)], rng)
    head = rng.random()
    if len(order) > 1 and head < 0.06:
        number = speaker.number(len(order))
        text = f"{number} {pluralize(speaker.say('shape'))}{rng.choice((': ', ' - ', ', '))}{text}"
    relations: list[tuple[int, str, int]] = []
    if late:
        told = []
        for item, count in groups:
            noun = speaker.noun(Filter(shape=item.shape), plural=count > 1)
            both = "both " if count == 2 and speaker.maybe(0.3) else "all " if count > 2 and speaker.maybe(0.3) else ""
            told.append(speaker.choose(
                "the {n} [should be|must be|has to be|is|in|being] {b}{c}", n=noun, c=speaker.say(item.color), b=both))
        joined = rng.choice((", ", " and ", ", and ")).join(told)
        text += rng.choice((". ", ". ", ", ", "; ", " where ", " with ")) + joined
    elif speaker.maybe(0.3) and len(set(filters)) == len(filters):
        first, second = rng.sample(range(len(order)), 2)
        relation = main_relation(order[first], order[second])
        if relation:
            names = [name_among(speaker, filters, index) for index in (first, second)]
            if None not in names:
                the = rng.choice(("the ", "the ", "the ", ""))
                text += speaker.choose(
                    "[. {a} {r} {b}|, {a} [should be|must be|has to be|is] {r} {b}|. {a} [should be|goes|is|has to be] {r} {b}"
                    "|, with {a} {r} {b}|, {a} {r} {b}|. put {a} {r} {b}|, but {a} has to be {r} {b}]",
                    a=the + str(names[0]), b=the + str(names[1]), r=speaker.say(relation))
                relations.append((first, relation, second))
    none: list[dict[str, Any]] = []
    if speaker.maybe(0.1):
        text, denied = deny(speaker, scene, text)
        none = [as_record(denied)]
    elif speaker.maybe(0.06):
        text += rng.choice((" and nothing else", ", nothing else", ", that's all", ", no more"))
    elif speaker.maybe(0.04):
        text = rng.choice(("just ", "only ", "nothing but ", "exactly ")) + text
    return text, False, scene, drawn(scene, filters, relations=relations, none=none)


def deny(speaker: Speaker, scene: Scene, text: str) -> tuple[str, Filter]:
    """The same with something that must not be there, before it or behind."""
    name = speaker.rng.choice(("shape", "shape", "color"))
    absent = [v for v in ATTRIBUTES[name] if all(getattr(item, name) != v for item in scene.objects)]
    denied = Filter(**{name: speaker.rng.choice(absent)})
    plural = speaker.noun(denied, plural=True, short=True)
    return speaker.choose(
        "[{x}[, but|, and| but| and|,] no {p}|{x}[,|] without [any |]{p}|no {p}[,| please,] [just |only |]{x}|{x}, [please no|and definitely no|"
        "i don't want any|but not a single] {p}|without [any |]{p}: {x}]", x=text, p=plural), denied


def name_among(speaker: Speaker, filters: Sequence[Filter], index: int) -> str | None:
    """How one of the objects just named is referred to."""
    item = filters[index]
    for names in (("shape",), ("color", "shape")):
        part = Filter(**{name: getattr(item, name) for name in names})
        if sum(all(getattr(other, name) == getattr(part, name) for name in names) for other in filters) == 1:
            return speaker.noun(part, short=True)
    return None


def relate(speaker: Speaker, split: Split) -> Drawn:
    """Objects by where they are to each other, in one sentence."""
    rng = speaker.rng
    scene = random_scene_for(split, rng, num_objects=rng.choice((2, 2, 2, 2, 3, 3, 4)))
    order = rng.sample(scene.objects, len(scene.objects))
    filters = random_filters(scene, speaker, order)
    if len(set(filters)) < len(filters):
        return None
    relation = main_relation(order[0], order[1])
    if relation is None:
        return None
    a, b = (speaker.some(item, short=True) for item in filters[:2])
    shared = filters[0].color if filters[0].color == filters[1].color and len(order) == 2 else None
    if shared and speaker.maybe(0.6):
        a, b = (speaker.some(replace(item, color=None), short=True) for item in filters[:2])
    slots: dict[str, Slot] = {"a": a, "b": b, "r": speaker.say(relation), "o": speaker.say(OPPOSITE[relation])}
    slots["i"] = speaker.say(relation.replace(" of", "of") + " it")
    slots["A"], slots["B"] = (speaker.noun(Filter(shape=item.shape)) for item in filters[:2])
    sides = {"left of": ("left", "right"), "right of": ("right", "left"), "above": ("top", "bottom"), "below": ("bottom", "top")}
    slots["p"], slots["q"] = (speaker.say(place) for place in sides[relation])
    forms = (
        "{a} {r} {b}*12|{a} [that is |which is |placed |sitting |located ]{r} {b}*3|{b} with {a} {i}*4|{b} and {a} {i}*3|"
        "{b} and[,|] {i}[,|] {a}*2|{b}[,|.] {i} {a}|{a} {p} and {b} {q}*3|{p} {a}[,| and] {q} {b}*1"
    )
    sentences = (
        "{r} {b} [there is|there should be|i want|put|draw|goes|is] {a}*3|{a} [is|should be|must be|lies|goes] {r} {b}*4|"
        "there [is|should be] {a} {r} {b}*2|put {a} {r} {b}*2|[draw|make] {b}[, then|. then|, and then|. now] [draw|put|add] {a} {i}*3"
    )
    if filters[0].shape != filters[1].shape:
        forms += "|{a} and {b}[, | with ]the {A} {r} the {B}*3|{a}, {b}. {A} {r} {B}[.|]*2|{b}, {a}. the {A} [should be|goes|is] {r} the {B}*2"
    is_sentence = speaker.maybe(0.25) and not shared
    text = speaker.choose(f"[{sentences if is_sentence else forms}]", **slots)
    if shared and slots["a"] == a and speaker.say(shared) not in text and shared not in a + b:
        text += speaker.choose("[, both {c}|, both of them {c}|, both in {c}|. both [should be |are |]{c}|, all {c}|, {c} both]", c=speaker.say(shared))
    relations = [(0, relation, 1)]
    if len(order) > 2:
        rest = []
        for index in range(2, len(order)):
            linked = main_relation(order[index], order[1])
            name = name_among(speaker, filters, 1)
            if linked and name and speaker.maybe(0.6):
                rest.append(f"{speaker.some(filters[index], short=True)} {speaker.say(linked)} the {name}")
                relations.append((index, linked, 1))
            else:
                rest.append(speaker.some(filters[index], short=True))
        text += speaker.choose("[, and |. also |, plus | and |; ]") + listed(rest, rng).strip()
    if "\n" in text:
        return None
    return text, is_sentence, scene, drawn(scene, filters, relations=relations)


def group(speaker: Speaker, split: Split) -> Drawn:
    """Objects that are counted and then told apart: "two stars, one red and one blue"."""
    rng = speaker.rng
    number = rng.choice((2, 2, 2, 3, 3, 4))
    shape, shared = rng.choice(SHAPES), rng.choice(("shape", "shape", "color"))
    if shared == "shape":
        varied = rng.choice(("color", "color", "size"))
        colors = [c for c in COLORS if (c, shape) in SEEN_PAIRS]
        color = rng.choice(colors)
        values = rng.choices(colors, k=number) if varied == "color" else rng.choices(SIZES, k=number)
        kinds = [
            (shape, value, rng.choice(SIZES)) if varied == "color" else (shape, color, value) for value in values
        ]
        base = Filter(shape=shape, color=color if varied == "size" and speaker.maybe(0.7) else None)
    else:
        varied, color = "shape", rng.choice(COLORS)
        values = rng.choices([s for s in SHAPES if (color, s) in SEEN_PAIRS], k=number)
        kinds = [(value, color, rng.choice(SIZES)) for value in values]
        base = Filter(color=color)
    if len(set(values)) == 1:
        return None
    scene = scene_of(kinds, rng)
    if scene is None:
        return None
    counts = [(value, values.count(value)) for value in dict.fromkeys(values)]

    def one(value: str, count: int) -> str:
        if varied == "shape":
            return speaker.some(Filter(shape=value), count, short=True)
        word = speaker.say(value)
        ones = rng.choice(("", "", f" one{'s' * (count > 1)}"))
        which = rng.choice(("one", "one", "a" if ones else "one", "1")) if count == 1 else speaker.number(count)
        return f"{which} {word}{ones}"

    head = speaker.some(base, number, short=True)
    parts = [one(value, count) for value, count in counts]
    words = [speaker.say(value) for value in values]
    filters = [replace(base, **{varied: value}) for value in values]
    expect = drawn(scene, filters)
    ones = rng.choice((" and ", " and ", ", ")).join(parts) if len(parts) == 2 else ", ".join(parts[:-1]) + rng.choice((" and ", ", ")) + parts[-1]
    forms = "{h}[, |: | - |. |; |,]{o}*4|{h} ({o})|{h}, {o} please"
    if len(set(values)) == number and varied == "color":
        forms += "|{h}[: |, |, in | in |. ]{w}*4|{h}[,|] each [one |]a different {c}[: |, |. ]{w}*2"
    if base.color and varied == "size":
        bare = speaker.some(Filter(shape=shape), number, short=True)
        tail = "both" if number == 2 else "all"
        text = f"{bare}, {ones}, {tail}{rng.choice((' of them', ''))} {speaker.say(base.color)}"
        if speaker.maybe(0.5):
            return text, False, scene, expect
    if len(counts) == 2 and varied == "color" and speaker.maybe(0.15):
        value, count = counts[0]
        only = rng.choice(("only ", "just ", ""))
        which = f"{NUMBER_WORDS[count]} of them"
        expect = drawn(scene, [Filter(shape, value), Filter(shape, not_color=value)])
        expect["scene"]["objects"][0]["count"] = count
        text = speaker.choose("{h}[,| but| and|, but] {o}{n} [is |are |]{v}", h=head, o=only, n=which, v=speaker.say(value))
        return text, False, scene, expect
    joined = ", ".join(words[:-1]) + rng.choice((" and ", ", ")) + words[-1]
    if speaker.maybe(0.2):
        joined = " ".join(words)
    if varied == "size" and number > 2 and speaker.maybe(0.4):
        odd = next((value for value, count in counts if count == 1), None)
        if odd:
            other = next(value for value in values if value != odd)
            colored = Filter(shape=shape, size=odd)
            text = f"{speaker.some(colored, short=True)} and {speaker.number(number - 1)} {speaker.say(other)} ones"
            expect = drawn(scene, [Filter(shape=shape, size=value) for value in values])
            if base.color:
                expect = drawn(scene, [Filter(shape, base.color, value) for value in values])
                text += speaker.choose("[. they are all {c}|, all {c}|. all of them [should be |]{c}|. everything {c}]", c=speaker.say(base.color))
            return text, False, scene, expect
    return speaker.choose(f"[{forms}]", h=head, o=ones, w=joined, c=speaker.say("color")), False, scene, expect


def share(speaker: Speaker, split: Split) -> Drawn:
    """What all objects share is said once: "a heart and a circle, both red", "everything green"."""
    rng = speaker.rng
    number, name = rng.choice((2, 2, 2, 3, 3, 4)), rng.choice(("color", "color", "size", "shape", "color and size"))
    color, size, shape = rng.choice(COLORS), rng.choice(SIZES), rng.choice(SHAPES)
    kinds = []
    for _ in range(number):
        kind = (
            shape if name == "shape" else rng.choice(SHAPES),
            color if "color" in name else rng.choice(COLORS),
            size if "size" in name else rng.choice(SIZES),
        )
        kinds.append(kind)
    if any((kind[1], kind[0]) in HELD_OUT_PAIRS for kind in kinds):
        return None
    scene = scene_of(kinds, rng)
    if scene is None:
        return None
    value = {"color": color, "size": size, "shape": shape}.get(name)
    said = speaker.say(value) if value else rng.choice((f"{speaker.say(size)} and {speaker.say(color)}", f"{speaker.say(color)} and {speaker.say(size)}"))
    all_ = "both" if number == 2 else "all"
    if name == "shape":
        if speaker.maybe(0.5):
            expect = drawn(scene, [Filter(shape=shape)])
            noun = speaker.noun(Filter(shape=shape), plural=True)
            return speaker.choose(
                "[{n} {s}[,| -] all [of them |]{p}|only {p}, {n} of them|nothing but {p}, {n} of them|{n} {p}*4|exactly {n} {p}|{p}, {n} of them|{p}, exactly {n}]",
                n=speaker.number(number), s=pluralize(speaker.say("shape")), p=noun), False, scene, expect
        return None
    if speaker.maybe(0.3):
        base = Filter(**({name: value} if value else {"color": color, "size": size}))
        expect = drawn(scene, [base])
        return speaker.choose(
            "[{n} {s}[,| and] all [of them |]{v}|{n} {v} {s}*2|anything[ you like|], [but|as long as it is] {v}, {n} {s}|{n} {s}, any kind[,| but] {v}]",
            n=speaker.number(number), s=pluralize(speaker.say("shape")), v=said), False, scene, expect
    bare = [Filter(kind[0], None if "color" in name else kind[1], None) for kind in kinds]
    filters = [replace(item, **({name: value} if value else {"color": color, "size": size})) for item in bare]
    text = listed([speaker.some(item, count, short=True) for item, count in count_groups(bare)], rng)
    text += speaker.choose(
        "[, {a} {v}*4|, {a} of them {v}*2|. {a} [of them |][should be|must be|have to be|are] {v}*3|, {a} in {v}|, everything {v}|. make [them|{a}|them {a}] {v}*2|, {v}]",
        a=all_, v=said)
    return text, False, scene, drawn(scene, filters)


def arrange(speaker: Speaker, split: Split) -> Drawn:
    """A row from left to right, or a stack from top to bottom, or a place for each."""
    rng = speaker.rng
    number, layout = rng.choice((2, 3, 3, 3, 4)), rng.choice(("row", "column"))
    kinds = [(*rng.choice(sorted(SEEN_PAIRS))[::-1], rng.choice(SIZES if number < 4 else ("small",))) for _ in range(number)]
    if speaker.maybe(0.3):
        kinds = [(kinds[0][0], kind[1], kind[2]) for kind in kinds]
    if len({kind[:2] for kind in kinds}) < number or any((k[1], k[0]) in HELD_OUT_PAIRS for k in kinds):
        return None
    scene = scene_of(kinds, rng, layout=layout)
    if scene is None:
        return None
    filters = [Filter(shape, color) for shape, color, _ in kinds]
    if speaker.maybe(0.3):
        filters = [Filter(*kind) for kind in kinds]
    relation = "left of" if layout == "row" else "above"
    relations = [(index, relation, index + 1) for index in range(number - 1)]
    parts = [speaker.some(item, short=True) for item in filters]
    one_shape = len({kind[0] for kind in kinds}) == 1
    if one_shape and speaker.maybe(0.7):
        parts = [speaker.say(kind[1]) for kind in kinds]
        filters = [Filter(shape, color) for shape, color, _ in kinds]
    ends = ("on the left", "on the right") if layout == "row" else ("at the top", "at the bottom")
    head = speaker.some(Filter(shape=kinds[0][0]), number, short=True) if one_shape else ""
    flow = {"row": "[from left to right|left to right|in a row|side by side|next to each other|in a line]",
            "column": "[from top to bottom|top to bottom|stacked from top to bottom|stacked|on top of each other from top to bottom|in a column from top to bottom|one above the other]"}[layout]
    joined = ", ".join(parts[:-1]) + rng.choice((" and ", ", ", ", then ")) + parts[-1]
    if speaker.maybe(0.15):
        joined = " ".join(parts)
    forms = [f"{{j}}[,|] {flow}", f"{flow}[:|,|] {{j}}", f"{{h}}[,|:|] {flow}[:|,|] {{j}}" if head else f"{flow} [i want|i need|put|there is] {{j}}"]
    middle = "in the middle" if number == 3 else None
    if middle or number == 2:
        spots = [ends[0], middle, ends[1]] if middle else [ends[0], ends[1]]
        after = "below that" if layout == "column" else "next to it"
        if middle and speaker.maybe(0.4):
            spots[1] = after
        told = [f"{part} {spot}" for part, spot in zip(parts, spots, strict=True)]
        forms += ["{h}[: |, |. ]{t}" if head else "{t}"] * 2
    else:
        told = parts
    text = speaker.choose(rng.choice(forms), j=joined, h=head, t=rng.choice((", ", ", ", " and ")).join(told))
    return tidy(text).strip(":, "), False, scene, drawn(scene, filters, relations=relations)


def compare_sizes(speaker: Speaker, split: Split) -> Drawn:
    """Which one is larger, instead of sizes."""
    rng = speaker.rng
    scene = random_scene_for(split, rng, num_objects=2)
    a, b = rng.sample(scene.objects, 2)
    if a.shape == b.shape:
        return None
    names = rng.choice((("shape",), ("color", "shape"), ("color", "shape")))
    filters = [Filter(**{name: getattr(item, name) for name in names}) for item in (a, b)]
    texts = [speaker.some(item, short=True) for item in filters]
    nouns = [speaker.say(item.shape) for item in (a, b)]
    if a.size == b.size:
        text = speaker.choose(
            "[{a} and {b}[,|] [both |][the same size|of the same size|equally big]|{a} and {b}, same size|{a} as big as {b}|{a} and {b}. [they|both] should have the same size]",
            a=texts[0], b=texts[1])
        return text, False, scene, drawn(scene, filters)
    word, relation = ("bigger larger", "larger than") if a.size == "large" else ("smaller tinier", "smaller than")
    text = speaker.choose(
        "[{a} [that is |which is |]{m} than {b}*3|{a} and {b}[,|.| but|, but] the {A} [should be|must be|has to be|is|being] {m}[ than the {B}|]*4|"
        "{b} and a {m} {c}*2|{b}, and {a} that is {m}|{a} and {b} [where|with] the {A} {m} than the {B}]".replace("with] the {A} {m}", "with] the {A} being {m}"),
        a=texts[0], b=texts[1], A=nouns[0], B=nouns[1], m=rng.choice(word.split()), c=speaker.noun(filters[0], short=True))
    any_color = rng.choice((". colors don't matter", ", any color", ", colors are your choice", ", colour doesn't matter"))
    text += any_color if names == ("shape",) and speaker.maybe(0.2) else ""
    return text, False, scene, drawn(scene, filters, relations=[(0, relation, 1)])


def leave_open(speaker: Speaker, split: Split) -> Drawn:
    """Little is said: only hearts, anything red, three shapes of your choice, none of them blue."""
    rng = speaker.rng
    form = rng.choice(("only shape", "only color", "number", "not color", "any", "different"))
    number = rng.choice((1, 2, 2, 3, 3, 4))
    shape, color = rng.choice(SHAPES), rng.choice(COLORS)
    colors = [c for c in COLORS if (c, shape) in SEEN_PAIRS]
    shapes = [s for s in SHAPES if (color, s) in SEEN_PAIRS]
    free = [(*rng.choice(sorted(SEEN_PAIRS))[::-1], rng.choice(SIZES)) for _ in range(number)]
    match form:
        case "only shape":
            kinds = [(shape, rng.choice(colors), size) for _, _, size in free]
            text = speaker.choose(
                "[only {p}|nothing but {p}|[a few|some] {p}|{p}[,| -] [as many as you like|any number|i don't care how many|you choose how many]|just {p}, nothing else]",
                p=speaker.noun(Filter(shape=shape), plural=True))
        case "only color":
            kinds = [(rng.choice(shapes), color, size) for _, _, size in free]
            text = speaker.choose(
                "[something {c}|anything {c}|only {c} shapes|some {c} shapes|whatever you like, but {c}|everything in {c}]", c=speaker.say(color))
        case "number":
            kinds = free
            text = speaker.choose(
                "[{n} {s}|{n} {s}[,|] [any|whichever you like|of your choice|you choose which|random ones]|any {n} {s}|{n} random {s}]",
                n=speaker.number(number) if number > 1 else "one", s=pluralize(speaker.say("shape")) if number > 1 else speaker.say("shape"))
        case "not color":
            kinds = [(shape, rng.choice([c for c in colors if c != color]), size) for _, _, size in free]
            if number == 1 or (color, shape) in HELD_OUT_PAIRS:
                return None
            text = speaker.choose(
                "{n} {p}[,| but|, but|, any color,] [none of them {c}|no {c} ones|not {c}|none in {c}|except {c}|everything but {c}]",
                n=speaker.number(number), p=speaker.noun(Filter(shape=shape), plural=True), c=speaker.say(color))
        case "different":
            if number < 2:
                return None
            varied = rng.choice(("color", "shape"))
            if varied == "color":
                kinds = [(shape, c, size) for c, (_, _, size) in zip(rng.sample(colors, number), free, strict=True)]
            else:
                kinds = [(s, color, size) for s, (_, _, size) in zip(rng.sample(shapes, number), free, strict=True)]
            base = speaker.noun(Filter(shape=shape) if varied == "color" else Filter(color=color), plural=True, short=True)
            text = speaker.choose(
                "{n} {p}[,|] [of different {v}s|in different {v}s|all different {v}s|each [one |]of a different {v}|no two of the same {v}]",
                n=speaker.number(number), p=base, v=speaker.say("color") if varied == "color" else "shape")
        case _:
            kinds = free
            text = rng.choice(("something", "anything", "anything you like", "a random picture", "something nice", "whatever you want", "a surprise", "some shapes"))
    scene = scene_of(kinds, rng)
    if scene is None:
        return None
    match form:
        case "only shape":
            expect = drawn(scene, [], total=None, none=[{"shape": s} for s in SHAPES if s != shape])
        case "only color":
            expect = drawn(scene, [], total=None, none=[{"color": c} for c in COLORS if c != color])
        case "not color":
            expect = drawn(scene, [Filter(shape=shape)], none=[{"color": color}])
        case "different":
            expect = drawn(scene, [Filter(shape=shape) if varied == "color" else Filter(color=color)])
        case _:
            expect = drawn(scene, [], total=len(scene.objects) if form == "number" else None)
            if form == "any":
                expect["scene"]["none"] = []
    return text, False, scene, expect


# ---- changes ----


def changed(
    scene: Scene, updates: dict[int, SceneObject | None], *, added: Sequence[SceneObject] = (), background: str | None = None
) -> Scene | None:
    """The scene with objects replaced or removed; None where that is none of this world."""
    kept = [updates.get(index, item) for index, item in enumerate(scene.objects)]
    after = Scene(background or scene.background, (*(item for item in kept if item), *added))
    return after if is_valid(after) and after.pairs <= SEEN_PAIRS and after != scene else None


def kept(before: Scene, after: Scene, *, said: Sequence[Filter] = (), relation: tuple[Filter, str, Filter] | None = None) -> dict[str, Any]:
    """What an image must show after a change; `said` is how added objects were described."""
    olds = [item for item in after.objects if item in before.objects or not said]
    filters = [*map(full_filter, olds), *said]
    relations = []
    if relation:
        index = {item: at for at, item in enumerate(filters)}
        relations = [(index[relation[0]], relation[1], index[relation[2]])]
    gone = dict.fromkeys(full_filter(item) for item in before.objects if item not in after.objects)
    background = after.background if after.background != before.background else None
    expect = drawn(after, filters, relations=relations, background=background)
    return {**expect, "keeps": True, "changes": [as_record(item) for item in gone]}


Changed = tuple[str, Scene, dict[str, Any]]


def change_turn(speaker: Speaker, scene: Scene, split: Split) -> Changed:
    """A change of this scene in words, the scene after it, and what any image of it must show."""
    forms = {change_one: 40, change_set: 18, change_but: 12, add_one: 17, change_background: 11, change_twice: 10, relate_two: 8}
    for _ in range(400):
        made = speaker.rng.choices(list(forms), list(forms.values()))[0](speaker, scene)
        if made is not None and split_of(made[1]) == split:
            return made
    raise UnchangeableError


class UnchangeableError(Exception):
    """No change was found that stays in the split; try another scene."""


def order_change(speaker: Speaker, name: str, **slots: Slot) -> str:
    """An imperative within its frame, or another way to say it."""
    if speaker.maybe(0.68):
        return speaker.say("change frame", c=speaker.say("background change" if name == "background" else name, **slots))
    return speaker.say(f"{name} said", **slots)


def say_change(speaker: Speaker, kind: str, target: str, value: str | Filter | None, *, plural: bool = False) -> str:
    """One change of what is named."""
    slots: dict[str, Slot] = {"t": target, "bare": target.removeprefix("the ")}
    if target in ("it", "this", "that", "this one", "them", "both", "all of them", "everything"):
        slots["bare"] = target
    if kind == "resize":
        return order_change(speaker, "larger" if value == "large" else "smaller", **slots)
    if isinstance(value, Filter):
        slots["v"] = speaker.noun(value, plural=True, short=True) if plural else speaker.choose("[a*6|one] {n}", n=speaker.noun(value, short=True))
    elif value:
        slots["v"] = speaker.say(value)
    return order_change(speaker, kind, **slots)


def propose(speaker: Speaker, items: Sequence[SceneObject]) -> tuple[str, str | Filter | None, list[SceneObject | None]] | None:
    """A kind of change for objects, its value, and the objects after it."""
    rng = speaker.rng
    kind = rng.choices(("recolor", "remove", "resize", "reshape"), (34, 24, 22, 20))[0]
    match kind:
        case "remove":
            return kind, None, [None] * len(items)
        case "recolor":
            color = rng.choice(COLORS)
            return (kind, color, [replace(item, color=color) for item in items]) if all(i.color != color for i in items) else None
        case "resize":
            size = rng.choice(SIZES)
            return (kind, size, [replace(item, size=size) for item in items]) if all(i.size != size for i in items) else None
        case _:
            shape = rng.choice(SHAPES)
            if any(item.shape == shape for item in items):
                return None
            color = rng.choice(COLORS) if rng.random() < 0.25 else None
            value = Filter(shape, color)
            return kind, value, [replace(item, shape=shape, color=color or item.color) for item in items]


def change_one(speaker: Speaker, scene: Scene) -> Changed | None:
    item = speaker.rng.choice(scene.objects)
    proposed = propose(speaker, [item])
    if proposed is None:
        return None
    kind, value, (new,) = proposed
    after = changed(scene, {scene.objects.index(item): new})
    if after is None:
        return None
    target = speaker.refer(scene, item)
    if len(scene.objects) == 1 and speaker.maybe(0.6):
        target = speaker.rng.choice(("it", "it", "it", "this", "that"))
    if target is None:
        return None
    text = say_change(speaker, kind, target, value)
    others = [other for other in scene.objects if other is not item]
    if others and speaker.maybe(0.12):
        other = speaker.rng.choice(others)
        name = speaker.refer(scene, other)
        rest = "the other one" if len(others) == 1 and speaker.maybe(0.5) else name if len(others) == 1 else "the rest"
        if rest:
            keep = speaker.say("keep", k=rest)
            text = speaker.choose("[{t}[, but| and|,|.] {k}*3|{k}[, but| and|,|.] {t}]", t=text, k=keep)
    elif kind == "recolor" and speaker.maybe(0.08):
        text += speaker.choose("[, not|. not|, instead of] {o}", o=speaker.say(item.color))
    return text, after, kept(scene, after)


def matching(scene: Scene, rng: Random) -> tuple[Filter, list[int]] | None:
    """Two or more objects that a shape, a color or a size singles out."""
    name = rng.choice(("shape", "shape", "color", "size"))
    value = getattr(rng.choice(scene.objects), name)
    found = [index for index, item in enumerate(scene.objects) if getattr(item, name) == value]
    return (Filter(**{name: value}), found) if len(found) > 1 else None


def change_set(speaker: Speaker, scene: Scene) -> Changed | None:
    """All of them, both circles, every red one, the ones that are not red."""
    rng, number = speaker.rng, len(scene.objects)
    if number < 2:
        return None
    form = rng.choice(("all", "match", "match", "not"))
    if form == "all":
        chosen = list(range(number))
        target = "[all of them*4|them all*2|everything*2|all*1|all the shapes*2|every shape|each one|the shapes|them*2|every one of them]"
        target = "[both*3|both of them*3|both shapes*2|the two|them*2]" if number == 2 and speaker.maybe(0.7) else target
        target = speaker.choose(target)
    elif form == "not":
        name = rng.choice(("color", "shape"))
        value = getattr(rng.choice(scene.objects), name)
        chosen = [index for index, item in enumerate(scene.objects) if getattr(item, name) != value]
        if not chosen or len(chosen) == number:
            return None
        word = speaker.say(value) if name == "color" else f"a {speaker.say(value)}"
        one = "the one that's not|the one which isn't" if len(chosen) == 1 else "everything that's not|all that are not|every shape that isn't|the ones that aren't"
        target = speaker.choose(f"[{one}] {{w}}", w=word)
    else:
        found = matching(scene, rng)
        if found is None:
            return None
        base, chosen = found
        noun = speaker.noun(base, plural=True, short=True) if base.shape or speaker.maybe(0.5) else f"{speaker.say(base.color or base.size or '')} ones"
        single_noun = noun.removesuffix("s") if not noun.endswith("sses") else noun.removesuffix("es")
        target = speaker.choose(
            "[{b} {n}*3|{b} the {n}|{b} of the {n}|the two {n}|the {n}*2]" if len(chosen) == 2 else "[all the {n}*3|the {n}*3|all {n}*2|every {s}|each {s}|all of the {n}]",
            n=noun, s=single_noun, b="both")
    items = [scene.objects[index] for index in chosen]
    proposed = propose(speaker, items)
    if proposed is None or (proposed[0] == "remove" and len(chosen) == number):
        return None
    after = changed(scene, dict(zip(chosen, proposed[2], strict=True)))
    if after is None:
        return None
    return say_change(speaker, proposed[0], target, proposed[1], plural=len(chosen) > 1), after, kept(scene, after)


def change_but(speaker: Speaker, scene: Scene) -> Changed | None:
    """Everything except one, the other one, the rest; or that one is all that stays."""
    rng, number = speaker.rng, len(scene.objects)
    if number < 2:
        return None
    index = rng.randrange(number)
    item = scene.objects[index]
    found = matching(scene, rng) if speaker.maybe(0.2) else None
    stays = found[1] if found else [index]
    name = "the " + speaker.noun(found[0], plural=True, short=True) if found else speaker.refer(scene, item)
    chosen = [at for at in range(number) if at not in stays]
    if name is None or not chosen:
        return None
    proposed = propose(speaker, [scene.objects[at] for at in chosen])
    if proposed is None:
        return None
    kind, value, new = proposed
    after = changed(scene, dict(zip(chosen, new, strict=True)))
    if after is None:
        return None
    if kind == "remove":
        return speaker.say("change frame", c=speaker.say("only", k=name)), after, kept(scene, after)
    if speaker.maybe(0.4):
        keep = speaker.say("keep", k=name)
        rest = "the other one" if len(chosen) == 1 else rng.choice(("the others", "the rest", "the other ones", "everything else", "all the others"))
        change = say_change(speaker, kind, rest, value, plural=len(chosen) > 1)
        text = speaker.choose("[{k}[, but| and|,|. but|.] {c}|{c}[, but| and|,|.] {k}]", k=keep, c=change)
        return text, after, kept(scene, after)
    target = speaker.choose(
        "[everything|all|all of them|all shapes|every shape|every one|all the shapes] [except*3|but*2|except for*2|other than|apart from|besides|save] {k}", k=name)
    return say_change(speaker, kind, target, value, plural=len(chosen) > 1), after, kept(scene, after)


def add_one(speaker: Speaker, scene: Scene) -> Changed | None:
    rng = speaker.rng
    if len(scene.objects) == MAX_OBJECTS:
        return None
    size, (color, shape) = rng.choice(SIZES), rng.choice(sorted(SEEN_PAIRS))
    if speaker.maybe(0.2):
        color, shape = rng.choice(scene.objects).pair
    position = random_free_position(size, scene.objects, rng, tries=20)
    if position is None:
        return None
    new = SceneObject(shape, color, size, *position)
    after = changed(scene, {}, added=[new])
    if after is None:
        return None
    said = Filter(shape, color, size if speaker.maybe(0.6) else None)
    noun = speaker.noun(said, short=True)
    alike = any(item.shape == shape for item in scene.objects)
    article = rng.choices(("a", "one", "another", "one more", "a second"), (60, 8, 22, 12, 4))[0] if alike else rng.choice(("a",) * 6 + ("one",))
    slots: dict[str, Slot] = {"a": f"{article} {noun}", "w": ""}
    relation = None
    anchors = [
        (relation, item) for item in scene.objects for relation in RELATIONS if is_clear(relation, new, item)
    ]
    places = [place for place in stated_places(new) if None not in PLACES[place]]
    form = rng.random()
    if anchors and form < 0.55:
        side, anchor = rng.choice(anchors)
        name = speaker.refer(scene, anchor)
        if name is None:
            return None
        if len(scene.objects) == 1 and speaker.maybe(0.5):
            slots["w"] = speaker.say(side.replace(" of", "of") + " it")
        else:
            slots["w"] = f"{speaker.say(side)} {name}"
        relation = (said, side, full_filter(anchor))
    elif places and form < 0.75:
        slots["w"] = speaker.say(places[0])
    expect = kept(scene, after, said=[said], relation=relation)
    return order_change(speaker, "add", **slots), after, expect


def change_background(speaker: Speaker, scene: Scene) -> Changed | None:
    color = speaker.rng.choice([name for name in BACKGROUNDS if name != scene.background])
    after = replace(scene, background=color)
    return order_change(speaker, "background", v=speaker.say(color)), after, kept(scene, after)


def change_twice(speaker: Speaker, scene: Scene) -> Changed | None:
    """Two changes in one sentence."""
    first_form, second_form = (speaker.rng.choice((change_one, change_one, add_one, change_background, change_set)) for _ in range(2))
    first = first_form(speaker, scene)
    second = second_form(speaker, first[1]) if first else None
    if first is None or second is None or "it" in second[0].split() or len(second[1].objects) == 0:
        return None
    if first_form is second_form is change_background or any(v["keeps"] is False for v in (first[2], second[2])):
        return None
    touched = [item for item in second[1].objects if item not in scene.objects]
    before_kept = [item for item in scene.objects if item in first[1].objects]
    if first_form is change_one and second_form is change_one and len(before_kept) - len([i for i in before_kept if i in second[1].objects]) == 0 and len(touched) > 1:
        return None
    text = first[0] + speaker.choose("[ and |, and |, then | and then |. also |. then | and also |, and then | and after that |. and |; ]") + second[0]
    if speaker.maybe(0.1):
        text += ". " + speaker.say("keep", k=speaker.rng.choice(("the rest", "everything else", "the others")))
    added = [form is add_one for form in (first_form, second_form)]
    said = [Filter(**{k: v for k, v in made[2]["scene"]["objects"][-1].items() if k != "count"}) for made, is_added in zip((first, second), added, strict=True) if is_added]
    if any(added) and not all(item in (*scene.objects, *second[1].objects) for item in second[1].objects):
        return None
    fresh = [item for item in second[1].objects if item not in scene.objects]
    if any(added) and len(fresh) != len(said):
        return None
    return text, second[1], kept(scene, second[1], said=said)


def relate_two(speaker: Speaker, scene: Scene) -> Changed | None:
    """Exchange what two objects have, or give one what the other has."""
    rng = speaker.rng
    if len(scene.objects) < 2:
        return None
    a, b = rng.sample(scene.objects, 2)
    attribute = rng.choice(("color", "color", "size", "shape"))
    if getattr(a, attribute) == getattr(b, attribute):
        return None
    names = [speaker.refer(scene, item, without=attribute) for item in (a, b)]
    if None in names:
        return None
    plural = {"color": f"{speaker.say('color')}s", "size": "sizes", "shape": "shapes"}[attribute]
    slots: dict[str, Slot] = {"a": str(names[0]), "b": str(names[1]), "attributes": plural, "attribute": plural.removesuffix("s")}
    new_a = replace(a, **{attribute: getattr(b, attribute)})
    new_b = replace(b, **{attribute: getattr(a, attribute)})
    at = scene.objects.index(a), scene.objects.index(b)
    if speaker.maybe(0.5):
        after = changed(scene, {at[0]: new_a, at[1]: new_b})
        if after is None:
            return None
        if len(scene.objects) == 2 and speaker.maybe(0.5):
            slots["their"] = "their"
            text = speaker.choose("[[swap|switch|exchange] [their {attributes}*3|the {attributes}*2|the two {attributes}|the {attributes} of both]]", **slots)
        else:
            text = speaker.say("swap", **slots, their=f"the {plural} of {names[0]} and {names[1]}").replace(f" {plural} of {names[0]} and {names[1]} {plural}", f" {plural} of {names[0]} and {names[1]}")
    else:
        after = changed(scene, {at[0]: new_a})
        if after is None:
            return None
        if len(scene.objects) == 2 and speaker.maybe(0.3):
            slots["b"] = "the other one"
        if attribute == "size" and speaker.maybe(0.7):
            text = speaker.say("as big as", **slots, v="big" if b.size == "large" else "small")
        else:
            text = speaker.say("same as", **slots)
    return speaker.say("change frame", c=text), after, kept(scene, after)


def correct_turn(speaker: Speaker, scene: Scene, split: Split) -> Changed | None:
    """Somebody takes back a word of what is in the picture: "sorry, i meant green"."""
    rng = speaker.rng
    for _ in range(MAX_TRIES):
        item, name = rng.choice(scene.objects), rng.choice(("color", "color", "shape", "size"))
        old, new = getattr(item, name), rng.choice(ATTRIBUTES[name])
        if old == new:
            continue
        after = changed(scene, {scene.objects.index(item): replace(item, **{name: new})})
        if after is None or split_of(after) != split:
            continue
        is_only = sum(getattr(other, name) == old for other in scene.objects) == 1
        value, was = speaker.say(new), speaker.say(old)
        a_value, a_was = (f"a {value}", f"a {was}") if name == "shape" else (value, was)
        start = speaker.say("correct") if speaker.maybe(0.8) else ""
        if len(scene.objects) == 1 and speaker.maybe(0.6):
            text = speaker.choose("[{s} <meant> {v}*4|{s} <meant> {v}, not {w}|{s} not {w}, {v}|{s} {v}[ please| instead|]*2|{s} it should be {v}*2|{s} make it {v}|{s} {v}, not {w}]", s=start, v=a_value, w=a_was)
        elif is_only and speaker.maybe(0.4):
            text = speaker.choose("[{s} i said {w} but i [meant|wanted|want] {v}*2|{s} {v} instead of {w}*2|{s} not {w}, {v}|{s} <meant> {v}, not {w}*3]", s=start, v=a_value, w=a_was)
        else:
            target = speaker.refer(scene, item, without=name)
            if target is None:
                continue
            text = speaker.choose("{s} [|i mean |i meant |actually ][{t} should be {v}*3|{t} [must be|has to be|was supposed to be|should have been] {v}|i wanted {t} {v}][, not {w}|]", s=start, t=target, v=a_value, w=a_was)
        return text, after, kept(scene, after)
    return None


# ---- questions ----


Asked = tuple[str, str, list[str]]  # words, the right answer, words of which any answer must hold one


def ask_turn(speaker: Speaker, scene: Scene) -> Asked:
    """A question about the picture with its one right answer."""
    forms = {
        ask_count: 18, ask_exists: 12, ask_attribute: 20, ask_background: 6, ask_related: 14, ask_side: 8, ask_super: 10,
        ask_compared: 8, ask_same: 8, ask_lists: 10, ask_where: 6,
    }
    while True:
        asked = speaker.rng.choices(list(forms), list(forms.values()))[0](speaker, scene)
        if asked is None:
            continue
        text, right = asked
        plain = text[:3] not in ("is ", "are", "do ", "doe") or not speaker.maybe(0.1)
        words = text if plain else f"i wonder if {text}"
        if plain:
            words = speaker.say("ask frame", q=text, i=text)
        return words, right, words_for(right)


def words_for(right: str) -> list[str]:
    """The right answer and other words for it."""
    if right.isdigit():
        return [right, NUMBER_WORDS[int(right)], *(["no", "none"] if right == "0" else [])]
    others = {"gray": ["grey"], "below": ["under", "beneath"], "above": ["over"], "circle": ["disk"], "cross": ["plus"]}
    return [right, *others.get(right, [])]


def yes(value: bool) -> str:
    return "yes" if value else "no"


def some_filter(speaker: Speaker, scene: Scene) -> Filter:
    """What may be counted or looked for: what is there, or nearly so, or something else."""
    rng = speaker.rng
    item = rng.choice(scene.objects)
    names = rng.choice((("shape",), ("shape",), ("color",), ("color",), ("color", "shape"), ("size", "shape"), ("size",), FULL))
    values = {name: getattr(item, name) for name in names}
    if rng.random() < 0.4:
        name = rng.choice(names)
        values[name] = rng.choice(ATTRIBUTES[name])
    made = Filter(**values)
    return made if made.pair not in HELD_OUT_PAIRS else Filter(shape=made.shape)


def ask_count(speaker: Speaker, scene: Scene) -> tuple[str, str] | None:
    rng = speaker.rng
    form = rng.random()
    wanted = ANY if form < 0.25 else some_filter(speaker, scene)
    if form > 0.85:
        item = rng.choice(scene.objects)
        wanted = Filter(shape=item.shape)
        number = sum(other.shape == item.shape and other.color != item.color for other in scene.objects)
        color = speaker.say(item.color)
        noun = speaker.noun(wanted, plural=True)
        return speaker.choose("how many [of the {p} are not {c}|{p} are not {c}|{p} are there that are not {c}|of the {p} aren't {c}]", p=noun, c=color), str(number)
    number = sum(map(wanted.matches, scene.objects))
    plural, one = speaker.noun(wanted, plural=True, short=True), speaker.noun(wanted, short=True)
    if 0.25 < form < 0.35:
        return speaker.say("more than one", p=plural, n=one), yes(number > 1)
    if form > 0.75 and len({item.shape for item in scene.objects}) > 1:
        a, b = rng.sample(sorted({item.shape for item in scene.objects}), 2)
        counts = [sum(item.shape == shape for item in scene.objects) for shape in (a, b)]
        names = [speaker.noun(Filter(shape=shape), plural=True) for shape in (a, b)]
        return speaker.choose("[are there more {a} than {b}|do you see more {a} than {b}|is the number of {a} greater than that of {b}]", a=names[0], b=names[1]), yes(counts[0] > counts[1])
    return speaker.say("count", p=plural), str(number)


def ask_exists(speaker: Speaker, scene: Scene) -> tuple[str, str] | None:
    wanted = some_filter(speaker, scene)
    there = yes(any(map(wanted.matches, scene.objects)))
    if wanted.shape is None:
        return speaker.say("exists thing", c=" ".join(speaker.say(w) for w in (wanted.size, wanted.color) if w)), there
    return speaker.say("exists", n=speaker.noun(wanted), p=speaker.noun(wanted, plural=True)), there


def ask_attribute(speaker: Speaker, scene: Scene) -> tuple[str, str] | None:
    name = speaker.rng.choice(("color", "color", "shape", "size"))
    item = speaker.rng.choice(scene.objects)
    target = speaker.refer(scene, item, without=name)
    if len(scene.objects) == 1 and speaker.maybe(0.5):
        if name == "shape" and speaker.maybe(0.5):
            return speaker.say("what is it"), item.shape
        target = speaker.rng.choice(("it", "it", "this", "that"))
    if target is None:
        return None
    return speaker.say(f"{name} of", t=target), getattr(item, name)


def ask_background(speaker: Speaker, scene: Scene) -> tuple[str, str]:
    if speaker.maybe(0.6):
        return speaker.say("background of"), scene.background
    color = speaker.rng.choice((scene.background, speaker.rng.choice(BACKGROUNDS)))
    return speaker.say("is background", b=speaker.say(color)), yes(color == scene.background)


def ask_related(speaker: Speaker, scene: Scene) -> tuple[str, str] | None:
    """Is it above? What is above it?"""
    rng = speaker.rng
    if len(scene.objects) < 2:
        return None
    a, b = rng.sample(scene.objects, 2)
    relation, name = main_relation(a, b), speaker.refer(scene, b)
    if relation is None or name is None:
        return None
    if speaker.maybe(0.5):
        first = speaker.refer(scene, a)
        asked = relation if speaker.maybe(0.5) else OPPOSITE[relation]
        return first and (speaker.say("related", a=first, b=name, r=speaker.say(asked)), yes(asked == relation))
    others = [item for item in scene.objects if item not in (a, b)]
    if any(is_clear(relation, item, b) or (main_relation(item, b) in (relation, None)) for item in others):
        return None
    attribute = "color" if speaker.maybe(0.3) else "shape"
    table = "color related" if attribute == "color" else "what is related"
    return speaker.say(table, r=speaker.say(relation), b=name), getattr(a, attribute)


def ask_side(speaker: Speaker, scene: Scene) -> tuple[str, str] | None:
    if len(scene.objects) < 2:
        return None
    a, b = speaker.rng.sample(scene.objects, 2)
    relation = main_relation(a, b)
    names = [speaker.refer(scene, item) for item in (a, b)]
    if relation is None or None in names:
        return None
    direction = speaker.say("vertical" if relation in VERTICAL else "horizontal")
    return speaker.say("either", a=str(names[0]), b=str(names[1]), d=direction), relation.removesuffix(" of")


def ask_super(speaker: Speaker, scene: Scene) -> tuple[str, str] | None:
    """The smallest, the leftmost, what is in a place."""
    rng = speaker.rng
    if len(scene.objects) < 2:
        return None
    if speaker.maybe(0.4):
        kinds = [
            ("size", size, word) for size, word in (("large", "biggest"), ("large", "largest"), ("small", "smallest"), ("small", "tiniest"))
        ]
        _, size, word = rng.choice(kinds)
        found = [item for item in scene.objects if item.size == size]
        if len(found) != 1:
            return None
        item = found[0]
    else:
        axis, sign, words = rng.choice((("x", 1, "leftmost"), ("x", -1, "rightmost"), ("y", 1, "topmost highest top upper"), ("y", -1, "lowest bottom lower")))
        order = sorted(scene.objects, key=lambda item: sign * getattr(item, axis))
        if sign * (getattr(order[1], axis) - getattr(order[0], axis)) < 0.15:
            return None
        item, word = order[0], rng.choice(words.split())
        if speaker.maybe(0.6):
            places = {("x", 1): "left", ("x", -1): "right", ("y", 1): "top", ("y", -1): "bottom"}
            place = places[axis, sign]
            if place in stated_places(item) and not any(place in stated_places(other) for other in order[1:]):
                return speaker.say("at place", w=speaker.say(place), super=word), item.shape
    if speaker.maybe(0.35):
        return speaker.say("super color", super=word), item.color
    return speaker.say("super shape", super=word), item.shape


def ask_compared(speaker: Speaker, scene: Scene) -> tuple[str, str] | None:
    if len(scene.objects) < 2:
        return None
    a, b = speaker.rng.sample(scene.objects, 2)
    names = [speaker.refer(scene, item, without="size") for item in (a, b)]
    if None in names:
        return None
    more = speaker.maybe(0.6)
    word = speaker.rng.choice(("bigger", "larger") if more else ("smaller",))
    slots = {"a": str(names[0]), "b": str(names[1]), "m": word}
    if a.size != b.size and a.shape != b.shape and speaker.maybe(0.4):
        slots["m"] = speaker.rng.choice((word, {"bigger": "the bigger one", "larger": "the larger one", "smaller": "the smaller one"}[word]))
        return speaker.say("which compare", **slots), (a if (a.size == "large") == more else b).shape
    return speaker.say("compare", **slots), yes(a.size != b.size and (a.size == "large") == more)


def ask_same(speaker: Speaker, scene: Scene) -> tuple[str, str] | None:
    """Whether two are alike, whether all are."""
    rng = speaker.rng
    if len(scene.objects) < 2:
        return None
    attribute = rng.choice(("color", "color", "size", "size", "shape"))
    word = speaker.say("color") if attribute == "color" else attribute
    if speaker.maybe(0.4):
        a, b = rng.sample(scene.objects, 2)
        names = [speaker.refer(scene, item, without=attribute) for item in (a, b)]
        if None in names:
            return None
        text = speaker.say("same two", a=str(names[0]), b=str(names[1]), attribute=word)
        return text, yes(getattr(a, attribute) == getattr(b, attribute))
    found = matching(scene, rng) if speaker.maybe(0.6) else (ANY, list(range(len(scene.objects))))
    if found is None or getattr(found[0], attribute):
        return None
    items = [scene.objects[index] for index in found[1]]
    noun = speaker.noun(found[0], plural=True, short=True)
    all_ = speaker.choose("[both {n}*3|the two {n}*2|the {n}*2]" if len(items) == 2 else "[all {n}|all the {n}|the {n}]", n=noun)
    if found[0] == ANY and speaker.maybe(0.5):
        all_ = rng.choice(("they", "both", "both of them") if len(items) == 2 else ("they", "they all", "all of them"))
    values = {getattr(item, attribute) for item in items}
    if speaker.maybe(0.35):
        value = rng.choice([*values, rng.choice(ATTRIBUTES[attribute])])
        if attribute == "shape":
            return None
        return speaker.say("all are", all=all_, v=speaker.say(value)), yes(values == {value})
    return speaker.say("same all", all=all_, attribute=word, attributes=f"{word}s"), yes(len(values) == 1)


def ask_lists(speaker: Speaker, scene: Scene) -> tuple[str, str]:
    """Which colors, which shapes there are."""
    name = speaker.rng.choice(("color", "color", "shape"))
    found = list(dict.fromkeys(getattr(item, name) for item in scene.objects))
    right = found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"
    return speaker.say("which colors" if name == "color" else "which shapes"), right


def ask_where(speaker: Speaker, scene: Scene) -> tuple[str, str] | None:
    item = speaker.rng.choice(scene.objects)
    places, name = stated_places(item), speaker.refer(scene, item)
    if not places or name is None:
        return None
    first = phrases("words")["places"][places[0]][0]
    return speaker.say("where", t=name), first


# ---- what lies outside, and talk ----


def decline_turn(speaker: Speaker, scene: Scene | None) -> tuple[str, str]:
    """A request for what this world lacks, and the honest answer; about the picture where there is one."""
    rng = speaker.rng
    drawing = {"thing": 16, "shape": 10, "color": 18, "count": 12, "list": 5, "background": 7, "rotate": 3, "touch": 8, "text": 6, "style": 10, "chat": 5}
    editing = {"color": 14, "thing": 6, "shape": 7, "fifth": 10, "background": 8, "move": 22, "rotate": 14, "touch": 8, "text": 5, "styling": 10}
    forms = editing if scene is not None and speaker.maybe(0.75) else drawing
    form = rng.choices(list(forms), list(forms.values()))[0]
    reason = {"shape": "thing", "list": "count", "fifth": "count", "styling": "style"}.get(form, form)
    if form == "fifth" and scene is not None and len(scene.objects) < MAX_OBJECTS and not speaker.maybe(0.0):
        return decline_turn(speaker, scene)
    text = outside_words(speaker, form, scene, is_edit=forms is editing)
    return text, DECLINES[reason]


def outside_words(speaker: Speaker, form: str, scene: Scene | None, *, is_edit: bool) -> str:
    rng = speaker.rng
    color, shape = rng.choice(sorted(SEEN_PAIRS))
    named = Filter(shape, color, rng.choice((None, *SIZES)))
    other_color, other_shape = rng.choice(sorted(SEEN_PAIRS))
    one, other = speaker.some(named, short=True), speaker.some(Filter(other_shape, other_color), short=True)
    if scene is not None and is_edit:
        item = rng.choice(scene.objects)
        target = speaker.refer(scene, item) or "them"
        target = rng.choice(("it", target)) if len(scene.objects) == 1 else target
    else:
        target = speaker.noun(Filter(shape), short=True)
        target = f"the {target}"
    adjective = speaker.say(rng.choice(SIZES)) if speaker.maybe(0.25) else ""
    slots: dict[str, Slot] = {"t": target, "x": one, "y": other, "n": speaker.noun(Filter(shape, color), short=True)}
    many = speaker.say("count outside")
    match form:
        case "thing":
            text = speaker.say("thing")
            if speaker.maybe(0.15):
                text = listed([text, one] if speaker.maybe(0.5) else [one, text], rng)
        case "shape":
            text = f"a {adjective} {speaker.say(color) if speaker.maybe(0.7) else ''} {speaker.say('shape outside')}"
            if speaker.maybe(0.25):
                text = listed([text, one] if speaker.maybe(0.5) else [one, text], rng)
        case "color":
            text = f"{rng.choice(('a', 'a', 'one', ''))} {adjective} {speaker.say('color outside')} {speaker.noun(Filter(shape))}"
            if speaker.maybe(0.2):
                text = f"{rng.choice(('two', '3', 'three'))} {speaker.say('color outside')} {speaker.noun(Filter(shape), plural=True)}"
            if speaker.maybe(0.25):
                text = listed([text, one] if speaker.maybe(0.5) else [one, text], rng)
            if is_edit and speaker.maybe(0.8):
                return say_change(speaker, "recolor", target, None).strip() if False else order_change(speaker, "recolor", t=target, v=speaker.say("color outside"), bare=target)
        case "count":
            text = f"{many} {speaker.noun(rng.choice((Filter(shape, color), Filter(shape), ANY, Filter(color=color))), plural=True)}"
            if speaker.maybe(0.15):
                text += f", {rng.choice(('all', 'all of them', 'each a different'))} {rng.choice((speaker.say(color), 'color', 'in a row'))}"
        case "list":
            pairs = [rng.choice(sorted(SEEN_PAIRS)) for _ in range(rng.choice((5, 5, 6)))]
            text = listed([speaker.some(Filter(shape, color), short=True) for color, shape in pairs], rng)
            if speaker.maybe(0.4):
                counts = rng.choice(((3, 2), (2, 3), (3, 3), (4, 1), (4, 2), (2, 2, 1), (4, 4), (1, 4)))
                text = listed([speaker.some(Filter(shape, color), count, short=True) for count, (color, shape) in zip(counts, pairs, strict=False)], rng)
        case "fifth":
            many = speaker.choose("[another*3|one more*2|a fifth*2|two more*2|three more|a]")
            noun = speaker.noun(Filter(shape, color), short=True, plural=many in ("two more", "three more"))
            return order_change(speaker, "add", a=f"{many} {noun}", w="")
        case "background":
            value = speaker.say("background outside")
            if is_edit:
                return order_change(speaker, "background", v=value)
            text = one + " " + speaker.say("bgphrase", b=value)
        case "move" | "styling" | "rotate":
            said = speaker.say(form, **slots, a=target)
            return said if "tilted" in said else speaker.say("change frame", c=said)
        case "text" | "chat":
            said = speaker.say("chat outside" if form == "chat" else form)
            return said if form == "chat" or speaker.maybe(0.5) else speaker.say("change frame", c=said)
        case _:
            text = speaker.say(form, **slots)
    if is_edit and form in ("thing", "shape", "color"):
        if form == "shape" and speaker.maybe(0.4):
            return order_change(speaker, "reshape", t=target, v=f"a {speaker.say('shape outside')}", bare=target)
        return order_change(speaker, "add", a=text, w=speaker.choose("[*3|{r} {t}]", r=speaker.say(rng.choice(RELATIONS)), t=target))
    return speaker.say("draw", x=text)


def talk_turn(speaker: Speaker, after: str | None) -> tuple[str, str, list[str]]:
    """Small talk: words, the answer, and words of which any answer must hold one."""
    rng = speaker.rng
    weights = {"greet": 12, "thank": 8, "praise": 5, "bye": 6, "okay": 4, "like": 5, "who": 6, "can": 8, "can draw": 6, "can color": 2, "can size": 1, "can background": 1, "can count": 2, "dislike": 1}
    if after in ("draw", "edit"):
        weights |= {"thank": 34, "praise": 22, "bye": 10, "okay": 6, "greet": 1, "dislike": 4}
    elif after is not None:
        weights |= {"thank": 20, "okay": 10, "bye": 8, "greet": 1}
    kind = rng.choices(list(weights), list(weights.values()))[0]
    needed = {"can": ["draw", "shapes"], "can draw": ["circles", "shapes"], "can color": ["red"], "can count": ["four", "4"]}
    text = speaker.say(kind)
    if kind in ("can", "can draw", "who", "like") and speaker.maybe(0.15):
        text = f"{speaker.say('greet')} {text}"
    return text, ANSWERS[kind], needed.get(kind, [])


# ---- conversations ----


KINDS = ("draw", "ask", "describe", "edit", "chat", "outside", "talk", "again")
NEW = (
    "[new picture|new drawing|another picture|another one|next one|a new one|next picture|new image|now a new picture|start over|from scratch|"
    "forget that|forget this one|clear everything|something else|something different|a different picture|now something different|let's start again|"
    "let's do a new one|fresh start|new page|instead|no, something else|now draw something new][:*3|, please:|. *2|, *2| - ]"
)
AGAIN = "[now*5|next*2|and now*3|ok now*3|great, now*2|then|and|also|nice, now|thanks, now|thanks. now|good. next|cool, and|perfect. now|ok then|fine, then|and then|after that|for the next picture][ |, ]"


def make_people(kind: str, rng: Random, split: Split = "train", *, max_turns: int = 6) -> list[PeopleTurn]:
    """The turns of one conversation of a kind."""
    while True:
        try:
            return _make(kind, Speaker(rng), split, max_turns)
        except UnchangeableError:
            continue


def _make(kind: str, speaker: Speaker, split: Split, max_turns: int) -> list[PeopleTurn]:
    rng = speaker.rng
    scene: Scene | None = None
    shown: Scene | None = None
    if kind in ("ask", "describe", "edit") or (kind == "chat" and speaker.maybe(0.3)) or (kind == "outside" and speaker.maybe(0.35)):
        scene = shown = random_scene_for(split, rng)
        if kind == "outside" and speaker.maybe(0.3):
            scene = shown = random_scene_for(split, rng, num_objects=MAX_OBJECTS)
    if kind == "chat":
        return converse(speaker, split, rng.randint(2, max_turns), shown)
    turns: list[PeopleTurn] = []
    if kind == "again":
        first = random_scene_for(split, rng) if speaker.maybe(0.3) else None
        for number in range(rng.choice((2, 3))):
            turns.append(draw(speaker, split, is_again=number > 0))
        return [replace(turns[0], shown=first), *turns[1:]] if first else turns
    if kind in ("talk", "outside") or scene is None:
        made = {"draw": lambda: draw(speaker, split), "talk": lambda: talk(speaker, None), "outside": lambda: decline(speaker, scene)}[kind]()
        return [replace(made, shown=shown)]
    turns.append(replace(respond(speaker, kind, scene, split), shown=shown))
    for _ in range(rng.choice((0, 0, 1, 2, 3)) if kind == "ask" else 0):
        turns.append(respond(speaker, kind, scene, split))
    return turns


def draw(speaker: Speaker, split: Split, *, is_again: bool = False) -> PeopleTurn:
    text, scene, expect = draw_turn(speaker, split)
    expect.pop("place", None)
    if is_again:
        opening = speaker.rng.random()
        if opening < 0.35:
            text = speaker.choose(NEW) + text
        elif opening < 0.7:
            text = speaker.choose(AGAIN) + text
    return PeopleTurn(speaker.type(text, asks=text[:3] in ("can", "cou", "wou", "wil", "may")), scene, expect, kind="again" if is_again else "draw")


def respond(speaker: Speaker, kind: str, scene: Scene, split: Split) -> PeopleTurn:
    """A turn about the picture."""
    match kind:
        case "ask":
            words, right, any_of = ask_turn(speaker, scene)
            none_of = YES[right][1:] if right in YES else []
            expect = {"text": {"any_of": any_of, "none_of": none_of}, "no_picture": True}
            return PeopleTurn(speaker.type(words, asks=True), right, expect, kind="ask")
        case "describe":
            short = speaker.maybe(0.2)
            words = describe(scene, short=short)
            expect = {"text": {"any_of": [scene.objects[0].shape], "none_of": [s for s in SHAPES if all(i.shape != s for i in scene.objects)]}, "no_picture": True}
            return PeopleTurn(speaker.type(speaker.say("caption" if short else "describe"), asks=speaker.maybe(0.3)), words, expect, kind="describe")
        case "correct":
            made = correct_turn(speaker, scene, split) or change_turn(speaker, scene, split)
        case _:
            made = change_turn(speaker, scene, split)
    text, after, expect = made
    return PeopleTurn(speaker.type(text, asks=text[:3] in ("can", "cou", "wou")), after, expect, kind="edit")


def decline(speaker: Speaker, scene: Scene | None) -> PeopleTurn:
    text, right = decline_turn(speaker, scene)
    return PeopleTurn(speaker.type(text, asks=text[:3] in ("can", "cou", "wou")), right, {"decline": True}, kind="outside")


def talk(speaker: Speaker, after: str | None) -> PeopleTurn:
    text, right, any_of = talk_turn(speaker, after)
    expect: dict[str, Any] = {"no_picture": True}
    if any_of:
        expect["text"] = {"any_of": any_of}
    return PeopleTurn(speaker.type(text), right, expect, kind="talk")


def converse(speaker: Speaker, split: Split, num_turns: int, shown: Scene | None) -> list[PeopleTurn]:
    """A conversation: pictures, changes, questions, corrections, thanks, what cannot be done, and new pictures."""
    rng = speaker.rng
    scene, before = shown, None  # what is in the last picture, and in the one before it
    turns: list[PeopleTurn] = []
    while len(turns) < num_turns:
        last = turns[-1].kind if turns else None
        if scene is None:
            weights = {"draw": 60, "talk": 22, "outside": 14}
        else:
            weights = {"edit": 34, "ask": 20, "describe": 4, "draw": 17, "talk": 12, "outside": 8, "correct": 8 if last in ("draw", "again", "edit") else 0, "undo": 2 if last == "edit" and before else 0, "show": 3 if turns else 0}
        if not turns and shown is not None:
            weights = {"edit": 40, "ask": 40, "describe": 10, "outside": 6, "draw": 4}
        if len(turns) == num_turns - 1 and turns:
            weights["talk"] = 26
        kind = rng.choices(list(weights), list(weights.values()))[0]
        new: Scene | None = None
        match kind:
            case "draw":
                turn = draw(speaker, split, is_again=scene is not None)
                if last == "outside" and speaker.maybe(0.5):
                    start = speaker.choose("[ok|okay|fine|ok then|alright|then|too bad, then|well then|fine, then|ok, in that case][ |, ]")
                    turn = replace(turn, user=start + turn.user[:1].lower() + turn.user[1:])
            case "talk":
                turn = talk(speaker, "draw" if last in ("draw", "again", "edit") else last)
            case "outside":
                turn = decline(speaker, scene)
            case "undo":
                assert scene is not None and before is not None
                turn = PeopleTurn(speaker.type(speaker.say("undo")), before, {"scene": drawn(before, [full_filter(i) for i in before.objects], background=before.background)["scene"]}, kind="edit")
            case "show":
                new = random_scene_for(split, rng)
                turn = replace(respond(speaker, rng.choice(("ask", "edit", "describe")), new, split), shown=new)
            case _:
                assert scene is not None
                turn = respond(speaker, kind, scene, split)
        if new is not None:
            scene, before = new, None
        if isinstance(turn.answer, Scene):
            scene, before = turn.answer, scene if turn.kind == "edit" and kind != "undo" else None
        turns.append(turn)
    if shown is not None:
        turns[0] = replace(turns[0], shown=shown)
    return turns


def as_item(turns: Sequence[PeopleTurn], *, id: str, kind: str) -> dict[str, Any]:
    """A conversation as a line of a file of requests."""
    first = turns[0].shown
    image = first and {
        "background": first.background,
        "objects": [{name: getattr(item, name) for name in ("shape", "color", "size", "x", "y")} for item in first.objects],
    }
    return {"id": id, "kind": kind, "image": image, "turns": [{"user": turn.user, "expect": turn.expect} for turn in turns]}


def to_parts(turns: Sequence[PeopleTurn]) -> list[tuple[str, tuple[str | ImageRef, ...]]]:
    """(role, parts) of every message."""
    made: list[tuple[str, tuple[str | ImageRef, ...]]] = []
    for turn in turns:
        made.append(("user", (*([ImageRef(turn.shown)] if turn.shown else []), turn.user)))
        made.append(("assistant", (turn.answer if isinstance(turn.answer, str) else ImageRef(turn.answer),)))
    return made
