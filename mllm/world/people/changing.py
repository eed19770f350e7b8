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
from mllm.world.people.drawing import as_record, drawn, list_filters
from mllm.world.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    MAX_OBJECTS,
    PLACES,
    RELATIONS,
    SEEN_PAIRS,
    SIZES,
    Kind,
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
            return correct(speaker, scene, split)
    return change_turn(speaker, scene, split)


def correct(speaker: Speaker, scene: Scene, split: Split) -> Changed:
    """ "Sorry, i meant green"."""
    rng = speaker.rng
    item, name = rng.choice(scene.objects), rng.choice(("color", "color", "shape", "size"))
    old, new = getattr(item, name), rng.choice(ATTRIBUTES[name])
    after = changed(scene, {scene.objects.index(item): replace(item, **{name: new})})
    need(split_of(after) == split)
    value, was = speaker.say(new), speaker.say(old)
    slots = {"v": f"a {value}", "w": f"a {was}"} if name == "shape" else {"v": value, "w": was}
    slots["s"] = speaker.say("correct") if speaker.maybe(0.8) else ""
    is_only = sum(getattr(other, name) == old for other in scene.objects) == 1
    if len(scene.objects) == 1 and speaker.maybe(0.6):
        text = speaker.say("correct the only one", **slots)
    elif is_only and speaker.maybe(0.4):
        text = speaker.say("correct the value", **slots)
    else:
        text = speaker.say("correct one", **slots, t=need(speaker.refer(scene, item, without=name)))
    return Changed(text, after)


def changed(scene: Scene, updates: dict[int, SceneObject | None], *, added: Sequence[SceneObject] = ()) -> Scene:
    """The scene with objects replaced or removed; UnsayableError where that is none of this world."""
    items = [updates.get(index, item) for index, item in enumerate(scene.objects)]
    after = Scene(scene.background, (*(item for item in items if item), *added))
    need(is_valid(after) and after.pairs <= SEEN_PAIRS and after != scene)
    return after


def add_object(kind: Kind, others: Sequence[SceneObject], rng: Random) -> SceneObject:
    """An object of this kind where the others leave room; UnsayableError where they do not."""
    return SceneObject(*kind, *need(random_free_position(kind[2], others, rng, tries=20)))


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
    slots = {"p": "it", **slots}
    if speaker.maybe(0.68):
        order = speaker.say("background change" if name == "background" else name, **slots)
        return speaker.say("change frame", c=order)
    return speaker.say(f"{name} said", **slots)


def say_change(speaker: Speaker, kind: str, target: str, value: Filter, *, plural: bool = False) -> str:
    """One change of what is named."""
    slots = {"t": target, "bare": target.removeprefix("the "), "p": "them" if plural else "it"}
    if kind == "resize":
        return order_change(speaker, "larger" if value.size == "large" else "smaller", **slots)
    if kind == "reshape":
        noun = speaker.noun(value, plural=plural, short=True)
        slots["v"] = noun if plural else speaker.say("one of these", n=noun)
    elif kind == "recolor":
        slots["v"] = speaker.say(value.color)
    return order_change(speaker, kind, **slots)


def propose(speaker: Speaker, scene: Scene, chosen: Sequence[int]) -> tuple[str, Filter, Scene]:
    """A kind of change for some objects, what they become, and the scene after it."""
    rng = speaker.rng
    kind = speaker.pick({"recolor": 34, "remove": 24, "resize": 22, "reshape": 20})
    if kind == "remove":
        return kind, Filter(), changed(scene, dict.fromkeys(chosen))
    attribute = CHANGED_ATTRIBUTE[kind]
    new = {attribute: rng.choice(ATTRIBUTES[attribute])}
    need(all(getattr(scene.objects[index], attribute) != new[attribute] for index in chosen))
    if kind == "reshape" and speaker.maybe(0.25):
        new["color"] = rng.choice(COLORS)
    return kind, Filter(**new), changed(scene, {index: replace(scene.objects[index], **new) for index in chosen})


def matching(scene: Scene, rng: Random) -> tuple[Filter, list[int]] | None:
    """Two or more objects that a shape, a color or a size singles out."""
    names = rng.choice(
        (("shape",), ("shape",), ("shape",), ("color",), ("size",), ("size", "shape"), ("color", "shape"))
    )
    wanted = Filter.of(rng.choice(scene.objects), names)
    found = [index for index, item in enumerate(scene.objects) if wanted.matches(item)]
    return (wanted, found) if len(found) > 1 else None


# ---- forms of changes ----


def change_one(speaker: Speaker, scene: Scene) -> Changed:
    item = speaker.rng.choice(scene.objects)
    others = [other for other in scene.objects if other is not item]
    kind, value, after = propose(speaker, scene, [scene.objects.index(item)])
    if not others and speaker.maybe(0.15) and kind in ("recolor", "resize"):
        more = "bigger" if value.size == "large" else "smaller"
        text = speaker.say(f"in short {kind}", v=speaker.say(value.color or value.size), m=more)
        return Changed(text, after, value=value)
    target = speaker.refer(scene, item)
    if not others and speaker.maybe(0.6):
        target = speaker.rng.choice(("it", "it", "it", "this", "that"))
    text = say_change(speaker, kind, need(target), value)
    if others and speaker.maybe(0.12):
        name = speaker.refer(scene, speaker.rng.choice(others))
        if len(others) > 1:
            name = "the rest"
        elif speaker.maybe(0.5):
            name = "the other one"
        if name:
            text = speaker.say("keeping", t=text, k=speaker.say("keep", k=name))
    elif kind == "recolor" and speaker.maybe(0.08):
        text += speaker.say("not the old", o=speaker.say(item.color))
    return Changed(text, after, value=value)


def change_attributes(speaker: Speaker, scene: Scene) -> Changed:
    """Two attributes of one object at once: "make the star small and blue"."""
    rng = speaker.rng
    item = rng.choice(scene.objects)
    names = rng.sample(tuple(ATTRIBUTES), 2)
    new = {name: rng.choice([value for value in ATTRIBUTES[name] if value != getattr(item, name)]) for name in names}
    after = changed(scene, {scene.objects.index(item): replace(item, **new)})
    target = need(speaker.refer(scene, item)) if len(scene.objects) > 1 or speaker.maybe(0.4) else "it"
    if "shape" in new:
        slots = {
            "t": target,
            "bare": target.removeprefix("the "),
            "v": speaker.say("one of these", n=speaker.noun(Filter(**new))),
        }
        return Changed(order_change(speaker, "reshape", **slots), after)
    values = [speaker.say(new[name]) for name in names]
    return Changed(order_change(speaker, "attributes", t=target, v=values[0], w=values[1]), after)


def change_by_comparison(speaker: Speaker, scene: Scene) -> Changed:
    """One should be larger or smaller than another one."""
    a, b = speaker.rng.sample(scene.objects, 2) if len(scene.objects) > 1 else need(())
    need(a.size == b.size)
    size = "small" if a.size == "large" else "large"
    after = changed(scene, {scene.objects.index(a): replace(a, size=size)})
    words = "bigger larger" if size == "large" else "smaller tinier"
    slots = {"a": need(speaker.refer(scene, a)), "b": need(speaker.refer(scene, b))}
    if len(scene.objects) == 2 and speaker.maybe(0.4):
        slots["b"] = speaker.rng.choice(("the other one", "the other"))
    return Changed(speaker.say("larger than another", m=speaker.rng.choice(words.split()), **slots), after)


def change_set(speaker: Speaker, scene: Scene) -> Changed:
    """All of them, both circles, every red one, the ones that are not red."""
    rng, number = speaker.rng, len(scene.objects)
    need(number > 1)
    form = rng.choice(("all", "all", "match", "match", "match", "not"))
    if form == "all":
        chosen = list(range(number))
        target = speaker.say("both of them" if number == 2 and speaker.maybe(0.7) else "all of them")
        if number > 2 and speaker.maybe(0.2):
            target = speaker.say("all so many", n=speaker.number(number))
    elif form == "not":
        name = rng.choice(("color", "shape"))
        value = getattr(rng.choice(scene.objects), name)
        chosen = [index for index, item in enumerate(scene.objects) if getattr(item, name) != value]
        need(chosen)
        word = speaker.say(value) if name == "color" else f"a {speaker.say(value)}"
        target = speaker.say("that is not" if len(chosen) == 1 else "those that are not", w=word)
    else:
        base, chosen = need(matching(scene, rng))
        if base.shape or speaker.maybe(0.5):
            noun = speaker.noun(base, plural=True, short=True)
        else:
            noun = f"{speaker.say(base.color or base.size)} ones"
        one = noun.removesuffix("es" if noun.endswith("sses") else "s")
        if len(chosen) > 2 and speaker.maybe(0.2):
            noun = f"{speaker.number(len(chosen))} {noun}"
        target = speaker.say("both of a kind" if len(chosen) == 2 else "all of a kind", n=noun, s=one)
    kind, value, after = propose(speaker, scene, chosen)
    return Changed(say_change(speaker, kind, target, value, plural=len(chosen) > 1), after)


def change_but(speaker: Speaker, scene: Scene) -> Changed:
    """Everything except one, the other one, the rest; or that one is all that stays."""
    rng, number = speaker.rng, len(scene.objects)
    need(number > 1)
    index = rng.randrange(number)
    if found := matching(scene, rng) if speaker.maybe(0.2) else None:
        name, stays = "the " + speaker.noun(found[0], plural=True, short=True), found[1]
    else:
        name, stays = need(speaker.refer(scene, scene.objects[index])), [index]
    chosen = [at for at in range(number) if at not in stays]
    need(chosen)
    plural = len(chosen) > 1
    kind, value, after = propose(speaker, scene, chosen)
    if kind == "remove":
        text = speaker.say("change frame", c=speaker.say("only", k=name))
    elif speaker.maybe(0.4):
        keep, rest = speaker.say("keep", k=name), "the other one"
        if plural:
            rest = rng.choice(("the others", "the rest", "the other ones", "everything else", "all the others"))
        text = speaker.say("keeping first", k=keep, c=say_change(speaker, kind, rest, value, plural=plural))
    else:
        target = speaker.say("everything except", k=name)
        text = say_change(speaker, kind, target, value, plural=plural)
    return Changed(text, after)


def remove_some(speaker: Speaker, scene: Scene) -> Changed:
    """One or two of some alike, no matter which."""
    item = speaker.rng.choice(scene.objects)
    alike = [index for index, other in enumerate(scene.objects) if Filter.of(item).matches(other)]
    named = Filter(item.shape, item.color if speaker.maybe(0.3) else None)
    total = len(alike)
    need(total > 1 and named.count(scene) == total)
    number = speaker.rng.randrange(1, total)
    after = changed(scene, dict.fromkeys(speaker.rng.sample(alike, number)))
    plural = speaker.noun(named, plural=True, short=True)
    slots = {"n": speaker.number(number), "m": speaker.number(total - number), "p": plural}
    slots["them"] = "them" if total == len(scene.objects) and speaker.maybe(0.6) else f"the {plural}"
    if speaker.maybe(0.3):
        return Changed(speaker.say("too many said", **slots), after)
    return Changed(speaker.say("change frame", c=speaker.say("too many", **slots)), after)


def change_other(speaker: Speaker, before: Scene, scene: Scene) -> Changed:
    """ "Now remove the other one": the one of two that was not changed last."""
    same = [index for index, item in enumerate(scene.objects) if item in before.objects]
    need(len(scene.objects) == 2 and len(same) == 1)
    kind, value, after = propose(speaker, scene, same)
    target = speaker.rng.choice(("the other one", "the other one", "the other", "the second one", "the other shape"))
    return Changed(say_change(speaker, kind, target, value), after)


def add_one(speaker: Speaker, scene: Scene) -> Changed:
    rng = speaker.rng
    need(len(scene.objects) < MAX_OBJECTS)
    size, (color, shape) = rng.choice(SIZES), rng.choice(sorted(SEEN_PAIRS))
    if speaker.maybe(0.2):
        color, shape = rng.choice(scene.objects).pair
    new = add_object((shape, color, size), scene.objects, rng)
    after = changed(scene, {}, added=[new])
    said = Filter(shape, color, size if speaker.maybe(0.6) else None)
    noun = speaker.noun(said, short=True)
    alike = any(item.shape == shape for item in scene.objects)
    if alike:
        article = speaker.pick({"a": 60, "one": 8, "another": 22, "one more": 12, "a second": 4})
    else:
        article = rng.choice(("a",) * 6 + ("one",))
    slots = {"a": f"{article} {noun}", "w": ""}
    if alike and speaker.maybe(0.3):
        values = " and ".join(speaker.say(word) for word in (said.size, color) if word)
        slots["a"] = f"{article} {speaker.say(shape)}{rng.choice((', but ', ' but ', ' in ', ', '))}{values}"
    relation = None
    anchors = [(side, item) for item in scene.objects for side in RELATIONS if is_clear(side, new, item)]
    places = [place for place in stated_places(new) if None not in PLACES[place]]
    form = rng.random()
    if anchors and form < 0.55:
        side, anchor = rng.choice(anchors)
        name = need(speaker.refer(scene, anchor))
        relation = (said, side, Filter.of(anchor))
        if len(scene.objects) == 1 and speaker.maybe(0.5):
            slots["w"] = speaker.say(side.replace(" of", "of") + " it")
        else:
            slots["w"] = f"{speaker.say(side)} {name}"
    elif places and form < 0.75:
        slots["w"] = speaker.say(places[0])
    text = order_change(speaker, "add" if slots["w"] else "add anywhere", **slots)
    return Changed(text, after, [said], relation)


def add_some(speaker: Speaker, scene: Scene) -> Changed:
    """Two or three more, alike or not: "add two small stars", "and also a heart and a circle"."""
    rng, free = speaker.rng, MAX_OBJECTS - len(scene.objects)
    need(free > 1)
    text, said = say_more(speaker, scene, rng.randint(2, free))
    new: list[SceneObject] = []
    for item in said:
        pairs = [pair for pair in sorted(SEEN_PAIRS) if item.color in (None, pair[0])]
        color, shape = rng.choice([pair for pair in pairs if item.shape in (None, pair[1])])
        new.append(add_object((shape, color, item.size or rng.choice(SIZES)), (*scene.objects, *new), rng))
    return Changed(text, changed(scene, {}, added=new), said)


def say_more(speaker: Speaker, scene: Scene, number: int) -> tuple[str, list[Filter]]:
    """Words that ask for so many more objects, and what is said of each."""
    rng = speaker.rng
    pairs = [rng.choice(sorted(SEEN_PAIRS)) for _ in range(number)]
    if speaker.maybe(0.65):
        base = Filter(pairs[0][1], pairs[0][0] if speaker.maybe(0.8) else None, rng.choice((None, None, *SIZES)))
        said, more = [base] * number, rng.choice(("", "", "", "more ", "other ", "further "))
        if number == 1:
            is_alike = Filter(base.shape).count(scene) > 0
            article = rng.choice(("another", "one more", "a") if is_alike else ("a", "a", "one"))
            words = f"{article} {speaker.noun(base, short=True)}"
        else:
            words = f"{speaker.number(number)} {more}{speaker.noun(base, plural=True, short=True)}"
    else:
        said = [Filter(shape, color, rng.choice((None, None, *SIZES))) for color, shape in pairs]
        words = list_filters(speaker, said, short=True)
        need("\n" not in words)
    return order_change(speaker, "add anywhere", a=words), said


def add_alike(speaker: Speaker, scene: Scene) -> Changed:
    """One more of what is there: "copy the star", "another one like the red circle"."""
    need(len(scene.objects) < MAX_OBJECTS)
    item = speaker.rng.choice(scene.objects)
    new = add_object((item.shape, item.color, item.size), scene.objects, speaker.rng)
    name = "it" if len(scene.objects) == 1 and speaker.maybe(0.5) else need(speaker.refer(scene, item))
    text = speaker.say("one more alike", t=name)
    return Changed(speaker.say("change frame", c=text), changed(scene, {}, added=[new]), [Filter.of(item)])


def change_alike(speaker: Speaker, scene: Scene, value: Filter) -> Changed:
    """The change before for another object: "and the star too"."""
    rng = speaker.rng
    item = rng.choice(scene.objects)
    new = {name: getattr(value, name) for name in ATTRIBUTES if getattr(value, name)}
    updated = replace(item, **new) if new else None
    need(updated != item)
    after = changed(scene, {scene.objects.index(item): updated})
    return Changed(speaker.say("the same for another", t=need(speaker.refer(scene, item))), after, value=value)


def change_new(speaker: Speaker, before: Scene, scene: Scene) -> Changed:
    """ "Make the new one red": the one that was just added."""
    new = [index for index, item in enumerate(scene.objects) if item not in before.objects]
    need(len(new) == 1 and len(scene.objects) == len(before.objects) + 1)
    kind, value, after = propose(speaker, scene, new)
    return Changed(say_change(speaker, kind, speaker.say("the new one"), value), after, value=value)


def change_background(speaker: Speaker, scene: Scene) -> Changed:
    color = speaker.rng.choice([name for name in BACKGROUNDS if name != scene.background])
    after = replace(scene, background=color)
    return Changed(order_change(speaker, "background", v=speaker.say(color)), after)


def change_twice(speaker: Speaker, scene: Scene) -> Changed:
    """Two or three changes in one sentence."""
    choices = (change_one, change_one, change_one, add_one, change_background, change_set, change_attributes, add_some)
    forms = [speaker.rng.choice(choices) for _ in range(speaker.rng.choice((2, 2, 2, 3)))]
    need(forms.count(change_background) < 2)
    text, said, now = "", [], scene
    for form in forms:
        made = form(speaker, now)
        need("it" not in made.text.split() or not text)
        text += (speaker.say("and then") if text else "") + made.text
        said, now = [*said, *made.said], made.scene
    if speaker.maybe(0.12):
        text += ". " + speaker.say("keep", k=speaker.rng.choice(("the rest", "everything else", "the others")))
    new = [item for item in now.objects if item not in scene.objects]
    need(now != scene and (not said or len(new) == len(said)))
    return Changed(text, now, said)


def relate_two(speaker: Speaker, scene: Scene) -> Changed:
    """Exchange what two objects have, or give one what the other has."""
    rng = speaker.rng
    need(len(scene.objects) > 1)
    a, b = rng.sample(scene.objects, 2)
    attribute = rng.choice(("color", "color", "size", "shape"))
    need(getattr(a, attribute) != getattr(b, attribute))
    names = [speaker.refer(scene, item, without=attribute) for item in (a, b)]
    need(None not in names)
    color = speaker.say("color")
    word = color if attribute == "color" else attribute
    slots = {"a": names[0], "b": names[1], "attribute": word, "attributes": f"{word}s"}
    updates = {scene.objects.index(a): replace(a, **{attribute: getattr(b, attribute)})}
    if speaker.maybe(0.5):
        updates[scene.objects.index(b)] = replace(b, **{attribute: getattr(a, attribute)})
        after = changed(scene, updates)
        is_short = len(scene.objects) == 2 and speaker.maybe(0.5)
        text = speaker.say("swap of two" if is_short else "swap", **slots)
        if attribute != "shape" and speaker.maybe(0.2):
            values = {"v": speaker.say(getattr(b, attribute)), "w": speaker.say(getattr(a, attribute))}
            text += speaker.say("swap in detail", **slots, **values)
    else:
        after = changed(scene, updates)
        if len(scene.objects) == 2 and speaker.maybe(0.3):
            slots["b"] = "the other one"
        is_size = attribute == "size" and speaker.maybe(0.7)
        text = speaker.say("as big as" if is_size else "same as", **slots, v="big" if b.size == "large" else "small")
    return Changed(speaker.say("change frame", c=text), after)


FORMS = {
    remove_some: 5,
    change_one: 36,
    change_attributes: 8,
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
