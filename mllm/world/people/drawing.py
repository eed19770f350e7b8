"""Requests to draw in people's words: a scene, what is said of it, and what an image of these words must show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from random import Random
from typing import Any, NamedTuple

from mllm.world.grammar import FULL, Speaker, in_row, tidy
from mllm.world.language import UnsayableError, need
from mllm.world.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    MAX_OBJECTS,
    MIN_GAP,
    MIN_INSET,
    OPPOSITE,
    RADIUS,
    SEEN_PAIRS,
    SIDES,
    SIZES,
    Scene,
    SceneObject,
    Split,
    is_clear,
    is_valid,
    main_relation,
    place_freely,
    place_in_corners,
    random_scene_for,
    split_of,
    stated_places,
)
from mllm.world.spec import ANY, Filter

KINDS = [Filter(shape, color, size) for color, shape in sorted(SEEN_PAIRS) for size in SIZES]
"""Everything that training sees."""


class Drawn(NamedTuple):
    """What is said, a scene that fits it, and what an image must show."""

    text: str
    scene: Scene
    expect: dict[str, Any]
    is_sentence: bool = False  # not a noun phrase


def draw_turn(speaker: Speaker, split: Split, *, frame: str = "draw") -> tuple[str, Scene, dict[str, Any]]:
    """A request in words, a scene that fits it, and what it asks for.

    Args:
        frame: the rule that makes a request of a noun phrase.
    """
    while True:
        text, scene, expect, is_sentence = speaker.attempt(EXCESSIVE if speaker.exceeds else FORMS, split)
        if speaker.exceeds or split_of(scene) == split:
            break
    slots, names_background = {"b": speaker.say(scene.background)}, speaker.maybe(0.42)
    in_phrase = not is_sentence and "\n" not in text and speaker.maybe(0.71)
    if names_background:
        expect["scene"]["background"] = scene.background
        text = speaker.say("background in phrase", x=text, **slots) if in_phrase else text
    text = tidy(speaker.say("sentence" if is_sentence else frame, x=text, s=text))
    if names_background and not in_phrase:
        text = speaker.say("background in sentence", x=text.rstrip("."), **slots)
    return text, scene, expect


def scene_of(kinds: Sequence[Filter], rng: Random, *, layout: str | None = None) -> Scene:
    """A scene of these objects, anywhere or in a row or a column; UnsayableError where that cannot be.

    More objects than an image can have lie over each other: they are spoken of, not drawn.
    """
    background, values = rng.choice(BACKGROUNDS), [(kind.shape, kind.color, kind.size) for kind in kinds]
    if len(kinds) > MAX_OBJECTS:
        return Scene(background, tuple(SceneObject(*value, rng.random(), rng.random()) for value in values))
    if layout is None:
        placed = place_freely(values, rng, tries=20) or place_in_corners(values, rng)
    else:
        placed, gap = (), MIN_GAP + 0.02
        free = 1 - 2 * MIN_INSET - sum(2 * RADIUS[kind.size] for kind in kinds) - gap * (len(kinds) - 1)
        need(free >= 0)
        across, at = rng.uniform(0.3, 0.7), MIN_INSET
        for cut, value in zip(sorted(rng.uniform(0, free) for _ in kinds), values, strict=True):
            radius = RADIUS[value[2]]
            low, other = radius + MIN_INSET, across + rng.uniform(-0.06, 0.06)
            position = round(at + radius + cut, 4), round(min(max(other, low), 1 - low), 4)
            placed += (SceneObject(*value, *(position if layout == "row" else position[::-1])),)
            at += 2 * radius + gap
    scene = Scene(background, placed)
    need(is_valid(scene))
    return scene


def drawn(
    scene: Scene, filters: Sequence[Filter], *, relations: Iterable[tuple[int, str, int]] = (), **more: Any
) -> dict[str, Any]:
    """What an image must show where these objects are named; `relations` between them by their numbers."""
    unique = list(dict.fromkeys(filters))
    objects = [{**as_record(item), "count": item.count(scene)} for item in unique]
    at = [unique.index(item) for item in filters]
    single = [[at[a], r, at[b]] for a, r, b in relations if objects[at[a]]["count"] == objects[at[b]]["count"] == 1]
    expect = {"objects": objects, "total": len(scene.objects), "background": None, "none": [], **more}
    return {"scene": {**expect, "relations": single}}


def as_record(item: Filter) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in ATTRIBUTES}
    if item.not_color:
        values["color"] = [name for name in COLORS if name != item.not_color]
    return {name: value for name, value in values.items() if value}


def random_filters(speaker: Speaker, order: Sequence[SceneObject | Filter]) -> list[Filter]:
    """What is said of each object: mostly shape and color, with sizes for all or for some."""
    level = speaker.pick({"full": 34, "mixed": 22, "color": 34, "shape": 6})
    names = ("shape",) if level == "shape" else ("color", "shape")
    plain = [Filter.of(item, names) for item in order]
    if level == "full":
        return list(map(Filter.of, order))
    if level == "mixed" and len(set(plain)) == len(plain):
        return [Filter.of(item) if speaker.maybe(0.5) else Filter.of(item, names) for item in order]
    return plain


def random_kinds(rng: Random, number: int, like: Filter = ANY, *, differ: str | None = None) -> list[Filter]:
    """Shapes, colors and sizes of objects that a description fits; no two alike in the attribute that must differ."""
    kinds = [kind for kind in KINDS if like.matches(kind)]
    if differ is None:
        return rng.choices(kinds, k=number)
    rng.shuffle(kinds)
    different = list({getattr(kind, differ): kind for kind in kinds}.values())
    need(len(different) >= number)
    return different[:number]


def some_scene(
    speaker: Speaker, split: Split, numbers: Sequence[int], *, distinct: bool = True
) -> tuple[Scene, list[SceneObject], list[Filter]]:
    """A scene, its objects in the order in which they are named, and what is said of each."""
    rng, number = speaker.rng, speaker.how_many(numbers)
    is_drawn = number <= MAX_OBJECTS
    scene = random_scene_for(split, rng, num_objects=number) if is_drawn else scene_of(random_kinds(rng, number), rng)
    order = rng.sample(scene.objects, number)
    filters = random_filters(speaker, order)
    need(not distinct or len(set(filters)) == number)
    return scene, order, filters


def list_filters(speaker: Speaker, filters: Iterable[Filter], *, long: bool = False) -> str:
    """Several objects in a row of words, alike ones counted."""
    return speaker.listed([speaker.some(item, count, long=long) for item, count in Counter(filters).items()])


def name_among(speaker: Speaker, filters: Sequence[Filter], index: int) -> str:
    """How one of the objects just named is referred to; UnsayableError where no few words single it out."""
    for names in (("shape",), ("color", "shape")):
        part = Filter.of(filters[index], names)
        if sum(Filter.of(other, names) == part for other in filters) == 1:
            return speaker.noun(part)
    raise UnsayableError


def another(rng: Random, name: str, items: Iterable[SceneObject | Filter]) -> str:
    """A value of an attribute that none of the objects has; UnsayableError where there is none."""
    taken = {getattr(item, name) for item in items}
    return rng.choice(need([value for value in ATTRIBUTES[name] if value not in taken]))


# ---- forms of requests ----


def single(speaker: Speaker, split: Split) -> Drawn:
    """One object, with some of its attributes, perhaps corrected while it is said, perhaps in a place."""
    rng = speaker.rng
    scene = random_scene_for(split, rng, num_objects=1)
    (item,) = scene.objects
    names = speaker.pick({FULL: 40, ("color", "shape"): 40, ("size", "shape"): 6, ("shape",): 8, ("color",): 3})
    named = Filter.of(item, names)
    text = speaker.some(named, long=True)
    match speaker.pick({"": 44, "place": 23, "nothing else": 8, "corrected at once": 14, "attributes later": 11}):
        case "place":
            text = f"{text} {speaker.say(need(stated_places(item))[0])}"
        case "nothing else":
            text = speaker.say("nothing else", x=text)
        case "corrected at once":
            name = rng.choice(names)
            wrong = replace(named, **{name: another(rng, name, [item])})
            need(named.shape and wrong.pair not in HELD_OUT_PAIRS)
            value = speaker.say(getattr(item, name))
            right = f"a {value}" if name == "shape" else rng.choice((value, f"a {value} one"))
            right = speaker.some(named, long=True) if speaker.maybe(0.3) else right
            text = speaker.say("corrected at once", w=speaker.some(wrong), r=right)
        case "attributes later":
            said = [speaker.say(getattr(item, name)) for name in names if name != "shape"]
            need(named.shape and said)
            values = " and ".join(rng.sample(said, len(said)))
            text = speaker.say(
                "attributes later", x=speaker.some(Filter(item.shape)), r=values, n=speaker.say(item.shape)
            )
    return Drawn(text, scene, drawn(scene, [named]))


def list_objects(speaker: Speaker, split: Split) -> Drawn:
    """Several objects in a row of words, alike ones counted, with a relation or a denial behind them."""
    rng = speaker.rng
    scene, order, filters = some_scene(speaker, split, (2, 2, 2, 3, 3, 3, 4, 4), distinct=False)
    text, relations, none = list_filters(speaker, filters, long=True), [], []
    match speaker.pick({"": 40, "counted": 8, "placed later": 24, "denied": 10, "nothing else": 10}):
        case "counted":
            text = speaker.say("counted", n=speaker.number(len(order)), s=speaker.noun(ANY, plural=True), x=text)
        case "placed later":
            relation = need(main_relation(*order[:2]))
            need(len(set(filters)) == len(filters))
            a, b = (name_among(speaker, filters, index) for index in (0, 1))
            text += speaker.say("placed later", a=a, b=b, r=speaker.say(relation))
            relations = [(0, relation, 1)]
        case "denied":
            name = rng.choice(("shape", "shape", "color"))
            denied = Filter(**{name: another(rng, name, order)})
            text = speaker.say("denied", x=text, p=speaker.noun(denied, plural=True))
            none = [as_record(denied)]
        case "nothing else":
            text = speaker.say("nothing else", x=text)
    return Drawn(text, scene, drawn(scene, filters, relations=relations, none=none))


def relate(speaker: Speaker, split: Split) -> Drawn:
    """Objects by where they are to each other, in one sentence."""
    scene, order, filters = some_scene(speaker, split, (2, 2, 2, 2, 3, 3, 4))
    relation, (a, b) = need(main_relation(*order[:2])), filters[:2]
    is_late = a.color is not None and a.color == b.color and len(order) == 2 and speaker.maybe(0.6)
    said = [speaker.some(replace(item, color=None) if is_late else item) for item in (a, b)]
    slots = {"a": said[0], "b": said[1], "A": speaker.noun(Filter(a.shape)), "B": speaker.noun(Filter(b.shape))}
    slots |= {"p": speaker.say(SIDES[relation]), "q": speaker.say(SIDES[OPPOSITE[relation]])}
    slots |= {"r": speaker.say(relation), "i": speaker.say(relation.replace(" of", "of") + " it")}
    is_sentence = not is_late and speaker.maybe(0.25)
    is_later = a.shape != b.shape and speaker.maybe(0.25)
    text = speaker.say(f"related {'sentence' if is_sentence else 'later' if is_later else 'objects'}", **slots)
    if is_late:
        text += speaker.say("both in color", c=speaker.say(a.color))
    relations, rest = [(0, relation, 1)], []
    for index, item in enumerate(order[2:], 2):
        rest.append(speaker.some(filters[index]))
        linked = main_relation(item, order[1])
        if linked and speaker.maybe(0.6):
            rest[-1] += f" {speaker.say(linked)} the {name_among(speaker, filters, 1)}"
            relations.append((index, linked, 1))
    if rest:
        text += speaker.say("further objects") + speaker.listed(rest)
    need("\n" not in text)
    return Drawn(text, scene, drawn(scene, filters, relations=relations), is_sentence)


def group(speaker: Speaker, split: Split) -> Drawn:
    """Objects that are counted and then told apart: "two stars, one red and one blue"."""
    rng, number = speaker.rng, speaker.how_many((2, 2, 2, 3, 3, 3, 4, 4))
    varied = speaker.pick({"color": 4, "shape": 3, "size": 2})
    shared = {"color": ("shape",), "shape": ("color",), "size": ("shape", "color")}[varied]
    like = Filter.of(rng.choice(KINDS), shared)
    kinds = random_kinds(rng, number, like)
    base = Filter.of(like, shared[:1] if speaker.maybe(0.3) else shared)
    values = [getattr(kind, varied) for kind in kinds]
    counts = Counter(values)
    need(len(counts) > 1)
    scene = scene_of(kinds, rng)
    expect = drawn(scene, [replace(base, **{varied: value}) for value in values])
    (most, _), *_, (least, few) = counts.most_common()

    def one(value: str, count: int, ones: str = "") -> str:
        if varied == "shape":
            return speaker.some(Filter(value), count)
        which = rng.choice(("one", "one", "a" if ones else "one", "1")) if count == 1 else speaker.number(count)
        return f"{which} {speaker.say(value)}{ones and ' one' + 's' * (count > 1)}"

    parts = [one(value, count, rng.choice(("", "", "one"))) for value, count in counts.items()]
    words = [speaker.say(value) for value in values]
    slots = {
        "h": speaker.some(base, number),
        "o": in_row(parts, rng.choice((" and ", " and ", ", ") if len(parts) == 2 else (" and ", ", "))),
        "w": " ".join(words) if speaker.maybe(0.2) else in_row(words, rng.choice((" and ", ", "))),
        "all": "both" if number == 2 else "all",
        "c": speaker.say(base.color or "color"),
        "n": speaker.number(few),
        "v": speaker.say(least),
        "x": speaker.say(most),
        "r": "the other" if number - few == 1 else speaker.say("the others"),
    }
    forms = {"told apart": 30.0}
    if varied != "shape" and len(counts) == 2:
        forms["and the rest"] = 9
    if varied == "color":
        forms |= {"told apart by color": 22 * (len(counts) == number), "colors before the noun": 11}
        forms["only some"] = 11 * (len(counts) == 2)
    if varied == "size" and base.color:
        forms["alike in color"] = 45
    if varied == "size" and number > 2 and few == 1:
        forms["an odd one"] = 25
    form = speaker.pick(forms)
    match form:
        case "colors before the noun":
            slots["o"] = " and ".join(one(value, count) for value, count in counts.items())
            is_plural = list(counts.values())[-1] > 1 or speaker.maybe(0.3)
            slots["h"] = speaker.noun(base, plural=is_plural)
        case "only some":
            expect = drawn(scene, [replace(base, color=least), replace(base, not_color=least)])
        case "alike in color":
            slots["h"] = speaker.some(Filter(base.shape), number)
        case "an odd one":
            slots["o"], slots["n"] = speaker.some(Filter(base.shape, size=least)), speaker.number(number - 1)
            slots["all"] = speaker.say("all in color", c=slots["c"]) if base.color else ""
    return Drawn(speaker.say(form, **slots), scene, expect)


def share(speaker: Speaker, split: Split) -> Drawn:
    """What all objects share is said once: "a heart and a circle, both red", "everything green"."""
    rng, number = speaker.rng, speaker.how_many((2, 2, 2, 3, 3, 4))
    names = speaker.pick({("color",): 4, ("size",): 2, ("shape",): 1, ("color", "size"): 2})
    base = Filter.of(rng.choice(KINDS), names)
    kinds = random_kinds(rng, number, base)
    scene = scene_of(kinds, rng)
    said = " and ".join(speaker.say(getattr(base, name)) for name in rng.sample(names, len(names)))
    slots = {"n": speaker.number(number), "s": speaker.noun(ANY, plural=True), "v": said}
    if base.shape:
        text = speaker.say("all of a shape", p=speaker.noun(base, plural=True), **slots)
        return Drawn(text, scene, drawn(scene, [base]))
    if speaker.maybe(0.3):
        return Drawn(speaker.say("anything alike", **slots), scene, drawn(scene, [base]))
    bare = [Filter(kind.shape, None if base.color else kind.color) for kind in kinds]
    text = list_filters(speaker, bare) + speaker.say("all alike", a="both" if number == 2 else "all", v=said)
    filters = [replace(item, color=base.color or item.color, size=base.size) for item in bare]
    return Drawn(text, scene, drawn(scene, filters))


def arrange(speaker: Speaker, split: Split) -> Drawn:
    """A row from left to right, or a stack from top to bottom, or a place for each."""
    rng, number = speaker.rng, speaker.how_many((2, 3, 3, 3, 4, 4))
    layout, ends, relation = rng.choice((("row", ("left", "right"), "left of"), ("column", ("top", "bottom"), "above")))
    shape = rng.choice(KINDS).shape if speaker.maybe(0.35) else None
    kinds = random_kinds(rng, number, Filter(shape, size="small" if number > 3 else None))
    need(len({kind.pair for kind in kinds}) == number)
    scene = scene_of(kinds, rng, layout=layout)
    only_colors = shape is not None and speaker.maybe(0.7)
    names = FULL if not only_colors and speaker.maybe(0.3) else ("color", "shape")
    filters = [Filter.of(kind, names) for kind in kinds]
    parts = [speaker.say(item.color) if only_colors else speaker.some(item) for item in filters]
    head = speaker.some(Filter(shape), number) if shape else ""
    if number < 4 and speaker.maybe(0.5):
        first, last = (speaker.say(f"{side} end") for side in ends)
        spots = [first, *["in the middle"] * (number - 2), last]
        if number == 3 and speaker.maybe(0.4):
            spots[1] = "below that" if layout == "column" else "next to it"
        is_first = speaker.maybe(0.3)
        told = [f"{spot} {part}" if is_first else f"{part} {spot}" for part, spot in zip(parts, spots, strict=True)]
        text = speaker.say("mark between places").join(told)
        text = speaker.say("each in its place", h=head, t=text) if head else text
    else:
        joined = in_row(parts, rng.choice((" and ", ", ", ", then ")))
        slots = {"j": " ".join(parts) if speaker.maybe(0.15) else joined, "flow": speaker.say(f"in a {layout}")}
        text = speaker.say("arranged with head" if head and speaker.maybe(0.6) else "arranged", h=head, **slots)
    relations = [(index, relation, index + 1) for index in range(number - 1)]
    return Drawn(tidy(text).strip(":, "), scene, drawn(scene, filters, relations=relations))


def compare_sizes(speaker: Speaker, split: Split) -> Drawn:
    """Which one is larger, instead of sizes."""
    scene, (a, b), _ = some_scene(speaker, split, (2,), distinct=False)
    need(a.shape != b.shape)
    names = speaker.rng.choice((("shape",), ("color", "shape"), ("color", "shape")))
    filters = [Filter.of(item, names) for item in (a, b)]
    slots = {"a": speaker.some(filters[0]), "b": speaker.some(filters[1]), "c": speaker.noun(filters[0])}
    slots |= {"A": speaker.say(a.shape), "B": speaker.say(b.shape)}
    if a.size == b.size:
        return Drawn(speaker.say("equally large", **slots), scene, drawn(scene, filters))
    text = speaker.say("compared", m=speaker.say(f"comparative {a.size}"), **slots)
    if names == ("shape",) and speaker.maybe(0.2):
        text += speaker.say("colors do not matter")
    relation = "larger than" if a.size == "large" else "smaller than"
    return Drawn(text, scene, drawn(scene, filters, relations=[(0, relation, 1)]))


def leave_open(speaker: Speaker, split: Split) -> Drawn:
    """Little is said: only hearts, anything red, three shapes of your choice, none of them blue."""
    rng, number = speaker.rng, speaker.how_many((1, 2, 2, 3, 3, 4))
    forms = ["of your choice", "not in a color"]
    if not speaker.exceeds:
        forms += ["only of a shape", "only in a color", "all different shapes", "all different colors", "anything"]
    form, kind, varied, like = rng.choice(forms), rng.choice(KINDS), None, ANY
    total: int | None = number
    none: list[dict[str, Any]] = []
    match form:
        case "only of a shape" | "only in a color":
            name = form.split()[-1]
            like, total = Filter.of(kind, (name,)), None
            none = [{name: other} for other in ATTRIBUTES[name] if other != getattr(kind, name)]
        case "not in a color":
            need(number > 1)
            like, none = Filter(kind.shape, not_color=kind.color), [{"color": kind.color}]
        case "all different shapes" | "all different colors":
            need(number > 1)
            varied = form.split()[-1][:-1]
            like = Filter(kind.shape) if varied == "color" else Filter(color=kind.color)
        case "anything":
            total = None
    kinds = random_kinds(rng, number, like, differ=varied)
    named = [replace(like, not_color=None)] if total and like != ANY else []
    slots = {"n": speaker.number(number) if number > 1 else "one", "c": speaker.say(kind.color)}
    slots["p"] = speaker.noun(replace(like, not_color=None), plural=number > 1 or form != "of your choice")
    slots["v"] = speaker.say("color") if varied == "color" else "shape"
    scene = scene_of(kinds, rng)
    text = speaker.say("all different" if varied else form, **slots)
    return Drawn(text, scene, drawn(scene, named, total=total, none=none))


def several(speaker: Speaker, split: Split) -> Drawn:
    """A number of things that are called the same, perhaps beside a few others."""
    rng, number = speaker.rng, speaker.how_many((1, 2, 2, 3, 3, 3, 4, 4, 4))
    names = speaker.pick({("color", "shape"): 40, ("shape",): 16, FULL: 24, ("size", "shape"): 8, ("color",): 6})
    base = Filter.of(rng.choice(KINDS), names)
    kinds, filters, layout = random_kinds(rng, number, base), [base] * number, None
    text = speaker.some(base, number)
    match speaker.pick({"": 50, "all in color": 11, "others": 24, "in a line": 10, "and no more": 9}):
        case "all in color":
            colored = speaker.say("all in color" if number > 1 else "in the color", c=speaker.say(need(base.color)))
            text = speaker.some(replace(base, color=None), number) + colored
        case "others":
            need(base.pair and number < MAX_OBJECTS)
            count, (kind,) = rng.randint(1, MAX_OBJECTS - number), random_kinds(rng, 1)
            other = Filter(kind.shape, kind.color)
            need(other.pair != base.pair)
            kinds, filters = kinds + [kind] * count, filters + [other] * count
            text = speaker.listed(rng.sample((text, speaker.some(other, count)), 2))
        case "in a line":
            need(number > 1)
            layout = rng.choice(("row", "column"))
            text = speaker.say(f"alike in a {layout}", x=text)
        case "and no more":
            text = speaker.say("and no more", x=text)
    scene = scene_of(kinds, rng, layout=layout)
    return Drawn(text, scene, drawn(scene, filters))


def chain(speaker: Speaker, split: Split) -> Drawn:
    """Three or four objects, each placed by the one before: "a star, below it a heart, above that a cross"."""
    rng = speaker.rng
    scene, order, filters = some_scene(speaker, split, (3, 3, 4))
    need(all(item.color for item in filters))
    relations = [(index, need(main_relation(b, a)), index - 1) for index, (a, b) in enumerate(pairwise(order), 1)]
    parts = [speaker.some(item) for item in filters]
    if speaker.maybe(0.3):  # all of them first, then where they are
        names = [name_among(speaker, filters, index) for index in range(len(filters))]
        told = [speaker.say("one is there", a=names[a], r=speaker.say(r), b=names[b]) for a, r, b in relations]
        text = f"{speaker.listed(parts)}. {rng.choice(('. ', ', ', ' and ')).join(told)}"
        return Drawn(text, scene, drawn(scene, filters, relations=relations))
    text = parts[0]
    for (index, relation, _), part in zip(relations, parts[1:], strict=True):
        there = speaker.say(relation.replace(" of", "of") + " it")
        if index > 1 and there.split()[-1] not in ("it", "that", "this"):
            there = f"{speaker.say(relation)} {rng.choice(('that', 'that one', 'it'))}"
        text += speaker.say("next in the chain", x=part, i=there)
    return Drawn(text, scene, drawn(scene, filters, relations=relations))


def tell_later(speaker: Speaker, split: Split) -> Drawn:
    """First what there is, then what each looks like: by size, by number, by shape."""
    rng, number = speaker.rng, speaker.how_many((2, 2, 3, 3, 3, 4))
    form, shape = rng.choice(("size", "size", "order", "shape", "shape")), rng.choice(KINDS).shape
    told: list[tuple[str, int, str]]  # what objects are called, how many, and what they are
    if form == "size":
        odd, other = random_kinds(rng, 2, Filter(shape), differ="color")
        other, rest = replace(other, size=another(rng, "size", [odd])), number - 1
        kinds = filters = [odd, *[other] * rest]
        ones, count = ("one", "a") if rest == 1 else ("ones", speaker.number(rest))
        parts = [f"a {speaker.say(odd.size)} {speaker.say(shape)}", f"{count} {speaker.say(other.size)} {ones}"]
        told = [
            (f"{speaker.say(odd.size)} one", 1, odd.color),
            (f"{speaker.say(other.size)} {ones}", rest, other.color),
        ]
    elif form == "order":
        name = "color" if speaker.maybe(0.7) else "size"
        need(number < 5)
        kinds = random_kinds(rng, number, Filter(shape))
        filters = [Filter.of(kind, ("shape", name)) for kind in kinds]
        parts = [speaker.some(Filter(shape), number)]
        names = ["first", "second", "third", "fourth"][:number]
        names[-1] = rng.choice((names[-1], "last", "other" if number == 2 else "last"))
        ones = rng.choice(("", " one"))
        told = [(which + ones, 1, getattr(kind, name)) for which, kind in zip(names, kinds, strict=True)]
    else:
        later = speaker.pick({("color",): 4, ("size",): 1, ("size", "color"): 1})
        kinds = random_kinds(rng, rng.randint(2, min(number, 4)), differ="shape")
        kinds += rng.choices(kinds, k=number - len(kinds))
        filters = random_filters(speaker, kinds)
        groups = Counter(filters)
        need(all(item.color and (item.size or "color" in later) for item in groups))
        parts = [speaker.some(replace(item, **dict.fromkeys(later)), count) for item, count in groups.items()]
        told = [
            (speaker.noun(Filter(item.shape), plural=count > 1), count, " and ".join(filter(None, values)))
            for item, count in groups.items()
            for values in [[getattr(item, name) for name in later]]
        ]
    if speaker.maybe(0.2):
        rng.shuffle(told)
    clauses = []
    for name, count, value in told:
        said = " and ".join(map(speaker.say, value.split(" and ")))
        both = "both" if count == 2 else "all"
        clauses.append(speaker.say("ones are" if count > 1 else "one is", n=name, v=said, all=both))
    text = speaker.listed(parts) + speaker.say("mark before clauses") + speaker.say("mark of clauses").join(clauses)
    scene = scene_of(kinds, rng)
    return Drawn(tidy(text), scene, drawn(scene, filters))


def correct_list(speaker: Speaker, split: Split) -> Drawn:
    """Several objects, and then a second thought about one of them."""
    rng, number = speaker.rng, speaker.rng.choice((2, 2, 3, 3, 4))
    kinds = random_kinds(rng, number)
    filters = random_filters(speaker, kinds)
    need(all(item.color for item in filters) and len(set(filters)) == number)
    at, form = rng.randrange(number), rng.choice(("value", "value", "number", "leave out", "one more"))
    parts, slots = [speaker.some(item) for item in filters], {"s": speaker.say("correct"), "v": ""}
    match form:
        case "value":
            name = rng.choice(("color", "color", "size", "shape"))
            value = speaker.say(need(getattr(filters[at], name)))
            wrong = replace(filters[at], **{name: another(rng, name, filters)})
            need(wrong.pair not in HELD_OUT_PAIRS)
            said = [*filters[:at], wrong, *filters[at + 1 :]]
            parts[at] = speaker.some(wrong)
            slots |= {"n": name_among(speaker, said, at), "v": f"a {value}" if name == "shape" else value}
        case "number":
            need(number < MAX_OBJECTS and sum(item.shape == filters[at].shape for item in filters) == 1)
            count = rng.randint(2, MAX_OBJECTS + 1 - number)
            wrong_count = rng.choice([other for other in range(1, MAX_OBJECTS + 2 - number) if other != count])
            parts[at] = speaker.some(filters[at], wrong_count)
            slots |= {"n": speaker.noun(Filter(filters[at].shape), plural=True), "v": speaker.number(count)}
            kinds, filters = kinds + [kinds[at]] * (count - 1), filters + [filters[at]] * (count - 1)
        case "leave out":
            slots["n"] = name_among(speaker, filters, at)
            del kinds[at], filters[at]
        case _:
            slots["n"] = parts.pop()
    scene = scene_of(kinds, rng)
    text = speaker.say(f"second thought {form}", x=speaker.listed(parts), **slots)
    return Drawn(tidy(text), scene, drawn(scene, filters))


def between(speaker: Speaker, split: Split) -> Drawn:
    """One object between two others, which may be alike."""
    rng = speaker.rng
    kinds = random_kinds(rng, 3)
    is_alike = speaker.maybe(0.4)
    if is_alike:
        kinds[2] = kinds[0]
    names = speaker.pick({("color", "shape"): 60, FULL: 30, ("shape",): 15})
    filters = [Filter.of(kind, names) for kind in kinds]
    need(len({kind.pair for kind in kinds}) == len(set(filters)) == (2 if is_alike else 3))
    scene = scene_of(kinds, rng, layout=rng.choice(("row", "row", "column")))
    first, middle, last = (speaker.some(item) for item in filters)
    ends = speaker.some(filters[0], 2) if is_alike else f"{first} and {last}"
    return Drawn(speaker.say("between", x=middle, e=ends), scene, drawn(scene, filters))


def put_in_places(speaker: Speaker, split: Split) -> Drawn:
    """Each object in a place of its own: "a star top left and a heart in the bottom right corner"."""
    scene, order, filters = some_scene(speaker, split, (2, 2, 3, 3, 4))
    places = [next((p for p in stated_places(item) if p != "center" or len(order) > 2), None) for item in order]
    need(all(places) and len(set(places)) == len(places))
    told, is_first = [], speaker.maybe(0.25)
    for item, place in zip(filters, places, strict=True):
        said = [speaker.some(item), speaker.say(place)]
        told.append(" ".join(reversed(said) if is_first else said))
    relations = [
        (a, relation, b)
        for a, b in combinations(range(len(order)), 2)
        for relation, side in SIDES.items()
        if side in places[a] and SIDES[OPPOSITE[relation]] in places[b] and is_clear(relation, order[a], order[b])
    ]
    return Drawn(speaker.listed(told), scene, drawn(scene, filters, relations=relations))


FORMS = {
    list_objects: 32,
    between: 7,
    put_in_places: 8,
    relate: 24,
    chain: 9,
    group: 15,
    share: 12,
    several: 18,
    tell_later: 13,
    correct_list: 7,
    arrange: 12,
    compare_sizes: 8,
    leave_open: 7,
    single: 20,
}
EXCESSIVE = {several: 30, list_objects: 14, group: 8, share: 6, arrange: 8, leave_open: 4, tell_later: 3}
"""Forms that can ask for more objects than there can be."""
