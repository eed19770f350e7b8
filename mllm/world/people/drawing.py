"""Requests to draw in people's words: a scene, what is said of it, and what an image of these words must show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from random import Random
from typing import Any, NamedTuple

from mllm.world.grammar import FULL, NUMBERS, Speaker, listed, tidy
from mllm.world.language import need, pluralize
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
    SEEN_PAIRS,
    SHAPES,
    SIDES,
    SIZES,
    Kind,
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


def draw_turn(speaker: Speaker, split: Split, *, frame: str = "draw") -> tuple[str, Scene, dict[str, Any]]:
    """A request in words, a scene that fits it, and what it asks for.

    Args:
        frame: the rule that makes a request of a noun phrase.
    """
    while True:
        text, scene, expect, is_sentence = speaker.attempt(EXCESSIVE if speaker.exceeds else FORMS, split)
        if speaker.exceeds or split_of(scene) == split:
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
    text = tidy(speaker.say("sentence", s=text) if is_sentence else speaker.say(frame, x=text))
    if said < 0.42 and not is_phrase and not is_first:
        mark = speaker.rng.choice((". ", ". ", ", ", "; ", "\n"))
        text = text.rstrip(".") + mark + speaker.say("bgsentence", b=background)
    return text, scene, expect


def scene_of(kinds: Sequence[Kind], rng: Random, *, layout: str | None = None) -> Scene:
    """A scene of these objects, anywhere or in a row or a column; UnsayableError where that cannot be.

    More objects than an image can have lie over each other: they are spoken of, not drawn.
    """
    need(all((color, shape) in SEEN_PAIRS for shape, color, _ in kinds))
    background = rng.choice(BACKGROUNDS)
    if len(kinds) > MAX_OBJECTS:
        return Scene(background, tuple(SceneObject(*kind, rng.random(), rng.random()) for kind in kinds))
    if layout is None:
        placed = place_freely(kinds, rng, tries=20) or place_in_corners(kinds, rng)
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


def some_scene(speaker: Speaker, split: Split, numbers: Sequence[int]) -> Scene:
    """A scene to speak of."""
    number = speaker.how_many(numbers)
    if number <= MAX_OBJECTS:
        return random_scene_for(split, speaker.rng, num_objects=number)
    return scene_of(random_kinds(speaker, number), speaker.rng)


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
    scene = some_scene(speaker, split, (2, 2, 2, 3, 3, 3, 4, 4))
    order = rng.sample(scene.objects, len(scene.objects))
    filters = random_filters(speaker, order)
    groups = Counter(filters)
    late = speaker.maybe(0.16) and all(item.color for item in filters)
    need(not late or len({item.shape for item in filters}) == len(groups))
    text = list_filters(speaker, [replace(item, color=None) if late else item for item in filters])
    if speaker.maybe(0.08):
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
        denied = Filter(**{name: rng.choice(need([value for value in ATTRIBUTES[name] if value not in here]))})
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
    number = speaker.how_many((2, 2, 2, 3, 3, 3, 4, 4))
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
    if len(counts) == 2 and speaker.maybe(0.15):
        (_, count), (value, other_count) = counts.most_common()
        rest = "the other" if count == 1 else speaker.say("the others")
        these = f"{speaker.number(other_count)}{rng.choice((' of them', ' of them is', ''))}"
        other = next(other for other in counts if other != value)
        text = speaker.say("and the rest", h=head, n=these, v=speaker.say(value), r=rest, w=speaker.say(other))
        need(varied != "shape")
        return Drawn(text, scene, expect)
    if varied == "color" and speaker.maybe(0.2):
        text = " and ".join(
            f"{speaker.number(count) if count > 1 else rng.choice(('a', 'one', '1'))} {speaker.say(value)}"
            for value, count in counts.items()
        )
        is_plural = list(counts.values())[-1] > 1 or speaker.maybe(0.3)
        return Drawn(f"{text} {speaker.noun(Filter(shape), plural=is_plural, short=True)}", scene, expect)
    if len(counts) == 2 and varied == "color" and speaker.maybe(0.25):
        (value, count), only = next(iter(counts.items())), rng.choice(("only ", "just ", ""))
        expect = drawn(scene, [Filter(shape, value), Filter(shape, not_color=value)])
        expect["scene"]["objects"][0]["count"] = count
        which = f"{NUMBERS[count]} of them"
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
    number = speaker.how_many((2, 2, 2, 3, 3, 4))
    name = rng.choice(("color", "color", "size", "shape", "color and size"))
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
    number, layout = speaker.how_many((2, 3, 3, 3, 4, 4)), rng.choice(("row", "column"))
    kinds = random_kinds(speaker, number, SIZES if number < 4 else ("small",))
    if speaker.maybe(0.35):
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
        first, last = (
            speaker.say(f"{side} end") for side in (("left", "right") if layout == "row" else ("top", "bottom"))
        )
        spots = [first, *["in the middle"] * (number - 2), last]
        if number == 3 and speaker.maybe(0.4):
            spots[1] = "below that" if layout == "column" else "next to it"
        is_first = speaker.maybe(0.3)
        told = [f"{spot} {part}" if is_first else f"{part} {spot}" for part, spot in zip(parts, spots, strict=True)]
        text = rng.choice((", ", ", ", " and ", "; ", ", and ")).join(told)
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
    number = speaker.how_many((1, 2, 2, 3, 3, 4))
    shape, color = rng.choice(SHAPES), rng.choice(COLORS)
    if speaker.exceeds:
        form = rng.choice(("number", "not color"))
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


def several(speaker: Speaker, split: Split) -> Drawn:
    """A number of things that are called the same, perhaps beside a few others."""
    rng = speaker.rng
    number = speaker.how_many((1, 2, 2, 3, 3, 3, 4, 4, 4))
    (color, shape), size = rng.choice(sorted(SEEN_PAIRS)), rng.choice(SIZES)
    names = speaker.pick({("color", "shape"): 40, ("shape",): 16, FULL: 24, ("size", "shape"): 8, ("color",): 6})
    base = Filter.of(Filter(shape, color, size), names)
    pairs = [pair for pair in sorted(SEEN_PAIRS) if base.color in (None, pair[0]) and base.shape in (None, pair[1])]
    kinds = [(*rng.choice(pairs)[::-1], base.size or rng.choice(SIZES)) for _ in range(number)]
    filters, parts = [base] * number, [speaker.some(base, number, short=True)]
    if base.color and speaker.maybe(0.12):
        parts = [speaker.some(replace(base, color=None), number, short=True)]
        parts[0] += speaker.say("all in color" if number > 1 else "in the color", c=speaker.say(base.color))
    elif number < MAX_OBJECTS and speaker.maybe(0.3):
        others = rng.randint(1, MAX_OBJECTS - number)
        (kind,) = random_kinds(speaker, 1)
        other = Filter(*kind[:2])
        need(not other.matches(base) and not base.matches(other) and (base.shape and base.color))
        kinds, filters = kinds + [kind] * others, filters + [other] * others
        parts.insert(rng.randrange(2), speaker.some(other, others, short=True))
    text, layout = listed(parts, rng), None
    if len(parts) == 1 and number > 1 and speaker.maybe(0.15):
        layout = rng.choice(("row", "column"))
        text = speaker.say(f"alike in a {layout}", x=text)
    elif len(parts) == 1 and speaker.maybe(0.12):
        text = speaker.say("and no more", x=text)
    scene = scene_of(kinds, rng, layout=layout)
    return Drawn(text, scene, drawn(scene, filters))


def chain(speaker: Speaker, split: Split) -> Drawn:
    """Three or four objects, each placed by the one before: "a star, below it a heart, above that a cross"."""
    rng = speaker.rng
    scene = random_scene_for(split, rng, num_objects=rng.choice((3, 3, 4)))
    order = rng.sample(scene.objects, len(scene.objects))
    filters = random_filters(speaker, order)
    need(len(set(filters)) == len(filters) and all(item.color for item in filters))
    relations = [(index + 1, need(main_relation(b, a)), index) for index, (a, b) in enumerate(pairwise(order))]
    parts = [speaker.some(item, short=True) for item in filters]
    if speaker.maybe(0.3):  # all of them first, then where they are
        names = [need(name_among(speaker, filters, index)) for index in range(len(filters))]
        told = [
            speaker.say("one is there", a=names[a], r=speaker.say(relation), b=names[b]) for a, relation, b in relations
        ]
        return Drawn(
            f"{listed(parts, rng)}. {rng.choice(('. ', ', ', ' and ')).join(told)}",
            scene,
            drawn(scene, filters, relations=relations),
        )
    text = parts[0]
    for (index, relation, _), part in zip(relations, parts[1:], strict=True):
        there = speaker.say(relation.replace(" of", "of") + " it")
        if index > 1 and there.split()[-1] not in ("it", "that", "this"):
            there = f"{speaker.say(relation)} {rng.choice(('that', 'that one', 'it'))}"
        text += speaker.say("next in the chain", x=part, i=there)
    return Drawn(text, scene, drawn(scene, filters, relations=relations))


def tell_later(speaker: Speaker, split: Split) -> Drawn:
    """First how many there are, then what each looks like: by size, by number, by shape."""
    rng = speaker.rng
    number = speaker.how_many((2, 2, 3, 3, 3, 4))
    shape, form = rng.choice(SHAPES), rng.choice(("size", "size", "order", "shape"))
    if form == "size":
        odd, other = rng.sample(SIZES, 2)
        colors = rng.sample(COLORS_OF[shape], 2)
        kinds = [(shape, colors[0], odd), *[(shape, colors[1], other)] * (number - 1)]
        filters = [Filter(*kind) for kind in kinds]
        rest = number - 1
        ones = "one" if rest == 1 else "ones"
        parts = [f"{rng.choice(('a', 'one', 'a'))} {speaker.say(odd)} {speaker.say(shape)}"]
        parts.append(f"{speaker.number(rest) if rest > 1 else rng.choice(('a', 'one'))} {speaker.say(other)} {ones}")
        told = [
            (f"{speaker.say(odd)} one", speaker.say(colors[0])),
            (f"{speaker.say(other)} {ones}", speaker.say(colors[1])),
        ]
    elif form == "order":
        need(number < 5)
        values = rng.choices(COLORS_OF[shape], k=number) if speaker.maybe(0.7) else rng.choices(SIZES, k=number)
        is_color = values[0] in COLORS
        color = rng.choice(COLORS_OF[shape])
        kinds = [(shape, v, rng.choice(SIZES)) if is_color else (shape, color, v) for v in values]
        filters = [Filter(shape, v) if is_color else Filter(shape, size=v) for v in values]
        parts = [speaker.some(Filter(shape), number, short=True)]
        names = ("first", "second", "third", "fourth")[:number]
        names = (*names[:-1], rng.choice((names[-1], "last", "other" if number == 2 else "last")))
        ones = rng.choice(("", " one"))
        told = [(name + ones, speaker.say(value)) for name, value in zip(names, values, strict=True)]
    else:
        shapes = rng.sample(SHAPES, min(number, 4))
        kinds = [(each, rng.choice(COLORS_OF[each]), rng.choice(SIZES)) for each in shapes]
        filters, told, parts = [], [], []
        for kind in kinds:
            names = rng.choice((("color",), ("size",), ("color", "size")))
            filters.append(Filter.of(Filter(*kind), ("shape", *names)))
            parts.append(speaker.some(Filter(kind[0]), short=True))
            told.append((speaker.say(kind[0]), " and ".join(speaker.say(getattr(filters[-1], name)) for name in names)))
        need(number < 5)
    verb = speaker.pick({"is": 5, "": 3, "should be": 3, "must be": 1, "has to be": 1})
    if form == "size" and number > 2 and verb == "is":
        told = [(told[0][0], f"is {told[0][1]}"), (told[1][0], f"are {told[1][1]}")]
        verb = ""
    if speaker.maybe(0.2):
        rng.shuffle(told)
    clauses = [f"the {name} {verb} {value}" for name, value in told]
    text = listed(parts, rng) + rng.choice((". ", ". ", ", ", ": ", "; "))
    text += rng.choice((", ", ", ", " and ", ", and ", ". ")).join(clauses)
    scene = scene_of(kinds, rng)
    return Drawn(tidy(text), scene, drawn(scene, filters))


def correct_list(speaker: Speaker, split: Split) -> Drawn:
    """Several objects, and then a second thought about one of them."""
    rng = speaker.rng
    number = rng.choice((2, 2, 3, 3, 4))
    kinds = random_kinds(speaker, number)
    filters = random_filters(speaker, [SceneObject(*kind, 0.5, 0.5) for kind in kinds])
    need(all(item.color for item in filters) and len(set(filters)) == number)
    at, form = rng.randrange(number), rng.choice(("value", "value", "number", "leave out", "one more"))
    parts = [speaker.some(item, short=True) for item in filters]
    slots = {"s": speaker.say("correct")}
    match form:
        case "value":
            name = rng.choice(("color", "color", "size", "shape"))
            wrong = rng.choice(
                [v for v in ATTRIBUTES[name] if v not in {getattr(item, name) for item in filters}] or [None]
            )
            need(wrong and getattr(filters[at], name))
            said = [replace(item, **{name: wrong}) if index == at else item for index, item in enumerate(filters)]
            need(said[at].pair not in HELD_OUT_PAIRS)
            parts = [speaker.some(item, short=True) for item in said]
            slots["n"] = need(name_among(speaker, said, at))
            value = speaker.say(getattr(filters[at], name))
            slots["v"] = f"a {value}" if name == "shape" else value
        case "number":
            counts = [count for count in range(1, MAX_OBJECTS + 1) if count + number - 1 <= MAX_OBJECTS]
            need(len(counts) > 1)
            count, wrong = rng.sample(counts, 2)
            need(count > 1)
            parts[at] = speaker.some(filters[at], wrong, short=True)
            slots["n"] = speaker.noun(Filter(filters[at].shape), plural=True, short=True)
            need(sum(item.shape == filters[at].shape for item in filters) == 1)
            slots["v"] = speaker.number(count)
            kinds += [kinds[at]] * (count - 1)
            filters += [filters[at]] * (count - 1)
        case "leave out":
            need(number > 1)
            slots["n"] = need(name_among(speaker, filters, at))
            del kinds[at], filters[at]
        case _:
            last = parts.pop()
            slots["n"] = last
    scene = scene_of(kinds, rng)
    text = speaker.say(f"second thought {form}", x=listed(parts, rng), **{"v": "", **slots})
    return Drawn(tidy(text), scene, drawn(scene, filters))


def between(speaker: Speaker, split: Split) -> Drawn:
    """One object between two others, which may be alike."""
    rng = speaker.rng
    layout = rng.choice(("row", "row", "column"))
    kinds = random_kinds(speaker, 3)
    is_alike = speaker.maybe(0.4)
    if is_alike:
        kinds[2] = kinds[0]
    need(kinds[1][:2] != kinds[0][:2] and (is_alike or kinds[0][:2] != kinds[2][:2]) and kinds[1][:2] != kinds[2][:2])
    names = speaker.pick({("color", "shape"): 60, FULL: 30, ("shape",): 15})
    filters = [Filter.of(Filter(*kind), names) for kind in kinds]
    need(is_alike or len(set(filters)) == 3)
    scene = scene_of(kinds, rng, layout=layout)
    first, middle, last = (speaker.some(item, short=True) for item in filters)
    ends = speaker.some(filters[0], 2, short=True) if is_alike else f"{first} and {last}"
    text = speaker.say("between", x=middle, e=ends)
    return Drawn(text, scene, drawn(scene, filters))


def put_in_places(speaker: Speaker, split: Split) -> Drawn:
    """Each object in a place of its own: "a star top left and a heart in the bottom right corner"."""
    rng = speaker.rng
    scene = random_scene_for(split, rng, num_objects=rng.choice((2, 2, 3, 3, 4)))
    order = rng.sample(scene.objects, len(scene.objects))
    filters = random_filters(speaker, order)
    need(len(set(filters)) == len(filters))
    places = [
        next((place for place in stated_places(item) if place != "center" or len(order) > 2), None) for item in order
    ]
    need(all(places) and len(set(places)) == len(places))
    is_first = speaker.maybe(0.25)
    told = [
        f"{speaker.say(place)} {speaker.some(item, short=True)}"
        if is_first
        else f"{speaker.some(item, short=True)} {speaker.say(place)}"
        for item, place in zip(filters, places, strict=True)
    ]
    relations = []
    for a, b in combinations(range(len(order)), 2):
        for relation, side in SIDES.items():
            if side in places[a] and SIDES[OPPOSITE[relation]] in places[b] and is_clear(relation, order[a], order[b]):
                relations.append((a, relation, b))
    return Drawn(listed(told, rng), scene, drawn(scene, filters, relations=relations))


FORMS = {
    list_objects: 34,
    between: 6,
    put_in_places: 8,
    relate: 24,
    chain: 9,
    group: 15,
    share: 12,
    several: 16,
    tell_later: 9,
    correct_list: 7,
    arrange: 12,
    compare_sizes: 8,
    leave_open: 7,
    single: 18,
}
EXCESSIVE = {several: 30, list_objects: 14, group: 8, share: 6, arrange: 8, leave_open: 4, tell_later: 3}
"""Forms that can ask for more objects than there can be."""
