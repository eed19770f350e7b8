"""Questions about a picture in people's words, each with its one right answer."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mllm.world.grammar import FULL, Speaker
from mllm.world.language import NUMBER_WORDS, join, need, phrases
from mllm.world.people.changing import matching
from mllm.world.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    HELD_OUT_PAIRS,
    OPPOSITE,
    SIDES,
    Scene,
    SceneObject,
    is_clear,
    main_relation,
    offset,
    stated_places,
)
from mllm.world.spec import ANY, Filter

Asked = tuple[str, str | bool]  # words and the right answer
SYNONYMS = {"gray": ["grey"], "below": ["under", "beneath"], "above": ["over"], "circle": ["disk"], "cross": ["plus"]}
PICTURE = re.compile(
    r"\b(pic|picture|image|drawing|illustration|graphic|sketch|painting|photo|it|this|that|here|there)\b"
)
PAST = {"is": "was", "are": "were", "does": "did", "do": "did", "has": "had", "what's": "what was", "whats": "what was"}
PRESENT = re.compile(rf"\b({'|'.join(PAST)})\b(?! (not|you))")
EXTREME_SIZES = {"biggest": "large", "largest": "large", "smallest": "small", "tiniest": "small"}
EXTREMES = {
    "left of": "leftmost",
    "right of": "rightmost",
    "above": "topmost highest top upper",
    "below": "lowest bottom lower",
}


def ask_turn(speaker: Speaker, scene: Scene, *, where: str = "") -> tuple[str, str, list[str]]:
    """A question about the picture, its one right answer, and words of which any answer must hold one.

    Args:
        where: words that say which picture is meant, if not the last one.
    """
    text, right = speaker.attempt(FORMS, scene)
    while where and PICTURE.search(text):
        text, right = speaker.attempt(FORMS, scene)
    if isinstance(right, bool):
        right = "yes" if right else "no"
    if where:
        if speaker.maybe(0.6):
            text = PRESENT.sub(lambda found: PAST[found[0]], text)
        text = speaker.say("about an earlier one", q=text, w=where)
    elif text[:3] in ("is ", "are", "do ", "doe") and speaker.maybe(0.1):
        text = f"i wonder if {text}"
    else:
        text = speaker.say("ask frame", q=text, i=text)
    if right.isdigit():
        return text, right, [right, NUMBER_WORDS[int(right)], *(["no", "none"] if right == "0" else [])]
    return text, right, [right, *SYNONYMS.get(right, [])]


def some_filter(speaker: Speaker, scene: Scene) -> Filter:
    """What may be counted or looked for: what is there, or nearly so, or something else."""
    rng = speaker.rng
    item = rng.choice(scene.objects)
    names = rng.choice(
        (("shape",), ("shape",), ("color",), ("color",), ("color", "shape"), ("size", "shape"), ("size",), FULL)
    )
    values = {name: getattr(item, name) for name in names}
    if rng.random() < 0.4:
        name = rng.choice(names)
        values[name] = rng.choice(ATTRIBUTES[name])
    made = Filter(**values)
    return made if made.pair not in HELD_OUT_PAIRS else Filter(made.shape)


def two_of(speaker: Speaker, scene: Scene) -> list[SceneObject]:
    need(len(scene.objects) > 1)
    return speaker.rng.sample(scene.objects, 2)


def name_two(
    speaker: Speaker, scene: Scene, items: Iterable[SceneObject], *, without: str | None = None
) -> dict[str, str]:
    """References to two objects as slots."""
    names = [speaker.refer(scene, item, without=without) for item in items]
    return {slot: need(name) for slot, name in zip("ab", names, strict=True)}


# ---- forms of questions ----


def ask_count(speaker: Speaker, scene: Scene) -> Asked:
    rng = speaker.rng
    form = rng.random()
    wanted = ANY if form < 0.25 else some_filter(speaker, scene)
    if form > 0.85:
        item = rng.choice(scene.objects)
        color, noun = speaker.say(item.color), speaker.noun(Filter(item.shape), plural=True)
        number = Filter(item.shape, not_color=item.color).count(scene)
        return speaker.say("count others", p=noun, c=color), str(number)
    plural, one = speaker.noun(wanted, plural=True, short=True), speaker.noun(wanted, short=True)
    if 0.25 < form < 0.35:
        return speaker.say("more than one", p=plural, n=one), wanted.count(scene) > 1
    shapes = sorted({item.shape for item in scene.objects})
    if form > 0.75 and len(shapes) > 1:
        a, b = (Filter(shape) for shape in rng.sample(shapes, 2))
        names = {"a": speaker.noun(a, plural=True), "b": speaker.noun(b, plural=True)}
        return speaker.say("more of", **names), a.count(scene) > b.count(scene)
    return speaker.say("count", p=plural), str(wanted.count(scene))


def ask_exists(speaker: Speaker, scene: Scene) -> Asked:
    wanted = some_filter(speaker, scene)
    is_there = wanted.count(scene) > 0
    if wanted.shape is None:
        words = " ".join(speaker.say(word) for word in (wanted.size, wanted.color) if word)
        return speaker.say("exists thing", c=words), is_there
    return speaker.say("exists", n=speaker.noun(wanted), p=speaker.noun(wanted, plural=True)), is_there


def ask_attribute(speaker: Speaker, scene: Scene) -> Asked:
    name = speaker.rng.choice(("color", "color", "shape", "size"))
    item = speaker.rng.choice(scene.objects)
    target = speaker.refer(scene, item, without=name)
    if len(scene.objects) == 1 and speaker.maybe(0.5):
        if name == "shape" and speaker.maybe(0.5):
            return speaker.say("what is it"), item.shape
        target = speaker.rng.choice(("it", "it", "this", "that"))
    return speaker.say(f"{name} of", t=need(target)), getattr(item, name)


def ask_which(speaker: Speaker, scene: Scene) -> Asked:
    """Which of two values an object has, or what it is that has one."""
    rng = speaker.rng
    item = rng.choice(scene.objects)
    name = rng.choice(("color", "color", "shape", "size"))
    value = getattr(item, name)
    if name != "shape" and speaker.maybe(0.4):
        need(Filter(**{name: value}).count(scene) == 1)
        return speaker.say("which is", v=speaker.say(value)), item.shape
    other = rng.choice([each for each in ATTRIBUTES[name] if each != value])
    article = "a " if name == "shape" else ""
    values = [article + speaker.say(each) for each in rng.sample((value, other), 2)]
    target = need(speaker.refer(scene, item, without=name)) if len(scene.objects) > 1 or speaker.maybe(0.4) else "it"
    return speaker.say("one or the other", t=target, v=values[0], w=values[1]), value


def ask_background(speaker: Speaker, scene: Scene) -> Asked:
    if speaker.maybe(0.6):
        return speaker.say("background of"), scene.background
    color = speaker.rng.choice((scene.background, speaker.rng.choice(BACKGROUNDS)))
    return speaker.say("is background", b=speaker.say(color)), color == scene.background


def ask_related(speaker: Speaker, scene: Scene) -> Asked:
    """Is it above? What is above it?"""
    a, b = two_of(speaker, scene)
    relation, name = main_relation(a, b), speaker.refer(scene, b)
    need(relation and name)
    if speaker.maybe(0.5):
        first = speaker.refer(scene, a)
        asked = relation if speaker.maybe(0.5) else OPPOSITE[relation]
        return speaker.say("related", a=need(first), b=name, r=speaker.say(asked)), asked == relation
    others = [item for item in scene.objects if item not in (a, b)]
    need(not any(is_clear(relation, item, b) or main_relation(item, b) in (relation, None) for item in others))
    attribute = "color" if speaker.maybe(0.3) else "shape"
    table = "color related" if attribute == "color" else "what is related"
    return speaker.say(table, r=speaker.say(relation), b=name), getattr(a, attribute)


def ask_side(speaker: Speaker, scene: Scene) -> Asked:
    items = two_of(speaker, scene)
    names, relation = name_two(speaker, scene, items), need(main_relation(*items))
    direction = speaker.say("vertical" if relation in ("above", "below") else "horizontal")
    return speaker.say("either", **names, d=direction), relation.removesuffix(" of")


def ask_super(speaker: Speaker, scene: Scene) -> Asked:
    """The smallest, the leftmost, what is in a place."""
    rng = speaker.rng
    need(len(scene.objects) > 1)
    if speaker.maybe(0.4):
        word, size = rng.choice(tuple(EXTREME_SIZES.items()))
        item = need(Filter(size=size).find_one(scene))
    else:
        relation, words = rng.choice(tuple(EXTREMES.items()))
        origin = SceneObject("circle", "red", "small", 0.0, 0.0)
        item, *others = sorted(scene.objects, key=lambda item: -offset(relation, item, origin))
        need(offset(relation, item, others[0]) >= 0.15)
        word, place = rng.choice(words.split()), SIDES[relation]
        if speaker.maybe(0.6) and place in stated_places(item):
            if not any(place in stated_places(other) for other in others):
                return speaker.say("at place", w=speaker.say(place), super=word), item.shape
    if speaker.maybe(0.35):
        return speaker.say("super color", super=word), item.color
    return speaker.say("super shape", super=word), item.shape


def ask_compared(speaker: Speaker, scene: Scene) -> Asked:
    a, b = two_of(speaker, scene)
    slots = name_two(speaker, scene, (a, b), without="size")
    more = speaker.maybe(0.6)
    slots["m"] = speaker.rng.choice(("bigger", "larger") if more else ("smaller",))
    if a.size != b.size and a.shape != b.shape and speaker.maybe(0.4):
        slots["m"] = speaker.rng.choice((slots["m"], f"the {slots['m']} one"))
        return speaker.say("which compare", **slots), (a if (a.size == "large") == more else b).shape
    return speaker.say("compare", **slots), a.size != b.size and (a.size == "large") == more


def ask_same(speaker: Speaker, scene: Scene) -> Asked:
    """Whether two are alike, whether all are."""
    rng = speaker.rng
    need(len(scene.objects) > 1)
    attribute = rng.choice(("color", "color", "size", "size", "shape"))
    word = speaker.say("color") if attribute == "color" else attribute
    if speaker.maybe(0.4):
        a, b = rng.sample(scene.objects, 2)
        names = name_two(speaker, scene, (a, b), without=attribute)
        return speaker.say("same two", **names, attribute=word), getattr(a, attribute) == getattr(b, attribute)
    base, _ = need(matching(scene, rng)) if speaker.maybe(0.6) else (ANY, [])
    need(not getattr(base, attribute))
    items = [item for item in scene.objects if base.matches(item)]
    noun = speaker.noun(base, plural=True, short=True)
    all_ = speaker.say("asked of both" if len(items) == 2 else "asked of all", n=noun)
    if base == ANY and speaker.maybe(0.5):
        all_ = rng.choice(("they", "both", "both of them") if len(items) == 2 else ("they", "they all", "all of them"))
    values = list(dict.fromkeys(getattr(item, attribute) for item in items))  # in the same order in every process
    if speaker.maybe(0.35):
        value = rng.choice([*values, rng.choice(ATTRIBUTES[attribute])])
        need(attribute != "shape")
        return speaker.say("all are", all=all_, v=speaker.say(value)), values == [value]
    return speaker.say("same all", all=all_, attribute=word, attributes=f"{word}s"), len(values) == 1


def ask_lists(speaker: Speaker, scene: Scene) -> Asked:
    """Which colors, which shapes there are."""
    name = speaker.rng.choice(("color", "color", "shape"))
    found = dict.fromkeys(getattr(item, name) for item in scene.objects)
    return speaker.say(f"which {name}s"), join(list(found))


def ask_where(speaker: Speaker, scene: Scene) -> Asked:
    item = speaker.rng.choice(scene.objects)
    places, name = stated_places(item), speaker.refer(scene, item)
    need(places)
    return speaker.say("where", t=need(name)), phrases("words")["places"][places[0]][0]


FORMS = {
    ask_count: 18,
    ask_exists: 12,
    ask_attribute: 20,
    ask_which: 9,
    ask_background: 6,
    ask_related: 14,
    ask_side: 8,
    ask_super: 10,
    ask_compared: 8,
    ask_same: 8,
    ask_lists: 10,
    ask_where: 6,
}
