"""Changes to a scene: propose one at random, apply it, say it in words, check a scene against it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from mllm.world.language import (
    choose_reference,
    fill,
    noun_phrase,
    phrases,
    references,
    say,
    say_place,
    with_article,
)
from mllm.world.scene import (
    ALL_PAIRS,
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    MAX_OBJECTS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Pair,
    Scene,
    SceneObject,
    holds,
    is_clear,
    is_placed,
    is_valid,
    random_free_position,
    stated_places,
)
from mllm.world.spec import ANY, Filter, Verdict, looks_like

EDIT_KINDS = ("recolor", "remove", "add", "resize", "reshape", "background")
CHANGED_ATTRIBUTE = {"recolor": "color", "resize": "size", "reshape": "shape"}
NUM_IMPERATIVES = 5  # the first templates of each kind
MAX_TRIES = 30
POSITION_TOLERANCE = 0.06  # how far an untouched object may seem to have moved, as a share of the side


@dataclass(frozen=True, slots=True)
class Edit:
    """One change. Indices count the objects of the scene before, from left to right. Which fields are set depends on
    the kind.
    """

    kind: str
    index: int | None = None  # the object that changes (recolor, remove, resize, reshape)
    value: str | None = None  # the new color, size, shape or background
    added: SceneObject | None = None  # the new object (add)
    place: str | None = None  # where the new object goes, as said in words: a place ...
    relation: str | None = None  # ... or a relation to an anchor
    anchor: int | None = None


class Instruction(NamedTuple):
    """An edit in words, and how these name the object that they speak of; None where they name none."""

    text: str
    reference: Filter | None


def apply_edit(scene: Scene, edit: Edit) -> Scene:
    """The scene after the change; everything else stays where it is."""
    objects = list(scene.objects)
    match edit.kind:
        case "background":
            return replace(scene, background=edit.value)
        case "add":
            objects.append(edit.added)
        case "remove":
            del objects[edit.index]
        case "recolor" | "resize" | "reshape":
            objects[edit.index] = changed_object(scene, edit)
        case _:
            raise ValueError(f"edit kind must be one of {', '.join(EDIT_KINDS)}, got {edit.kind!r}")
    return replace(scene, objects=tuple(objects))


def changed_object(scene: Scene, edit: Edit) -> SceneObject:
    """The object with its new attribute."""
    return replace(scene.objects[edit.index], **{CHANGED_ATTRIBUTE[edit.kind]: edit.value})


# ---- edits at random ----


def propose_edit(scene: Scene, rng: Random, *, allowed_pairs: frozenset[Pair] = ALL_PAIRS) -> Edit:
    """A random change that leaves a valid scene with allowed pairs and can be said in words without ambiguity."""
    for _ in range(MAX_TRIES):
        edit = _propose(scene, rng.choice(EDIT_KINDS), rng)
        if edit is not None:
            after = apply_edit(scene, edit)
            if is_valid(after) and after.pairs <= allowed_pairs:
                return edit
    return _propose(scene, "background", rng)  # always possible


def _propose(scene: Scene, kind: str, rng: Random) -> Edit | None:
    match kind:
        case "background":
            return Edit(kind, value=rng.choice([name for name in BACKGROUNDS if name != scene.background]))
        case "add":
            return _propose_addition(scene, rng)
    index = rng.randrange(len(scene.objects))
    item = scene.objects[index]
    if not is_distinct(scene, item):
        return None
    if kind == "remove":
        return Edit(kind, index)
    name = CHANGED_ATTRIBUTE[kind]
    others = [value for value in ATTRIBUTES[name] if value != getattr(item, name)]
    return Edit(kind, index, others[0] if kind == "resize" else rng.choice(others))


def _propose_addition(scene: Scene, rng: Random) -> Edit | None:
    """A new object with its place in words: relative to one that can be named, or in the image."""
    if len(scene.objects) == MAX_OBJECTS:
        return None
    size = rng.choice(SIZES)
    position = random_free_position(size, scene.objects, rng, tries=10)
    if position is None:
        return None
    added = SceneObject(rng.choice(SHAPES), rng.choice(COLORS), size, *position)
    relations = [
        (relation, anchor)
        for anchor, item in enumerate(scene.objects)
        for relation in RELATIONS
        if is_clear(relation, added, item) and is_distinct(scene, item)
    ]
    places = [place for place in stated_places(added) if None not in PLACES[place]]
    if relations and (not places or rng.random() < 0.5):
        relation, anchor = rng.choice(relations)
        return Edit("add", added=added, relation=relation, anchor=anchor)
    return Edit("add", added=added, place=rng.choice(places)) if places else None


def is_distinct(scene: Scene, item: SceneObject) -> bool:
    """Whether size, color and shape single out one object, so that a sentence can refer to it."""
    return Filter.of(item).find_one(scene) is not None


# ---- edits in words ----


def edit_sentence(edit: Edit, scene: Scene, rng: Random, *, plain: bool = False, pronoun: bool = False) -> Instruction:
    """The instruction for an edit of this scene. A plain one is an imperative; a pronoun calls the only object "it"."""
    table = phrases("edit")
    slots = {"old": say(scene.background, rng)}
    reference: Filter | None = None
    if edit.index is not None:
        reference = choose_reference(references(scene, scene.objects[edit.index], loose=True), rng)
        slots["bare"] = noun_phrase(reference, rng)
        slots["object"] = "it" if pronoun else "the " + slots["bare"]
    if edit.value is not None:
        slots["value"] = say(edit.value, rng)
        slots["a_value"] = with_article(slots["value"])
    if edit.kind == "resize":
        slots["comparative"] = rng.choice(table["comparatives"][edit.value])
        slots["verb"] = rng.choice(table["verbs"][edit.value])
    if edit.kind == "add":
        slots["added"] = with_article(noun_phrase(Filter.of(edit.added), rng))
        if edit.place:
            slots["where"] = say_place(edit.place, rng)
        else:
            relation = say(edit.relation, rng)
            reference = choose_reference(references(scene, scene.objects[edit.anchor], loose=True), rng)
            slots["where"] = f"{relation} the {noun_phrase(reference, rng)}"
    templates = table[edit.kind]
    template = rng.choice(templates[:NUM_IMPERATIVES] if plain else templates)
    text = fill(template, slots)
    if not plain:
        text = text[:-1] if text.endswith(".") and rng.random() < 0.15 else text
        text = text.lower() if rng.random() < 0.1 else text
    says_it = pronoun and edit.index is not None and "{bare}" not in template
    return Instruction(text, ANY if says_it else reference)


# ---- was the edit made? ----


def check_edit(before: Scene, edit: Edit, after: Scene) -> tuple[Verdict, ...]:
    """The change was made and the rest is untouched. An added object may lie anywhere its words allow."""
    expected, rest = apply_edit(before, edit), list(after.objects)
    kept = [item for item in expected.objects if item in before.objects]
    match edit.kind:
        case "background":
            made = after.background == expected.background
        case "add":
            added = next((item for item in rest if _is_addition(before, edit, item, after)), None)
            made, rest = added is not None, [item for item in rest if item is not added]
        case "remove":
            made = len(rest) < len(before.objects)
        case _:
            made = _is_among(changed_object(before, edit), rest)
    return (
        Verdict("the change was made", made),
        Verdict("the other objects are untouched", all(_is_among(item, rest) for item in kept)),
        Verdict("there is nothing else", len(after.objects) == len(expected.objects)),
        Verdict("the background is right", after.background == expected.background),
    )


def _is_among(expected: SceneObject, objects: list[SceneObject]) -> bool:
    return any(looks_like(expected, item, tolerance=POSITION_TOLERANCE) for item in objects)


def _is_addition(before: Scene, edit: Edit, item: SceneObject, after: Scene) -> bool:
    """Whether an object is the new one: right attributes, where the words say, and none of the old objects."""
    is_old = any(looks_like(old, item, tolerance=POSITION_TOLERANCE) for old in before.objects)
    if is_old or not Filter.of(edit.added).matches(item):
        return False
    if edit.place:
        return is_placed(edit.place, item)
    anchor = before.objects[edit.anchor]
    found = (other for other in after.objects if looks_like(anchor, other, tolerance=POSITION_TOLERANCE))
    seen = next(found, None)
    return seen is not None and holds(edit.relation, item, seen)
