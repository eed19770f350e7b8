"""Edits change what they say and nothing else; the check notices both failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from mllm.world.checker import parse
from mllm.world.dialogue import make_episode
from mllm.world.edits import EDIT_KINDS, Edit, apply_edit, check_edit, edit_sentence
from mllm.world.render import render
from mllm.world.scene import Scene, SceneObject

BEFORE = Scene(
    "white",
    (SceneObject("circle", "red", "large", 0.3, 0.3), SceneObject("star", "blue", "small", 0.7, 0.7)),
)
ADDED = SceneObject("heart", "yellow", "small", 0.85, 0.15)


def passes(before: Scene, edit: Edit, after: Scene) -> bool:
    return all(verdict.holds for verdict in check_edit(before, edit, after))


def test_every_kind_is_proposed_and_checks_out() -> None:
    kinds = Counter()
    for index in range(400):
        episode = make_episode(index)
        kinds[episode.edit.kind] += 1
        assert apply_edit(episode.scene, episode.edit) == episode.edited
        assert passes(episode.scene, episode.edit, episode.edited)
        assert not passes(episode.scene, episode.edit, episode.scene), "no change must not pass"
    assert set(kinds) == set(EDIT_KINDS) and min(kinds.values()) > 20


def test_edited_images_pass_after_parsing() -> None:
    for index in range(80):
        episode = make_episode(index)
        after = parse(render(episode.edited)).scene
        assert after is not None and passes(episode.scene, episode.edit, after), episode


def test_damage_elsewhere_is_noticed() -> None:
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
        assert passes(BEFORE, edit, after)
        untouched = next(item for item in after.objects if item in BEFORE.objects)
        others = tuple(item for item in after.objects if item is not untouched)
        damages = {
            "gone": others,
            "moved": (*others, replace(untouched, y=untouched.y - 0.1)),
            "recolored": (*others, replace(untouched, color="orange")),
            "resized": (*others, replace(untouched, size="small" if untouched.size == "large" else "large")),
            "joined": (*after.objects, SceneObject("square", "purple", "small", 0.15, 0.85)),
        }
        for name, objects in damages.items():
            assert not passes(BEFORE, edit, Scene(after.background, objects)), name
        assert not passes(BEFORE, edit, Scene("cream", after.objects))


def test_small_shifts_are_forgiven_and_added_objects_may_lie_anywhere_their_words_allow() -> None:
    edit = Edit("add", added=ADDED, place="top right")
    elsewhere = replace(ADDED, x=0.7, y=0.3)
    assert passes(BEFORE, edit, Scene("white", (*BEFORE.objects, elsewhere)))
    assert not passes(BEFORE, edit, Scene("white", (*BEFORE.objects, replace(ADDED, x=0.2, y=0.8))))
    shifted = tuple(replace(item, x=item.x + 0.02) for item in BEFORE.objects)
    assert passes(BEFORE, edit, Scene("white", (*shifted, ADDED)))


def test_adding_a_twin_needs_a_second_one() -> None:
    twin = replace(BEFORE.objects[1], x=0.15, y=0.85)
    edit = Edit("add", added=twin, place="bottom left")
    assert passes(BEFORE, edit, Scene("white", (*BEFORE.objects, twin)))
    assert not passes(BEFORE, edit, BEFORE)


def test_sentences_refer_without_ambiguity() -> None:
    words = {edit_sentence(Edit("recolor", 0, "green"), BEFORE, Random(seed)).text for seed in range(200)}
    assert "Make the circle green." in words
    twins = Scene("white", (BEFORE.objects[0], replace(BEFORE.objects[0], x=0.8, size="small")))
    for seed in range(100):
        sentence = edit_sentence(Edit("remove", 1), twins, Random(seed)).text.lower()
        assert any(word in sentence for word in ("small", "little", "tiny")), sentence
    one = Scene("white", BEFORE.objects[:1])
    assert "Make it green." in {
        edit_sentence(Edit("recolor", 0, "green"), one, Random(seed), pronoun=True).text for seed in range(100)
    }
