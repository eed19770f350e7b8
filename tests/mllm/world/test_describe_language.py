"""Descriptions are true, complete and read back; false ones are caught."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from mllm.world.language import check_description, describe, make_draw_request, parse_description
from mllm.world.scene import Scene, SceneObject, random_scene
from mllm.world.spec import Filter, check_scene

SCENE = Scene(
    "white",
    (
        SceneObject("circle", "red", "large", 0.25, 0.5),
        SceneObject("square", "blue", "small", 0.6, 0.5),
        SceneObject("star", "green", "small", 0.65, 0.85),
    ),
)


def passes(text: str, scene: Scene = SCENE) -> bool:
    return all(verdict.holds for verdict in check_description(text, scene))


@pytest.mark.parametrize("short", [False, True])
def test_descriptions_read_back(short: bool) -> None:
    for seed in range(500):
        scene = random_scene(Random(seed))
        assert passes(describe(scene, short=short), scene), describe(scene, short=short)
        facts = parse_description(describe(scene, short=short))
        expected = [Filter(item.shape, item.color, item.size) for item in scene.objects]
        assert list(facts.objects) == expected and facts.background == scene.background


def test_the_words_of_a_description() -> None:
    assert describe(SCENE) == (
        "There are three shapes on a white background: a large red circle, a small blue square and a small green star. "
        "The circle is to the left of the square. The square is above the star."
    )
    assert describe(Scene("black", SCENE.objects[:1])) == "There is a large red circle on a black background."


@pytest.mark.parametrize(
    "old, new",
    [
        ("large red circle", "small red circle"),
        ("large red circle", "large orange circle"),
        ("blue square", "blue heart"),
        ("blue square", "square"),
        (" and a small green star", ""),
        ("small green star", "small green star and a small green star"),
        ("white background", "gray background"),
        (" on a white background", ""),
        ("to the left of", "to the right of"),
        ("is above the star", "is below the star"),
        ("three shapes", "four shapes"),
        ("The circle is to the left of the square", "The heart is to the left of the square"),
        ("The square is above the star.", "The square is above."),
    ],
)
def test_false_or_incomplete_descriptions_fail(old: str, new: str) -> None:
    text = describe(SCENE)
    assert old in text and passes(text)
    assert not passes(text.replace(old, new))


def test_empty_and_foreign_text_fails_quietly() -> None:
    for text in ("", "Hello!", "a dog on a white background", "left of below the the the", "3 3 3"):
        assert not passes(text)


def test_other_ways_to_say_it_are_understood() -> None:
    facts = parse_description("a big red disk to the left of a tiny blue square on a white background")
    assert facts.objects == (Filter("circle", "red", "large"), Filter("square", "blue", "small"))
    assert facts.relations == ((0, "left of", 1),) and facts.background == "white"
    facts = parse_description("The background is grey. There are two small red pluses.")
    assert facts.objects == (Filter("cross", "red", "small"),) * 2 and facts.background == "gray"


def test_plain_requests_to_draw_are_read_as_their_spec_means() -> None:
    """A second reader of the draw language: what it understands holds on the scene."""
    for seed in range(300):
        scene = random_scene(Random(seed), num_objects=1 + seed % 2)
        request = make_draw_request(scene, Random(seed), kind="full")
        facts = parse_description(request.core)
        assert all(verdict.holds for verdict in check_scene(facts.to_spec(), scene)), request.core


def test_twins_are_told_apart_by_counting() -> None:
    twins = Scene("gray", (SCENE.objects[0], replace(SCENE.objects[0], x=0.75)))
    assert passes(describe(twins), twins)
    assert not passes("A large red circle on a gray background.", twins)
