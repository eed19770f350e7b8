"""Plans of scenes: every object with its attributes and square, in reading order."""

from itertools import product

import pytest

from mllm.world.dialogue import make_episode
from mllm.world.plan import LEVELS, SQUARE, agree, centre, plan_of, read_plan
from mllm.world.scene import Scene, SceneObject


def test_a_plan_says_everything_in_reading_order() -> None:
    objects = (
        SceneObject("square", "blue", "small", x=0.3, y=0.8),
        SceneObject("circle", "red", "large", x=0.7, y=0.4),
        SceneObject("star", "red", "small", x=0.2, y=0.4),
    )
    assert plan_of(Scene("white", objects)) == "white, small red star 31, large red circle 35, small blue square 62"


def test_finer_places_have_two_digits() -> None:
    objects = (
        SceneObject("circle", "red", "large", x=0.7, y=0.43),
        SceneObject("star", "red", "small", x=0.2, y=0.05),
    )
    # 0.43 of 64 squares is number 27, in octal 33; 0.7 is 44, in octal 54
    assert plan_of(Scene("white", objects), digits=2) == "white, small red star 0134, large red circle 3534"


def test_squares_are_as_large_in_pictures_that_are_no_squares() -> None:
    objects = (SceneObject("circle", "red", "large", x=0.95, y=0.5),)
    assert plan_of(Scene("white", objects), grid=(8, 10)) == "white, large red circle 49"
    assert plan_of(Scene("white", objects), digits=2, grid=(8, 10)) == "white, large red circle 4904"
    assert plan_of(Scene("white", objects), grid=(6, 9)) == "white, large red circle 4b"
    assert plan_of(Scene("white", objects), grid=(128, 160)) == "white, large red circle 49"
    with pytest.raises(ValueError):
        plan_of(Scene("white", objects), grid=(8, 17))


def test_a_plan_can_be_read_back() -> None:
    for index, digits, grid in product(range(20), LEVELS, [SQUARE, (8, 10), (10, 8), (6, 8)]):
        scene = make_episode(index).scene
        background, objects = read_plan(plan_of(scene, digits=digits, grid=grid))
        assert background == scene.background and len(objects) == len(scene.objects)
        squares = [(int(item.y), int(item.x)) for item in objects]
        assert squares == sorted(squares)
        rows, columns = (8 * side / min(grid) for side in grid)
        for item in scene.objects:
            same = [other for other in objects if other.description == f"{item.size} {item.color} {item.shape}"]
            distance = min(max(abs(other.y - item.y * rows), abs(other.x - item.x * columns)) for other in same)
            assert distance <= 0.5 / LEVELS[digits] + 1e-9


def test_a_plan_says_exactly_where_a_centred_object_is() -> None:
    for index, digits, grid in product(range(20), LEVELS, [SQUARE, (8, 10), (6, 8)]):
        scene = make_episode(index).scene
        centred = Scene(scene.background, tuple(centre(item, digits=digits, grid=grid) for item in scene.objects))
        assert plan_of(centred, digits=digits, grid=grid) == plan_of(scene, digits=digits, grid=grid)
        _, objects = read_plan(plan_of(centred, digits=digits, grid=grid))
        rows, columns = (8 * side / min(grid) for side in grid)
        said = sorted((item.y, item.x) for item in objects)
        there = sorted((item.y * rows, item.x * columns) for item in centred.objects)
        assert said == [pytest.approx(position) for position in there]


SAID = "white, large red circle 35, small blue square 62"


@pytest.mark.parametrize(
    ("seen", "is_alike"),
    [
        (SAID, True),
        ("white, small blue square 51, large red circle 44", True),  # in any order, one square away
        ("white, large red circle 35, small blue square 42", False),  # two squares away
        ("black, large red circle 35, small blue square 62", False),
        ("white, large red heart 35, small blue square 62", False),
        ("white, large red circle 35", False),
        (SAID + ", small blue square 62", False),
        ("white, large red circle 35, small blue square", False),  # no plan
        ("white, large red circle 35, small blue square 6g", False),  # no square
        ("white, large red circle 3595, small blue square 6250", False),  # no square within a square
        ("white, large red circle 3535, small blue square 6250", True),  # finer
        ("white, large red circle 3535, small blue square 4250", False),
        ("", False),
        (None, False),
    ],
)
def test_what_is_seen_is_compared_thing_by_thing(seen: str | None, is_alike: bool) -> None:
    assert agree(SAID, seen) is is_alike


def test_two_equal_things_must_both_be_there() -> None:
    assert not agree(
        "white, large red circle 35, large red circle 36", "white, large red circle 35, large red circle 62"
    )


def test_free_words_are_not_compared() -> None:
    for words in ("something red", "red, a circle", "White, large red circle 35", "white, a big red circle 35"):
        assert agree(words, None) and agree(words, SAID)
