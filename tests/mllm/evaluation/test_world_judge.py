"""What is said after a model's own drawing is judged by what its words may mean in that drawing."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

from PIL import Image

from mllm.evaluation.world import Group, RunningDialogue, hold_groups, judge, make_items, score_group
from mllm.world.dialogue import Check, Dialogue, Edit, Question, apply_edit, ask_about_other
from mllm.world.render import render
from mllm.world.scene import Scene, SceneObject
from mllm.world.spec import ANY, Filter, check_scene

HEART = Filter(shape="heart")
STAR = SceneObject("star", "blue", "small", 0.2, 0.7)
WANTED = Scene(
    "white", (SceneObject("heart", "red", "large", 0.3, 0.3), SceneObject("star", "blue", "small", 0.7, 0.7))
)
DRAWN = Scene("white", (STAR, SceneObject("heart", "green", "small", 0.7, 0.3)))
TWO_HEARTS = Scene("white", (*DRAWN.objects, SceneObject("heart", "red", "large", 0.6, 0.75)))
RECOLOR = Edit("recolor", 0, "yellow")


def edit_check(edit: Edit, reference: Filter | None) -> Check:
    return Check("edit", scene=WANTED, edit=edit, reference=reference)


def ask(variant: str, first: Filter | None, second: Filter | None = None, value: str | None = None) -> Check:
    kind = variant.split()[0] if variant.endswith(" of") else "relation"
    return Check("answer", scene=WANTED, question=Question(kind, variant, first, second, value), expected="red")


def test_an_edit_means_what_its_words_name_in_the_models_image() -> None:
    for reference in (HEART, Filter(shape="heart", color="green"), Filter(color="green")):
        check = edit_check(RECOLOR, reference)
        right = apply_edit(DRAWN, replace(RECOLOR, index=1))
        assert judge(check, render(right), DRAWN).passed
        for wrong in (apply_edit(DRAWN, RECOLOR), DRAWN):
            judgement = judge(check, render(wrong), DRAWN)
            assert not judgement.passed and not judgement.left_open

    alone = Scene("white", DRAWN.objects[1:])  # "it" is the only object
    edit = Edit("resize", 0, "large")
    assert judge(edit_check(edit, ANY), render(apply_edit(alone, edit)), alone).passed
    assert not judge(edit_check(edit, ANY), render(alone), alone).passed


def test_what_is_added_lies_next_to_the_object_that_the_words_name() -> None:
    added = SceneObject("cross", "purple", "small", 0.5, 0.5)
    check = edit_check(Edit("add", added=added, relation="left of", anchor=0), HEART)
    assert judge(check, render(Scene("white", (*DRAWN.objects, added))), DRAWN).passed, "left of the heart alone"
    aside = replace(added, x=0.9, y=0.7)
    assert not judge(check, render(Scene("white", (*DRAWN.objects, aside))), DRAWN).passed
    star = edit_check(Edit("add", added=added, relation="left of", anchor=0), Filter(shape="star"))
    assert not judge(star, render(Scene("white", (*DRAWN.objects, added))), DRAWN).passed, "right of the star"
    corner = replace(added, x=0.85, y=0.85)  # words that name no object mean the same everywhere
    for edit in (Edit("background", value="gray"), Edit("add", added=corner, place="bottom right")):
        assert judge(edit_check(edit, None), render(apply_edit(DRAWN, edit)), DRAWN).passed
        assert not judge(edit_check(edit, None), render(DRAWN), DRAWN).passed


def test_words_that_may_mean_several_objects_may_mean_each_of_them_and_nothing_else() -> None:
    alike = Filter(shape="heart", color="orange", size="small")
    for reference, meant in ((HEART, (1, 2)), (alike, (2,)), (Filter(size="large", color="blue"), (0, 1))):
        check = edit_check(RECOLOR, reference)
        for index in range(3):
            judgement = judge(check, render(apply_edit(TWO_HEARTS, replace(RECOLOR, index=index))), TWO_HEARTS)
            assert judgement.left_open
            assert judgement.passed == (index in meant), (reference, index)
        others = Scene("black", (SceneObject("cross", "blue", "large", 0.5, 0.5),))
        for scene in (TWO_HEARTS, others):
            assert not judge(check, render(scene), TWO_HEARTS).passed, "nothing changed, or everything"


def test_what_the_words_name_by_another_size_is_still_meant() -> None:
    star, circle = SceneObject("star", "blue", "large", 0.3, 0.3), SceneObject("circle", "red", "small", 0.7, 0.7)
    drawn, small_star = Scene("white", (star, circle)), Filter(shape="star", size="small")
    larger = edit_check(Edit("resize", 0, "large"), small_star)
    assert judge(larger, render(drawn), drawn).passed, "it is large already"
    assert not judge(larger, render(apply_edit(drawn, Edit("resize", 1, "large"))), drawn).passed, "a circle is no star"
    for index, is_right in ((0, True), (1, False)):
        gone = render(apply_edit(drawn, Edit("remove", index)))
        judgement = judge(edit_check(Edit("remove", 0), small_star), gone, drawn)
        assert judgement.left_open and judgement.passed == is_right
    # one that already is as wanted is not meant where another is not
    one_yellow = apply_edit(TWO_HEARTS, replace(RECOLOR, index=1))
    check = edit_check(RECOLOR, HEART)
    assert not judge(check, render(one_yellow), one_yellow).passed
    both = judge(check, render(apply_edit(one_yellow, replace(RECOLOR, index=2))), one_yellow)
    assert both.passed and both.left_open


def test_answers_to_open_questions_are_still_answers() -> None:
    star = Filter(shape="star")
    for check, right, wrong in (
        (ask("color of", HEART), ("red", "Green"), ("blue", "banana", "", "yes")),
        (ask("where is", HEART, star), ("above", "right"), ("green", "")),
        (ask("is related", HEART, star, "above"), ("yes", "no"), ("heart", "")),
        (ask("which is related", None, HEART, "above"), ("star", "heart"), ("circle", "green")),
        (ask("which is related", None, star, "below"), ("heart",), ("star", "circle")),
        (ask("which is larger", HEART, Filter(shape="heart", size="large")), ("heart",), ("star", "circle")),
    ):
        for words in (*right, *wrong):
            judgement = judge(check, words, TWO_HEARTS)
            assert judgement.left_open and judgement.passed == (words in right), words

    judgement = judge(ask("color of", HEART), "green", DRAWN)  # of one heart
    assert judgement.passed and not judgement.left_open
    assert not judge(ask("color of", HEART), "red", DRAWN).passed


def test_the_other_one_is_the_one_not_asked_about_whatever_it_looks_like() -> None:
    before = Question("color", "color of", Filter(shape="star"))
    (check,) = ask_about_other(before, WANTED, Random(0)).checks
    check = replace(check, question=Question("color", "color of", Filter(shape="heart", size="large")))
    assert judge(check, "green", DRAWN).passed, "the small heart is the other one all the same"
    assert not judge(check, "there is no large heart", DRAWN).passed


def test_scores_say_how_many_were_left_open_and_unreadable_images_are_never_right() -> None:
    empty = Image.new("RGB", (128, 128), "white")
    assert not judge(edit_check(RECOLOR, HEART), empty, TWO_HEARTS).passed
    assert not judge(edit_check(RECOLOR, HEART), render(DRAWN), None).passed
    assert not judge(ask("color of", HEART), "red", None).passed
    dialogues = []
    for scene, words in ((WANTED, "red"), (WANTED, "blue"), (TWO_HEARTS, "red"), (TWO_HEARTS, "blue")):
        dialogue = RunningDialogue(Dialogue("multi_turn", (), (ask("color of", HEART),)), seed=0)
        dialogue.judgements.append(judge(dialogue.dialogue.checks[0], words, scene))
        dialogues.append(dialogue)
    scores = score_group(Group("multi_turn", "seen"), dialogues)
    assert (scores["passed"], scores["total"], scores["left_open"]) == (2, 4, 1)


def turn_by_half(scene: Scene) -> Scene:
    """Another order of the objects, other answers about what is where."""
    return Scene(scene.background, tuple(replace(item, y=1 - item.y, x=1 - item.x) for item in scene.objects))


def test_edits_of_another_layout_are_judged_there() -> None:
    """Drawings are turned by half where the sentence allows it, and all that follows is right for them."""
    group, is_turned = Group("multi_turn"), {}
    items = make_items(group, 60, seed=0)

    def answer(dialogues: Sequence, mode: str, seeds: Sequence[int]) -> Iterable[tuple[int, list[str | Image.Image]]]:
        return enumerate(answer_one(len(messages), seed) for messages, seed in zip(dialogues, seeds, strict=True))

    def answer_one(turn: int, seed: int) -> list[str | Image.Image]:
        first = items[seed].checks[0]
        if turn == 1:
            is_turned[seed] = first.kind == "draw" and all(check_scene(first.spec, turn_by_half(first.scene)))
        shown = turn_by_half if is_turned[seed] else lambda scene: scene
        parts = items[seed].turns[turn].parts
        return [p if isinstance(p, str) else replace(p, scene=shown(p.scene)).render(128) for p in parts]

    edited = [
        judgement
        for each in hold_groups(answer, count=60, seed=0, size=128, groups=[group])[group]
        if is_turned[each.seed]
        for item, judgement in zip(each.dialogue.checks, each.judgements, strict=True)
        if item.kind == "edit" and item.edit.kind != "add"
    ]
    assert len(edited) >= 5 and all(judgement.passed for judgement in edited)
