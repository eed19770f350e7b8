"""Questions about a picture in people's words, each with its one right answer."""

from __future__ import annotations

from mllm.world.language import NUMBER_WORDS, phrases
from mllm.world.people.changing import matching
from mllm.world.people.speaker import FULL, Speaker
from mllm.world.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    HELD_OUT_PAIRS,
    OPPOSITE,
    Scene,
    is_clear,
    main_relation,
    stated_places,
)
from mllm.world.spec import ANY, Filter

Asked = tuple[str, str, list[str]]  # words, the right answer, words of which any answer must hold one
VERTICAL = ("above", "below")


def ask_turn(speaker: Speaker, scene: Scene) -> Asked:
    """A question about the picture with its one right answer."""
    forms = {
        ask_count: 18,
        ask_exists: 12,
        ask_attribute: 20,
        ask_background: 6,
        ask_related: 14,
        ask_side: 8,
        ask_super: 10,
        ask_compared: 8,
        ask_same: 8,
        ask_lists: 10,
        ask_where: 6,
    }
    while True:
        asked = speaker.pick(forms)(speaker, scene)
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
    names = rng.choice(
        (("shape",), ("shape",), ("color",), ("color",), ("color", "shape"), ("size", "shape"), ("size",), FULL)
    )
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
        return speaker.say("count others", p=noun, c=color), str(number)
    number = sum(map(wanted.matches, scene.objects))
    plural, one = speaker.noun(wanted, plural=True, short=True), speaker.noun(wanted, short=True)
    if 0.25 < form < 0.35:
        return speaker.say("more than one", p=plural, n=one), yes(number > 1)
    if form > 0.75 and len({item.shape for item in scene.objects}) > 1:
        a, b = rng.sample(sorted({item.shape for item in scene.objects}), 2)
        counts = [sum(item.shape == shape for item in scene.objects) for shape in (a, b)]
        names = [speaker.noun(Filter(shape=shape), plural=True) for shape in (a, b)]
        return speaker.say("more of", a=names[0], b=names[1]), yes(counts[0] > counts[1])
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
            ("size", size, word)
            for size, word in (("large", "biggest"), ("large", "largest"), ("small", "smallest"), ("small", "tiniest"))
        ]
        _, size, word = rng.choice(kinds)
        found = [item for item in scene.objects if item.size == size]
        if len(found) != 1:
            return None
        item = found[0]
    else:
        axis, sign, words = rng.choice(
            (
                ("x", 1, "leftmost"),
                ("x", -1, "rightmost"),
                ("y", 1, "topmost highest top upper"),
                ("y", -1, "lowest bottom lower"),
            )
        )
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
        slots["m"] = speaker.rng.choice(
            (word, {"bigger": "the bigger one", "larger": "the larger one", "smaller": "the smaller one"}[word])
        )
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
    all_ = speaker.say("asked of both" if len(items) == 2 else "asked of all", n=noun)
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
