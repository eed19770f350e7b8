"""Plans of scenes: every object with its attributes and square, in reading order; questions about a request: words are
read as the spec they were made from, a right image answers all.
"""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from mllm.world.dialogue import make_episode
from mllm.world.language import DRAWING_WEIGHTS, make_draw_request
from mllm.world.plan import (
    LEVELS,
    SQUARE,
    agree,
    ask_about,
    centre,
    plan_of,
    questions_of,
    read_plan,
    say_questions,
)
from mllm.world.questions import answer
from mllm.world.scene import COLORS, SHAPES, SIZES, Scene, SceneObject, random_scene_for
from mllm.world.spec import Alike, Count, Every, Exists, Filter, Placed, Related, Spec, check_scene


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


def test_squares_are_as_large_in_images_that_are_not_square() -> None:
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


def test_what_is_seen_is_compared_object_by_object() -> None:
    for seen, is_alike in (
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
    ):
        assert agree(SAID, seen) is is_alike, seen


def test_two_equal_objects_must_both_be_there() -> None:
    assert not agree(
        "white, large red circle 35, large red circle 36", "white, large red circle 35, large red circle 62"
    )


def test_free_words_are_not_compared() -> None:
    for words in ("something red", "red, a circle", "White, large red circle 35", "white, a big red circle 35"):
        assert agree(words, None) and agree(words, SAID)


NOT_ASKED = (Placed, Alike, Related)  # relations only where nobody doubts which objects are meant


def is_satisfied(spec: Spec, scene: Scene) -> bool:
    """Whether someone who sees everything gives the expected answers, open ones left out."""
    answers = [(answer(question, scene), expected) for question, expected in questions_of(spec)]
    return all(given in (None, expected) for given, expected in answers)


def test_a_request_raises_the_questions_of_the_spec_it_was_made_from() -> None:
    for kind in DRAWING_WEIGHTS:
        rng = Random(f"words/{kind}")
        for _ in range(200):
            request = make_draw_request(random_scene_for("test", rng), rng, kind=kind)
            assert set(ask_about(request.text)) == set(say_questions(request.spec)), request.text


def test_a_right_image_satisfies_all_and_a_wrong_one_not() -> None:
    for kind in DRAWING_WEIGHTS:
        rng, num_wrong = Random(f"right/{kind}"), 0
        for _ in range(150):
            scene, other = random_scene_for("test", rng), random_scene_for("test", rng, num_objects=rng.randint(1, 4))
            spec = make_draw_request(scene, rng, kind=kind).spec
            assert is_satisfied(spec, scene)
            verdicts = zip(spec.constraints, check_scene(spec, other), strict=True)
            if any(not verdict.holds and not isinstance(item, NOT_ASKED) for item, verdict in verdicts):
                num_wrong += 1
                assert not is_satisfied(spec, other), (spec, other)
        assert num_wrong > 100


def test_typed_requests_become_questions_of_the_world() -> None:
    for request, questions in (
        (
            "Draw a large red circle to the left of a tiny blue square on a white background.",
            [
                ("Is there a large red circle?", "yes"),
                ("Is there a small blue square?", "yes"),
                ("How many shapes are there?", "2"),
                ("Is the large red circle to the left of the small blue square?", "yes"),
                ("Is the background white?", "yes"),
            ],
        ),
        (
            "two orange discs and no hearts",
            [
                ("How many orange circles are there?", "2"),
                ("Is there a heart?", "no"),
                ("How many shapes are there?", "2"),
            ],
        ),
        (
            "two hearts, one red and one blue",
            [
                ("Is there a red heart?", "yes"),
                ("Is there a blue heart?", "yes"),
                ("How many hearts are there?", "2"),
                ("How many shapes are there?", "2"),
            ],
        ),
        (
            "a circle and a smaller star",
            [
                ("Is there a circle?", "yes"),
                ("Is there a star?", "yes"),
                ("How many shapes are there?", "2"),
                ("Is the circle larger than the star?", "yes"),
            ],
        ),
        (
            "three shapes, all of them green",
            [("How many green shapes are there?", "3"), ("How many shapes are there?", "3")],
        ),
        (
            "every shape is small",
            [("Is there a small shape?", "yes"), ("Is there a large shape?", "no")],
        ),
        (
            "a circle that is not red",
            [("Is there a circle?", "yes"), ("Is there a red circle?", "no"), ("How many shapes are there?", "1")],
        ),
        (
            "The star is above the cross",
            [("Is there a star?", "yes"), ("Is there a cross?", "yes"), ("Is the star above the cross?", "yes")],
        ),
        ("a dog and some red circles", [("Is there a red circle?", "yes")]),
        ("a photo of a dog.", [("Does the picture show a photo of a dog?", "yes")]),
    ):
        assert sorted(ask_about(request)) == sorted(questions)


def test_every_without_a_number_asks_for_what_must_not_be_there() -> None:
    asked = say_questions(Spec((Every(Filter(color="red")),)))
    assert ("Is there a blue shape?", "no") in asked and len(asked) == 6


def test_twins_are_counted_only_where_all_objects_are_described() -> None:
    twin = Filter("circle", "red")
    two = (Exists(0, twin), Exists(1, twin))
    assert ("How many red circles are there?", "2") not in say_questions(Spec(two))
    assert ("How many red circles are there?", "2") in say_questions(Spec((*two, Count(Filter(), 2))))
    loose = (*two, Exists(2, Filter("circle")), Count(Filter(), 3))
    assert ("How many red circles are there?", "2") not in say_questions(Spec(loose))


def test_objects_that_could_be_mistaken_are_not_related() -> None:
    spec = Spec((Exists(0, Filter("circle")), Exists(1, Filter("circle", "red")), Related(0, "above", 1)))
    assert not any("above" in text for text, _ in say_questions(spec))


def test_any_words_raise_some_question() -> None:
    """Words of the world in any order, as people type: read as far as they go, never refused."""
    rng = Random(5)
    others = (
        "a the two five no any all every of them is are that not than and with above left it one first larger , dog"
    )
    words = [*SHAPES, *COLORS, *SIZES, "stars", "shape", "background", "different", *others.split()]
    for _ in range(2000):
        assert ask_about(" ".join(rng.choices(words, k=rng.randint(1, 12))))
