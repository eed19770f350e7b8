"""Questions have one clear answer, balanced, and name no held-out pair in training."""

from __future__ import annotations

from collections import Counter
from random import Random

from mllm.world.dialogue import make_episode
from mllm.world.language import phrases
from mllm.world.questions import (
    QUESTION_KINDS,
    QUESTION_WEIGHTS,
    Question,
    answer,
    normalize_answer,
    propose_question,
    say_question,
)
from mllm.world.scene import Scene, SceneObject
from mllm.world.spec import ANY, Filter

SCENE = Scene(
    "cream",
    (
        SceneObject("circle", "red", "large", 0.25, 0.3),
        SceneObject("square", "red", "small", 0.7, 0.3),
        SceneObject("star", "blue", "small", 0.7, 0.8),
    ),
)
CIRCLE, SQUARE, STAR = Filter("circle"), Filter("square"), Filter("star")


ANSWERS = [
    (Question("count", "count", ANY), "3"),
    (Question("count", "count", Filter(color="red")), "2"),
    (Question("count", "count", Filter("heart")), "0"),
    (Question("color", "color of", STAR), "blue"),
    (Question("color", "color of", Filter("heart")), "there is no heart"),
    (Question("color", "color of", Filter(size="small")), None),
    (Question("shape", "shape of", Filter(color="blue")), "star"),
    (Question("shape", "shape of", Filter(color="red")), None),
    (Question("size", "size of", CIRCLE), "large"),
    (Question("existence", "exists", Filter("circle", "blue")), "no"),
    (Question("existence", "exists", Filter("square", size="small")), "yes"),
    (Question("relation", "is related", CIRCLE, SQUARE, "left of"), "yes"),
    (Question("relation", "is related", CIRCLE, SQUARE, "right of"), "no"),
    (Question("relation", "is related", CIRCLE, SQUARE, "above"), None),
    (Question("relation", "where is", STAR, SQUARE), "below"),
    (Question("relation", "which is related", None, CIRCLE, "right of"), None),  # two of them
    (Question("relation", "which is related", None, SQUARE, "left of"), "circle"),
    (Question("color", "color of related", None, SQUARE, "below"), "blue"),
    (Question("comparison", "is larger", CIRCLE, STAR), "yes"),
    (Question("comparison", "is larger", STAR, SQUARE), "no"),
    (Question("comparison", "which is larger", STAR, CIRCLE), "circle"),
    (Question("comparison", "which is larger", STAR, SQUARE), None),
    (Question("comparison", "same color", CIRCLE, SQUARE), "yes"),
    (Question("comparison", "same size", CIRCLE, SQUARE), "no"),
    (Question("comparison", "more", Filter(color="red"), Filter(color="blue")), "yes"),
    (Question("background", "background"), "cream"),
    (Question("background", "is background", value="white"), "no"),
]


def test_answers() -> None:
    for question, expected in ANSWERS:
        assert answer(question, SCENE) == expected, question


def test_every_variant_has_words_and_answers_are_short() -> None:
    assert set(phrases("ask")) == {variant for variants in QUESTION_KINDS.values() for variant in variants}
    for index in range(1500):
        scene = make_episode(index % 400).scene
        question = propose_question(scene, Random(index))
        right = answer(question, scene)
        assert right and right == right.lower() and len(right.split()) <= 6
        assert "{" not in say_question(question, Random(index))


def test_kinds_come_as_often_as_they_weigh_and_yes_as_often_as_no() -> None:
    scenes = [make_episode(index, num_objects=3).scene for index in range(250)]
    for kind in QUESTION_WEIGHTS:
        asked = [(propose_question(scene, Random(index), kind=kind), scene) for index, scene in enumerate(scenes)]
        # three twins, for instance, allow no question about the color of one
        counts = Counter(answer(question, scene) for question, scene in asked if question.kind == kind)
        assert counts.total() > 200
        assert not counts["yes"] or 0.4 < counts["yes"] / (counts["yes"] + counts["no"]) < 0.6
    one, two = (make_episode(0, num_objects=number).scene for number in (1, 2))
    assert {propose_question(one, Random(n), kind_weights={"relation": 1.0}).kind for n in range(9)} == {"background"}
    kinds = [propose_question(two, Random(n), kind_weights={"count": 3.0, "color": 1.0}).kind for n in range(400)]
    assert set(kinds) == {"count", "color"} and 0.68 < kinds.count("count") / 400 < 0.82


def test_normalized_answers_forgive_form_but_not_content() -> None:
    for one, two in (("Red.", "red"), ("Two", "2"), ("It is a circle.", "circle"), ("grey", "gray")):
        assert normalize_answer(one) == normalize_answer(two)
    assert normalize_answer("There is no star.") == normalize_answer("there is no star")
    assert normalize_answer("red") != normalize_answer("not red")
