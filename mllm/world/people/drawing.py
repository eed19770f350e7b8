"""Requests to draw in people's words: a scene, what is said of it, and what an image of these words must show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

from mllm.world.grammar import FULL, Speaker, listed, tidy
from mllm.world.language import NUMBER_WORDS, need, pluralize
from mllm.world.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    MIN_GAP,
    MIN_INSET,
    OPPOSITE,
    PLACES,
    RADIUS,
    SEEN_PAIRS,
    SHAPES,
    SIDES,
    SIZES,
    Kind,
    Scene,
    SceneObject,
    Split,
    is_valid,
    main_relation,
    place_freely,
    random_scene_for,
    split_of,
    stated_places,
)
from mllm.world.spec import Filter

COLORS_OF = {shape: [color for color in COLORS if (color, shape) in SEEN_PAIRS] for shape in SHAPES}
SHAPES_OF = {color: [shape for shape in SHAPES if (color, shape) in SEEN_PAIRS] for color in COLORS}
ANYTHING = (
    "something|anything|anything you like|a random picture|something nice|whatever you want|a surprise|some shapes"
).split("|")


class Drawn(NamedTuple):
    """What is said, a scene that fits it, and what an image must show."""

    text: str
    scene: Scene
    expect: dict[str, Any]
    is_sentence: bool = False  # not a noun phrase


def draw_turn(speaker: Speaker, split: Split) -> tuple[str, Scene, dict[str, Any]]:
    """A request in words, a scene that fits it, and what it asks for."""
    while True:
        text, scene, expect, is_sentence = speaker.attempt(FORMS, split)
        if split_of(scene) == split:
            break
    background, said = speaker.say(scene.background), speaker.rng.random()
    if said < 0.42:
        expect["scene"]["background"] = scene.background
    is_phrase = said < 0.25 and not is_sentence and "\n" not in text
    is_first = said < 0.3 and not is_sentence and not is_phrase
    if is_phrase:
        text += " " + speaker.say("bgphrase", b=background)
    elif is_first:
        text = speaker.say("background first", b=background, x=text)
    text = tidy(speaker.say("sentence", s=text) if is_sentence else speaker.say("draw", x=text))
    if said < 0.42 and not is_phrase and not is_first:
        mark = speaker.rng.choice((". ", ". ", ", ", "; ", "\n"))
        text = text.rstrip(".") + mark + speaker.say("bgsentence", b=background)
    return text, scene, expect


def scene_of(kinds: Sequence[Kind], rng: Random, *, layout: str | None = None) -> Scene:
    """A scene of these objects, anywhere or in a row or a column; UnsayableError where that cannot be."""
    need(all((color, shape) in SEEN_PAIRS for shape, color, _ in kinds))
    background = rng.choice(BACKGROUNDS)
    if layout is None:
        placed = need(place_freely(kinds, rng, tries=20))
    else:
        placed = ()
        free = 1 - 2 * MIN_INSET - sum(2 * RADIUS[size] for *_, size in kinds) - (MIN_GAP + 0.02) * (len(kinds) - 1)
        need(free >= 0)
        cuts = sorted(rng.uniform(0, free) for _ in kinds)
        across, at = rng.uniform(0.3, 0.7), MIN_INSET
        for cut, kind in zip(cuts, kinds, strict=True):
            radius = RADIUS[kind[2]]
            along = round(at + radius + cut, 4)
            other = min(max(across + rng.uniform(-0.06, 0.06), radius + MIN_INSET), 1 - radius - MIN_INSET)
            position = (along, round(other, 4)) if layout == "row" else (round(other, 4), along)
            placed += (SceneObject(*kind, *position),)
            at += 2 * radius + MIN_GAP + 0.02
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


def random_filters(speaker: Speaker, order: Sequence[SceneObject]) -> list[Filter]:
    """What is said of each object: mostly shape and color, with sizes for all or for some."""
    level = speaker.pick({"full": 34, "mixed": 22, "color": 34, "shape": 6})
    made = []
    for item in order:
        size = item.size if level == "full" or (level == "mixed" and speaker.maybe(0.5)) else None
        made.append(Filter(item.shape, None if level == "shape" else item.color, size))
    plain = [replace(item, size=None) for item in made]
    return made if level != "mixed" or len(set(plain)) == len(plain) else plain


def random_kinds(speaker: Speaker, number: int, sizes: Sequence[str] = SIZES) -> list[Kind]:
    return [(*speaker.rng.choice(sorted(SEEN_PAIRS))[::-1], speaker.rng.choice(sizes)) for _ in range(number)]


def list_filters(speaker: Speaker, filters: Iterable[Filter], *, short: bool = False) -> str:
    """Several objects in a row of words, alike ones counted."""
    return listed([speaker.some(item, count, short=short) for item, count in Counter(filters).items()], speaker.rng)


def name_among(speaker: Speaker, filters: Sequence[Filter], index: int) -> str | None:
    """How one of the objects just named is referred to."""
    for names in (("shape",), ("color", "shape")):
        part = Filter.of(filters[index], names)
        if sum(Filter.of(other, names) == part for other in filters) == 1:
            return speaker.noun(part, short=True)
    return None


# ---- forms of requests ----


def single(speaker: Speaker, split: Split) -> Drawn:
    """One object, with some of its attributes, perhaps corrected while it is said, perhaps in a place."""
    rng = speaker.rng
    scene = random_scene_for(split, rng, num_objects=1)
    (item,) = scene.objects
    names = speaker.pick({FULL: 40, ("color", "shape"): 40, ("size", "shape"): 6, ("shape",): 8, ("color",): 3})
    named = Filter.of(item, names)
    if speaker.maybe(0.14) and "shape" in names:
        name = rng.choice(names)
        wrong = replace(named, **{name: rng.choice([v for v in ATTRIBUTES[name] if v != getattr(item, name)])})
        need(wrong.pair not in HELD_OUT_PAIRS)
        value = speaker.say(getattr(item, name))
        right = f"a {value}" if name == "shape" else rng.choice((value, f"a {value} one"))
        right = speaker.some(named) if speaker.maybe(0.3) else right
        text = speaker.say("corrected at once", w=speaker.some(wrong, short=True), r=right)
    elif speaker.maybe(0.12) and len(names) > 1:
        said = [speaker.say(getattr(item, name)) for name in names if name != "shape"]
        rng.shuffle(said)
        bare = speaker.some(Filter(named.shape))
        text = speaker.say("attributes later", x=bare, r=" and ".join(said), n=speaker.say(item.shape))
    else:
        text = speaker.some(named)
        places = [place for place in stated_places(item) if None not in PLACES[place]] or stated_places(item)
        if places and speaker.maybe(0.3):
            text = f"{text} {speaker.say(places[0])}"
        elif speaker.maybe(0.1):
            text += rng.choice((" and nothing else", ", nothing else", ", just that", " only", " alone"))
        elif speaker.maybe(0.06):
            text = rng.choice(("just ", "only ", "simply ", "nothing but ")) + text
    return Drawn(text, scene, drawn(scene, [named]))


def list_objects(speaker: Speaker, split: Split) -> Drawn:
    """Several objects in a row of words, alike ones counted, with relations or denials behind them."""
    rng = speaker.rng
    scene = random_scene_for(split, rng, num_objects=rng.choice((2, 2, 2, 3, 3, 4)))
    order = rng.sample(scene.objects, len(scene.objects))
    filters = random_filters(speaker, order)
    groups = Counter(filters)
    late = speaker.maybe(0.16) and all(item.color for item in filters)
    need(not late or len({item.shape for item in filters}) == len(groups))
    text = list_filters(speaker, [replace(item, color=None) if late else item for item in filters])
    if speaker.maybe(0.06):
        number = speaker.number(len(order))
        text = f"{number} {pluralize(speaker.say('shape'))}{rng.choice((': ', ' - ', ', '))}{text}"
    relations = []
    if late:
        told = []
        for item, count in groups.items():
            noun = speaker.noun(Filter(item.shape), plural=count > 1)
            both = ("both " if count == 2 else "all ") if count > 1 and speaker.maybe(0.3) else ""
            told.append(speaker.say("colors later", n=noun, c=speaker.say(item.color), b=both))
        joined = rng.choice((", ", " and ", ", and ")).join(told)
        text += rng.choice((". ", ". ", ", ", "; ", " where ", " with ")) + joined
    elif speaker.maybe(0.3) and len(groups) == len(filters):
        first, second = rng.sample(range(len(order)), 2)
        if relation := main_relation(order[first], order[second]):
            names = [name_among(speaker, filters, index) for index in (first, second)]
            if None not in names:
                the = rng.choice(("the ", "the ", "the ", ""))
                a, b = (f"{the}{name}" for name in names)
                text += speaker.say("placed later", a=a, b=b, r=speaker.say(relation))
                relations.append((first, relation, second))
    none = []
    if speaker.maybe(0.1):
        name = rng.choice(("shape", "shape", "color"))
        here = {getattr(item, name) for item in scene.objects}
        denied = Filter(**{name: rng.choice([value for value in ATTRIBUTES[name] if value not in here])})
        text = speaker.say("denied", x=text, p=speaker.noun(denied, plural=True, short=True))
        none = [as_record(denied)]
    elif speaker.maybe(0.06):
        text += rng.choice((" and nothing else", ", nothing else", ", that's all", ", no more"))
    elif speaker.maybe(0.04):
        text = rng.choice(("just ", "only ", "nothing but ", "exactly ")) + text
    return Drawn(text, scene, drawn(scene, filters, relations=relations, none=none))


def relate(speaker: Speaker, split: Split) -> Drawn:
    """Objects by where they are to each other, in one sentence."""
    rng = speaker.rng
    scene = random_scene_for(split, rng, num_objects=rng.choice((2, 2, 2, 2, 3, 3, 4)))
    order = rng.sample(scene.objects, len(scene.objects))
    filters = random_filters(speaker, order)
    need(len(set(filters)) == len(filters))
    relation = need(main_relation(order[0], order[1]))
    a, b = (speaker.some(item, short=True) for item in filters[:2])
    shared = filters[0].color if filters[0].color == filters[1].color and len(order) == 2 else None
    if shared and speaker.maybe(0.6):
        a, b = (speaker.some(replace(item, color=None), short=True) for item in filters)
    slots = {"a": a, "b": b, "r": speaker.say(relation), "o": speaker.say(OPPOSITE[relation])}
    slots["i"] = speaker.say(relation.replace(" of", "of") + " it")
    slots["A"], slots["B"] = (speaker.noun(Filter(item.shape)) for item in filters[:2])
    slots["p"], slots["q"] = (speaker.say(SIDES[each]) for each in (relation, OPPOSITE[relation]))
    is_sentence = speaker.maybe(0.25) and not shared
    same = filters[0].shape == filters[1].shape
    phrase = (
        "related sentence" if is_sentence else "related objects" if same or speaker.maybe(0.75) else "related later"
    )
    text = speaker.say(phrase, **slots)
    if shared and speaker.say(shared) not in text and shared not in a + b:
        text += speaker.say("both in color", c=speaker.say(shared))
    relations, rest = [(0, relation, 1)], []
    for index in range(2, len(order)):
        linked, name = main_relation(order[index], order[1]), name_among(speaker, filters, 1)
        is_linked = linked and name and speaker.maybe(0.6)
        rest.append(speaker.some(filters[index], short=True))
        if is_linked:
            rest[-1] += f" {speaker.say(linked)} the {name}"
            relations.append((index, linked, 1))
    if rest:
        text += speaker.say("further objects") + listed(rest, rng).strip()
    need("\n" not in text)
    return Drawn(text, scene, drawn(scene, filters, relations=relations), is_sentence)


def group(speaker: Speaker, split: Split) -> Drawn:
    """Objects that are counted and then told apart: "two stars, one red and one blue"."""
    rng = speaker.rng
    number = rng.choice((2, 2, 2, 3, 3, 4))
    shape, varied = rng.choice(SHAPES), rng.choice(("", "", "shape"))
    if varied:
        color = rng.choice(COLORS)
        values = rng.choices(SHAPES_OF[color], k=number)
        kinds = [(value, color, rng.choice(SIZES)) for value in values]
        base = Filter(color=color)
    else:
        varied, color = rng.choice(("color", "color", "size")), rng.choice(COLORS_OF[shape])
        values = rng.choices(COLORS_OF[shape] if varied == "color" else SIZES, k=number)
        kinds = [(shape, value, rng.choice(SIZES)) if varied == "color" else (shape, color, value) for value in values]
        base = Filter(shape, color if varied == "size" and speaker.maybe(0.7) else None)
    counts = Counter(values)
    need(len(counts) > 1)
    scene = scene_of(kinds, rng)

    def one(value: str, count: int) -> str:
        if varied == "shape":
            return speaker.some(Filter(value), count, short=True)
        word = speaker.say(value)
        ones = rng.choice(("", "", f" one{'s' * (count > 1)}"))
        which = rng.choice(("one", "one", "a" if ones else "one", "1")) if count == 1 else speaker.number(count)
        return f"{which} {word}{ones}"

    head = speaker.some(base, number, short=True)
    parts = [one(value, count) for value, count in counts.items()]
    words = [speaker.say(value) for value in values]
    expect = drawn(scene, [replace(base, **{varied: value}) for value in values])
    marks = (" and ", " and ", ", ") if len(parts) == 2 else (" and ", ", ")
    ones = ", ".join(parts[:-1]) + rng.choice(marks) + parts[-1]
    if base.color and varied == "size":
        bare, of_them = speaker.some(Filter(shape), number, short=True), rng.choice((" of them", ""))
        text = f"{bare}, {ones}, {'both' if number == 2 else 'all'}{of_them} {speaker.say(base.color)}"
        if speaker.maybe(0.5):
            return Drawn(text, scene, expect)
    if len(counts) == 2 and varied == "color" and speaker.maybe(0.15):
        (value, count), only = next(iter(counts.items())), rng.choice(("only ", "just ", ""))
        expect = drawn(scene, [Filter(shape, value), Filter(shape, not_color=value)])
        expect["scene"]["objects"][0]["count"] = count
        which = f"{NUMBER_WORDS[count]} of them"
        return Drawn(speaker.say("only some", h=head, o=only, n=which, v=speaker.say(value)), scene, expect)
    joined = ", ".join(words[:-1]) + rng.choice((" and ", ", ")) + words[-1]
    joined = " ".join(words) if speaker.maybe(0.2) else joined
    if varied == "size" and number > 2 and speaker.maybe(0.4) and 1 in counts.values():
        odd, other = sorted(counts, key=lambda value: counts[value])
        text = f"{speaker.some(Filter(shape, size=odd), short=True)} and {speaker.number(number - 1)}"
        text += f" {speaker.say(other)} ones"
        if base.color:
            text += speaker.say("all in color", c=speaker.say(base.color))
        return Drawn(text, scene, expect)
    is_list = len(counts) == number and varied == "color" and speaker.maybe(0.5)
    phrase = "told apart by color" if is_list else "told apart"
    return Drawn(speaker.say(phrase, h=head, o=ones, w=joined, c=speaker.say("color")), scene, expect)


def share(speaker: Speaker, split: Split) -> Drawn:
    """What all objects share is said once: "a heart and a circle, both red", "everything green"."""
    rng = speaker.rng
    number, name = rng.choice((2, 2, 2, 3, 3, 4)), rng.choice(("color", "color", "size", "shape", "color and size"))
    color, size, shape = rng.choice(COLORS), rng.choice(SIZES), rng.choice(SHAPES)
    kinds = []
    for _ in range(number):
        kind_shape = shape if name == "shape" else rng.choice(SHAPES)
        kind_color = color if "color" in name else rng.choice(COLORS)
        kinds.append((kind_shape, kind_color, size if "size" in name else rng.choice(SIZES)))
    scene = scene_of(kinds, rng)
    common = {part: {"color": color, "size": size, "shape": shape}[part] for part in name.split(" and ")}
    if len(common) == 1:
        said = speaker.say(common[name])
    else:
        said = rng.choice([f"{speaker.say(a)} and {speaker.say(b)}" for a, b in ((size, color), (color, size))])
    base = Filter(**common)
    if name == "shape":
        need(speaker.maybe(0.5))
        plural, count, shapes = speaker.noun(base, plural=True), speaker.number(number), speaker.say("shape")
        text = speaker.say("all of a shape", n=count, s=pluralize(shapes), p=plural)
        return Drawn(text, scene, drawn(scene, [base]))
    if speaker.maybe(0.3):
        count, shapes = speaker.number(number), pluralize(speaker.say("shape"))
        return Drawn(speaker.say("anything alike", n=count, s=shapes, v=said), scene, drawn(scene, [base]))
    bare = [Filter(kind[0], None if "color" in name else kind[1]) for kind in kinds]
    text = list_filters(speaker, bare, short=True)
    text += speaker.say("all alike", a="both" if number == 2 else "all", v=said)
    return Drawn(text, scene, drawn(scene, [replace(item, **common) for item in bare]))


def arrange(speaker: Speaker, split: Split) -> Drawn:
    """A row from left to right, or a stack from top to bottom, or a place for each."""
    rng = speaker.rng
    number, layout = rng.choice((2, 3, 3, 3, 4)), rng.choice(("row", "column"))
    kinds = random_kinds(speaker, number, SIZES if number < 4 else ("small",))
    if speaker.maybe(0.3):
        kinds = [(kinds[0][0], kind[1], kind[2]) for kind in kinds]
    need(len({kind[:2] for kind in kinds}) == number)
    scene = scene_of(kinds, rng, layout=layout)
    with_size = speaker.maybe(0.3)
    filters = [Filter(*kind) if with_size else Filter(*kind[:2]) for kind in kinds]
    relations = [(index, "left of" if layout == "row" else "above", index + 1) for index in range(number - 1)]
    parts = [speaker.some(item, short=True) for item in filters]
    one_shape = len({kind[0] for kind in kinds}) == 1
    if one_shape and speaker.maybe(0.7):
        parts, filters = [speaker.say(kind[1]) for kind in kinds], [Filter(*kind[:2]) for kind in kinds]
    head = speaker.some(Filter(kinds[0][0]), number, short=True) if one_shape else ""
    joined = ", ".join(parts[:-1]) + rng.choice((" and ", ", ", ", then ")) + parts[-1]
    joined = " ".join(parts) if speaker.maybe(0.15) else joined
    slots = {"j": joined, "h": head, "flow": speaker.say(f"in a {layout}")}
    if number < 4 and speaker.maybe(0.5):
        first, last = ("on the left", "on the right") if layout == "row" else ("at the top", "at the bottom")
        spots = [first, *["in the middle"] * (number - 2), last]
        if number == 3 and speaker.maybe(0.4):
            spots[1] = "below that" if layout == "column" else "next to it"
        told = [f"{part} {spot}" for part, spot in zip(parts, spots, strict=True)]
        text = rng.choice((", ", ", ", " and ")).join(told)
        text = speaker.say("each in its place", h=head, t=text) if head else text
    else:
        text = speaker.say("arranged with head" if head and speaker.maybe(0.6) else "arranged", **slots)
    return Drawn(tidy(text).strip(":, "), scene, drawn(scene, filters, relations=relations))


def compare_sizes(speaker: Speaker, split: Split) -> Drawn:
    """Which one is larger, instead of sizes."""
    rng = speaker.rng
    scene = random_scene_for(split, rng, num_objects=2)
    a, b = rng.sample(scene.objects, 2)
    need(a.shape != b.shape)
    names = rng.choice((("shape",), ("color", "shape"), ("color", "shape")))
    filters = [Filter.of(item, names) for item in (a, b)]
    slots = {name: speaker.some(item, short=True) for name, item in zip("ab", filters, strict=True)}
    slots |= {"A": speaker.say(a.shape), "B": speaker.say(b.shape)}
    if a.size == b.size:
        return Drawn(speaker.say("equally large", **slots), scene, drawn(scene, filters))
    words, relation = ("bigger larger", "larger than") if a.size == "large" else ("smaller tinier", "smaller than")
    text = speaker.say("compared", **slots, m=rng.choice(words.split()), c=speaker.noun(filters[0], short=True))
    free = rng.choice((". colors don't matter", ", any color", ", colors are your choice", ", colour doesn't matter"))
    text += free if names == ("shape",) and speaker.maybe(0.2) else ""
    return Drawn(text, scene, drawn(scene, filters, relations=[(0, relation, 1)]))


def leave_open(speaker: Speaker, split: Split) -> Drawn:
    """Little is said: only hearts, anything red, three shapes of your choice, none of them blue."""
    rng = speaker.rng
    form = rng.choice(("only shape", "only color", "number", "not color", "any", "different"))
    number = rng.choice((1, 2, 2, 3, 3, 4))
    shape, color = rng.choice(SHAPES), rng.choice(COLORS)
    kinds = random_kinds(speaker, number)
    sizes = [size for *_, size in kinds]
    named: list[Filter] = []
    none: list[dict[str, str]] = []
    match form:
        case "only shape":
            kinds = [(shape, rng.choice(COLORS_OF[shape]), size) for size in sizes]
            text = speaker.say("only of a shape", p=speaker.noun(Filter(shape), plural=True))
            none = [{"shape": other} for other in SHAPES if other != shape]
        case "only color":
            kinds = [(rng.choice(SHAPES_OF[color]), color, size) for size in sizes]
            text = speaker.say("only in a color", c=speaker.say(color))
            none = [{"color": other} for other in COLORS if other != color]
        case "number":
            count = speaker.number(number) if number > 1 else "one"
            shapes = speaker.say("shape")
            text = speaker.say("of your choice", n=count, s=pluralize(shapes) if number > 1 else shapes)
        case "not color":
            kinds = [(shape, rng.choice([c for c in COLORS_OF[shape] if c != color]), size) for size in sizes]
            need(number > 1 and (color, shape) not in HELD_OUT_PAIRS)
            count, shapes = speaker.number(number), speaker.noun(Filter(shape), plural=True)
            text = speaker.say("not in a color", n=count, p=shapes, c=speaker.say(color))
            named, none = [Filter(shape)], [{"color": color}]
        case "different":
            need(number > 1)
            is_color = rng.choice(("color", "shape")) == "color"
            values = rng.sample(COLORS_OF[shape] if is_color else SHAPES_OF[color], number)
            kinds = [(shape, v, s) if is_color else (v, color, s) for v, s in zip(values, sizes, strict=True)]
            named = [Filter(shape) if is_color else Filter(color=color)]
            shapes, count = speaker.noun(named[0], plural=True, short=True), speaker.number(number)
            text = speaker.say("all different", n=count, p=shapes, v=speaker.say("color") if is_color else "shape")
        case _:
            text = rng.choice(ANYTHING)
    scene = scene_of(kinds, rng)
    total = number if form in ("number", "not color", "different") else None
    return Drawn(text, scene, drawn(scene, named, total=total, none=none))


FORMS = {
    list_objects: 34,
    relate: 26,
    group: 14,
    share: 12,
    arrange: 9,
    compare_sizes: 8,
    leave_open: 8,
    single: 18,
}
