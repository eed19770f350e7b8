"""Changes to a scene as values: propose one at random, apply it. Sentences for them live in edit_language.py."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from random import Random

from mllm.world.relations import PLACES, RELATIONS, is_clear, stated_places
from mllm.world.scene import (
    ALL_PAIRS,
    BACKGROUNDS,
    COLORS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    Pair,
    Scene,
    SceneObject,
    free_position,
    is_valid,
    required,
)

EDIT_KINDS = ("recolor", "remove", "add", "resize", "reshape", "background")


@dataclass(frozen=True, slots=True)
class Edit:
    """One change. Indices count the objects of the scene before, from left to right. Which fields are set depends on
    the kind; `target`, `new_value` and `new_object` are for the kinds that have them.
    """

    kind: str
    index: int | None = None  # the object that changes (recolor, remove, resize, reshape)
    value: str | None = None  # the new color, size, shape or background
    added: SceneObject | None = None  # the new object (add)
    place: str | None = None  # where the new object goes, as said in words: a place ...
    relation: str | None = None  # ... or a relation to an anchor
    anchor: int | None = None

    @property
    def target(self) -> int:
        return required(self.index, "index")

    @property
    def new_value(self) -> str:
        return required(self.value, "value")

    @property
    def new_object(self) -> SceneObject:
        return required(self.added, "added")

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Edit:
        added = data.get("added")
        return cls(**{**data, "added": SceneObject(**added) if added else None})


def is_distinct(scene: Scene, index: int) -> bool:
    """Whether size, color and shape single out one object, so that a sentence can refer to it."""
    item = scene.objects[index]
    same = [other for other in scene.objects if (other.pair, other.size) == (item.pair, item.size)]
    return len(same) == 1


def replace_object(scene: Scene, index: int, *new: SceneObject) -> Scene:
    objects = scene.objects
    return Scene(scene.background, objects[:index] + new + objects[index + 1 :])


def apply_edit(scene: Scene, edit: Edit) -> Scene:
    """The scene after the change; everything else stays where it is."""
    match edit.kind:
        case "background":
            return Scene(edit.new_value, scene.objects)
        case "add":
            return Scene(scene.background, (*scene.objects, edit.new_object))
        case "remove":
            return replace_object(scene, edit.target)
        case "recolor":
            return replace_object(scene, edit.target, replace(scene.objects[edit.target], color=edit.new_value))
        case "resize":
            return replace_object(scene, edit.target, replace(scene.objects[edit.target], size=edit.new_value))
        case "reshape":
            return replace_object(scene, edit.target, replace(scene.objects[edit.target], shape=edit.new_value))
        case _:
            raise ValueError(f"edit kind {edit.kind!r} is unknown; choose one of {', '.join(EDIT_KINDS)}")


def propose_edit(scene: Scene, rng: Random, *, allowed_pairs: frozenset[Pair] = ALL_PAIRS) -> Edit:
    """A random change that leaves a valid scene with allowed pairs and can be said in words without ambiguity."""
    for _ in range(30):
        edit = _propose(scene, rng.choice(EDIT_KINDS), rng)
        if edit is None:
            continue
        after = apply_edit(scene, edit)
        if is_valid(after) and after.pairs <= allowed_pairs:
            return edit
    return _propose_background(scene, rng)  # always possible


def _propose(scene: Scene, kind: str, rng: Random) -> Edit | None:
    match kind:
        case "background":
            return _propose_background(scene, rng)
        case "add":
            return _propose_add(scene, rng)
    index = rng.randrange(len(scene.objects))
    if not is_distinct(scene, index):
        return None
    item = scene.objects[index]
    match kind:
        case "remove":
            return Edit(kind, index)
        case "recolor":
            return Edit(kind, index, rng.choice([color for color in COLORS if color != item.color]))
        case "reshape":
            return Edit(kind, index, rng.choice([shape for shape in SHAPES if shape != item.shape]))
        case "resize":
            return Edit(kind, index, "small" if item.size == "large" else "large")
        case _:
            raise ValueError(f"edit kind {kind!r} is unknown; choose one of {', '.join(EDIT_KINDS)}")


def _propose_background(scene: Scene, rng: Random) -> Edit:
    return Edit("background", value=rng.choice([name for name in BACKGROUNDS if name != scene.background]))


def _propose_add(scene: Scene, rng: Random) -> Edit | None:
    """A new object with its place in words: relative to one that can be named, or in the picture."""
    if len(scene.objects) == MAX_OBJECTS:
        return None
    size = rng.choice(SIZES)
    position = free_position(size, scene.objects, rng, tries=10)
    if position is None:
        return None
    added = SceneObject(rng.choice(SHAPES), rng.choice(COLORS), size, *position)
    relations = [
        (relation, anchor)
        for anchor, item in enumerate(scene.objects)
        for relation in RELATIONS
        if is_clear(relation, added, item) and is_distinct(scene, anchor)
    ]
    places = [place for place in stated_places(added) if None not in PLACES[place]]
    if relations and (not places or rng.random() < 0.5):
        relation, anchor = rng.choice(relations)
        return Edit("add", added=added, relation=relation, anchor=anchor)
    return Edit("add", added=added, place=rng.choice(places)) if places else None
