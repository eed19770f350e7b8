"""Plans of scenes: every object with its attributes and square, in reading order; questions about a request: words are
read as the spec they were made from, a right image answers all.
"""

from itertools import product
from random import Random

import pytest

from mllm.world.dialogue import answer, make_episode
from mllm.world.language import DRAWING_WEIGHTS, make_draw_request
from mllm.world.plan import (
    LEVELS,
    SQUARE,
    agree,
    ask_about,
    centre,
    draft,
    plan_of,
    questions_of,
    read_plan,
    say_questions,
)
from mllm.world.scene import COLORS, SHAPES, SIZES, Scene, SceneObject, random_scene_for
from mllm.world.spec import Distinct, Placed, Related, Spec, satisfies

BLUE_SQUARE = SceneObject("square", "blue", "small", 0.3, 0.8)
RED_CIRCLE = SceneObject("circle", "red", "large", 0.7, 0.43)
RED_STAR = SceneObject("star", "red", "small", 0.2, 0.4)


def test_a_plan_says_everything_in_reading_order_and_can_be_read_back() -> None:
    three = (BLUE_SQUARE, RED_CIRCLE, RED_STAR)
    for objects, options, said in (
        (three, {}, "white, small red star 31, large red circle 35, small blue square 62"),
        # 0.43 of 64 squares is number 27, in octal 33; 0.7 is 44, in octal 54
        ((RED_CIRCLE,), {"digits": 2}, "white, large red circle 3534"),
        ((RED_CIRCLE,), {"grid": (8, 10)}, "white, large red circle 37"),
        ((RED_CIRCLE,), {"grid": (128, 160), "digits": 2}, "white, large red circle 3730"),
        ((RED_CIRCLE,), {"grid": (6, 12)}, "white, large red circle 3b"),
    ):
        assert plan_of(Scene("white", objects), **options) == said
    with pytest.raises(ValueError):
        plan_of(Scene("white", three), grid=(8, 17))
    for index, digits, grid in product(range(10), LEVELS, [SQUARE, (8, 10), (10, 8), (6, 8)]):
        scene = make_episode(index).scene
        plan = plan_of(scene, digits=digits, grid=grid)
        centred = Scene(scene.background, tuple(centre(item, digits=digits, grid=grid) for item in scene.objects))
        assert plan_of(centred, digits=digits, grid=grid) == plan
        background, objects = read_plan(plan)
        squares = [(int(item.y), int(item.x)) for item in objects]
        assert background == scene.background and squares == sorted(squares)
        rows, columns = (8 * side / min(grid) for side in grid)
        there = sorted((f"{o.size} {o.color} {o.shape}", o.y * rows, o.x * columns) for o in centred.objects)
        for said, (description, *place) in zip(sorted(objects), there, strict=True):
            assert said.description == description and (said.y, said.x) == pytest.approx(place)


SAID = "white, large red circle 35, small blue square 62"
CIRCLES = "white, large red circle 35, large red circle 36"


def test_what_is_seen_is_compared_object_by_object() -> None:
    for plan, seen, is_alike in (
        (SAID, SAID, True),
        (SAID, "white, small blue square 51, large red circle 44", True),  # in any order, one square away
        (SAID, "white, large red circle 35, small blue square 42", False),  # two squares away
        (SAID, "black, large red circle 35, small blue square 62", False),
        (SAID, "white, large red heart 35, small blue square 62", False),
        (SAID, "white, large red circle 35", False),
        (SAID, "white, large red circle 35, small blue square 6g", False),  # no square
        (SAID, "white, large red circle 3595, small blue square 6250", False),  # no square within a square
        (SAID, "white, large red circle 3535, small blue square 6250", True),  # finer
        (SAID, None, False),
        (CIRCLES, "white, large red circle 35, large red circle 62", False),  # two equal ones must both be there
        ("White, large red circle 35", None, True),  # free words are not compared
        ("white, a big red circle 35", SAID, True),
    ):
        assert agree(plan, seen) is is_alike, seen


NOT_ASKED = (Placed, Distinct, Related)  # relations only where nobody doubts which objects are meant


def is_satisfied(spec: Spec, scene: Scene) -> bool:
    """Whether someone who sees everything gives the expected answers, open ones left out."""
    return all(answer(question, scene) in (None, expected) for question, expected in questions_of(spec))


def test_a_request_raises_the_questions_of_its_spec_that_a_right_image_satisfies_and_a_wrong_one_not() -> None:
    for kind in DRAWING_WEIGHTS:
        rng, num_wrong = Random(f"right/{kind}"), 0
        for _ in range(60):
            scene, other = random_scene_for("test", rng), random_scene_for("test", rng, num_objects=rng.randint(1, 4))
            request = make_draw_request(scene, rng, kind=kind)
            assert set(ask_about(request.text)) == set(say_questions(request.spec)), request.text
            assert is_satisfied(request.spec, scene)
            if not satisfies(other, tuple(item for item in request.spec if not isinstance(item, NOT_ASKED))):
                num_wrong += 1
                assert not is_satisfied(request.spec, other), (request.spec, other)
        assert num_wrong > 36


TYPED = {
    "Draw a large red circle to the left of a tiny blue square on a white background.": (
        "Is there a large red circle? yes. Is there a small blue square? yes. NUMBER 2. "
        "Is the large red circle to the left of the small blue square? yes. Is the background white? yes"
    ),
    "two orange discs and no hearts": "How many orange circles are there? 2. Is there a heart? no. NUMBER 2",
    "two hearts, one red and one blue": (
        "Is there a red heart? yes. Is there a blue heart? yes. How many hearts are there? 2. NUMBER 2"
    ),
    "a circle and a smaller star": (
        "Is there a circle? yes. Is there a star? yes. NUMBER 2. Is the circle larger than the star? yes"
    ),
    "every shape is small": "Is there a small shape? yes. Is there a large shape? no",
    "a circle that is not red": "Is there a circle? yes. Is there a red circle? no. NUMBER 1",
    "The star is above the cross": "Is there a star? yes. Is there a cross? yes. Is the star above the cross? yes",
    "a dog and some red circles": "Is there a red circle? yes",
}


def test_a_draft_is_a_plan_of_the_objects_that_a_request_names() -> None:
    for request, expected in (
        ("a big red circle above a small blue square", ["large red circle", "small blue square"]),
        ("a green heart below a large star", ["large blue star", "small green heart"]),
        ("draw 3 yellow triangles on a black background", ["small yellow triangle"] * 3),
        ("", ["small blue circle"] * 2),
    ):
        background, objects = read_plan(draft(request))
        assert [item.description for item in objects] == expected
        assert background == ("black" if "black" in request else "white")


def test_typed_requests_become_questions_of_the_world() -> None:
    for request, questions in TYPED.items():
        expected = questions.replace("NUMBER", "How many shapes are there?").split(". ")
        assert sorted(" ".join(question) for question in ask_about(request)) == sorted(expected)
    rng = Random(5)  # words of the world in any order: read as far as they go, never refused
    others = (
        "a the two five no any all every of them is are that not than and with above left it one first larger , dog"
    )
    words = [*SHAPES, *COLORS, *SIZES, "stars", "shape", "background", "different", *others.split()]
    assert all(ask_about(" ".join(rng.choices(words, k=rng.randint(1, 12)))) for _ in range(500))
