"""The outline of a scene: its background and objects as the few words that a model writes before it draws.

"white, large red circle 35, small blue square 62": for every object its size, color and shape, then row and column of
its middle on a board of 8 x 8 squares counted from 0 at the top left; in reading order, as they will be drawn.
"""

from __future__ import annotations

from mllm.world.scene import Scene, SceneObject

BOARD = 8
"""Squares along each side, whatever the size of the picture."""


def outline_of(scene: Scene) -> str:
    """The outline of a scene."""
    ordered = sorted(scene.objects, key=lambda item: (square(item), item.shape, item.color, item.size))
    objects = (
        f"{item.size} {item.color} {item.shape} {row}{column}" for item in ordered for row, column in [square(item)]
    )
    return ", ".join((scene.background, *objects))


def square(item: SceneObject) -> tuple[int, int]:
    """(row, column) of the board on which the middle of an object lies."""
    return int(item.y * BOARD), int(item.x * BOARD)
