"""Requests to draw in people's words: a scene, what is said of it, and what an image of these words must show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from random import Random
from typing import Any

from mllm.world.grammar import Slot, listed, tidy
from mllm.world.language import NUMBER_WORDS, pluralize
from mllm.world.people.speaker import FULL, Speaker
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
    SIZES,
    Scene,
    SceneObject,
    Split,
    is_valid,
    main_relation,
    random_free_position,
    random_scene_for,
    split_of,
    stated_places,
)
from mllm.world.spec import Filter

Drawn = tuple[str, bool, Scene, dict[str, Any]] | None


def draw_turn(speaker: Speaker, split: Split) -> tuple[str, Scene, dict[str, Any]]:
    """A request in words, a scene that fits it, and what it asks for."""
    rng = speaker.rng
    forms = {
        list_objects: 34,
        relate: 26,
        group: 14,
        share: 12,
        arrange: 9,
        compare_sizes: 8,
        leave_open: 8,
        single: 18,
    }
    while True:
        made = speaker.pick(forms)(speaker, split)
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
            text = speaker.say("background first", b=background, x=text)
            said = 1.0
        text = tidy(speaker.say("sentence", s=text) if is_sentence else speaker.say("draw", x=text))
        if said < 0.42:
            mark = rng.choice((". ", ". ", ", ", "; ", "\n"))
            text = text.rstrip(".") + mark + speaker.say("bgsentence", b=background)
        return text, scene, expect


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
        text = speaker.say(
            "corrected at once",
            w=speaker.some(wrong, short=True),
            r=right,
        )
        return text, False, scene, expect
    if speaker.maybe(0.12) and len(names) > 1:
        bare = replace(named, color=None, size=None)
        said = [speaker.say(getattr(item, name)) for name in names if name != "shape"]
        rng.shuffle(said)
        rest = " and ".join(said)
        text = speaker.say("attributes later", x=speaker.some(bare), r=rest, n=speaker.say(item.shape))
        return text, False, scene, expect
    text = speaker.some(named)
    places = [place for place in stated_places(item) if None not in PLACES[place]] or list(stated_places(item))
    if places and speaker.maybe(0.3):
        text = f"{text} {speaker.say(places[0])}"
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
    if any(
        item is not other
        and item.shape == other.shape
        and None in (item.color, other.color)
        and item.color != other.color
        for (item, _), (other, _) in combinations(groups, 2)
    ):
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
            told.append(speaker.say("colors later", n=noun, c=speaker.say(item.color), b=both))
        joined = rng.choice((", ", " and ", ", and ")).join(told)
        text += rng.choice((". ", ". ", ", ", "; ", " where ", " with ")) + joined
    elif speaker.maybe(0.3) and len(set(filters)) == len(filters):
        first, second = rng.sample(range(len(order)), 2)
        relation = main_relation(order[first], order[second])
        if relation:
            names = [name_among(speaker, filters, index) for index in (first, second)]
            if None not in names:
                the = rng.choice(("the ", "the ", "the ", ""))
                text += speaker.say(
                    "placed later", a=the + str(names[0]), b=the + str(names[1]), r=speaker.say(relation)
                )
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
    return speaker.say("denied", x=text, p=plural), denied


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
    sides = {
        "left of": ("left", "right"),
        "right of": ("right", "left"),
        "above": ("top", "bottom"),
        "below": ("bottom", "top"),
    }
    slots["p"], slots["q"] = (speaker.say(place) for place in sides[relation])
    is_sentence = speaker.maybe(0.25) and not shared
    same = filters[0].shape == filters[1].shape
    text = speaker.say(
        "related sentence" if is_sentence else "related objects" if same or speaker.maybe(0.75) else "related later",
        **slots,
    )
    if shared and slots["a"] == a and speaker.say(shared) not in text and shared not in a + b:
        text += speaker.say("both in color", c=speaker.say(shared))
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
        text += speaker.say("further objects") + listed(rest, rng).strip()
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
        kinds = [(shape, value, rng.choice(SIZES)) if varied == "color" else (shape, color, value) for value in values]
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
    ones = (
        rng.choice((" and ", " and ", ", ")).join(parts)
        if len(parts) == 2
        else ", ".join(parts[:-1]) + rng.choice((" and ", ", ")) + parts[-1]
    )
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
        text = speaker.say("only some", h=head, o=only, n=which, v=speaker.say(value))
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
                text += speaker.say("all in color", c=speaker.say(base.color))
            return text, False, scene, expect
    is_list = len(set(values)) == number and varied == "color" and speaker.maybe(0.5)
    return (
        speaker.say(
            "told apart by color" if is_list else "told apart", h=head, o=ones, w=joined, c=speaker.say("color")
        ),
        False,
        scene,
        expect,
    )


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
    said = (
        speaker.say(value)
        if value
        else rng.choice(
            (f"{speaker.say(size)} and {speaker.say(color)}", f"{speaker.say(color)} and {speaker.say(size)}")
        )
    )
    all_ = "both" if number == 2 else "all"
    if name == "shape":
        if speaker.maybe(0.5):
            expect = drawn(scene, [Filter(shape=shape)])
            noun = speaker.noun(Filter(shape=shape), plural=True)
            return (
                speaker.say("all of a shape", n=speaker.number(number), s=pluralize(speaker.say("shape")), p=noun),
                False,
                scene,
                expect,
            )
        return None
    if speaker.maybe(0.3):
        base = Filter(**({name: value} if value else {"color": color, "size": size}))
        expect = drawn(scene, [base])
        return (
            speaker.say("anything alike", n=speaker.number(number), s=pluralize(speaker.say("shape")), v=said),
            False,
            scene,
            expect,
        )
    bare = [Filter(kind[0], None if "color" in name else kind[1], None) for kind in kinds]
    filters = [replace(item, **({name: value} if value else {"color": color, "size": size})) for item in bare]
    text = listed([speaker.some(item, count, short=True) for item, count in count_groups(bare)], rng)
    text += speaker.say("all alike", a=all_, v=said)
    return text, False, scene, drawn(scene, filters)


def arrange(speaker: Speaker, split: Split) -> Drawn:
    """A row from left to right, or a stack from top to bottom, or a place for each."""
    rng = speaker.rng
    number, layout = rng.choice((2, 3, 3, 3, 4)), rng.choice(("row", "column"))
    kinds = [
        (*rng.choice(sorted(SEEN_PAIRS))[::-1], rng.choice(SIZES if number < 4 else ("small",))) for _ in range(number)
    ]
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
    joined = ", ".join(parts[:-1]) + rng.choice((" and ", ", ", ", then ")) + parts[-1]
    joined = " ".join(parts) if speaker.maybe(0.15) else joined
    slots: dict[str, Slot] = {"j": joined, "h": head, "flow": speaker.say(f"in a {layout}")}
    if number < 4 and speaker.maybe(0.5):
        spots = [ends[0], *["in the middle"] * (number - 2), ends[1]]
        if number == 3 and speaker.maybe(0.4):
            spots[1] = "below that" if layout == "column" else "next to it"
        told = [f"{part} {spot}" for part, spot in zip(parts, spots, strict=True)]
        slots["t"] = rng.choice((", ", ", ", " and ")).join(told)
        text = speaker.say("each in its place", **slots) if head else str(slots["t"])
    else:
        text = speaker.say("arranged with head" if head and speaker.maybe(0.6) else "arranged", **slots)
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
        text = speaker.say("equally large", a=texts[0], b=texts[1])
        return text, False, scene, drawn(scene, filters)
    word, relation = ("bigger larger", "larger than") if a.size == "large" else ("smaller tinier", "smaller than")
    word = rng.choice(word.split())
    text = speaker.say(
        "compared", a=texts[0], b=texts[1], A=nouns[0], B=nouns[1], m=word, c=speaker.noun(filters[0], short=True)
    )
    any_color = rng.choice(
        (". colors don't matter", ", any color", ", colors are your choice", ", colour doesn't matter")
    )
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
            text = speaker.say("only of a shape", p=speaker.noun(Filter(shape=shape), plural=True))
        case "only color":
            kinds = [(rng.choice(shapes), color, size) for _, _, size in free]
            text = speaker.say("only in a color", c=speaker.say(color))
        case "number":
            kinds = free
            text = speaker.say(
                "of your choice",
                n=speaker.number(number) if number > 1 else "one",
                s=pluralize(speaker.say("shape")) if number > 1 else speaker.say("shape"),
            )
        case "not color":
            kinds = [(shape, rng.choice([c for c in colors if c != color]), size) for _, _, size in free]
            if number == 1 or (color, shape) in HELD_OUT_PAIRS:
                return None
            text = speaker.say(
                "not in a color",
                n=speaker.number(number),
                p=speaker.noun(Filter(shape=shape), plural=True),
                c=speaker.say(color),
            )
        case "different":
            if number < 2:
                return None
            varied = rng.choice(("color", "shape"))
            if varied == "color":
                kinds = [(shape, c, size) for c, (_, _, size) in zip(rng.sample(colors, number), free, strict=True)]
            else:
                kinds = [(s, color, size) for s, (_, _, size) in zip(rng.sample(shapes, number), free, strict=True)]
            base = speaker.noun(
                Filter(shape=shape) if varied == "color" else Filter(color=color), plural=True, short=True
            )
            text = speaker.say(
                "all different",
                n=speaker.number(number),
                p=base,
                v=speaker.say("color") if varied == "color" else "shape",
            )
        case _:
            kinds = free
            text = rng.choice(
                (
                    "something",
                    "anything",
                    "anything you like",
                    "a random picture",
                    "something nice",
                    "whatever you want",
                    "a surprise",
                    "some shapes",
                )
            )
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
    return text, False, scene, expect
