"""What is said after a model's own drawing is judged for that drawing: as its words mean there, or not at all."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from PIL import Image

from mllm.evaluation.world import Course, score_group
from mllm.evaluation.world_items import Group
from mllm.evaluation.world_judge import judge
from mllm.world.edit_language import edit_sentence
from mllm.world.edits import Edit, apply_edit
from mllm.world.questions import Question
from mllm.world.render import render
from mllm.world.scene import Scene, SceneObject
from mllm.world.spec import ANY, Filter
from mllm.world.turns import Check, Dialogue

HEART = Filter(shape="heart")
WANTED = Scene(
    "white", (SceneObject("heart", "red", "large", 0.3, 0.3), SceneObject("star", "blue", "small", 0.7, 0.7))
)
DRAWN = Scene(
    "white", (SceneObject("star", "blue", "small", 0.2, 0.7), SceneObject("heart", "green", "small", 0.7, 0.3))
)
TWO_HEARTS = Scene("white", (*DRAWN.objects, SceneObject("heart", "red", "large", 0.6, 0.75)))
ADDED = SceneObject("cross", "purple", "small", 0.1, 0.1)


def edit_check(edit: Edit, named: Filter | None) -> Check:
    return Check("edit", scene=WANTED, edit=edit, named=named)


@pytest.mark.parametrize("named", [HEART, Filter(shape="heart", color="green"), Filter(color="green")])
def test_an_edit_means_what_its_words_name_in_the_models_picture(named: Filter) -> None:
    check = edit_check(Edit("recolor", 0, "yellow"), named)
    right = apply_edit(DRAWN, Edit("recolor", 1, "yellow"))
    wrong = apply_edit(DRAWN, Edit("recolor", 0, "yellow"))
    assert judge(check, render(right), DRAWN).passed
    for picture in (wrong, DRAWN):
        judgement = judge(check, render(picture), DRAWN)
        assert not judgement.passed and not judgement.left_open


def test_it_is_the_only_object() -> None:
    alone = Scene("white", DRAWN.objects[1:])
    check = edit_check(Edit("resize", 0, "large"), ANY)
    assert judge(check, render(apply_edit(alone, Edit("resize", 0, "large"))), alone).passed
    assert not judge(check, render(alone), alone).passed


def test_what_is_added_lies_next_to_the_object_that_the_words_name() -> None:
    added = SceneObject("cross", "purple", "small", 0.7, 0.75)
    check = edit_check(Edit("add", added=added, relation="below", anchor=0), HEART)
    assert judge(check, render(Scene("white", (*DRAWN.objects, added))), DRAWN).passed
    above = replace(added, x=0.3, y=0.1)
    assert not judge(check, render(Scene("white", (*DRAWN.objects, above))), DRAWN).passed


def test_an_edit_that_names_no_object_is_the_same_everywhere() -> None:
    check = edit_check(Edit("background", value="gray"), None)
    assert judge(check, render(Scene("gray", DRAWN.objects)), DRAWN).passed
    assert not judge(check, render(DRAWN), DRAWN).passed


def test_words_with_several_meanings_are_left_open() -> None:
    edit = edit_check(Edit("recolor", 0, "yellow"), HEART)
    question = Check("answer", scene=WANTED, question=Question("color", "color of", HEART), expected="red")
    judgements = [judge(edit, render(TWO_HEARTS), TWO_HEARTS), judge(question, "red", TWO_HEARTS)]
    for judgement in judgements:
        assert judgement.passed and judgement.left_open and judgement.scene is not None
    answered = judge(question, "green", DRAWN)
    assert answered.passed and not answered.left_open
    assert not judge(question, "red", DRAWN).passed


def test_pictures_that_cannot_be_read_are_never_left_open() -> None:
    empty = Image.new("RGB", (128, 128), "white")
    edit = edit_check(Edit("recolor", 0, "yellow"), HEART)
    question = Check("answer", scene=WANTED, question=Question("color", "color of", HEART), expected="red")
    assert not judge(edit, empty, TWO_HEARTS).passed
    assert not judge(edit, render(DRAWN), None).passed
    assert not judge(question, "red", None).passed


def test_scores_say_how_many_were_left_open() -> None:
    question = Check("answer", scene=WANTED, question=Question("color", "color of", HEART), expected="red")
    courses = []
    for scene, words in ((WANTED, "red"), (WANTED, "blue"), (TWO_HEARTS, "red")):
        course = Course(Dialogue("multi_turn", (), (question,)), seed=0)
        course.judgements.append(judge(question, words, scene))
        courses.append(course)
    scores = score_group(Group("multi_turn", "seen"), courses)
    assert (scores["passed"], scores["total"], scores["left_open"]) == (2, 3, 1)
    assert "left_open" not in score_group(Group("multi_turn", "seen"), courses[:2])


@pytest.mark.parametrize(
    "edit",
    [Edit("remove", 1), Edit("reshape", 0, "circle"), Edit("add", added=ADDED, relation="above", anchor=1)],
)
def test_instructions_say_how_they_name_the_object(edit: Edit) -> None:
    spoken = WANTED.objects[edit.index if edit.anchor is None else edit.anchor]
    for seed in range(60):
        text, named = edit_sentence(edit, WANTED, Random(seed))
        assert named is not None and [item for item in WANTED.objects if named.matches(item)] == [spoken], text
    assert edit_sentence(Edit("background", value="gray"), WANTED, Random(0)).named is None
