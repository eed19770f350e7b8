"""Changes of a picture in people's words: one object, some of them or all but one, and corrections of what was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from mllm.world.grammar import Slot
from mllm.world.people.drawing import as_record, drawn
from mllm.world.people.speaker import Speaker
from mllm.world.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    MAX_OBJECTS,
    PLACES,
    RELATIONS,
    SEEN_PAIRS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    Split,
    is_clear,
    is_valid,
    random_free_position,
    split_of,
    stated_places,
)
from mllm.world.spec import Filter, full_filter

Changed = tuple[str, Scene, dict[str, Any]]


class UnchangeableError(Exception):
    """No change was found that stays in the split; try another scene."""


MAX_TRIES = 40


def change_turn(speaker: Speaker, scene: Scene, split: Split) -> Changed:
    """A change of this scene in words, the scene after it, and what any image of it must show."""
    forms = {
        remove_some: 3,
        change_one: 40,
        change_set: 18,
        change_but: 12,
        add_one: 17,
        change_background: 11,
        change_twice: 10,
        relate_two: 8,
    }
    for _ in range(400):
        made = speaker.pick(forms)(speaker, scene)
        if made is not None and split_of(made[1]) == split:
            return made
    raise UnchangeableError


def correct_turn(speaker: Speaker, scene: Scene, split: Split) -> Changed | None:
    """Somebody takes back a word of what is in the picture: "sorry, i meant green"."""
    rng = speaker.rng
    for _ in range(MAX_TRIES):
        item, name = rng.choice(scene.objects), rng.choice(("color", "color", "shape", "size"))
        old, new = getattr(item, name), rng.choice(ATTRIBUTES[name])
        if old == new:
            continue
        after = changed(scene, {scene.objects.index(item): replace(item, **{name: new})})
        if after is None or split_of(after) != split:
            continue
        is_only = sum(getattr(other, name) == old for other in scene.objects) == 1
        value, was = speaker.say(new), speaker.say(old)
        a_value, a_was = (f"a {value}", f"a {was}") if name == "shape" else (value, was)
        start = speaker.say("correct") if speaker.maybe(0.8) else ""
        if len(scene.objects) == 1 and speaker.maybe(0.6):
            text = speaker.say("correct the only one", s=start, v=a_value, w=a_was)
        elif is_only and speaker.maybe(0.4):
            text = speaker.say("correct the value", s=start, v=a_value, w=a_was)
        else:
            target = speaker.refer(scene, item, without=name)
            if target is None:
                continue
            text = speaker.say("correct one", s=start, t=target, v=a_value, w=a_was)
        return text, after, kept(scene, after)
    return None


def changed(
    scene: Scene,
    updates: dict[int, SceneObject | None],
    *,
    added: Sequence[SceneObject] = (),
    background: str | None = None,
) -> Scene | None:
    """The scene with objects replaced or removed; None where that is none of this world."""
    kept = [updates.get(index, item) for index, item in enumerate(scene.objects)]
    after = Scene(background or scene.background, (*(item for item in kept if item), *added))
    return after if is_valid(after) and after.pairs <= SEEN_PAIRS and after != scene else None


def kept(
    before: Scene, after: Scene, *, said: Sequence[Filter] = (), relation: tuple[Filter, str, Filter] | None = None
) -> dict[str, Any]:
    """What an image must show after a change; `said` is how added objects were described."""
    olds = [item for item in after.objects if item in before.objects or not said]
    filters = [*map(full_filter, olds), *said]
    relations = []
    if relation:
        index = {item: at for at, item in enumerate(filters)}
        relations = [(index[relation[0]], relation[1], index[relation[2]])]
    gone = dict.fromkeys(full_filter(item) for item in before.objects if item not in after.objects)
    background = after.background if after.background != before.background else None
    expect = drawn(after, filters, relations=relations, background=background)
    return {**expect, "keeps": True, "changes": [as_record(item) for item in gone]}


def order_change(speaker: Speaker, name: str, **slots: Slot) -> str:
    """An imperative within its frame, or another way to say it."""
    slots = {"p": "it", **slots}
    if speaker.maybe(0.68):
        return speaker.say(
            "change frame", c=speaker.say("background change" if name == "background" else name, **slots)
        )
    return speaker.say(f"{name} said", **slots)


def say_change(speaker: Speaker, kind: str, target: str, value: str | Filter | None, *, plural: bool = False) -> str:
    """One change of what is named."""
    slots: dict[str, Slot] = {"t": target, "bare": target.removeprefix("the "), "p": "them" if plural else "it"}
    if target in ("it", "this", "that", "this one", "them", "both", "all of them", "everything"):
        slots["bare"] = target
    if kind == "resize":
        return order_change(speaker, "larger" if value == "large" else "smaller", **slots)
    if isinstance(value, Filter):
        slots["v"] = (
            speaker.noun(value, plural=True, short=True)
            if plural
            else speaker.say("a new one", n=speaker.noun(value, short=True))
        )
    elif value:
        slots["v"] = speaker.say(value)
    return order_change(speaker, kind, **slots)


def propose(
    speaker: Speaker, items: Sequence[SceneObject]
) -> tuple[str, str | Filter | None, list[SceneObject | None]] | None:
    """A kind of change for objects, its value, and the objects after it."""
    rng = speaker.rng
    kind = rng.choices(("recolor", "remove", "resize", "reshape"), (34, 24, 22, 20))[0]
    match kind:
        case "remove":
            return kind, None, [None] * len(items)
        case "recolor":
            color = rng.choice(COLORS)
            return (
                (kind, color, [replace(item, color=color) for item in items])
                if all(i.color != color for i in items)
                else None
            )
        case "resize":
            size = rng.choice(SIZES)
            return (
                (kind, size, [replace(item, size=size) for item in items])
                if all(i.size != size for i in items)
                else None
            )
        case _:
            shape = rng.choice(SHAPES)
            if any(item.shape == shape for item in items):
                return None
            color = rng.choice(COLORS) if rng.random() < 0.25 else None
            value = Filter(shape, color)
            return kind, value, [replace(item, shape=shape, color=color or item.color) for item in items]


def matching(scene: Scene, rng: Random) -> tuple[Filter, list[int]] | None:
    """Two or more objects that a shape, a color or a size singles out."""
    name = rng.choice(("shape", "shape", "color", "size"))
    value = getattr(rng.choice(scene.objects), name)
    found = [index for index, item in enumerate(scene.objects) if getattr(item, name) == value]
    return (Filter(**{name: value}), found) if len(found) > 1 else None


def change_one(speaker: Speaker, scene: Scene) -> Changed | None:
    item = speaker.rng.choice(scene.objects)
    proposed = propose(speaker, [item])
    if proposed is None:
        return None
    kind, value, (new,) = proposed
    after = changed(scene, {scene.objects.index(item): new})
    if after is None:
        return None
    target = speaker.refer(scene, item)
    if len(scene.objects) == 1 and speaker.maybe(0.6):
        target = speaker.rng.choice(("it", "it", "it", "this", "that"))
    if target is None:
        return None
    text = say_change(speaker, kind, target, value)
    others = [other for other in scene.objects if other is not item]
    if others and speaker.maybe(0.12):
        other = speaker.rng.choice(others)
        name = speaker.refer(scene, other)
        rest = "the other one" if len(others) == 1 and speaker.maybe(0.5) else name if len(others) == 1 else "the rest"
        if rest:
            keep = speaker.say("keep", k=rest)
            text = speaker.say("keeping", t=text, k=keep)
    elif kind == "recolor" and speaker.maybe(0.08):
        text += speaker.say("not the old", o=speaker.say(item.color))
    return text, after, kept(scene, after)


def change_set(speaker: Speaker, scene: Scene) -> Changed | None:
    """All of them, both circles, every red one, the ones that are not red."""
    rng, number = speaker.rng, len(scene.objects)
    if number < 2:
        return None
    form = rng.choice(("all", "match", "match", "not"))
    if form == "all":
        chosen = list(range(number))
        target = speaker.say("both of them" if number == 2 and speaker.maybe(0.7) else "all of them")
    elif form == "not":
        name = rng.choice(("color", "shape"))
        value = getattr(rng.choice(scene.objects), name)
        chosen = [index for index, item in enumerate(scene.objects) if getattr(item, name) != value]
        if not chosen or len(chosen) == number:
            return None
        word = speaker.say(value) if name == "color" else f"a {speaker.say(value)}"
        target = speaker.say("that is not" if len(chosen) == 1 else "those that are not", w=word)
    else:
        found = matching(scene, rng)
        if found is None:
            return None
        base, chosen = found
        noun = (
            speaker.noun(base, plural=True, short=True)
            if base.shape or speaker.maybe(0.5)
            else f"{speaker.say(base.color or base.size or '')} ones"
        )
        single_noun = noun.removesuffix("s") if not noun.endswith("sses") else noun.removesuffix("es")
        target = speaker.say("both of a kind" if len(chosen) == 2 else "all of a kind", n=noun, s=single_noun)
    items = [scene.objects[index] for index in chosen]
    proposed = propose(speaker, items)
    if proposed is None or (proposed[0] == "remove" and len(chosen) == number):
        return None
    after = changed(scene, dict(zip(chosen, proposed[2], strict=True)))
    if after is None:
        return None
    return say_change(speaker, proposed[0], target, proposed[1], plural=len(chosen) > 1), after, kept(scene, after)


def change_but(speaker: Speaker, scene: Scene) -> Changed | None:
    """Everything except one, the other one, the rest; or that one is all that stays."""
    rng, number = speaker.rng, len(scene.objects)
    if number < 2:
        return None
    index = rng.randrange(number)
    item = scene.objects[index]
    found = matching(scene, rng) if speaker.maybe(0.2) else None
    stays = found[1] if found else [index]
    name = "the " + speaker.noun(found[0], plural=True, short=True) if found else speaker.refer(scene, item)
    chosen = [at for at in range(number) if at not in stays]
    if name is None or not chosen:
        return None
    proposed = propose(speaker, [scene.objects[at] for at in chosen])
    if proposed is None:
        return None
    kind, value, new = proposed
    after = changed(scene, dict(zip(chosen, new, strict=True)))
    if after is None:
        return None
    if kind == "remove":
        return speaker.say("change frame", c=speaker.say("only", k=name)), after, kept(scene, after)
    if speaker.maybe(0.4):
        keep = speaker.say("keep", k=name)
        rest = (
            "the other one"
            if len(chosen) == 1
            else rng.choice(("the others", "the rest", "the other ones", "everything else", "all the others"))
        )
        change = say_change(speaker, kind, rest, value, plural=len(chosen) > 1)
        text = speaker.say("keeping first", k=keep, c=change)
        return text, after, kept(scene, after)
    target = speaker.say("everything except", k=name)
    return say_change(speaker, kind, target, value, plural=len(chosen) > 1), after, kept(scene, after)


def remove_some(speaker: Speaker, scene: Scene) -> Changed | None:
    """Two of four alike, no matter which."""
    item = speaker.rng.choice(scene.objects)
    alike = [at for at, other in enumerate(scene.objects) if full_filter(other) == full_filter(item)]
    if len(alike) < 3 or len(alike) < len(scene.objects):
        return None
    number = speaker.rng.randrange(1, len(alike))
    after = changed(scene, dict.fromkeys(speaker.rng.sample(alike, number)))
    if after is None:
        return None
    plural = speaker.noun(Filter(item.shape), plural=True, short=True)
    left = speaker.number(len(alike) - number)
    text = speaker.say("too many", n=speaker.number(number), m=left, p=plural)
    return speaker.say("change frame", c=text), after, kept(scene, after)


def change_other(speaker: Speaker, before: Scene, scene: Scene) -> Changed | None:
    """ "Now remove the other one": the one of two that was not changed last."""
    same = [item for item in scene.objects if item in before.objects]
    if len(scene.objects) != 2 or len(same) != 1:
        return None
    proposed = propose(speaker, same)
    after = changed(scene, {scene.objects.index(same[0]): proposed[2][0]}) if proposed else None
    if proposed is None or after is None:
        return None
    target = speaker.rng.choice(("the other one", "the other one", "the other", "the second one", "the other shape"))
    return say_change(speaker, proposed[0], target, proposed[1]), after, kept(scene, after)


def add_one(speaker: Speaker, scene: Scene) -> Changed | None:
    rng = speaker.rng
    if len(scene.objects) == MAX_OBJECTS:
        return None
    size, (color, shape) = rng.choice(SIZES), rng.choice(sorted(SEEN_PAIRS))
    if speaker.maybe(0.2):
        color, shape = rng.choice(scene.objects).pair
    position = random_free_position(size, scene.objects, rng, tries=20)
    if position is None:
        return None
    new = SceneObject(shape, color, size, *position)
    after = changed(scene, {}, added=[new])
    if after is None:
        return None
    said = Filter(shape, color, size if speaker.maybe(0.6) else None)
    noun = speaker.noun(said, short=True)
    alike = any(item.shape == shape for item in scene.objects)
    article = (
        rng.choices(("a", "one", "another", "one more", "a second"), (60, 8, 22, 12, 4))[0]
        if alike
        else rng.choice(("a",) * 6 + ("one",))
    )
    slots: dict[str, Slot] = {"a": f"{article} {noun}", "w": ""}
    if alike and speaker.maybe(0.3):
        values = " and ".join(speaker.say(word) for word in (said.size, color) if word)
        slots["a"] = f"{article} {speaker.say(shape)}{speaker.rng.choice((', but ', ' but ', ' in ', ', '))}{values}"
    relation = None
    anchors = [(relation, item) for item in scene.objects for relation in RELATIONS if is_clear(relation, new, item)]
    places = [place for place in stated_places(new) if None not in PLACES[place]]
    form = rng.random()
    if anchors and form < 0.55:
        side, anchor = rng.choice(anchors)
        name = speaker.refer(scene, anchor)
        if name is None:
            return None
        if len(scene.objects) == 1 and speaker.maybe(0.5):
            slots["w"] = speaker.say(side.replace(" of", "of") + " it")
        else:
            slots["w"] = f"{speaker.say(side)} {name}"
        relation = (said, side, full_filter(anchor))
    elif places and form < 0.75:
        slots["w"] = speaker.say(places[0])
    expect = kept(scene, after, said=[said], relation=relation)
    return order_change(speaker, "add" if slots["w"] else "add anywhere", **slots), after, expect


def change_background(speaker: Speaker, scene: Scene) -> Changed | None:
    color = speaker.rng.choice([name for name in BACKGROUNDS if name != scene.background])
    after = replace(scene, background=color)
    return order_change(speaker, "background", v=speaker.say(color)), after, kept(scene, after)


def change_twice(speaker: Speaker, scene: Scene) -> Changed | None:
    """Two changes in one sentence."""
    first_form, second_form = (
        speaker.rng.choice((change_one, change_one, add_one, change_background, change_set)) for _ in range(2)
    )
    first = first_form(speaker, scene)
    second = second_form(speaker, first[1]) if first else None
    if first is None or second is None or "it" in second[0].split() or len(second[1].objects) == 0:
        return None
    if first_form is second_form is change_background or any(v["keeps"] is False for v in (first[2], second[2])):
        return None
    touched = [item for item in second[1].objects if item not in scene.objects]
    before_kept = [item for item in scene.objects if item in first[1].objects]
    if (
        first_form is change_one
        and second_form is change_one
        and len(before_kept) - len([i for i in before_kept if i in second[1].objects]) == 0
        and len(touched) > 1
    ):
        return None
    text = first[0] + speaker.say("and then") + second[0]
    if speaker.maybe(0.1):
        text += ". " + speaker.say("keep", k=speaker.rng.choice(("the rest", "everything else", "the others")))
    added = [form is add_one for form in (first_form, second_form)]
    said = [
        Filter(**{k: v for k, v in made[2]["scene"]["objects"][-1].items() if k != "count"})
        for made, is_added in zip((first, second), added, strict=True)
        if is_added
    ]
    if any(added) and not all(item in (*scene.objects, *second[1].objects) for item in second[1].objects):
        return None
    fresh = [item for item in second[1].objects if item not in scene.objects]
    if any(added) and len(fresh) != len(said):
        return None
    return text, second[1], kept(scene, second[1], said=said)


def relate_two(speaker: Speaker, scene: Scene) -> Changed | None:
    """Exchange what two objects have, or give one what the other has."""
    rng = speaker.rng
    if len(scene.objects) < 2:
        return None
    a, b = rng.sample(scene.objects, 2)
    attribute = rng.choice(("color", "color", "size", "shape"))
    if getattr(a, attribute) == getattr(b, attribute):
        return None
    names = [speaker.refer(scene, item, without=attribute) for item in (a, b)]
    if None in names:
        return None
    plural = {"color": f"{speaker.say('color')}s", "size": "sizes", "shape": "shapes"}[attribute]
    slots: dict[str, Slot] = {
        "a": str(names[0]),
        "b": str(names[1]),
        "attributes": plural,
        "attribute": plural.removesuffix("s"),
    }
    new_a = replace(a, **{attribute: getattr(b, attribute)})
    new_b = replace(b, **{attribute: getattr(a, attribute)})
    at = scene.objects.index(a), scene.objects.index(b)
    if speaker.maybe(0.5):
        after = changed(scene, {at[0]: new_a, at[1]: new_b})
        if after is None:
            return None
        if len(scene.objects) == 2 and speaker.maybe(0.5):
            slots["their"] = "their"
            text = speaker.say("swap of two", **slots)
        else:
            text = speaker.say("swap", **slots, their=f"the {plural} of {names[0]} and {names[1]}").replace(
                f" {plural} of {names[0]} and {names[1]} {plural}", f" {plural} of {names[0]} and {names[1]}"
            )
    else:
        after = changed(scene, {at[0]: new_a})
        if after is None:
            return None
        if len(scene.objects) == 2 and speaker.maybe(0.3):
            slots["b"] = "the other one"
        if attribute == "size" and speaker.maybe(0.7):
            text = speaker.say("as big as", **slots, v="big" if b.size == "large" else "small")
        else:
            text = speaker.say("same as", **slots)
    return speaker.say("change frame", c=text), after, kept(scene, after)
