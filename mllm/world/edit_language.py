"""Instructions for an edit in words, and whether a picture after an edit shows the change and nothing else."""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

from mllm.world.edits import Edit, apply_edit
from mllm.world.phrases import capitalize, full_filter, noun_phrase, references, say, say_place, with_article
from mllm.world.relations import holds, is_placed
from mllm.world.scene import Scene, SceneObject, required
from mllm.world.spec import ANY, Filter, Verdict
from mllm.world.templates.edit import COMPARATIVES, EDITS, VERBS

NUM_PLAIN = 5  # the first templates of each kind are imperatives
POSITION_TOLERANCE = 0.06  # how far an untouched object may seem to have moved, as a share of the side


class Instruction(NamedTuple):
    """An edit in words, and how these name the object that they speak of; None where they name none."""

    text: str
    reference: Filter | None


def choose_reference(scene: Scene, index: int, rng: Random) -> Filter:
    """Attributes that single out an object; mostly the fewest."""
    item = scene.objects[index]
    choices = references(scene, item, loose=True) or [full_filter(item)]
    return choices[0] if rng.random() < 0.6 else rng.choice(choices)


def edit_sentence(edit: Edit, scene: Scene, rng: Random, *, plain: bool = False, pronoun: bool = False) -> Instruction:
    """The instruction for an edit of this scene. A plain one is an imperative; a pronoun calls the only object "it"."""
    slots = {"old": say(scene.background, rng)}
    reference: Filter | None = None
    if edit.index is not None:
        reference = choose_reference(scene, edit.index, rng)
        slots["bare"] = noun_phrase(reference, rng)
        slots["object"] = "it" if pronoun else "the " + slots["bare"]
        slots["Object"] = capitalize(slots["object"])
    if edit.value is not None:
        slots["value"] = say(edit.value, rng)
        slots["a_value"] = with_article(slots["value"])
    if edit.kind == "resize":
        slots["comparative"] = rng.choice(COMPARATIVES[edit.new_value])
        slots["verb"] = rng.choice(VERBS[edit.new_value])
        slots["Verb"] = capitalize(slots["verb"])
    if edit.kind == "add":
        slots["added"] = with_article(noun_phrase(full_filter(edit.new_object), rng))
        slots["where"], reference = say_where(edit, scene, rng)
        slots["Where"] = capitalize(slots["where"])
    templates = EDITS[edit.kind]
    template = rng.choice(templates[:NUM_PLAIN] if plain else templates)
    text = template.format(**slots)
    if not plain:
        text = text[:-1] if text.endswith(".") and rng.random() < 0.15 else text
        text = text.lower() if rng.random() < 0.1 else text
    says_it = pronoun and edit.index is not None and "{bare}" not in template
    return Instruction(text, ANY if says_it else reference)


def say_where(edit: Edit, scene: Scene, rng: Random) -> tuple[str, Filter | None]:
    """Where the new object goes, and how the object is named that it goes next to."""
    if edit.place:
        return say_place(edit.place, rng), None
    relation = say(required(edit.relation, "relation"), rng)
    reference = choose_reference(scene, required(edit.anchor, "anchor"), rng)
    return f"{relation} the {noun_phrase(reference, rng)}", reference


def check_edit(before: Scene, edit: Edit, after: Scene) -> tuple[Verdict, ...]:
    """The change was made and the rest is untouched. An added object may lie anywhere its words allow."""
    expected = apply_edit(before, edit)
    rest = [item for item in after.objects]
    added: SceneObject | None = None
    if edit.kind == "add":
        added = next((item for item in rest if _is_the_added(before, edit, item, rest)), None)
        rest = [item for item in rest if item is not added]
    kept = before.objects if edit.kind == "add" else expected.objects
    changed = None if edit.index is None or edit.kind == "remove" else _changed_object(before, edit)
    made = {
        "background": after.background == expected.background,
        "add": added is not None,
        "remove": len(rest) < len(before.objects),
    }.get(edit.kind, changed is not None and any(_looks_like(changed, item) for item in rest))
    return (
        Verdict("the change was made", made),
        Verdict("the other objects are untouched", _match_all(list(kept), rest, ignore=changed)),
        Verdict("there is nothing else", len(after.objects) == len(expected.objects)),
        Verdict("the background is right", after.background == expected.background),
    )


def _changed_object(before: Scene, edit: Edit) -> SceneObject:
    alone = Scene(before.background, (before.objects[edit.target],))
    return apply_edit(alone, Edit(edit.kind, 0, edit.value)).objects[0]


def _looks_like(expected: SceneObject, found: SceneObject) -> bool:
    same = full_filter(expected).matches(found)
    return same and math.hypot(expected.x - found.x, expected.y - found.y) <= POSITION_TOLERANCE


def _match_all(expected: list[SceneObject], found: list[SceneObject], *, ignore: SceneObject | None) -> bool:
    """Whether every expected object, save the changed one, is found in its place."""
    return all(item == ignore or any(_looks_like(item, other) for other in found) for item in expected)


def _is_the_added(before: Scene, edit: Edit, item: SceneObject, objects: list[SceneObject]) -> bool:
    """Whether an object is the new one: right attributes, where the words say, and none of the old objects."""
    if not full_filter(edit.new_object).matches(item):
        return False
    if any(_looks_like(old, item) for old in before.objects):
        return False
    if edit.place:
        return is_placed(edit.place, item)
    expected = before.objects[required(edit.anchor, "anchor")]
    anchor = next((other for other in objects if _looks_like(expected, other)), None)
    return anchor is not None and holds(required(edit.relation, "relation"), item, anchor)
