"""Questions about a picture in people's words, each with its one right answer."""

from __future__ import annotations

import re
from dataclasses import replace

from mllm.world.grammar import FULL, Speaker
from mllm.world.language import NUMBER_WORDS, join, need, phrases
from mllm.world.people.changing import matching, two_of
from mllm.world.people.drawing import another
from mllm.world.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    HELD_OUT_PAIRS,
    OPPOSITE,
    SIDES,
    SIZES,
    Scene,
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
        text = PRESENT.sub(lambda found: PAST[found[0]], text) if speaker.maybe(0.6) else text
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
    names = speaker.pick(
        {("shape",): 2, ("color",): 2, ("color", "shape"): 1, ("size", "shape"): 1, ("size",): 1, FULL: 1}
    )
    made = Filter.of(rng.choice(scene.objects), names)
    if speaker.maybe(0.4):
        name = rng.choice(names)
        made = replace(made, **{name: rng.choice(ATTRIBUTES[name])})
    return made if made.pair not in HELD_OUT_PAIRS else Filter(made.shape)


# ---- forms of questions ----


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
    target = rng.choice(("it", "it", "this", "that")) if is_it else speaker.refer(scene, item, without=name)
    if form == "open":
        return speaker.say(f"{name} of", t=target), value
    article = "a " if name == "shape" else ""
    v, w = (article + speaker.say(each) for each in rng.sample((value, another(rng, name, [item])), 2))
    return speaker.say("one or the other", t=target, v=v, w=w), value


def ask_background(speaker: Speaker, scene: Scene) -> Asked:
    if speaker.maybe(0.6):
        return speaker.say("background of"), scene.background
    color = speaker.rng.choice((scene.background, speaker.rng.choice(BACKGROUNDS)))
    return speaker.say("is background", b=speaker.say(color)), color == scene.background


def ask_related(speaker: Speaker, scene: Scene) -> Asked:
    """Is it above? What is above it? Above or below?"""
    a, b = two_of(speaker, scene)
    relation, name = need(main_relation(a, b)), speaker.refer(scene, b)
    match speaker.pick({"is": 7, "which": 7, "either": 8}):
        case "is":
            asked = relation if speaker.maybe(0.5) else OPPOSITE[relation]
            text = speaker.say("related", a=speaker.refer(scene, a), b=name, r=speaker.say(asked))
            return text, asked == relation
        case "either":
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
    return speaker.say("where", t=speaker.refer(scene, item)), phrases("words")["places"][place][0]


FORMS = {
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
