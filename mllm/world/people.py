"""Conversations as people have them: pictures, changes, questions, corrections, small talk, requests for what this
world lacks, and new pictures.

What is meant comes first (a scene and what is said of it, a change, a question), then the words, by the rules of
phrases/people.yaml. Every turn carries the right answer and its exact meaning in the form of files of requests
(docs/evaluation.md), so that the checker judges every answer. `make_people` makes conversations.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import combinations, compress, pairwise
from random import Random
from typing import Any, NamedTuple

from mllm.world.dialogue import CHANGED_ATTRIBUTE
from mllm.world.grammar import Speaker, tidy
from mllm.world.language import NUMBER_WORDS, UnsayableError, describe, join, need, phrases
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
    SIDES,
    SIZES,
    Scene,
    SceneObject,
    Split,
    is_clear,
    is_valid,
    main_relation,
    offset,
    place_freely,
    place_in_corners,
    random_free_position,
    random_scene_for,
    split_of,
    stated_places,
)
from mllm.world.spec import ANY, Filter

# ---- requests to draw: a scene, what is said of it, and what an image of these words must show ----

FULL = ("size", "color", "shape")
BREAK = re.compile(r"[.:;?\n]")
SEEN_KINDS = [Filter(shape, color, size) for color, shape in sorted(SEEN_PAIRS) for size in SIZES]
"""Everything that training sees."""


class Drawn(NamedTuple):
    """What is said, a scene that fits it, and what an image must show."""

    text: str
    scene: Scene
    expect: dict[str, Any]
    frame: str = ""  # the rule that makes a request of it, where it is no noun phrase


def draw_turn(speaker: Speaker, split: Split, *, frame: str = "draw") -> tuple[str, Scene, dict[str, Any]]:
    """A request in words, a scene that fits it, and what it asks for; the rule `frame` makes it of a noun phrase."""
    while True:
        tells = speaker.is_wordy and speaker.maybe(0.4)
        forms = EXCESSIVE if speaker.exceeds else {tell_one_by_one: 1} if tells else DRAWING_FORMS
        text, scene, expect, own_frame = speaker.attempt(forms, split)
        if speaker.exceeds or split_of(scene) == split:
            break
    count = expect["scene"]["total"]
    if count and speaker.maybe(0.07):
        ended = "counted at the end" if count > 1 else "counted as one"
        text = text.rstrip(".") + speaker.say(ended, n=speaker.number(count, plain=True))
    slots = {"b": speaker.say(scene.background), "w": speaker.say(f"why {scene.background}")}
    names_background = expect["scene"]["background"] is None and speaker.maybe(0.45)
    in_phrase = not own_frame and "\n" not in text and speaker.maybe(0.71)
    if names_background:
        expect["scene"]["background"] = scene.background
        text = speaker.say("background in phrase", x=text, **slots) if in_phrase else text
    if not own_frame and frame == "draw" and not BREAK.search(text) and speaker.maybe(0.05):
        own_frame = "draw within"
    text = tidy(speaker.say(own_frame or frame, x=text, s=text))
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
    names = {"full": FULL, "shape": ("shape",)}.get(level, ("color", "shape"))
    named = [Filter.of(item, names) for item in order]
    if level == "mixed" and len(set(named)) == len(named):
        return [Filter.of(item) if speaker.maybe(0.5) else Filter.of(item, names) for item in order]
    return named


def random_kinds(rng: Random, number: int, like: Filter = ANY, *, differ: str | None = None) -> list[Filter]:
    """Shapes, colors and sizes of objects that a description fits; no two alike in the attribute that must differ."""
    kinds = [kind for kind in SEEN_KINDS if like.matches(kind)]
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


def piece_by_piece(speaker: Speaker, item: Filter) -> str:
    """One object as it comes to mind: "a star, a blue one, and small"."""
    values = [value for value in (item.size, item.color) if value]
    need(item.shape and values)
    speaker.rng.shuffle(values)
    said = [speaker.say(value) for value in values]
    behind = [
        speaker.say(f"size {value}") if value in SIZES else speaker.say("in color", v=words)
        for value, words in zip(values, said, strict=True)
    ]
    slots = {"n": speaker.say(item.shape), "v": said[0], "h": behind[0], "w": said[-1], "g": behind[-1], "a": "a"}
    return tidy(speaker.say("piece by piece twice" if len(values) == 2 else "piece by piece", **slots))


def say_loosely(speaker: Speaker, item: Filter) -> str:
    """One object in its usual words, piece by piece, or with another shape first: "a cross, no, a square, in red"."""
    values = [value for value in (item.size, item.color) if value]
    need(item.shape and values)
    if speaker.maybe(0.4):
        return speaker.some(item, long=True)
    if speaker.maybe(0.85):
        return piece_by_piece(speaker, item)
    wrong = another(speaker.rng, "shape", [item])
    slots = {"w": speaker.some(Filter(wrong)), "r": f"a {speaker.say(item.shape)}"}
    behind = [
        speaker.say(f"size {value}") if value in SIZES else speaker.say("in color", v=speaker.say(value))
        for value in speaker.rng.sample(values, len(values))
    ]
    return tidy(f"{speaker.say('corrected at once', **slots)}, {' and '.join(behind)}")


def there(speaker: Speaker, relation: str, name: str = "") -> str:
    """Where the next object is from the one before it, which may have a name: "right below that"."""
    named = name and speaker.maybe(0.4)
    return speaker.say(f"there {relation}", p=f"the {name}" if named else speaker.say("the one before"))


def name_two(speaker: Speaker, filters: Sequence[Filter]) -> list[str]:
    """How the first two objects are referred to; "former" and "latter" only where there are no more."""
    if len(filters) == 2 and speaker.maybe(0.3):
        return [speaker.say("former"), speaker.say("latter")]
    return [name_among(speaker, filters, index) for index in (0, 1)]


def another(rng: Random, name: str, items: Iterable[SceneObject | Filter]) -> str:
    """A value of an attribute that none of the objects has; UnsayableError where there is none."""
    taken = {getattr(item, name) for item in items}
    return rng.choice(need([value for value in ATTRIBUTES[name] if value not in taken]))


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
            slots = {"r": " and ".join(rng.sample(said, len(said))), "x": speaker.some(Filter(item.shape))}
            text = speaker.say("attributes later", **slots, n=speaker.say(item.shape))
    return Drawn(text, scene, drawn(scene, [named]))


def list_objects(speaker: Speaker, split: Split) -> Drawn:
    """Several objects in a row of words, alike ones counted, with a relation or a denial behind them."""
    scene, order, filters = some_scene(speaker, split, (2, 2, 2, 3, 3, 3, 4, 4), distinct=False)
    text, relations, none = list_filters(speaker, filters, long=True), [], []
    match speaker.pick({"": 40, "counted": 8, "placed later": 24, "denied": 10, "nothing else": 10}):
        case "counted":
            text = speaker.say("counted", n=speaker.number(len(order)), s=speaker.noun(ANY, plural=True), x=text)
        case "placed later":
            relation = need(main_relation(*order[:2]))
            need(len(set(filters)) == len(filters))
            a, b = name_two(speaker, filters)
            text += speaker.say("placed later", a=a, b=b, r=speaker.say(relation))
            relations = [(0, relation, 1)]
        case "denied":
            name = speaker.rng.choice(("shape", "shape", "color"))
            denied = Filter(**{name: another(speaker.rng, name, order)})
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
    if len(order) == 2 and not is_sentence and speaker.maybe(0.06):
        sides = [speaker.say(f"{SIDES[each]} end") for each in (relation, OPPOSITE[relation])]
        ends = [f"{speaker.noun(item)} {side}" for item, side in zip((a, b), sides, strict=True)]
        text += speaker.say("recap", x=speaker.rng.choice((", ", " and ")).join(ends))
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
    return Drawn(text, scene, drawn(scene, filters, relations=relations), "sentence" * is_sentence)


def group(speaker: Speaker, split: Split) -> Drawn:
    """Objects that are counted and then told apart: "two stars, one red and one blue"."""
    rng, number = speaker.rng, speaker.how_many((2, 2, 2, 3, 3, 3, 4, 4))
    varied = speaker.pick({"color": 4, "shape": 3, "size": 2})
    shared = {"color": ("shape",), "shape": ("color",), "size": ("shape", "color")}[varied]
    of_a_size = varied != "size" and speaker.maybe(0.25)
    shared += ("size",) * of_a_size
    like = Filter.of(rng.choice(SEEN_KINDS), shared)
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
        "o": join(parts, rng.choice((" and ", " and ", ", ") if len(parts) == 2 else (" and ", ", "))),
        "w": " ".join(words) if speaker.maybe(0.2) else join(words, rng.choice((" and ", ", "))),
        "all": "both" if number == 2 else "all",
        "c": speaker.say(base.color or "color"),
        "n": speaker.number(few),
        "v": speaker.say(least),
        "x": speaker.say(most),
        "r": "the other" if number - few == 1 else speaker.say("the others"),
    }
    form = speaker.pick(
        {
            "told apart": 30,
            "alike in size": 60 * (base.size is not None),
            "and the rest": 9 * (varied != "shape" and len(counts) == 2),
            "told apart by color": 22 * (varied == "color" and len(counts) == number),
            "colors before the noun": 11 * (varied == "color"),
            "only some": 11 * (varied == "color" and len(counts) == 2),
            "alike in color": 45 * (varied == "size" and base.color is not None),
            "an odd one": 25 * (varied == "size" and number > 2 and few == 1),
        }
    )
    match form:
        case "colors before the noun":
            slots["o"] = " and ".join(one(value, count) for value, count in counts.items())
            is_plural = list(counts.values())[-1] > 1 or speaker.maybe(0.3)
            slots["h"] = speaker.noun(base, plural=is_plural)
        case "only some":
            expect = drawn(scene, [replace(base, color=least), replace(base, not_color=least)])
        case "alike in size":
            slots["h"], slots["z"] = speaker.some(replace(base, size=None), number), speaker.say(base.size)
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
    base = Filter.of(rng.choice(SEEN_KINDS), names)
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
    shape = rng.choice(SEEN_KINDS).shape if speaker.maybe(0.35) else None
    shade = rng.choice(SEEN_KINDS).color if not shape and number < 6 and speaker.maybe(0.2) else None
    kinds = random_kinds(rng, number, Filter(shape, shade, "small" if number > 3 else None))
    need(len({kind.pair for kind in kinds}) == number)
    scene = scene_of(kinds, rng, layout=layout)
    only_colors = shape is not None and speaker.maybe(0.7)
    names = FULL if not only_colors and speaker.maybe(0.3) else ("color", "shape")
    filters = [Filter.of(kind, names) for kind in kinds]
    sizes = {kind.size for kind in kinds}
    said, later = filters, ""
    if shade:
        said, later = [replace(item, color=None) for item in filters], speaker.say("all in color", c=speaker.say(shade))
    elif len(sizes) == 1 and speaker.maybe(0.35):
        said, filters = [Filter.of(item, ("color", "shape")) for item in kinds], list(kinds)
        later = speaker.say("all in size", z=speaker.say(*sizes))
    parts = [speaker.say(item.color) if only_colors else speaker.some(item) for item in said]
    is_numbered = number <= MAX_OBJECTS and speaker.maybe(0.2)
    which = [f"{word} " for word in order_words(speaker, number)] if is_numbered else [""] * number
    head = speaker.some(Filter(shape), number) if shape else ""
    if number < 4 and speaker.maybe(0.5):
        first, last = (speaker.say(f"{side} end") for side in ends)
        spots = [first, *["in the middle"] * (number - 2), last]
        if number == 3 and speaker.maybe(0.4):
            spots[1] = "below that" if layout == "column" else "next to it"
        is_first = speaker.maybe(0.3)
        told = [f"{spot} {part}" if is_first else f"{part} {spot}" for part, spot in zip(parts, spots, strict=True)]
        text = speaker.say("mark between places").join(map("".join, zip(which, told, strict=True)))
        text = speaker.say("each in its place", h=head, t=text) if head else text
    else:
        parts = list(map("".join, zip(which, parts, strict=True)))
        joined = join(parts, ", " if which[0] else rng.choice((" and ", ", ", ", then ")))
        slots = {"j": " ".join(parts) if speaker.maybe(0.15) else joined, "flow": speaker.say(f"in a {layout}")}
        text = speaker.say(
            "arranged with head" if head and (only_colors or speaker.maybe(0.6)) else "arranged", h=head, **slots
        )
    relations = [(index, relation, index + 1) for index in range(number - 1)]
    return Drawn(tidy(text).strip(":, ") + later, scene, drawn(scene, filters, relations=relations))


def order_words(speaker: Speaker, number: int) -> list[str]:
    """ "first", "then", "last": what stands before things that are told in order."""
    words = ["first", *["second", "third"][: number - 1], *["fourth"] * (number > 3)]
    if speaker.maybe(0.5):
        words = ["first", *["then"] * (number - 1)]
    both = words[-1] if words[-1] == "then" else f"{words[-1]} and last"
    words[-1] = speaker.rng.choice((words[-1], "last", "finally", "and last", both))
    return words


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
    forms = ["of your choice", "not in a color", "not of a shape"]
    if not speaker.exceeds:
        forms += ["only of a shape", "only in a color", "all different shapes", "all different colors", "anything"]
    form, kind, varied, like = rng.choice(forms), rng.choice(SEEN_KINDS), None, ANY
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
        case "not of a shape":
            need(number > 1)
            shape = another(rng, "shape", [kind])
            like, none = Filter(color=kind.color, not_shape=shape), [{"shape": shape}]
        case "all different shapes" | "all different colors":
            need(number > 1)
            varied = form.split()[-1][:-1]
            like = Filter(kind.shape) if varied == "color" else Filter(color=kind.color)
        case "anything":
            total = None
    kinds = random_kinds(rng, number, like, differ=varied)
    open_like = replace(like, not_color=None, not_shape=None)
    named = [open_like] if total and like != ANY else []
    slots = {"n": speaker.number(number) if number > 1 else "one", "c": speaker.say(kind.color)}
    slots["p"] = speaker.noun(open_like, plural=number > 1 or form != "of your choice")
    slots["v"] = speaker.say(like.not_shape or "color") if like.not_shape or varied == "color" else "shape"
    slots["q"] = speaker.noun(Filter(like.not_shape), plural=True)
    scene = scene_of(kinds, rng)
    text = speaker.say("all different" if varied else form, **slots)
    return Drawn(text, scene, drawn(scene, named, total=total, none=none))


def several(speaker: Speaker, split: Split) -> Drawn:
    """A number of things that are called the same, perhaps beside a few others."""
    rng, number = speaker.rng, speaker.how_many((1, 2, 2, 3, 3, 3, 4, 4, 4))
    names = speaker.pick({("color", "shape"): 40, ("shape",): 16, FULL: 24, ("size", "shape"): 8, ("color",): 6})
    base = Filter.of(rng.choice(SEEN_KINDS), names)
    kinds, filters, layout = random_kinds(rng, number, base), [base] * number, None
    text = speaker.some(base, number)
    form = {"": 50, "all in color": 11, "all alike": 16, "others": 24, "more": 10, "in a line": 10, "and no more": 9}
    match speaker.pick(form):
        case "all alike":
            need(number > 1 and (base.size or base.color))
            names = [name for name in ("size", "color") if getattr(base, name)]
            later = rng.sample(names, rng.randint(1, len(names)))
            both = "both" if number == 2 else "all"
            said = rng.choice((" and ", f" and {both} ", f" and {both} of them ")) if number < 5 else " and "
            said = said.join(speaker.say(getattr(base, name)) for name in later)
            text = speaker.some(replace(base, **dict.fromkeys(later)), number)
            text += speaker.say("all alike", a=both, v=said)
        case "more":
            need(base.pair and base.size and number < MAX_OBJECTS)
            count, other = rng.randint(1, MAX_OBJECTS - number), replace(base, size=another(rng, "size", [base]))
            kinds, filters = kinds + [other] * count, filters + [other] * count
            slots = {"n": speaker.number(count, plain=True), "o": speaker.say(other.size), "v": speaker.say(base.color)}
            slots |= {"p": speaker.noun(Filter(base.shape), plural=count > 1), "ones": "one" if count == 1 else "ones"}
            text = speaker.say("and more of them", x=text, verb="is" if count == 1 else "are", **slots)
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
    scene, order, filters = some_scene(speaker, split, (3, 3, 4))
    need(all(item.color for item in filters))
    relations = [(index, need(main_relation(b, a)), index - 1) for index, (a, b) in enumerate(pairwise(order), 1)]
    parts = [speaker.some(item) for item in filters]
    if speaker.maybe(0.3):  # all of them first, then where they are
        names = [name_among(speaker, filters, index) for index in range(len(filters))]
        told = [speaker.say("one is there", a=names[a], r=speaker.say(r), b=names[b]) for a, r, b in relations]
        text = f"{speaker.listed(parts)}. {speaker.rng.choice(('. ', ', ', ' and ')).join(told)}"
        return Drawn(text, scene, drawn(scene, filters, relations=relations))
    text = parts[0]
    for (index, relation, _), part in zip(relations, parts[1:], strict=True):
        named = [other for other in range(len(filters)) if filters[other].shape == filters[index - 1].shape]
        where = there(speaker, relation, name_among(speaker, filters, index - 1) if len(named) == 1 else "")
        text += speaker.say("next in the chain", x=part, i=where)
    return Drawn(text, scene, drawn(scene, filters, relations=relations))


def tell_later(speaker: Speaker, split: Split) -> Drawn:
    """First what there is, then what each looks like: by size, by number, by shape."""
    rng, number = speaker.rng, speaker.how_many((2, 2, 3, 3, 3, 4))
    form, shape = rng.choice(("size", "size", "order", "shape", "shape")), rng.choice(SEEN_KINDS).shape
    told: list[tuple[str, int, str]]  # what objects are called, how many, and what they are
    if form == "size":
        odd, other = random_kinds(rng, 2, Filter(shape), differ="color")
        other, rest = replace(other, size=another(rng, "size", [odd])), number - 1
        kinds = filters = [odd, *[other] * rest]
        ones, count = ("one", "a") if rest == 1 else ("ones", speaker.number(rest))
        parts = [f"a {speaker.say(odd.size)} {speaker.say(shape)}", f"{count} {speaker.say(other.size)} {ones}"]
        told = [(f"{speaker.say(odd.size)} one", 1, odd.color)]
        told.append((f"{speaker.say(other.size)} {ones}", rest, other.color))
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
    kinds = random_kinds(speaker.rng, 3)
    is_alike = speaker.maybe(0.4)
    if is_alike:
        kinds[2] = kinds[0]
    names = speaker.pick({("color", "shape"): 60, FULL: 30, ("shape",): 15})
    filters = [Filter.of(kind, names) for kind in kinds]
    need(len({kind.pair for kind in kinds}) == len(set(filters)) == (2 if is_alike else 3))
    scene = scene_of(kinds, speaker.rng, layout=speaker.rng.choice(("row", "row", "column")))
    first, middle, last = (speaker.some(item) for item in filters)
    ends = speaker.some(filters[0], 2) if is_alike else f"{first} and {last}"
    return Drawn(speaker.say("between", x=middle, e=ends), scene, drawn(scene, filters))


def beside(speaker: Speaker, split: Split) -> Drawn:
    """Two objects side by side, whichever is on which side: "a star next to a heart"."""
    kinds = random_kinds(speaker.rng, 2)
    filters = random_filters(speaker, kinds)
    need(len(set(filters)) == 2)
    a, b = (speaker.some(item) for item in filters)
    scene = scene_of(speaker.rng.sample(kinds, 2), speaker.rng, layout="row")
    return Drawn(speaker.say("beside", a=a, b=b), scene, drawn(scene, filters))


def put_in_places(speaker: Speaker, split: Split) -> Drawn:
    """Each object in a place of its own: "a star top left and a heart in the bottom right corner"."""
    scene, order, filters = some_scene(speaker, split, (2, 2, 3, 3, 4))
    places = [next((p for p in stated_places(item) if p != "center" or len(order) > 2), None) for item in order]
    need(all(places) and len(set(places)) == len(places))
    is_first = speaker.maybe(0.25)
    said = [(speaker.some(item), speaker.say(place)) for item, place in zip(filters, places, strict=True)]
    told = [f"{place} {item}" if is_first else f"{item} {place}" for item, place in said]
    relations = [
        (a, relation, b)
        for a, b in combinations(range(len(order)), 2)
        for relation, side in SIDES.items()
        if side in places[a] and SIDES[OPPOSITE[relation]] in places[b] and is_clear(relation, order[a], order[b])
    ]
    return Drawn(speaker.listed(told), scene, drawn(scene, filters, relations=relations))


def tell_one_by_one(speaker: Speaker, split: Split) -> Drawn:
    """A sentence for every object, and more for what it looks like, where it is, or a change of mind."""
    rng = speaker.rng
    scene, order, filters = some_scene(speaker, split, (1, 2, 2, 2, 2, 3, 3, 3, 4))
    said, sentences, relations, last = list(filters), [], [], []
    words = order_words(speaker, len(order)) if 1 < len(order) < 5 and speaker.maybe(0.2) else []
    shared = [name for name in ("color", "size") if len({getattr(item, name) for item in filters}) == 1]
    if len(filters) == 2 and shared and (value := getattr(filters[0], shared[0])):
        said = [replace(item, **{shared[0]: None}) for item in filters]
        last = [speaker.say("told of both", v=speaker.say(value))]
    elif speaker.maybe(0.2):
        at, name = rng.randrange(len(said)), rng.choice(("color", "color", "size", "shape"))
        value = speaker.say(need(getattr(filters[at], name)))
        said[at] = replace(filters[at], **{name: another(rng, name, filters)})
        need(said[at].pair not in HELD_OUT_PAIRS)
        slots = {"n": name_among(speaker, said, at), "v": f"a {value}" if name == "shape" else value}
        last = [speaker.say("told otherwise", **slots)]
    for index, item in enumerate(said):
        values = [speaker.say(value) for value in (item.size, item.color) if value]
        is_late = bool(values) and speaker.maybe(0.25)
        part = speaker.some(Filter(item.shape) if is_late else item, long=not is_late)
        relation = main_relation(order[index], order[index - 1]) if index else None
        if relation and speaker.maybe(0.6):
            where = there(speaker, relation, name_among(speaker, said, index - 1))
            if words:
                sentences.append(speaker.say("told in order", w=words[index], x=f"{part} {where}"))
            else:
                sentences.append(speaker.say("told next there", x=part, i=where))
            relations.append((index, relation, index - 1))
        elif words:
            sentences.append(speaker.say("told in order", w=words[index], x=part))
        else:
            sentences.append(speaker.say("told next" if index else "told at first", x=part))
        if is_late:
            sentences.append(speaker.say("told of it", v=" and ".join(rng.sample(values, len(values)))))
    if len(said) > 1 and not relations and speaker.maybe(0.5) and (relation := main_relation(*order[:2])):
        a, b = (name_among(speaker, said, index) for index in (0, 1))
        sentences.append(speaker.say("told where", a=a, b=b, r=speaker.say(relation)))
        relations.append((0, relation, 1))
    text = rng.choice((". ", ". ", ". ", ", ")).join([*sentences, *last])
    return Drawn(tidy(text), scene, drawn(scene, filters, relations=relations), "told")


def dictate(speaker: Speaker, split: Split) -> Drawn:
    """One object after the other as they come to mind, perhaps each from the one before it."""
    scene, order, filters = some_scene(speaker, split, (1, 2, 2, 2, 2, 3, 3, 4))
    text, relations = say_loosely(speaker, filters[0]), []
    if speaker.maybe(0.25):
        text += f" {speaker.say(need(stated_places(order[0]))[0])}"
    for index, item in list(enumerate(filters))[1:]:
        before = filters[index - 1]
        if item.size and before.size not in (None, item.size) and speaker.maybe(0.3):
            part = speaker.some(replace(item, size=None), long=True)
            name = name_among(speaker, filters, index - 1)
            part += speaker.say("against another", m=speaker.say(f"comparative {item.size}"), n=name)
        else:
            part = say_loosely(speaker, item)
        relation = main_relation(order[index], order[index - 1])
        if relation and speaker.maybe(0.75):
            where = there(speaker, relation, name_among(speaker, filters, index - 1))
            text += speaker.say("next in dictation there", x=part, i=where)
            relations.append((index, relation, index - 1))
        else:
            text += speaker.say("next in dictation", x=part)
    return Drawn(text, scene, drawn(scene, filters, relations=relations))


def flank(speaker: Speaker, split: Split) -> Drawn:
    """One object, and what is on its sides: "a star, accompanied on its left by a heart"."""
    layouts = ("row", ("left", "right"), "left of"), ("column", ("top", "bottom"), "above")
    layout, sides, relation = speaker.rng.choice(layouts)
    kinds = random_kinds(speaker.rng, speaker.rng.choice((2, 2, 3, 3, 3)))
    filters = random_filters(speaker, kinds)
    need(len(set(filters)) == len(filters))
    scene, parts = scene_of(kinds, speaker.rng, layout=layout), [speaker.some(item, long=True) for item in filters]
    relations = [(index, relation, index + 1) for index in range(len(kinds) - 1)]
    p, q = (speaker.say(f"at its {side}") for side in sides)
    if len(kinds) == 3:
        a, b = (parts[0], p), (parts[2], q)
        (a, p), (b, q) = (a, b) if speaker.maybe(0.7) else (b, a)
        text = speaker.say("flanked", m=parts[1], a=a, b=b, p=p, q=q)
    else:
        middle, other, side = (1, 0, p) if speaker.maybe(0.5) else (0, 1, q)
        text = speaker.say("flanked by one", m=parts[middle], a=parts[other], p=side)
    return Drawn(text, scene, drawn(scene, filters, relations=relations))


def repeat_values(speaker: Speaker, split: Split) -> Drawn:
    """What an object shares with the one before it: "a blue star, and a heart, also blue", "another one, but small"."""
    rng, names = speaker.rng, speaker.rng.choice((FULL, FULL, ("color", "shape")))
    kinds, shared = random_kinds(rng, 1), [[]]
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        alike, last = rng.sample(names, rng.randint(1, len(names) - 1)), kinds[-1]
        fits = [{n for n in names if getattr(kind, n) == getattr(last, n)} == set(alike) for kind in SEEN_KINDS]
        kinds.append(rng.choice(need(list(compress(SEEN_KINDS, fits)))))
        shared.append(alike)
    filters = [Filter.of(kind, names) for kind in kinds]
    need(len(set(kinds)) == len(set(filters)) == len(kinds))
    scene, relations = scene_of(kinds, rng), []
    order = [kind.find_one(scene) for kind in kinds]
    text = speaker.some(filters[0], long=True)
    for index, (item, alike) in list(enumerate(zip(filters, shared, strict=True)))[1:]:
        same = [name for name in alike if name != "shape"]
        other = [name for name in names if name not in (*alike, "shape")]
        slots = {"s": speaker.say(item.shape), "n": speaker.say(filters[index - 1].shape), "k": " and ".join(same)}
        slots |= {"v": " and ".join(speaker.say(getattr(item, name)) for name in same)}
        slots |= {"o": " and ".join(speaker.say(getattr(item, name)) for name in other)}
        if "shape" in alike:
            part = speaker.say("another one as before" if same else "another one unlike", **slots)
        else:
            part = speaker.say("as before", x=speaker.some(replace(item, **dict.fromkeys(same))), **slots)
        relation = main_relation(order[index], order[index - 1])
        if relation and speaker.maybe(0.5):
            text += speaker.say("next in dictation there", x=part, i=there(speaker, relation))
            relations.append((index, relation, index - 1))
        else:
            text += speaker.say("next in dictation", x=part)
    return Drawn(tidy(text), scene, drawn(scene, filters, relations=relations))


def family(speaker: Speaker, split: Split) -> Drawn:
    """A large and a small one of a kind, as children say it: "a mama star and a baby star"."""
    shape = speaker.rng.choice(SEEN_KINDS).shape
    kinds = [random_kinds(speaker.rng, 1, Filter(shape, size=size))[0] for size in ("large", "small")]
    is_told = speaker.maybe(0.75)
    filters = [Filter.of(kind, FULL if is_told else ("shape", "size")) for kind in kinds]
    slots, colors = {"s": speaker.say(shape), "P": speaker.say("parent")}, [speaker.say(k.color) for k in kinds]
    text = speaker.say("families", **slots)
    if is_told and kinds[0].color == kinds[1].color and speaker.maybe(0.7):
        text += speaker.say("both in the family", v=colors[0])
    elif is_told:
        sizes = [f"{speaker.say(kind.size)} and " * speaker.maybe(0.5) for kind in kinds]
        text += speaker.say("family told", **slots, v=sizes[0] + colors[0], w=sizes[1] + colors[1])
    scene = scene_of(kinds, speaker.rng)
    return Drawn(text, scene, drawn(scene, filters))


def leave_one_open(speaker: Speaker, split: Split) -> Drawn:
    """One object as told, and one of which only is said what it must not be: "and a heart that is not red"."""
    rng = speaker.rng
    kinds = random_kinds(rng, rng.choice((1, 2, 2, 2)))
    last, name = kinds[-1], rng.choice(("color", "color", "shape"))
    others = [value for value in ATTRIBUTES[name] if value != getattr(last, name)]
    first = getattr(kinds[0], name)
    number = rng.choice((1, 2)) if name == "color" else 1
    values = rng.sample(others, number)
    if first in others and first not in values and (name == "shape" or speaker.maybe(0.5)):
        values[0] = first
    open_filter = Filter.of(last, ("shape",) if name == "color" else ("color",) if speaker.maybe(0.3) else ())
    noun = speaker.noun(open_filter)
    said = [speaker.say(value) for value in values]
    rule = f"except {name}s" if number == 2 else f"except {name}"
    part = speaker.say(rule, x=noun if name == "shape" else f"a {noun}", v=said[0], w=said[-1])
    filters = [Filter.of(kind, ("color", "shape") if speaker.maybe(0.6) else FULL) for kind in kinds[:-1]]
    scene = scene_of(kinds, rng)
    allowed = [value for value in ATTRIBUTES[name] if value not in values]
    fitting = [each for each in scene.objects if getattr(each, name) in allowed and open_filter.matches(each)]
    expect = drawn(scene, filters)
    expect["scene"]["objects"].append({**as_record(open_filter), name: allowed, "count": len(fitting)})
    return Drawn(tidy(speaker.listed([*map(speaker.some, filters), part])), scene, expect)


def specify(speaker: Speaker, split: Split) -> Drawn:
    """A form that is filled in, or a list of requirements: "shape: star; fill: red; qty: 2"."""
    rng, form = speaker.rng, speaker.rng.choice(("keys", "keys", "values", "required", "required", "pieces"))
    kinds = random_kinds(rng, rng.choice((1, 2, 2, 2, 3)))
    filters = [Filter.of(kind, FULL if speaker.maybe(0.75) else ("color", "shape")) for kind in kinds]
    counts = [rng.choice((1, 1, 1, 2, 3)) for _ in kinds]
    need(len({kind.pair for kind in kinds}) == len(kinds) and sum(counts) <= MAX_OBJECTS)
    order, tells_one = ["number", *rng.sample(FULL, 3)], speaker.maybe(0.5)
    if speaker.maybe(0.5):
        order = [*order[1:], "number"]
    keys = {name: speaker.say(f"key of {name}") for name in order}
    equal, mark = rng.choice((": ", ": ", "=", " = ", " - ")), rng.choice(("; ", ", ", " | ", ", "))
    between_rows = rng.choice(("\n", "\n", "\n", " / " if form == "keys" else ", ", ". "))
    rows = []
    for item, count in zip(filters, counts, strict=True):
        values = {name: speaker.say(getattr(item, name)) for name in FULL if getattr(item, name)}
        if form == "required":
            later = [name for name in ("color", "size") if getattr(item, name) and speaker.maybe(0.5)]
            noun = speaker.noun(replace(item, **dict.fromkeys(later)), plural=count > 1)
            row = speaker.say("required number", x=f"{speaker.number(count, plain=True)} {noun}")
            both = {1: "", 2: "both "}.get(count, "all ")
            rows.append(", ".join([row, *(both + values[name] for name in later)]))
            continue
        if form == "pieces":
            said = {"n": values.pop("shape"), "v": " ".join(rng.sample([*values.values()], len(values)))}
            pieces = f"{speaker.number(count, plain=True)} {'piece' if count == 1 else 'pieces'}"
            rows.append(speaker.say("in pieces", **said, c=values["color"], s=values.get("size", ""), k=pieces))
            continue
        if count > 1 or tells_one:
            values["number"] = rng.choice((str(count), f"{count}x", speaker.number(count, plain=True)))
        told = [(keys[name], values[name]) for name in order if name in values]
        by_key = mark.join(f"{key}{equal}{value}" for key, value in told)
        rows.append(by_key if form == "keys" else rng.choice(("/", "/", " / ", ", ")).join(value for _, value in told))
    if form == "pieces":
        equal, between_rows = " ", rng.choice((", ", ", ", "; ", " and "))
    if form == "values":
        between_rows = rng.choice(("\n", "; ", "; "))
    background = rng.choice(BACKGROUNDS)
    if is_set := speaker.maybe(0.6):
        equal = f" {rng.choice(('shall be', 'must be', 'is'))} " if form == "required" else equal
        row = f"{speaker.say('key of background')}{equal}{speaker.say(background)}"
        rows.insert(rng.choice((0, len(rows), len(rows))), row)
    if speaker.maybe(0.2):
        rows.append(speaker.say("nothing further"))
    if form == "required" and speaker.maybe(0.6):
        head = speaker.say("requirement", i="{i}")
        rows = [f"{head.replace('{i}', str(index))} {row}" for index, row in enumerate(rows, 1)]
    elif "\n" in between_rows and speaker.maybe(0.3):
        rows = [f"- {row}" for row in rows]
    repeated = [item for item, count in zip(filters, counts, strict=True) for _ in range(count)]
    scene = scene_of([kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count)], rng)
    expect = drawn(scene := replace(scene, background=background), repeated, background=background if is_set else None)
    return Drawn(tidy(between_rows.join(rows)), scene, expect, "" if form == "pieces" else "spec")


DRAWING_FORMS = {
    dictate: 24,
    flank: 10,
    repeat_values: 14,
    family: 3,
    leave_one_open: 7,
    specify: 12,
    list_objects: 32,
    between: 7,
    beside: 6,
    put_in_places: 8,
    relate: 24,
    chain: 9,
    group: 15,
    share: 12,
    several: 18,
    tell_later: 13,
    tell_one_by_one: 6,
    correct_list: 7,
    arrange: 12,
    compare_sizes: 8,
    leave_open: 7,
    single: 20,
}
EXCESSIVE = {
    several: 30,
    list_objects: 14,
    group: 8,
    share: 6,
    arrange: 8,
    leave_open: 4,
    tell_later: 3,
    tell_one_by_one: 3,
}
"""Forms that can ask for more objects than there can be."""


# ---- changes of a picture, and corrections of what was said ----

CHANGE_TRIES, CORRECTION_TRIES = 400, 40
AGREEMENT = {
    False: {"p": "it", "they": "it", "its": "its", "is": "is", "s": "s", "do": "does"},
    True: {"p": "them", "they": "they", "its": "their", "is": "are", "s": "", "do": "do"},
}
"""Words that go with one and with several objects, by the slots of rules."""
STATEMENT = re.compile(
    r"(the|it|both|they|their|all|everything|each|every|any|i|i'd|a|an|no|what|in|on|at|to|under|below|above)\b"
)
"""How a change begins that is no order."""


class Changed(NamedTuple):
    """What is said, and the scene after it."""

    text: str
    scene: Scene
    said: Sequence[Filter] = ()  # how added objects were described
    relation: tuple[Filter, str, Filter] | None = None  # that was said of an added object
    value: Filter | None = None  # what an object became; nothing in particular where it was removed


def correct(speaker: Speaker, scene: Scene) -> Changed:
    """ "Sorry, i meant green"."""
    item, name = speaker.rng.choice(scene.objects), speaker.rng.choice(("color", "color", "shape", "size"))
    old, new = getattr(item, name), another(speaker.rng, name, [item])
    after = changed(scene, [item], **{name: new})
    article = "a " if name == "shape" else ""
    slots = {"v": article + speaker.say(new), "w": article + speaker.say(old)}
    slots["s"] = speaker.say("correct") if speaker.maybe(0.8) else ""
    if len(scene.objects) == 1 and speaker.maybe(0.6):
        text = speaker.say("correct the only one", **slots)
    elif Filter(**{name: old}).find_one(scene) and speaker.maybe(0.4):
        text = speaker.say("correct the value", **slots)
    else:
        text = speaker.say("correct one", **slots, t=speaker.refer(scene, item, without=name))
    return Changed(text, after)


def changed(scene: Scene, chosen: Sequence[SceneObject], *, added: Sequence[SceneObject] = (), **values: str) -> Scene:
    """The scene where the chosen objects have new values, or are gone if there are none, and others are added;
    UnsayableError where that is none of this world."""
    items = [item for item in scene.objects if item not in chosen]
    items += [replace(item, **values) for item in chosen if values]
    after = Scene(scene.background, (*items, *added))
    need(is_valid(after) and after.pairs <= SEEN_PAIRS and after != scene)
    return after


def add_object(kind: Filter | SceneObject, others: Sequence[SceneObject], rng: Random) -> SceneObject:
    """An object of this kind where the others leave room; UnsayableError where they do not."""
    return SceneObject(kind.shape, kind.color, kind.size, *need(random_free_position(kind.size, others, rng, tries=20)))


def kept(before: Scene, made: Changed) -> dict[str, Any]:
    """What an image must show after a change."""
    olds = [item for item in made.scene.objects if item in before.objects or not made.said]
    filters = [*map(Filter.of, olds), *made.said]
    index = {item: at for at, item in enumerate(filters)}
    relations = [(index[a], relation, index[b]) for a, relation, b in ([made.relation] if made.relation else [])]
    gone = dict.fromkeys(Filter.of(item) for item in before.objects if item not in made.scene.objects)
    background = made.scene.background if made.scene.background != before.background else None
    expect = drawn(made.scene, filters, relations=relations, background=background)
    return {**expect, "keeps": True, "changes": [as_record(item) for item in gone]}


def frame_change(speaker: Speaker, text: str) -> str:
    """An order within its frame; what is no order, as it is."""
    return speaker.say("said frame" if STATEMENT.match(text) else "change frame", c=text)


def order_change(speaker: Speaker, name: str, **slots: str) -> str:
    """An imperative within its frame, or another way to say it."""
    target = slots.get("t", "")
    bare = "of it" if target in ("it", "this", "that", "that one", "this one") else target.removeprefix("the ")
    slots = {"p": "it", "bare": bare, **slots}
    slots |= {"they": "they", "s": ""} if slots["p"] == "them" else {"they": "it", "s": "s"}
    if speaker.maybe(0.4 if speaker.is_wordy else 0.68):
        order = speaker.say("background change" if name == "background" else name, **slots)
        return frame_change(speaker, order)
    slots["t"] = "all of them" if slots.get("t") == "them" else slots.get("t", "")  # which is the subject at times
    return speaker.say("said frame", c=speaker.say(f"{name} said", **slots))


def propose(speaker: Speaker, scene: Scene, chosen: Sequence[SceneObject]) -> tuple[str, Filter, Scene]:
    """A kind of change for some objects, what they become, and the scene after it."""
    kind = speaker.pick({"recolor": 34, "remove": 24, "resize": 22, "reshape": 20, "attributes": 10})
    if kind == "remove":
        return kind, Filter(), changed(scene, chosen)
    names = speaker.rng.sample(tuple(ATTRIBUTES), 2) if kind == "attributes" else [CHANGED_ATTRIBUTE[kind]]
    new = {name: another(speaker.rng, name, chosen) for name in names}
    if kind == "reshape" and speaker.maybe(0.25):
        new["color"] = speaker.rng.choice(COLORS)
    return "reshape" if "shape" in new else kind, Filter(**new), changed(scene, chosen, **new)


def say_change(speaker: Speaker, kind: str, target: str, value: Filter, *, plural: bool = False) -> str:
    """One change of what is named."""
    slots = {"t": target, "p": "them" if plural else "it"}
    match kind:
        case "resize":
            return order_change(speaker, "larger" if value.size == "large" else "smaller", **slots)
        case "reshape":
            noun = speaker.noun(value, plural=plural)
            slots["v"] = noun if plural else speaker.say("one of these", n=noun)
        case "recolor":
            slots["v"] = speaker.say(value.color)
        case "attributes":
            slots["v"], slots["w"] = speaker.rng.sample([speaker.say(value.color), speaker.say(value.size)], 2)
    return order_change(speaker, kind, **slots)


def change_some(speaker: Speaker, scene: Scene, chosen: Sequence[SceneObject], target: str) -> Changed:
    """A random change of some objects, which the target names."""
    kind, value, after = propose(speaker, scene, chosen)
    return Changed(say_change(speaker, kind, target, value, plural=len(chosen) > 1), after, value=value)


def matching(scene: Scene, rng: Random) -> tuple[Filter, list[SceneObject]]:
    """Two or more objects that a shape, a color or a size singles out; UnsayableError where there are none."""
    names = rng.choice((*[("shape",)] * 3, ("color",), ("size",), ("size", "shape"), ("color", "shape")))
    wanted = Filter.of(rng.choice(scene.objects), names)
    found = [item for item in scene.objects if wanted.matches(item)]
    need(len(found) > 1)
    return wanted, found


def refer_twice(speaker: Speaker, scene: Scene, item: SceneObject, *, without: str | None = None) -> str:
    """An object by one of its names, at times with another one behind: "the one in the middle, the blue cross,"."""
    name, other = (speaker.refer(scene, item, without=without) for _ in range(2))
    return f"{name}, {other}," if name != other and speaker.maybe(0.07) else name


def change_one(speaker: Speaker, scene: Scene) -> Changed:
    item = speaker.rng.choice(scene.objects)
    others = [other for other in scene.objects if other is not item]
    kind, value, after = propose(speaker, scene, [item])
    if not others and kind in ("recolor", "resize") and speaker.maybe(0.15):
        more = "bigger" if value.size == "large" else "smaller"
        text = speaker.say(f"in short {kind}", v=speaker.say(value.color or value.size), m=more)
        return Changed(text, after, value=value)
    is_it = not others and speaker.maybe(0.6)
    target = speaker.rng.choice(("it", "it", "it", "this", "that")) if is_it else refer_twice(speaker, scene, item)
    if kind == "recolor" and speaker.maybe(0.2 if speaker.is_wordy else 0.06):
        wrong = another(speaker.rng, "color", [item, value])
        need((item.shape, wrong) in SEEN_PAIRS)
        text = say_change(speaker, kind, target, Filter(color=wrong))
        text += speaker.say("changed mind", s=speaker.say("correct"), v=speaker.say(value.color))
        return Changed(text, after, value=value)
    text = say_change(speaker, kind, target, value)
    if others and not is_it and speaker.maybe(0.06):
        text += speaker.say("not that one", o=speaker.refer(scene, speaker.rng.choice(others)))
    elif kind == "recolor" and speaker.maybe(0.08):
        text += speaker.say("not the old", o=speaker.say(item.color))
    return Changed(text, after, value=value)


def change_in_two(speaker: Speaker, scene: Scene) -> Changed:
    """What is seen or disliked, then the change: "the heart is tiny. make it big", "i'd have the latter in red"."""
    if speaker.maybe(0.15):
        base, chosen = matching(scene, speaker.rng)
        number = speaker.number(len(chosen))
        opening = speaker.say("several seen", m=number, n=speaker.noun(base, plural=True))
        target = speaker.say("both of them" if len(chosen) == 2 else "all of those")
        made = change_some(speaker.briefly(), scene, chosen, target)
        return made._replace(text=f"{opening}{speaker.say('mark after a look')}{made.text}")
    item = speaker.rng.choice(scene.objects)
    kind, value, after = propose(speaker, scene, [item])
    others, named = [other for other in scene.objects if other is not item], Filter.of(item, ("color", "shape"))
    judged = {"resize": "larger" if value.size == "large" else "smaller"}.get(kind, kind)
    if others and speaker.maybe(0.3):
        other = speaker.rng.choice(others)
        pair = [item, other] if speaker.maybe(0.5) else [other, item]
        seen = [Filter.of(each, ("color", "shape")) for each in pair]
        need(all(each.find_one(scene) for each in seen))
        opening = speaker.say("two seen", a=speaker.some(seen[0]), b=speaker.some(seen[1]))
        names = {id(pair[0]): speaker.say("the former"), id(pair[1]): speaker.say("the latter")}
        text = say_change(speaker.briefly(), kind, names[id(item)], value)
        if speaker.maybe(0.6):
            text = speaker.say("keeping", t=text, k=say_keep(speaker, names[id(other)]))
    else:
        if kind == "attributes" or (named.find_one(scene) and speaker.maybe(0.35)):
            need(named.find_one(scene))
            opening = speaker.say("seen", a=speaker.some(named))
        else:
            opening = speaker.say(f"judged {judged}", t=speaker.refer(scene, item), c=speaker.say(item.color))
        text = say_change(speaker.briefly(), kind, speaker.say("that thing"), value)
    return Changed(f"{opening}{speaker.say('mark after a look')}{text}", after, value=value)


def change_from_old(speaker: Speaker, scene: Scene) -> Changed:
    """The value that is and the one that shall be: "from red to blue", "large instead of small"."""
    name = speaker.rng.choice(("color", "color", "size", "size", "shape"))
    if name != "shape" and speaker.maybe(0.25):
        base, chosen = matching(scene, speaker.rng)
        need(len({getattr(item, name) for item in chosen}) == 1 and base.shape and not getattr(base, name))
        noun = speaker.noun(base, plural=True)
        target = f"both {noun}" if len(chosen) == 2 else f"all the {noun}"
    else:
        chosen = [speaker.rng.choice(scene.objects)]
        is_it = len(scene.objects) == 1 and speaker.maybe(0.5)
        target = "it" if is_it else speaker.refer(scene, chosen[0], without=name)
    old, new = getattr(chosen[0], name), another(speaker.rng, name, chosen)
    article = "a " if name == "shape" else ""
    slots = {"t": target, "o": article + speaker.say(old), "v": article + speaker.say(new)}
    text = speaker.say("from the old", **slots, **AGREEMENT[len(chosen) > 1])
    after = changed(scene, chosen, **{name: new})
    return Changed(text, after, value=Filter(**{name: new}) if len(chosen) == 1 else None)


def replace_in_place(speaker: Speaker, scene: Scene) -> Changed:
    """Take the star away and put a small red heart in its place, or one of the same color and size; perhaps two."""
    if speaker.maybe(0.15):
        base, chosen = matching(scene, speaker.rng)
        need(base.shape and len(chosen) == 2)
        target = speaker.say("both of a kind", n=speaker.noun(base, plural=True))
    else:
        chosen = [speaker.rng.choice(scene.objects)]
        is_it = len(scene.objects) == 1 and speaker.maybe(0.4)
        target = "it" if is_it else speaker.refer(scene, chosen[0])
    names = speaker.pick({("shape",): 4, ("shape", "color"): 2, ("shape", "color", "size"): 4})
    new = {name: speaker.rng.choice(ATTRIBUTES[name]) for name in names}
    need(new["shape"] not in {item.shape for item in chosen})
    kept_names = [name for name in ("color", "size") if name not in new]
    said = Filter(**new)
    slots = {"t": target, "v": speaker.some(said) if len(chosen) == 1 else speaker.noun(said, plural=True)}
    names = " and ".join(speaker.rng.sample(kept_names, len(kept_names)))
    slots["m"] = speaker.say("with the same", a=names) if names else ""
    text = speaker.say("in its place", **slots, **AGREEMENT[len(chosen) > 1])
    return Changed(text, changed(scene, chosen, **new))


OWN_WORDS = {"size": "size word", "position": "position word"}


def say_keep(speaker: Speaker, name: str, *, plural: bool = False) -> str:
    """That what is named stays as it is."""
    return speaker.say("keep", k=name, **AGREEMENT[plural])


def keep_too(speaker: Speaker, scene: Scene, made: Changed) -> Changed:
    """The change, and what stays: the rest, others by name, the background, or what the changed ones keep."""
    after = made.scene
    stay = [item for item in scene.objects if item in after.objects]
    new = {(item.x, item.y): item for item in after.objects if item not in scene.objects}
    pairs = [(item, new.get((item.x, item.y))) for item in scene.objects if item not in after.objects]
    is_pairs = bool(pairs) and all(b is not None for _, b in pairs)
    own = [name for name in ATTRIBUTES if is_pairs and all(getattr(a, name) == getattr(b, name) for a, b in pairs)]
    is_same_background = after.background == scene.background
    kinds: dict[str, float] = {
        "rest": 4 * bool(stay),
        "names": 6 * bool(stay),
        "one": 2 * (len(stay) > 1),
        "own": 5 * bool(own),
    }
    kinds |= {"background": 1.5 * is_same_background, "nothing else changes": 1.5}
    kinds["what is left"] = 4 * bool(pairs and stay and not new)
    kind = speaker.pick(kinds)
    match kind:
        case "rest":
            is_all = len(stay) == len(scene.objects)
            name = speaker.say("what is there" if is_all else "the rest" if len(stay) > 1 else "the other one")
            text = say_keep(speaker, name, plural=name.endswith("s"))
        case "names" | "one":
            some = stay if kind == "names" else [speaker.rng.choice(stay)]
            text = say_keep(speaker, name_all(speaker, scene, some), plural=len(some) > 1)
        case "background":
            name = speaker.say("the background") if speaker.maybe(0.7) else f"the {speaker.say(scene.background)}"
            text = say_keep(speaker, name)
        case "own":
            own = [*own, "position"] if speaker.maybe(0.3) else own
            names = speaker.rng.sample(own, min(len(own), speaker.rng.choice((1, 1, 2))))
            words = [name if name == "shape" else speaker.say(OWN_WORDS.get(name, name)) for name in names]
            values = [getattr(pairs[0][0], name) for name in names if name in ("color", "size")]
            if len(pairs) == len(values) == len(names) == 1 and speaker.maybe(0.35):
                text = speaker.say("keeps its value", v=speaker.say(values[0]))
            else:
                text = speaker.say("keeps its own", a=" and ".join(words), **AGREEMENT[len(pairs) > 1])
        case "what is left":
            text = speaker.say(kind, t=made.text, k=name_all(speaker, scene, stay), **AGREEMENT[len(stay) > 1])
            return made._replace(text=text)
        case _:
            text = speaker.say(kind)
    is_behind = kind in ("own", "nothing else changes")
    return made._replace(text=speaker.say("keeping behind" if is_behind else "keeping", t=made.text, k=text))


def name_all(speaker: Speaker, scene: Scene, items: Sequence[SceneObject]) -> str:
    """How some of the objects are named together."""
    if len(items) == 1:
        return speaker.refer(scene, items[0])
    for names in (("shape",), ("color", "shape")):
        base = Filter.of(items[0], names)
        if [item for item in scene.objects if base.matches(item)] == list(items) and speaker.maybe(0.8):
            return speaker.say("two or more", n=speaker.noun(base, plural=True), m=speaker.number(len(items)))
    return join([speaker.refer(scene, item) for item in items], " and ")


def change_by_comparison(speaker: Speaker, scene: Scene) -> Changed:
    """One should be larger or smaller than another one."""
    a, b = two_of(speaker, scene)
    need(a.size == b.size)
    size = another(speaker.rng, "size", [a])
    slots = {"a": speaker.refer(scene, a), "b": speaker.refer(scene, b), "m": speaker.say(f"comparative {size}")}
    if len(scene.objects) == 2 and speaker.maybe(0.4):
        slots["b"] = speaker.say("the other one")
    return Changed(speaker.say("larger than another", **slots), changed(scene, [a], size=size))


def two_of(speaker: Speaker, scene: Scene) -> list[SceneObject]:
    need(len(scene.objects) > 1)
    return speaker.rng.sample(scene.objects, 2)


def change_set(speaker: Speaker, scene: Scene) -> Changed:
    """All of them, both circles, every red one, the ones that are not red."""
    rng, number = speaker.rng, len(scene.objects)
    need(number > 1)
    match rng.choice(("all", "all", "match", "match", "match", "not", "color")):
        case "all":
            chosen = list(scene.objects)
            target = speaker.say("both of them" if number == 2 and speaker.maybe(0.7) else "all of them")
            if number > 2 and speaker.maybe(0.2):
                target = speaker.say("all so many", n=speaker.number(number))
        case "color":
            value = rng.choice(scene.objects).color
            chosen = [item for item in scene.objects if item.color == value]
            target = speaker.say("all in a color", c=speaker.say(value))
        case "not":
            name = rng.choice(("color", "shape"))
            value = getattr(rng.choice(scene.objects), name)
            chosen = need([item for item in scene.objects if getattr(item, name) != value])
            word = speaker.say(value) if name == "color" else f"a {speaker.say(value)}"
            target = speaker.say("that is not" if len(chosen) == 1 else "those that are not", w=word)
        case _:
            base, chosen = matching(scene, rng)
            is_noun = base.shape or speaker.maybe(0.5)
            noun = speaker.noun(base, plural=True) if is_noun else f"{speaker.say(base.color or base.size)} ones"
            one = noun.removesuffix("es" if noun.endswith("sses") else "s")
            if len(chosen) > 2 and speaker.maybe(0.2):
                noun = f"{speaker.number(len(chosen))} {noun}"
            target = speaker.say("both of a kind" if len(chosen) == 2 else "all of a kind", n=noun, s=one)
    return change_some(speaker, scene, chosen, target)


def change_but(speaker: Speaker, scene: Scene) -> Changed:
    """Everything except one, the other one, the rest; or that one is all that stays."""
    if speaker.maybe(0.2):
        base, stay = matching(scene, speaker.rng)
        name = "the " + speaker.noun(base, plural=True)
    else:
        stay = [speaker.rng.choice(scene.objects)]
        name = speaker.refer(scene, stay[0])
    chosen = need([item for item in scene.objects if item not in stay])
    plural = len(chosen) > 1
    kind, value, after = propose(speaker, scene, chosen)
    if kind == "remove":
        text = frame_change(speaker, speaker.say("only", k=name))
    elif speaker.maybe(0.4):
        order = say_change(speaker, kind, speaker.say("the rest" if plural else "the other one"), value, plural=plural)
        text = speaker.say("keeping first", k=say_keep(speaker, name, plural=len(stay) > 1), c=order)
    else:
        text = say_change(speaker, kind, speaker.say("everything except", k=name), value, plural=plural)
    return Changed(text, after)


def remove_some(speaker: Speaker, scene: Scene) -> Changed:
    """One or two of some alike, no matter which."""
    item = speaker.rng.choice(scene.objects)
    alike = [other for other in scene.objects if Filter.of(item).matches(other)]
    named = Filter(item.shape, item.color if speaker.maybe(0.3) else None)
    total = len(alike)
    need(total > 1 and named.count(scene) == total)
    number = speaker.rng.randrange(1, total)
    plural = speaker.noun(named, plural=True)
    slots = {"n": speaker.number(number), "m": speaker.number(total - number), "p": plural}
    slots["them"] = "them" if total == len(scene.objects) and speaker.maybe(0.6) else f"the {plural}"
    is_order = speaker.maybe(0.7)
    text = speaker.say("too many" if is_order else "too many said", **slots)
    after = changed(scene, speaker.rng.sample(alike, number))
    return Changed(frame_change(speaker, text) if is_order else text, after)


def add_one(speaker: Speaker, scene: Scene) -> Changed:
    rng = speaker.rng
    need(len(scene.objects) < MAX_OBJECTS)
    like = Filter.of(rng.choice(scene.objects), ("color", "shape")) if speaker.maybe(0.2) else Filter()
    (kind,) = random_kinds(rng, 1, like)
    new = add_object(kind, scene.objects, rng)
    said = kind if speaker.maybe(0.6) else replace(kind, size=None)
    is_alike = Filter(kind.shape).count(scene) > 0
    article = speaker.say("article of one more" if is_alike else "article of a new one")
    slots = {"a": f"{article} {speaker.noun(said)}", "w": ""}
    if is_alike and speaker.maybe(0.3):
        values = " and ".join(speaker.say(word) for word in (said.size, said.color) if word)
        slots["a"] = speaker.say("attributes behind", a=article, n=speaker.say(kind.shape), v=values)
    relation, form = None, rng.random()
    anchors = [(side, item) for item in scene.objects for side in RELATIONS if is_clear(side, new, item)]
    places = [place for place in stated_places(new) if None not in PLACES[place]]
    if anchors and form < 0.55:
        side, anchor = rng.choice(anchors)
        is_it = len(scene.objects) == 1 and speaker.maybe(0.5)
        name = "it" if is_it else speaker.refer(scene, anchor)
        if side in ("left of", "right of") and speaker.maybe(0.35):
            slots["w"] = speaker.say("next to one", t=name)
        else:
            relation = (said, side, Filter.of(anchor))
            it = side.replace(" of", "of") + " it"
            slots["w"] = speaker.say(it) if is_it else f"{speaker.say(side)} {name}"
    elif places and form < 0.75:
        slots["w"] = speaker.say(places[0])
    elif form > 0.78:
        text = speaker.say("friend", a=slots["a"], t=speaker.refer(scene, rng.choice(scene.objects)))
        return Changed(text, changed(scene, [], added=[new]), [said])
    text = order_change(speaker, "add" if slots["w"] else "add anywhere", **slots)
    return Changed(text, changed(scene, [], added=[new]), [said], relation)


def add_some(speaker: Speaker, scene: Scene) -> Changed:
    """Two or three more, alike or not: "add two small stars", "and also a heart and a circle"."""
    free = MAX_OBJECTS - len(scene.objects)
    need(free > 1)
    text, said = say_more(speaker, scene, speaker.rng.randint(2, free))
    new: list[SceneObject] = []
    for item in said:
        (kind,) = random_kinds(speaker.rng, 1, item)
        new.append(add_object(kind, (*scene.objects, *new), speaker.rng))
    return Changed(text, changed(scene, [], added=new), said)


def say_more(speaker: Speaker, scene: Scene, number: int) -> tuple[str, list[Filter]]:
    """Words that ask for so many more objects, and what is said of each."""
    said = [replace(kind, size=speaker.rng.choice((None, kind.size))) for kind in random_kinds(speaker.rng, number)]
    if speaker.maybe(0.65):
        base = said[0] if speaker.maybe(0.8) else replace(said[0], color=None)
        said = [base] * number
        if number == 1:
            is_alike = Filter(base.shape).count(scene) > 0
            words = f"{speaker.say('article of one more' if is_alike else 'article of a new one')} {speaker.noun(base)}"
        else:
            more = speaker.rng.choice(("", "", "", "more ", "other ", "further "))
            words = f"{speaker.number(number)} {more}{speaker.noun(base, plural=True)}"
    else:
        words = list_filters(speaker, said)
        need("\n" not in words)
    return order_change(speaker, "add anywhere", a=words), said


def add_alike(speaker: Speaker, scene: Scene) -> Changed:
    """One more of what is there: "copy the star", "another one like the red circle"."""
    need(len(scene.objects) < MAX_OBJECTS)
    item = speaker.rng.choice(scene.objects)
    new = add_object(item, scene.objects, speaker.rng)
    name = "it" if len(scene.objects) == 1 and speaker.maybe(0.5) else speaker.refer(scene, item)
    text = frame_change(speaker, speaker.say("one more alike", t=name))
    return Changed(text, changed(scene, [], added=[new]), [Filter.of(item)])


def change_background(speaker: Speaker, scene: Scene) -> Changed:
    color = speaker.rng.choice([name for name in BACKGROUNDS if name != scene.background])
    after = replace(scene, background=color)
    if speaker.maybe(0.4):
        slots = {"v": speaker.say(color), "o": speaker.say(scene.background)}
        text = speaker.say("background from the old", **slots, like=speaker.say(f"{scene.background} is like"))
        return Changed(text, after)
    return Changed(order_change(speaker, "background", v=speaker.say(color)), after)


def change_next(speaker: Speaker, before: Scene, scene: Scene, value: Filter | None) -> Changed:
    """What the change before leads to: the same for another object, or a change of the new or of the other one."""
    if value is not None and speaker.maybe(0.5):
        item = speaker.rng.choice(scene.objects)
        after = changed(scene, [item], **as_record(value))
        return Changed(speaker.say("the same for another", t=speaker.refer(scene, item)), after, value=value)
    same = [item for item in scene.objects if item in before.objects]
    new = [item for item in scene.objects if item not in same]
    if len(scene.objects) > len(before.objects):
        need(len(new) == 1)
        return change_some(speaker, scene, new, speaker.say("the new one"))
    need(len(scene.objects) == 2 and len(same) == 1)
    return change_some(speaker, scene, same, speaker.say("the second of two"))


def change_twice(speaker: Speaker, scene: Scene) -> Changed:
    """Two or three changes in one sentence."""
    choices = (*[change_one] * 4, change_from_old, replace_in_place, add_one, change_background, change_set, add_some)
    forms = [speaker.rng.choice(choices) for _ in range(speaker.rng.choice((2, 2, 2, 3)))]
    need(forms.count(change_background) < 2)
    is_list, texts, said, now = len(forms) == 2 and speaker.maybe(0.25), [], [], scene
    for form in forms:
        made = form(speaker.briefly() if texts or is_list else speaker, now)
        need("it" not in made.text.split() or not texts)
        texts.append(made.text)
        said, now = [*said, *made.said], made.scene
    if is_list:
        text = speaker.say("two things", a=texts[0], b=texts[1])
    else:
        text = texts[0] + "".join(speaker.say("and then") + text for text in texts[1:])
    stay = [item for item in scene.objects if item in now.objects]
    if stay and speaker.maybe(0.2):
        is_one = len(stay) == 1 or speaker.maybe(0.5)
        name = speaker.refer(scene, speaker.rng.choice(stay)) if is_one else speaker.say("the rest")
        text += ". " + say_keep(speaker, name, plural=not is_one and name.endswith("s"))
    new = [item for item in now.objects if item not in scene.objects]
    need(now != scene and (not said or len(new) == len(said)))
    return Changed(text, now, said)


def relate_two(speaker: Speaker, scene: Scene) -> Changed:
    """Exchange what two objects have, or give one what the other has."""
    a, b = two_of(speaker, scene)
    attribute = speaker.rng.choice(("color", "color", "size", "shape"))
    a_value, b_value = getattr(a, attribute), getattr(b, attribute)
    need(a_value != b_value)
    names = {slot: speaker.refer(scene, item, without=attribute) for slot, item in (("a", a), ("b", b))}
    word = speaker.say("color") if attribute == "color" else attribute
    slots = {**names, "attribute": word, "attributes": f"{word}s"}
    is_pair = len(scene.objects) == 2
    if speaker.maybe(0.5):
        new = [replace(a, **{attribute: b_value}), replace(b, **{attribute: a_value})]
        after = changed(scene, [a, b], added=new)
        text = speaker.say("swap of two" if is_pair and speaker.maybe(0.5) else "swap", **slots)
        if attribute == "size" and speaker.maybe(0.25):
            text += speaker.say("swap by comparison", **names, m=speaker.say(f"comparative {b_value}"))
        elif attribute != "shape" and speaker.maybe(0.3):
            text += speaker.say("swap in detail", **names, v=speaker.say(b_value), w=speaker.say(a_value))
    else:
        after = changed(scene, [a], **{attribute: b_value})
        if is_pair and speaker.maybe(0.3):
            slots["b"] = "the other one"
        is_size = attribute == "size" and speaker.maybe(0.7)
        text = speaker.say("as big as" if is_size else "same as", **slots, v="big" if b.size == "large" else "small")
    return Changed(frame_change(speaker, text), after)


CHANGE_FORMS = {
    remove_some: 5,
    change_one: 40,
    change_in_two: 18,
    change_from_old: 12,
    replace_in_place: 9,
    change_set: 26,
    change_but: 18,
    change_by_comparison: 4,
    add_one: 16,
    add_some: 9,
    add_alike: 4,
    change_background: 14,
    change_twice: 20,
    relate_two: 14,
}


# ---- questions about a picture, each with its one right answer ----

Asked = tuple[str, str | bool]  # words and the right answer
SYNONYMS = {"gray": ["grey"], "below": ["under", "beneath"], "above": ["over"], "circle": ["disk"], "cross": ["plus"]}
TELLS_PLACE = re.compile(r"left|right|top|bottom|upper|lower")
PICTURE = re.compile(r"\b(pic(ture)?|image|drawing|illustration|graphic|sketch|painting|photo|it|this|that|t?here)\b")
PAST = {"is": "was", "are": "were", "does": "did", "do": "did", "has": "had", "what's": "what was", "whats": "what was"}
PRESENT = re.compile(rf"\b({'|'.join(PAST)})\b(?! (not|you))")


def some_filter(speaker: Speaker, scene: Scene) -> Filter:
    """What may be counted or looked for: what is there, or nearly so, or something else."""
    choices = {"shape": 2, "color": 2, "color shape": 1, "size shape": 1, "size": 1, "size color shape": 1}
    names = speaker.pick(choices).split()
    made = Filter.of(speaker.rng.choice(scene.objects), names)
    if speaker.maybe(0.4):
        name = speaker.rng.choice(names)
        made = replace(made, **{name: speaker.rng.choice(ATTRIBUTES[name])})
    return made if made.pair not in HELD_OUT_PAIRS else Filter(made.shape)


def ask_count(speaker: Speaker, scene: Scene) -> Asked:
    wanted = some_filter(speaker, scene)
    match speaker.pick({"all": 25, "count": 35, "more than one": 10, "more of": 10, "count others": 15}):
        case "all":
            wanted = ANY
        case "more than one":
            slots = {"p": speaker.noun(wanted, plural=True), "n": speaker.noun(wanted)}
            return speaker.say("more than one", **slots), wanted.count(scene) > 1
        case "more of":
            shapes = sorted({item.shape for item in scene.objects})
            need(len(shapes) > 1)
            a, b = map(Filter, speaker.rng.sample(shapes, 2))
            names = {"a": speaker.noun(a, plural=True), "b": speaker.noun(b, plural=True)}
            return speaker.say("more of", **names), a.count(scene) > b.count(scene)
        case "count others":
            item = speaker.rng.choice(scene.objects)
            slots = {"p": speaker.noun(Filter(item.shape), plural=True), "c": speaker.say(item.color)}
            return speaker.say("count others", **slots), str(Filter(item.shape, not_color=item.color).count(scene))
    rest = [item.shape for item in scene.objects if item.shape != wanted.shape]
    if wanted != ANY and wanted.shape and rest and speaker.maybe(0.2):
        slots = {"p": speaker.noun(wanted, plural=True), "o": speaker.noun(Filter(rest[0]), plural=True)}
        return speaker.say("count only", **slots), str(wanted.count(scene))
    return speaker.say("count", p=speaker.noun(wanted, plural=True)), str(wanted.count(scene))


def ask_exists(speaker: Speaker, scene: Scene) -> Asked:
    wanted = some_filter(speaker, scene)
    if wanted.shape is None:
        words = " ".join(speaker.say(word) for word in (wanted.size, wanted.color) if word)
        text = speaker.say("exists thing", c=words)
    else:
        nouns = {"n": speaker.noun(wanted, long=True), "p": speaker.noun(wanted, plural=True, long=True)}
        text = speaker.say("exists", **nouns)
    return text, wanted.count(scene) > 0


def ask_attribute(speaker: Speaker, scene: Scene) -> Asked:
    """What color, shape or size one has, or which of two values."""
    rng = speaker.rng
    name, item = rng.choice(("color", "color", "shape", "size")), rng.choice(scene.objects)
    value, is_it = getattr(item, name), len(scene.objects) == 1 and speaker.maybe(0.5)
    form = speaker.pick({"open": 20, "which is": 3, "one or the other": 6})
    if form == "which is":
        need(name != "shape" and Filter(**{name: value}).find_one(scene))
        return speaker.say("which is", v=speaker.say(value)), item.shape
    if form == "open" and is_it and name == "shape" and speaker.maybe(0.5):
        return speaker.say("what is it"), item.shape
    target = rng.choice(("it", "it", "this", "that")) if is_it else refer_twice(speaker, scene, item, without=name)
    if form == "open":
        return speaker.say(f"{name} of", t=target), value
    article = "a " if name == "shape" else ""
    if name != "size" and speaker.maybe(0.3):
        offered = offer(speaker, value, ATTRIBUTES[name], article=article)
        return speaker.say("one of many", t=target, v=offered, a=name), value
    v, w = (article + speaker.say(each) for each in rng.sample((value, another(rng, name, [item])), 2))
    return speaker.say("one or the other", t=target, v=v, w=w), value


def offer(speaker: Speaker, right: str, values: Iterable[str], *, article: str = "") -> str:
    """The right value among others: "white, cream or gray"."""
    others = speaker.rng.sample([value for value in values if value != right], speaker.rng.choice((1, 2, 2, 3)))
    said = [article + speaker.say(value) for value in speaker.rng.sample([right, *others], len(others) + 1)]
    return " or ".join(said) if speaker.maybe(0.3) else join(said, " or ")


def ask_background(speaker: Speaker, scene: Scene) -> Asked:
    if speaker.maybe(0.35):
        return speaker.say("background of many", v=offer(speaker, scene.background, BACKGROUNDS)), scene.background
    if speaker.maybe(0.55):
        return speaker.say("background of"), scene.background
    color = speaker.rng.choice((scene.background, speaker.rng.choice(BACKGROUNDS)))
    return speaker.say("is background", b=speaker.say(color)), color == scene.background


def ask_related(speaker: Speaker, scene: Scene) -> Asked:
    """Is it above? What is above it? Above or below?"""
    a, b = two_of(speaker, scene)
    relation, name = need(main_relation(a, b)), speaker.refer(scene, b)
    if len(scene.objects) == 2 and speaker.maybe(0.1):
        return speaker.say("what is next to", w=speaker.say("next to one", t=name)), a.shape
    match speaker.pick({"is": 7, "which": 7, "either": 8}):
        case "is":
            asked = relation if speaker.maybe(0.5) else OPPOSITE[relation]
            text = speaker.say("related", a=speaker.refer(scene, a), b=name, r=speaker.say(asked))
            return text, asked == relation
        case "either":
            if relation in ("left of", "right of") and speaker.maybe(0.35):
                return speaker.say("which side", a=speaker.refer(scene, a), b=name), relation.removesuffix(" of")
            direction = speaker.say("vertical" if relation in ("above", "below") else "horizontal")
            return speaker.say("either", a=speaker.refer(scene, a), b=name, d=direction), relation.removesuffix(" of")
    others = [item for item in scene.objects if item not in (a, b)]
    need(not any(is_clear(relation, item, b) or main_relation(item, b) in (relation, None) for item in others))
    is_color = speaker.maybe(0.3)
    text = speaker.say("color related" if is_color else "what is related", r=speaker.say(relation), b=name)
    return text, a.color if is_color else a.shape


def ask_super(speaker: Speaker, scene: Scene) -> Asked:
    """The smallest, the leftmost, what is in a place."""
    need(len(scene.objects) > 1)
    if speaker.maybe(0.4):
        size = speaker.rng.choice(SIZES)
        item, word = need(Filter(size=size).find_one(scene)), speaker.say(f"most in size {size}")
    else:
        relation, place = speaker.rng.choice(tuple(SIDES.items()))
        item, *others = sorted(scene.objects, key=lambda item: -offset(relation, item, scene.objects[0]))
        need(offset(relation, item, others[0]) >= 0.15)
        word = speaker.say(f"most {relation}")
        if place in stated_places(item) and not any(place in stated_places(other) for other in others):
            if speaker.maybe(0.6):
                return speaker.say("at place", w=speaker.say(place), super=word), item.shape
    if speaker.maybe(0.35):
        return speaker.say("super color", super=word), item.color
    return speaker.say("super shape", super=word), item.shape


def ask_compared(speaker: Speaker, scene: Scene) -> Asked:
    a, b = two_of(speaker, scene)
    slots = {"a": speaker.refer(scene, a, without="size"), "b": speaker.refer(scene, b, without="size")}
    more = speaker.maybe(0.6)
    slots["m"] = speaker.rng.choice(("bigger", "larger")) if more else "smaller"
    if a.size != b.size and a.shape != b.shape and speaker.maybe(0.4):
        slots["m"] = speaker.rng.choice((slots["m"], f"the {slots['m']} one"))
        return speaker.say("which compare", **slots), (a if (a.size == "large") == more else b).shape
    return speaker.say("compare", **slots), a.size != b.size and (a.size == "large") == more


def ask_same(speaker: Speaker, scene: Scene) -> Asked:
    """Whether two are alike, whether all are."""
    rng = speaker.rng
    a, b = two_of(speaker, scene)
    attribute = rng.choice(("color", "color", "size", "size", "shape"))
    word = speaker.say("color") if attribute == "color" else attribute
    if speaker.maybe(0.4):
        names = {"a": speaker.refer(scene, a, without=attribute), "b": speaker.refer(scene, b, without=attribute)}
        return speaker.say("same two", **names, attribute=word), getattr(a, attribute) == getattr(b, attribute)
    base, items = matching(scene, rng) if speaker.maybe(0.6) else (ANY, scene.objects)
    need(not getattr(base, attribute))
    asked = "two" if len(items) == 2 else "everything"
    if base == ANY and speaker.maybe(0.5):
        all_ = speaker.say(f"asked of {asked}")
    else:
        all_ = speaker.say("asked of both" if len(items) == 2 else "asked of all", n=speaker.noun(base, plural=True))
    values = list(dict.fromkeys(getattr(item, attribute) for item in items))  # in the same order in every process
    if len(values) == 1 and attribute != "size" and speaker.maybe(0.5):
        return speaker.say("shared", all=all_, attribute=word), values[0]
    if attribute != "shape" and speaker.maybe(0.35):
        value = rng.choice([*values, rng.choice(ATTRIBUTES[attribute])])
        return speaker.say("all are", all=all_, v=speaker.say(value)), values == [value]
    return speaker.say("same all", all=all_, attribute=word, attributes=f"{word}s"), len(values) == 1


def ask_lists(speaker: Speaker, scene: Scene) -> Asked:
    """Which colors, which shapes there are."""
    name = speaker.rng.choice(("color", "color", "shape"))
    return speaker.say(f"which {name}s"), join(list(dict.fromkeys(getattr(item, name) for item in scene.objects)))


def ask_where(speaker: Speaker, scene: Scene) -> Asked:
    item = speaker.rng.choice(scene.objects)
    place = need(stated_places(item))[0]
    name = speaker.refer(scene, item)
    need(not TELLS_PLACE.search(name))
    return speaker.say("where", t=name), phrases("words")["places"][place][0]


QUESTION_FORMS = {
    ask_count: 18,
    ask_exists: 12,
    ask_attribute: 29,
    ask_background: 6,
    ask_related: 22,
    ask_super: 10,
    ask_compared: 8,
    ask_same: 8,
    ask_lists: 10,
    ask_where: 6,
}


# ---- conversations ----

KINDS = ("draw", "ask", "describe", "edit", "chat", "outside", "talk", "again")
IMAGE_SHARES = {"chat": 0.3, "outside": 0.35}
"""How often a conversation begins with an image that somebody shows, where it need not."""
OTHER = {"yes": ["no"], "no": ["yes"]}
NEARLY_TRIES = 60
CHANGES = {change_one: 48, change_set: 14, add_one: 30, change_background: 20}
"""Changes that may ask for what this world lacks in words that are otherwise in order."""


@dataclass(frozen=True, slots=True)
class PeopleTurn:
    """What somebody says, the right answer, and what any answer must be."""

    user: str
    answer: str | Scene
    expect: dict[str, Any]
    shown: Scene | None = None  # an image that comes with the words
    kind: str = ""
    value: Filter | None = None  # what an object became, where one was changed


def make_people(kind: str, rng: Random, split: Split = "train", *, max_turns: int = 6) -> list[PeopleTurn]:
    """The turns of one conversation of a kind."""
    while True:
        with suppress(UnsayableError):
            return _make(kind, Speaker(rng), split, max_turns)


def _make(kind: str, speaker: Speaker, split: Split, max_turns: int) -> list[PeopleTurn]:
    rng = speaker.rng
    shown: Scene | None = None
    if kind in ("ask", "describe", "edit") or speaker.maybe(IMAGE_SHARES.get(kind, 0)):
        is_full = kind == "outside" and speaker.maybe(0.3)
        shown = random_scene_for(split, rng, num_objects=MAX_OBJECTS if is_full else None)
    match kind:
        case "chat":
            turns = converse(speaker, split, rng.randint(2, max_turns), shown)
        case "again":
            shown = random_scene_for(split, rng) if speaker.maybe(0.3) else None
            turns = [draw(speaker, split)]
            if speaker.maybe(0.35):
                turns.append(respond(speaker, "edit", turns[-1].answer, split))
            turns += [draw(speaker, split, is_again=True) for _ in range(rng.choice((1, 2)))]
        case "draw":
            turns = [draw(speaker, split)]
        case "talk":
            turns = [talk(speaker, None)]
        case "outside":
            turns = [decline(speaker, shown)]
        case _:
            number = rng.choice((1, 1, 2, 3, 4)) if kind == "ask" else 1
            turns = [respond(speaker, kind, shown, split) for _ in range(number)]
    return [replace(turns[0], shown=shown), *turns[1:]]


def converse(speaker: Speaker, split: Split, num_turns: int, scene: Scene | None) -> list[PeopleTurn]:
    """Several turns about one picture after another, first about the one that is shown."""
    table = phrases("people")["weights"]
    images = [scene] if scene else []  # all of the conversation
    before = None  # the picture before the last one, where that was changed
    turns: list[PeopleTurn] = []
    while len(turns) < num_turns:
        last = turns[-1] if turns else None
        last_kind = last.kind if last else None
        after_image = last_kind in ("draw", "again", "edit")
        state = "at first" if not images else "later" if turns else "with an image"
        weights = {**table[f"turn {state}"]}
        if state == "later":
            weights["correct"] *= after_image or last_kind == "talk"
            weights["undo"] *= last_kind == "edit" and before is not None
            weights["earlier"] *= len(images) > 1
            weights["back"] *= len(images) > 1
        if len(turns) == num_turns - 1 and turns:
            weights["talk"] = 26
        kind = speaker.pick(weights)
        scene = images[-1] if images else None
        match kind:
            case "draw":
                turn = draw(speaker, split, is_again=scene is not None)
                if last_kind == "outside" and speaker.maybe(0.5):
                    turn = replace(turn, user=speaker.say("after all") + turn.user[:1].lower() + turn.user[1:])
            case "talk":
                turn = talk(speaker, "draw" if after_image else last_kind)
            case "ask" if last_kind == "ask" and last.answer in (*COLORS, *SIZES) and speaker.maybe(0.4):
                turn = ask_next(speaker, scene, "color" if last.answer in COLORS else "size")
            case "outside":
                turn = decline(speaker, scene)
            case "settle":
                declined, turn = settle(speaker, split)
                turns.append(declined)
            case "undo":
                turn = show_again(speaker, speaker.say("undo"), before)
            case "earlier" | "back":
                turn = look_back(speaker, images, kind, is_changed=before is not None)
            case "show":
                new = random_scene_for(split, speaker.rng)
                turn = replace(respond(speaker, speaker.rng.choice(("ask", "edit", "describe")), new, split), shown=new)
                images.append(new)
                before = None
            case _:
                turn = respond(speaker, kind, scene, split, before=before, value=last.value if last else None)
        if turn.kind in ("draw", "again", "edit") and turns and kind != "settle" and speaker.maybe(0.1):
            turn = replace(turn, user=f"{speaker.type(speaker.say('cheer')).rstrip('.')} {turn.user}")
        if isinstance(turn.answer, Scene):
            before = images[-1] if turn.kind == "edit" else None
            images.append(turn.answer)
        turns.append(turn)
    return turns


def show_again(speaker: Speaker, words: str, scene: Scene) -> PeopleTurn:
    """The wish to have an earlier picture again."""
    expect = drawn(scene, [Filter.of(item) for item in scene.objects], background=scene.background)
    return PeopleTurn(speaker.type(words), scene, expect, kind="again")


def look_back(speaker: Speaker, images: Sequence[Scene], kind: str, *, is_changed: bool) -> PeopleTurn:
    """A question about an earlier picture, or the wish to have it again."""
    index, last = speaker.rng.randrange(len(images) - 1), len(images) - 1
    scene = images[index]
    called = {"first": index == 0, "previous": index == last - 1, "two ago": index == last - 2}
    called["before the change"] = is_changed and index == last - 1
    names = [name for name, is_right in called.items() if is_right]
    shapes = [shape for shape in SHAPES if sum(Filter(shape).count(other) > 0 for other in images) == 1]
    marks = [shape for shape in shapes if Filter(shape).count(scene) == 1]
    if marks and (not names or speaker.maybe(0.3)):
        name = speaker.say("picture with", n=speaker.noun(Filter(speaker.rng.choice(marks))))
    else:
        name = speaker.say(f"picture {speaker.rng.choice(need(names))}")
    if kind == "back":
        return show_again(speaker, speaker.say("once more", w=name), scene)
    return ask(speaker, scene, where=name)


def settle(speaker: Speaker, split: Split) -> tuple[PeopleTurn, PeopleTurn]:
    """A request that cannot be met, and what somebody asks for instead, in few words: "then in red"."""
    form = speaker.rng.choice(("color", "color", "shape", "count", "background"))
    scene = random_scene_for(split, speaker.rng, num_objects=speaker.rng.choice((2, 3, 4)) if form == "count" else 1)
    item, number = scene.objects[0], len(scene.objects)
    named = Filter.of(item, ("color", "shape"))
    need(named.count(scene) == number)
    beyond, more = speaker.say(f"{form} outside"), {}
    match form:
        case "count":
            value, text = speaker.number(number), f"{beyond} {speaker.noun(named, plural=True)}"
        case "background":
            value, more = speaker.say(scene.background), {"background": scene.background}
            text = f"{speaker.some(named)} {speaker.say('bgphrase', b=beyond)}"
        case _:
            value = speaker.say(getattr(item, form))
            text = speaker.asking_beyond({getattr(item, form): beyond}).some(named)
    noun = speaker.noun(Filter(item.shape), plural=number > 1)
    first = speaker.type(speaker.say("draw", x=text))
    second = speaker.type(speaker.say(f"settled {form}", v=value, n=noun))
    expect = drawn(scene, [Filter(item.shape) if form == "shape" else named] * number, **more)
    return outside_turn(first, form), PeopleTurn(second, scene, expect, kind="draw")


def change(
    speaker: Speaker, kind: str, scene: Scene, split: Split, *, before: Scene | None, value: Filter | None
) -> Changed:
    """A change that stays in the split: of anything, of what the one before it says, or of a word taken back."""
    is_next = kind == "edit" and before is not None and speaker.maybe(0.45)
    for attempt in range(CHANGE_TRIES):
        with suppress(UnsayableError):
            if kind == "correct" and attempt < CORRECTION_TRIES:
                made = correct(speaker, scene)
            elif is_next and attempt == 0:
                made = change_next(speaker, before, scene, value)
            else:
                form = speaker.pick(CHANGE_FORMS)
                made = form(speaker, scene)
                if form not in (change_but, change_twice) and speaker.maybe(0.35):
                    made = keep_too(speaker, scene, made)
                    made = keep_too(speaker, scene, made) if speaker.maybe(0.15) else made
            if split_of(made.scene) == split:
                return made
    raise UnsayableError


def draw(speaker: Speaker, split: Split, *, is_again: bool = False) -> PeopleTurn:
    opening = speaker.rng.random() if is_again else 1.0
    text, scene, expect = draw_turn(speaker, split, frame="draw anew" if opening < 0.2 else "draw")
    if is_again and opening >= 0.2:
        if opening < 0.33 or text.startswith(("put", "place", "stick", "there", "and")):
            text = speaker.say("a new picture") + text
        elif opening < 0.64:
            text = speaker.say("next") + " " + text
    asked = expect["scene"]
    named = speaker.rng.choice(asked["objects"] or [{}])
    values = {**named, "background": asked["background"], "image": "image"}
    beside = [relation for _, relation, _ in asked["relations"] if relation in RELATIONS]
    values["image pair"] = beside[0] if beside else None
    text = with_asides(speaker, text, values=values)
    return PeopleTurn(speaker.type(text), scene, expect, kind="again" if is_again else "draw")


def with_asides(speaker: Speaker, text: str, *, of: str = "", values: Mapping[str, Any] | None = None) -> str:
    """A request with what people tell around it: who they are, what it is for, and why one of these values is as it
    is. `of`: " question" for what suits one."""
    if "\n" in text or not speaker.maybe(0.7 if speaker.is_wordy else 0.06):
        return text
    reasons = {name: value for name, value in (values or {}).items() if isinstance(value, str)}
    if reasons and speaker.maybe(0.35):
        name, value = speaker.rng.choice([*reasons.items()])
        mark, rule = speaker.say("mark before a reason"), f"reason {value if name == 'size' else name}"
        is_sentence = name not in ("size", "image pair") and (mark == ". " or speaker.maybe(0.3))
        word = speaker.say(value) if name in ("shape", "color", "background", "image pair") else ""
        reason = speaker.say(f"{rule} sentence" if is_sentence else rule, color=word, shape=word, r=word)
        text = f"{text.rstrip('.?! ')}{'. ' if is_sentence else mark}{reason}"
    before, after = speaker.pick({(True, False): 4, (False, True): 3, (True, True): 4, (False, False): 1})
    if before and not of and speaker.maybe(0.2):
        text = f"{speaker.say('aside lead')}, {text}"
    elif before:
        text = f"{speaker.say(f'aside before{of}')}{'. ' if of else speaker.say('mark after an aside')}{text}"
    return f"{text.rstrip('. ')}. {speaker.say(f'aside after{of}')}" if after else text


def respond(
    speaker: Speaker, kind: str, scene: Scene, split: Split, *, before: Scene | None = None, value: Filter | None = None
) -> PeopleTurn:
    """A turn about the picture, and about what was changed in the one before it."""
    if kind == "ask":
        return ask(speaker, scene)
    if kind == "describe":
        short = speaker.maybe(0.2)
        absent = [shape for shape in SHAPES if not Filter(shape).count(scene)]
        words, any_of = speaker.say("caption" if short else "describe"), [scene.objects[0].shape]
        return text_turn(speaker, words, describe(scene, short=short), any_of, absent, kind=kind)
    made = change(speaker, kind, scene, split, before=before, value=value)
    values = as_record(made.value) if made.value else {}
    is_one_gone = made.value == ANY and len(made.scene.objects) == len(scene.objects) - 1
    values |= {"remove": "remove"} if is_one_gone else {}
    values |= {"background": made.scene.background} if made.scene.background != scene.background else {}
    text = with_asides(speaker, made.text, values=values)
    return PeopleTurn(speaker.type(text), made.scene, kept(scene, made), kind="edit", value=made.value)


def text_turn(
    speaker: Speaker, words: str, right: str, any_of: list[str], none_of: Sequence[str] = (), *, kind: str = "ask"
) -> PeopleTurn:
    """Something that is answered in words."""
    expect = {"text": {"any_of": any_of, "none_of": list(none_of)}, "no_picture": True}
    return PeopleTurn(speaker.type(words), right, expect, kind=kind)


def ask(speaker: Speaker, scene: Scene, *, where: str = "") -> PeopleTurn:
    """A question about the picture; `where`: words that say which one is meant, if not the last."""
    text, right = speaker.attempt(QUESTION_FORMS, scene)
    while where and PICTURE.search(text):
        text, right = speaker.attempt(QUESTION_FORMS, scene)
    is_yes_or_no = isinstance(right, bool)
    if is_yes_or_no:
        right = "yes" if right else "no"
    if where:
        text = PRESENT.sub(lambda found: PAST[found[0]], text) if speaker.maybe(0.6) else text
        text = speaker.say("about an earlier one", q=text, w=where)
    elif is_yes_or_no and text[:3] in ("is ", "are", "do ", "doe") and speaker.maybe(0.25):
        text = speaker.say("yes or no", q=text)
    elif (right.isdigit() or right in (*COLORS, *SHAPES, *BACKGROUNDS)) and speaker.maybe(0.1):
        text = speaker.say("only the number" if right.isdigit() else "only the word", q=text)
    else:
        text = speaker.say("ask frame", q=text, i=text)
    text = with_asides(speaker, text, of=" question")
    numbers = [NUMBER_WORDS[int(right)], *(["no", "none"] if right == "0" else [])] if right.isdigit() else []
    return text_turn(speaker, text, right, [right, *numbers, *SYNONYMS.get(right, [])], OTHER.get(right, ()))


def ask_next(speaker: Speaker, scene: Scene, attribute: str) -> PeopleTurn:
    """The question before about another object: "and the star?"."""
    item = speaker.rng.choice(scene.objects)
    right = getattr(item, attribute)
    words = speaker.say("and that one", t=speaker.refer(scene, item, without=attribute))
    return text_turn(speaker, words, right, [right, *SYNONYMS.get(right, [])])


# ---- small talk, and what lies outside the world, with the honest answer ----


def talk(speaker: Speaker, after: str | None) -> PeopleTurn:
    table = phrases("people")
    weights = {**table["weights"]["talk"]}
    if after is not None:
        weights |= table["weights"].get(f"talk after {after}", table["weights"]["talk later"])
    kind = speaker.pick(weights)
    text = speaker.say(kind)
    if kind in ("can", "can draw", "who", "like") and speaker.maybe(0.15):
        text = f"{speaker.say('greet')} {text}"
    expect: dict[str, Any] = {"no_picture": True}
    if kind in table["needed"]:
        expect["text"] = {"any_of": table["needed"][kind]}
    return PeopleTurn(speaker.type(text), table["answers"][kind], expect, kind="talk")


def decline(speaker: Speaker, scene: Scene | None) -> PeopleTurn:
    """A request for what this world lacks; about the picture where there is one."""
    about = scene if speaker.maybe(0.6) else None
    form = speaker.pick(phrases("people")["weights"]["outside editing" if about else "outside drawing"])
    if form == "nearly":
        text, form = nearly_inside(speaker, about)
    else:
        text = outside_words(speaker, form, about)
    if form != "chat":
        text = with_asides(speaker, text)
    return outside_turn(speaker.type(text), form)


def outside_turn(words: str, form: str) -> PeopleTurn:
    return PeopleTurn(words, phrases("people")["declines"][form], {"decline": True}, kind="outside")


def nearly_inside(speaker: Speaker, scene: Scene | None) -> tuple[str, str]:
    """A request in the words of those that can be done, but for one of them: a color, a shape, a background, or how
    many; and which of these it is."""
    kind = speaker.pick({"color": 40, "shape": 22, "background": 8, "count": 30})
    if kind == "count":
        return say_excess(speaker, scene), kind
    here = values_of(scene, kind) if scene else set()
    known = {"color": COLORS, "shape": SHAPES, "background": BACKGROUNDS}[kind]
    absent = [value for value in known if value not in here]
    rule = "thing noun" if kind == "shape" and speaker.maybe(0.3) else f"{kind} outside"
    values = speaker.rng.sample(absent, min(len(absent), speaker.rng.choice((2, 3, 6))))
    beyond = {value: speaker.say(rule) for value in values}
    asker = speaker.asking_beyond(beyond)
    for _ in range(NEARLY_TRIES):
        with suppress(UnsayableError):
            if scene is None:
                text, _, expect = draw_turn(asker, "train")
                asked = expect["scene"]
                need(not asked["none"] and all(isinstance(each.get(kind, ""), str) for each in asked["objects"]))
                is_ground = kind == "background"
                said = {asked["background"]} if is_ground else {each.get(kind) for each in asked["objects"]}
            else:
                changes = speaker.pick(CHANGES)(asker, scene)
                text, made = (keep_too(asker, scene, changes) if speaker.maybe(0.25) else changes)[:2]
                said = values_of(made, kind)
            if any(beyond[value] in text for value in said if value in beyond):
                return text, kind
    raise UnsayableError


def values_of(scene: Scene, kind: str) -> set[str]:
    return {scene.background} if kind == "background" else {getattr(item, kind) for item in scene.objects}


def say_excess(speaker: Speaker, scene: Scene | None) -> str:
    """A request for more objects than there can be; for so many more that the picture has too many."""
    if scene is None:
        return draw_turn(speaker.asking_beyond(exceeds=True), "train")[0]
    if len(scene.objects) == MAX_OBJECTS and speaker.maybe(0.3):
        (kind,) = random_kinds(speaker.rng, 1)
        return order_change(speaker, "add anywhere", a=f"{speaker.say('one more')} {speaker.noun(kind)}")
    number = MAX_OBJECTS - len(scene.objects) + speaker.rng.choice((1, 1, 1, 2, 2, 3))
    return say_more(speaker, scene, number)[0]


def outside_words(speaker: Speaker, form: str, scene: Scene | None) -> str:
    """What cannot be drawn, or cannot be done with the picture of a scene."""
    rng = speaker.rng
    one, other = (Filter(kind.shape, kind.color) for kind in random_kinds(rng, 2))
    bare, size = Filter(one.shape), rng.choice(SIZES)
    items = scene.objects if scene else ()
    target = speaker.refer(scene, rng.choice(items)) if items else f"the {speaker.noun(bare)}"
    counted = rng.choice((one, one, replace(one, size=size), replace(bare, size=size), bare, ANY))
    slots = {
        "t": "it" if len(items) == 1 and speaker.maybe(0.5) else target,
        "x": speaker.some(replace(one, size=rng.choice((None, size)))),
        "y": speaker.some(other),
        "n": speaker.noun(one),
        "noun": speaker.noun(bare),
        "nouns": speaker.noun(bare, plural=True),
        "counted": speaker.noun(counted, plural=True, long=True),
        "c": speaker.say(one.color),
        "s": speaker.say(size),
    }
    match form:
        case "chat" | "empty" | "foreign":
            return speaker.say(f"{form} outside")
        case "fifth":
            return say_excess(speaker, scene)
        case "list":
            kinds = [Filter(kind.shape, kind.color) for kind in random_kinds(rng, rng.choice((5, 5, 6)))]
            counts = [1] * len(kinds)
            if speaker.maybe(0.4):
                counts = rng.choice(((3, 2), (2, 3), (3, 3), (4, 1), (4, 2), (2, 2, 1), (4, 4), (1, 4)))
            text = speaker.listed([speaker.some(kind, count) for kind, count in zip(kinds, counts, strict=False)])
        case "background" if items:
            return order_change(speaker, "background", v=speaker.say("background outside"))
        case "color" if items and speaker.maybe(0.8):
            return order_change(speaker, "recolor", t=slots["t"], v=speaker.say("color outside"))
        case "shape" if items and speaker.maybe(0.4):
            return order_change(speaker, "reshape", t=slots["t"], v=f"a {speaker.say('shape outside')}")
        case "move" if len(items) > 1 and speaker.maybe(0.3):
            moved, anchor = rng.sample(items, 2)
            names = {"t": speaker.refer(scene, moved), "b": speaker.refer(scene, anchor)}
            return speaker.say("move there", r=speaker.say(rng.choice(RELATIONS)), **names)
        case "move" | "styling" | "rotate" | "text":
            said = speaker.say(form, **slots, a=slots["t"])
            is_whole = speaker.maybe(0.5) if form == "text" else "tilted" in said
            return said if is_whole else frame_change(speaker, said)
        case _:
            text = speaker.say(f"request for {form}", **slots)
    if not items or form not in ("thing", "shape", "color"):
        return speaker.say("draw", x=text)
    where = speaker.say("perhaps where", r=speaker.say(rng.choice(RELATIONS)), t=slots["t"])
    return order_change(speaker, "add", a=text, w=where)


def as_item(turns: Sequence[PeopleTurn], *, id: str, kind: str) -> dict[str, Any]:
    """A conversation as a line of a file of requests."""
    said = [{"user": turn.user, "expect": turn.expect} for turn in turns]
    return {"id": id, "kind": kind, "image": turns[0].shown and asdict(turns[0].shown), "turns": said}
