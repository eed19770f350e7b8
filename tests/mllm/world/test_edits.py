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

CIRCLE, STAR = SceneObject("circle", "red", "large", 0.3, 0.3), SceneObject("star", "blue", "small", 0.7, 0.7)
BEFORE = Scene("white", (CIRCLE, STAR))
ADDED = SceneObject("heart", "yellow", "small", 0.85, 0.15)


def passes(before: Scene, edit: Edit, after: Scene) -> bool:
    return all(verdict.holds for verdict in check_edit(before, edit, after))


def test_every_kind_is_proposed_and_checks_out() -> None:
    kinds = Counter()
    for index in range(400):
        episode = make_episode(index)
        kinds[episode.edit.kind] += 1
        assert apply_edit(episode.scene, episode.edit) == episode.edited
        after = parse(render(episode.edited)).scene if index < 80 else episode.edited
        assert passes(episode.scene, episode.edit, after)
        assert not passes(episode.scene, episode.edit, episode.scene), "no change must not pass"
    assert set(kinds) == set(EDIT_KINDS) and min(kinds.values()) > 20


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
        other_size = "small" if untouched.size == "large" else "large"
        damaged = [replace(untouched, y=untouched.y - 0.1), replace(untouched, color="orange")]
        damages = [(*others, item) for item in [*damaged, replace(untouched, size=other_size)]]
        for objects in (others, *damages, (*after.objects, SceneObject("square", "purple", "small", 0.15, 0.85))):
            assert not passes(BEFORE, edit, Scene(after.background, objects)), (edit, objects)
        assert not passes(BEFORE, edit, Scene("cream", after.objects))


def test_small_shifts_are_forgiven_and_added_objects_may_lie_anywhere_their_words_allow() -> None:
    edit = Edit("add", added=ADDED, place="top right")
    shifted = tuple(replace(item, x=item.x + 0.02) for item in BEFORE.objects)
    assert passes(BEFORE, edit, Scene("white", (*shifted, replace(ADDED, x=0.7, y=0.3))))
    assert not passes(BEFORE, edit, Scene("white", (*BEFORE.objects, replace(ADDED, x=0.2, y=0.8))))
    twin = replace(STAR, x=0.15, y=0.85)
    edit = Edit("add", added=twin, place="bottom left")
    assert passes(BEFORE, edit, Scene("white", (*BEFORE.objects, twin))) and not passes(BEFORE, edit, BEFORE)


def test_sentences_refer_without_ambiguity() -> None:
    def said(edit: Edit, scene: Scene, **options: bool) -> set[str]:
        return {edit_sentence(edit, scene, Random(seed), **options).text for seed in range(200)}

    assert "Make the circle green." in said(Edit("recolor", 0, "green"), BEFORE)
    assert "Make it green." in said(Edit("recolor", 0, "green"), Scene("white", (CIRCLE,)), pronoun=True)
    twins = Scene("white", (CIRCLE, replace(CIRCLE, x=0.8, size="small")))
    for sentence in said(Edit("remove", 1), twins):
        assert any(word in sentence.lower() for word in ("small", "little", "tiny")), sentence
