"""Changes of a picture in people's words: one object, some of them or all but one, and corrections of what was said."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

from mllm.world.edits import CHANGED_ATTRIBUTE
from mllm.world.grammar import Speaker
from mllm.world.language import UnsayableError, need
from mllm.world.people.drawing import another, as_record, drawn, list_filters, random_kinds
from mllm.world.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    MAX_OBJECTS,
    PLACES,
    RELATIONS,
    SEEN_PAIRS,
    Scene,
    SceneObject,
    Split,
    is_clear,
    is_valid,
    random_free_position,
    split_of,
    stated_places,
)
from mllm.world.spec import Filter

CHANGE_TRIES, CORRECTION_TRIES = 400, 40


class Changed(NamedTuple):
    """What is said, and the scene after it."""

    text: str
    scene: Scene
    said: Sequence[Filter] = ()  # how added objects were described
    relation: tuple[Filter, str, Filter] | None = None  # that was said of an added object
    value: Filter | None = None  # what an object became; nothing in particular where it was removed


def change_turn(speaker: Speaker, scene: Scene, split: Split) -> Changed:
    """A change of this scene; raises UnsayableError where none was found that stays in the split."""
    for _ in range(CHANGE_TRIES):
        with suppress(UnsayableError):
            made = speaker.pick(FORMS)(speaker, scene)
            if split_of(made.scene) == split:
                return made
    raise UnsayableError


def correct_turn(speaker: Speaker, scene: Scene, split: Split) -> Changed:
    """Somebody takes back a word of what is in the picture; or changes it, where nothing can be taken back."""
    for _ in range(CORRECTION_TRIES):
        with suppress(UnsayableError):
            made = correct(speaker, scene)
            if split_of(made.scene) == split:
                return made
    return change_turn(speaker, scene, split)


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


def order_change(speaker: Speaker, name: str, **slots: str) -> str:
    """An imperative within its frame, or another way to say it."""
    slots = {"p": "it", "bare": slots.get("t", "").removeprefix("the "), **slots}
    if speaker.maybe(0.68):
        order = speaker.say("background change" if name == "background" else name, **slots)
        return speaker.say("change frame", c=order)
    return speaker.say(f"{name} said", **slots)


def propose(speaker: Speaker, scene: Scene, chosen: Sequence[SceneObject]) -> tuple[str, Filter, Scene]:
    """A kind of change for some objects, what they become, and the scene after it."""
    rng = speaker.rng
    kind = speaker.pick({"recolor": 34, "remove": 24, "resize": 22, "reshape": 20, "attributes": 10})
    if kind == "remove":
        return kind, Filter(), changed(scene, chosen)
    names = rng.sample(tuple(ATTRIBUTES), 2) if kind == "attributes" else [CHANGED_ATTRIBUTE[kind]]
    new = {name: another(rng, name, chosen) for name in names}
    if kind == "reshape" and speaker.maybe(0.25):
        new["color"] = rng.choice(COLORS)
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


# ---- forms of changes ----


def change_one(speaker: Speaker, scene: Scene) -> Changed:
    item = speaker.rng.choice(scene.objects)
    others = [other for other in scene.objects if other is not item]
    kind, value, after = propose(speaker, scene, [item])
    if not others and kind in ("recolor", "resize") and speaker.maybe(0.15):
        more = "bigger" if value.size == "large" else "smaller"
        text = speaker.say(f"in short {kind}", v=speaker.say(value.color or value.size), m=more)
        return Changed(text, after, value=value)
    is_it = not others and speaker.maybe(0.6)
    target = speaker.rng.choice(("it", "it", "it", "this", "that")) if is_it else speaker.refer(scene, item)
    text = say_change(speaker, kind, target, value)
    if others and speaker.maybe(0.12):
        is_named = len(others) == 1 and speaker.maybe(0.5)
        rest = (
            speaker.refer(scene, others[0])
            if is_named
            else speaker.say("the other one" if len(others) == 1 else "the rest")
        )
        text = speaker.say("keeping", t=text, k=speaker.say("keep", k=rest))
    elif kind == "recolor" and speaker.maybe(0.08):
        text += speaker.say("not the old", o=speaker.say(item.color))
    return Changed(text, after, value=value)


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
    match rng.choice(("all", "all", "match", "match", "match", "not")):
        case "all":
            chosen = list(scene.objects)
            target = speaker.say("both of them" if number == 2 and speaker.maybe(0.7) else "all of them")
            if number > 2 and speaker.maybe(0.2):
                target = speaker.say("all so many", n=speaker.number(number))
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
        text = speaker.say("change frame", c=speaker.say("only", k=name))
    elif speaker.maybe(0.4):
        order = say_change(speaker, kind, speaker.say("the rest" if plural else "the other one"), value, plural=plural)
        text = speaker.say("keeping first", k=speaker.say("keep", k=name), c=order)
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
    return Changed(speaker.say("change frame", c=text) if is_order else text, after)


def change_other(speaker: Speaker, before: Scene, scene: Scene) -> Changed:
    """ "Now remove the other one": the one of two that was not changed last."""
    same = [item for item in scene.objects if item in before.objects]
    need(len(scene.objects) == 2 and len(same) == 1)
    return change_some(speaker, scene, same, speaker.say("the second of two"))


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
        relation = (said, side, Filter.of(anchor))
        is_it = len(scene.objects) == 1 and speaker.maybe(0.5)
        it = side.replace(" of", "of") + " it"
        slots["w"] = speaker.say(it) if is_it else f"{speaker.say(side)} {speaker.refer(scene, anchor)}"
    elif places and form < 0.75:
        slots["w"] = speaker.say(places[0])
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
    rng = speaker.rng
    said = [replace(kind, size=rng.choice((None, kind.size))) for kind in random_kinds(rng, number)]
    if speaker.maybe(0.65):
        base = said[0] if speaker.maybe(0.8) else replace(said[0], color=None)
        said = [base] * number
        if number == 1:
            is_alike = Filter(base.shape).count(scene) > 0
            words = f"{speaker.say('article of one more' if is_alike else 'article of a new one')} {speaker.noun(base)}"
        else:
            more = rng.choice(("", "", "", "more ", "other ", "further "))
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
    text = speaker.say("change frame", c=speaker.say("one more alike", t=name))
    return Changed(text, changed(scene, [], added=[new]), [Filter.of(item)])


def change_alike(speaker: Speaker, scene: Scene, value: Filter) -> Changed:
    """The change before for another object: "and the star too"."""
    item = speaker.rng.choice(scene.objects)
    after = changed(scene, [item], **as_record(value))
    return Changed(speaker.say("the same for another", t=speaker.refer(scene, item)), after, value=value)


def change_new(speaker: Speaker, before: Scene, scene: Scene) -> Changed:
    """ "Make the new one red": the one that was just added."""
    new = [item for item in scene.objects if item not in before.objects]
    need(len(new) == 1 and len(scene.objects) == len(before.objects) + 1)
    return change_some(speaker, scene, new, speaker.say("the new one"))


def change_background(speaker: Speaker, scene: Scene) -> Changed:
    color = speaker.rng.choice([name for name in BACKGROUNDS if name != scene.background])
    return Changed(order_change(speaker, "background", v=speaker.say(color)), replace(scene, background=color))


def change_twice(speaker: Speaker, scene: Scene) -> Changed:
    """Two or three changes in one sentence."""
    choices = (*[change_one] * 4, add_one, change_background, change_set, add_some)
    forms = [speaker.rng.choice(choices) for _ in range(speaker.rng.choice((2, 2, 2, 3)))]
    need(forms.count(change_background) < 2)
    text, said, now = "", [], scene
    for form in forms:
        made = form(speaker, now)
        need("it" not in made.text.split() or not text)
        text += (speaker.say("and then") if text else "") + made.text
        said, now = [*said, *made.said], made.scene
    if speaker.maybe(0.12):
        text += ". " + speaker.say("keep", k=speaker.say("the rest"))
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
        if attribute != "shape" and speaker.maybe(0.2):
            text += speaker.say("swap in detail", **names, v=speaker.say(b_value), w=speaker.say(a_value))
    else:
        after = changed(scene, [a], **{attribute: b_value})
        if is_pair and speaker.maybe(0.3):
            slots["b"] = "the other one"
        is_size = attribute == "size" and speaker.maybe(0.7)
        text = speaker.say("as big as" if is_size else "same as", **slots, v="big" if b.size == "large" else "small")
    return Changed(speaker.say("change frame", c=text), after)


FORMS = {
    remove_some: 5,
    change_one: 44,
    change_set: 26,
    change_but: 18,
    change_by_comparison: 4,
    add_one: 16,
    add_some: 9,
    add_alike: 4,
    change_background: 9,
    change_twice: 16,
    relate_two: 14,
}
