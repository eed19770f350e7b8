"""Outlines of scenes: every object with its attributes and square, in reading order."""

import pytest

from mllm.world.episode import make_episode
from mllm.world.outline import BOARD, outline_of
from mllm.world.scene import Scene, SceneObject


def test_an_outline_says_everything_in_reading_order() -> None:
    objects = (
        SceneObject("square", "blue", "small", x=0.3, y=0.8),
        SceneObject("circle", "red", "large", x=0.7, y=0.4),
        SceneObject("star", "red", "small", x=0.2, y=0.4),
    )
    assert outline_of(Scene("white", objects)) == "white, small red star 31, large red circle 35, small blue square 62"


@pytest.mark.parametrize("index", range(30))
def test_an_outline_can_be_read_back(index: int) -> None:
    scene = make_episode(index).scene
    background, *named = outline_of(scene).split(", ")
    assert background == scene.background
    read = {(*words.rsplit(" ", 1)[0].split(" "), words[-2:]) for words in named}
    assert read == {(o.size, o.color, o.shape, f"{int(o.y * BOARD)}{int(o.x * BOARD)}") for o in scene.objects}
    squares = [words[-2:] for words in named]
    assert squares == sorted(squares)
