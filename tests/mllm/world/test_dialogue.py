"""Edits and questions mean what they say; dialogues of every job are complete, repeatable, free of held-out pairs."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from random import Random
from typing import get_args

from mllm.world.checker import parse
from mllm.world.dialogue import (
    EDIT_KINDS,
    JOBS,
    QUESTION_KINDS,
    QUESTION_WEIGHTS,
    Dialogue,
    Edit,
    ImageRef,
    Question,
    answer,
    apply_edit,
    check_edit,
    edit_sentence,
    make_dialogue,
    make_episode,
    normalize_answer,
    propose_question,
    say_question,
)
from mllm.world.language import normalize_words, phrases
from mllm.world.render import render
from mllm.world.scene import COLORS, HELD_OUT_PAIRS, SHAPES, Scene, SceneObject, Split, random_scene_for, split_of
from mllm.world.spec import ANY, Filter

# ---- edits ----

CIRCLE, STAR = SceneObject("circle", "red", "large", 0.3, 0.3), SceneObject("star", "blue", "small", 0.7, 0.7)
BEFORE, ADDED = Scene("white", (CIRCLE, STAR)), SceneObject("heart", "yellow", "small", 0.85, 0.15)


def test_every_kind_of_edit_is_proposed_and_checks_out() -> None:
    kinds = Counter()
    for index in range(300):
        episode = make_episode(index)
        kinds[episode.edit.kind] += 1
        assert apply_edit(episode.scene, episode.edit) == episode.edited
        after = parse(render(episode.edited)).scene if index < 40 else episode.edited
        assert check_edit(episode.scene, episode.edit, after)
        assert not check_edit(episode.scene, episode.edit, episode.scene), "no change must not pass"
    assert set(kinds) == set(EDIT_KINDS) and min(kinds.values()) > 15


def test_damage_elsewhere_is_noticed_and_small_shifts_are_forgiven() -> None:
    for edit in (
        Edit("recolor", 0, "green"),
        Edit("remove", 1),
        Edit("resize", 1, "large"),
        Edit("reshape", 1, "cross"),
        Edit("background", value="black"),
        Edit("add", added=ADDED, place="top right"),
        Edit("add", added=ADDED, relation="right of", anchor=0),
    ):
        after = apply_edit(BEFORE, edit)
        untouched = next(item for item in after.objects if item in BEFORE.objects)
        others = tuple(item for item in after.objects if item is not untouched)
        changes = [{"y": untouched.y - 0.1}, {"color": "orange"}, {"shape": "square"}, {"x": untouched.x + 0.02}]
        changes.append({"size": "small" if untouched.size == "large" else "large"})
        for change in changes:
            shown = Scene(after.background, (*others, replace(untouched, **change)))
            assert check_edit(BEFORE, edit, shown) == ("x" in change), (edit, change)
        for objects in (others, (*after.objects, SceneObject("square", "purple", "small", 0.15, 0.85))):
            assert not check_edit(BEFORE, edit, Scene(after.background, objects)), (edit, objects)
        assert not check_edit(BEFORE, edit, Scene("cream", after.objects))


def test_instructions_refer_without_ambiguity() -> None:
    def said(edit: Edit, scene: Scene, **options: bool) -> set[str]:
        return {edit_sentence(edit, scene, Random(seed), **options)[0] for seed in range(200)}

    assert "Make the circle green." in said(Edit("recolor", 0, "green"), BEFORE)
    assert "Make it green." in said(Edit("recolor", 0, "green"), Scene("white", (CIRCLE,)), pronoun=True)
    twins = Scene("white", (CIRCLE, replace(CIRCLE, x=0.8, size="small")))
    for sentence in said(Edit("remove", 1), twins):
        assert any(word in sentence.lower() for word in ("small", "little", "tiny")), sentence


# ---- questions ----

RED_CIRCLE, RED_BOX = SceneObject("circle", "red", "large", 0.25, 0.3), SceneObject("square", "red", "small", 0.7, 0.3)
THREE = Scene("cream", (RED_CIRCLE, RED_BOX, SceneObject("star", "blue", "small", 0.7, 0.8)))
ROUND, BOX, SPIKY, HEART = map(Filter, ("circle", "square", "star", "heart"))
RED, BLUE = Filter(color="red"), Filter(color="blue")
ANSWERS: dict[str, list[tuple]] = {
    "count": [(ANY, "3"), (RED, "2"), (HEART, "0")],
    "color of": [(SPIKY, "blue"), (HEART, "there is no heart"), (Filter(size="small"), None)],
    "shape of": [(BLUE, "star"), (RED, None)],
    "size of": [(ROUND, "large")],
    "exists": [(Filter("circle", "blue"), "no"), (Filter("square", size="small"), "yes")],
    "is related": [(ROUND, BOX, "left of", "yes"), (ROUND, BOX, "right of", "no"), (ROUND, BOX, "above", None)],
    "where is": [(SPIKY, BOX, "below")],
    "which is related": [(None, ROUND, "right of", None), (None, BOX, "left of", "circle")],  # right: two of them
    "color of related": [(None, BOX, "below", "blue")],
    "is larger": [(ROUND, SPIKY, "yes"), (SPIKY, BOX, "no")],
    "which is larger": [(SPIKY, ROUND, "circle"), (SPIKY, BOX, None)],
    "same color": [(ROUND, BOX, "yes")],
    "same size": [(ROUND, BOX, "no")],
    "more": [(RED, BLUE, "yes")],
    "background": [("cream",)],
    "is background": [(None, None, "white", "no")],
}


def test_answers() -> None:
    for kind, variants in QUESTION_KINDS.items():
        for variant, (*fields, expected) in ((name, case) for name in variants for case in ANSWERS.get(name, ())):
            assert answer(Question(kind, variant, *fields), THREE) == expected, (variant, fields)
    for one, two in (("Red.", "red"), ("Two", "2"), ("It is a circle.", "circle"), ("grey", "gray")):
        assert normalize_answer(one) == normalize_answer(two)  # forgives form but not content
    assert normalize_answer("There is no star.") == normalize_answer("there is no star")
    assert normalize_answer("red") != normalize_answer("not red")


def test_every_kind_is_asked_as_often_as_it_weighs_and_yes_is_as_often_right_as_no() -> None:
    assert set(phrases("ask")) == {variant for variants in QUESTION_KINDS.values() for variant in variants}
    scenes = [random_scene_for("train", Random(index), num_objects=3) for index in range(250)]
    for kind in QUESTION_WEIGHTS:
        proposed = [propose_question(scene, Random(n), kind_weights={kind: 1.0}) for n, scene in enumerate(scenes)]
        asked = list(zip(proposed, scenes, strict=True))
        for index, (question, scene) in enumerate(asked):
            right = answer(question, scene)
            assert right and right == right.lower() and len(right.split()) <= 6
            assert "{" not in say_question(question, Random(index))
        # three twins, for instance, allow no question about the color of one
        counts = Counter(answer(question, scene) for question, scene in asked if question.kind == kind)
        assert counts.total() > 200
        assert not counts["yes"] or 0.4 < counts["yes"] / (counts["yes"] + counts["no"]) < 0.6
    one, two = (random_scene_for("train", Random(0), num_objects=number) for number in (1, 2))
    assert {propose_question(one, Random(n), kind_weights={"relation": 1.0}).kind for n in range(9)} == {"background"}
    kinds = [propose_question(two, Random(n), kind_weights={"count": 3.0, "color": 1.0}).kind for n in range(400)]
    assert set(kinds) == {"count", "color"} and 0.68 < kinds.count("count") / 400 < 0.82


# ---- dialogues ----


def parts_of(dialogue: Dialogue, kind: type, role: str = "") -> list:
    return [part for turn in dialogue.turns if role in turn.role for part in turn.parts if isinstance(part, kind)]


def test_dialogues_are_well_formed_and_name_no_held_out_pair() -> None:
    for job, index in product(JOBS, range(80)):
        episode = make_episode(index)
        dialogue = make_dialogue(job, episode, Random(index))
        assert dialogue == make_dialogue(job, episode, Random(index)) and dialogue.job == job
        roles = [turn.role for turn in dialogue.turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        for part, check in zip(parts_of(dialogue, object, "assistant"), dialogue.checks, strict=True):
            assert isinstance(part, ImageRef) == (check.kind in ("draw", "edit", "depth", "segmentation"))
            assert isinstance(part, ImageRef) or part == check.expected  # no typos in answers
        images = parts_of(dialogue, ImageRef)
        assert set(images) <= set(episode.images) and not any(image.scene.pairs & HELD_OUT_PAIRS for image in images)
        assert job != "ask" or len(images) == 1
        for text in parts_of(dialogue, str):
            assert text and "{" not in text and text.isascii() and "None" not in text
            for first, second in pairwise(normalize_words(text)):
                is_pair = first in COLORS and second in SHAPES
                assert not is_pair or (first, second) not in HELD_OUT_PAIRS, text
    for number, counts in ((None, {1, 2, 3, 4, 5}), (1, {1})):
        asked = [make_dialogue("ask", make_episode(n), Random(n), num_questions=number) for n in range(60)]
        assert {len(dialogue.checks) for dialogue in asked} == counts


def test_episodes_are_deterministic_differ_and_belong_to_their_split() -> None:
    for split, index in product(get_args(Split), range(20)):
        episode = make_episode(index, split=split)
        assert split_of(episode.scene) == split_of(episode.edited) == split
        assert not (episode.scene.pairs | episode.edited.pairs) & HELD_OUT_PAIRS
        assert episode == make_episode(index, split=split) != make_episode(index, split=split, seed=1)
    assert len({make_episode(index).scene for index in range(50)}) == 50
