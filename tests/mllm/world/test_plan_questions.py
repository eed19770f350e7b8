"""Questions about a request: words are read as the spec they were made from, a right image answers all."""

from __future__ import annotations

from random import Random

import pytest

from mllm.world.language import DRAWING_WEIGHTS, make_draw_request
from mllm.world.plan import ask_about, questions_of, say_questions
from mllm.world.questions import answer
from mllm.world.reader import read_request
from mllm.world.scene import COLORS, SHAPES, SIZES, Scene, random_scene_for
from mllm.world.spec import Alike, Count, Every, Exists, Filter, Placed, Related, Spec, check_scene

NOT_ASKED = (Placed, Alike, Related)  # relations only where nobody doubts which objects are meant


def is_satisfied(spec: Spec, scene: Scene) -> bool:
    """Whether someone who sees everything gives the wanted answers, open ones left out."""
    answers = [(answer(wanted.question, scene), wanted.expected) for wanted in questions_of(spec)]
    return all(given in (None, expected) for given, expected in answers)


def test_words_raise_the_questions_of_the_spec_they_were_made_from() -> None:
    for kind in DRAWING_WEIGHTS:
        rng = Random(f"words/{kind}")
        for _ in range(150):
            request = make_draw_request(random_scene_for("test", rng), rng, kind=kind)
            assert set(ask_about(request.text)) == set(say_questions(request.spec)), request.text


@pytest.mark.parametrize("kind", DRAWING_WEIGHTS)
def test_a_right_image_satisfies_all_and_a_wrong_one_not(kind: str) -> None:
    rng = Random(f"right/{kind}")
    num_wrong = 0
    for _ in range(150):
        scene, other = random_scene_for("test", rng), random_scene_for("test", rng, num_objects=rng.randint(1, 4))
        spec = make_draw_request(scene, rng, kind=kind).spec
        assert is_satisfied(spec, scene)
        failed = [item for item, said in zip(spec.constraints, check_scene(spec, other), strict=True) if not said.holds]
        if any(not isinstance(item, NOT_ASKED) for item in failed):
            num_wrong += 1
            assert not is_satisfied(spec, other), (spec, other)
    assert num_wrong > 100


@pytest.mark.parametrize(
    ("request_", "questions"),
    [
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
    ],
)
def test_typed_requests_become_questions_of_the_world(request_: str, questions: list[tuple[str, str]]) -> None:
    assert sorted(ask_about(request_)) == sorted(questions)


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
    assert not any("above" in question.text for question in say_questions(spec))


def test_any_words_raise_some_question() -> None:
    """Words of the world in any order, as people type: read as far as they go, never refused."""
    rng = Random(5)
    others = (
        "a the two five no any all every of them is are that not than and with above left it one first larger , dog"
    )
    words = [*SHAPES, *COLORS, *SIZES, "stars", "shape", "background", "different", *others.split()]
    for _ in range(2000):
        assert ask_about(" ".join(rng.choices(words, k=rng.randint(1, 12))))


def test_nothing_known_is_an_empty_spec() -> None:
    assert read_request("a photo of a dog") == Spec(())
