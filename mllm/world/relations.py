"""Where objects lie: relative to each other (left of, right of, above, below) and in the picture (top left, center).

Two strictnesses. A sentence is *stated* only where the margin is clear to any eye; it *holds* in a drawn picture with a
smaller margin. What lies between is never said of a scene and never decides a question.
"""

from __future__ import annotations

from mllm.world.scene import SceneObject

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CLEAR_MARGIN = 0.15
HOLDS_MARGIN = 0.04

# Column and row of each place; None leaves that direction free.
PLACES: dict[str, tuple[str | None, str | None]] = {
    "top left": ("left", "top"),
    "top right": ("right", "top"),
    "bottom left": ("left", "bottom"),
    "bottom right": ("right", "bottom"),
    "center": ("middle", "middle"),
    "left": ("left", None),
    "right": ("right", None),
    "top": (None, "top"),
    "bottom": (None, "bottom"),
}
# Bounds of a third in which a place is stated, and in which it still holds.
STATED_BOUNDS = {
    "left": (0.0, 0.36),
    "top": (0.0, 0.36),
    "middle": (0.42, 0.58),
    "right": (0.64, 1.0),
    "bottom": (0.64, 1.0),
}
HOLDS_BOUNDS = {
    "left": (0.0, 0.45),
    "top": (0.0, 0.45),
    "middle": (0.35, 0.65),
    "right": (0.55, 1.0),
    "bottom": (0.55, 1.0),
}


def offset(relation: str, a: SceneObject, b: SceneObject) -> float:
    """How far a lies from b in the direction of the relation."""
    match relation:
        case "left of":
            return b.x - a.x
        case "right of":
            return a.x - b.x
        case "above":
            return b.y - a.y
        case "below":
            return a.y - b.y
        case _:
            raise ValueError(f"relation {relation!r} is unknown; choose one of {', '.join(RELATIONS)}")


def holds(relation: str, a: SceneObject, b: SceneObject) -> bool:
    """Whether a drawn picture satisfies the relation."""
    return offset(relation, a, b) >= HOLDS_MARGIN


def is_clear(relation: str, a: SceneObject, b: SceneObject) -> bool:
    """Whether anyone would agree that the relation holds: a clear margin, and not mostly in the other direction."""
    across = a.y - b.y if relation in ("left of", "right of") else a.x - b.x
    return offset(relation, a, b) >= max(CLEAR_MARGIN, 0.5 * abs(across))


def main_relation(a: SceneObject, b: SceneObject) -> str | None:
    """The relation one would name first, along the longer direction; None when no margin is clear."""
    if abs(a.x - b.x) >= abs(a.y - b.y):
        relation = "left of" if a.x < b.x else "right of"
    else:
        relation = "above" if a.y < b.y else "below"
    return relation if is_clear(relation, a, b) else None


def _is_in(place: str, item: SceneObject, bounds: dict[str, tuple[float, float]]) -> bool:
    column, row = PLACES[place]
    for band, value in ((column, item.x), (row, item.y)):
        if band is not None and not bounds[band][0] <= value <= bounds[band][1]:
            return False
    return True


def is_placed(place: str, item: SceneObject) -> bool:
    """Whether a drawn object lies in the place."""
    return _is_in(place, item, HOLDS_BOUNDS)


def stated_places(item: SceneObject) -> tuple[str, ...]:
    """Every place in which anyone would say the object lies, the most exact first."""
    return tuple(place for place in PLACES if _is_in(place, item, STATED_BOUNDS))
