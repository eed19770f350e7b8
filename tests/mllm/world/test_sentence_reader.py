"""Requests are read as the spec they were made from; descriptions are read back and false ones are caught."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from mllm.world.language import describe, make_draw_request
from mllm.world.scene import Scene, SceneObject, random_scene
from mllm.world.sentence_reader import check_description, read_description, read_request
from mllm.world.spec import Background, Filter, Related, check_scene, enumerate_objects

CIRCLE, SQUARE = SceneObject("circle", "red", "large", 0.25, 0.5), SceneObject("square", "blue", "small", 0.6, 0.5)
SCENE = Scene("white", (CIRCLE, SQUARE, SceneObject("star", "green", "small", 0.65, 0.85)))


def test_descriptions_are_read_back_and_plain_requests_to_draw_are_descriptions_too() -> None:
    for seed in range(400):
        scene = random_scene(Random(seed))
        for short in (False, True):
            text = describe(scene, short=short)
            assert check_description(text, scene), text
            claimed, _ = read_description(text)
            assert claimed[: len(scene.objects) + 1] == enumerate_objects(list(map(Filter.of, scene.objects)))
            assert claimed[-1] == Background(scene.background)
        if len(scene.objects) < 3:  # a second reader of the draw language: what it understands holds on the scene
            request = make_draw_request(scene, Random(seed), kind="full")
            assert all(check_scene(read_description(request.core)[0], scene)), request.core


def test_false_or_incomplete_descriptions_fail() -> None:
    text = describe(SCENE)
    assert check_description(text, SCENE)
    for old, new in (
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
        (text, ""),
        (text, "a dog on a white background"),
        (text, "left of below the the the"),
        (text, "3 3 3"),
    ):
        assert old in text and not check_description(text.replace(old, new), SCENE), new
    twins = Scene("gray", (CIRCLE, replace(CIRCLE, x=0.75)))  # told apart by counting
    assert check_description(describe(twins), twins)
    assert not check_description("A large red circle on a gray background.", twins)


def test_other_ways_to_say_it_are_understood() -> None:
    named = enumerate_objects([Filter.of(CIRCLE), Filter.of(SQUARE)])
    text = "a big red disk to the left of a tiny blue square on a white background"
    assert read_description(text) == ((*named, Related(0, "left of", 1), Background("white")), True)
    twins = enumerate_objects([Filter("cross", "red", "small")] * 2)
    text = "The background is grey. There are two small red pluses."
    assert read_description(text) == ((*twins, Background("gray")), True)
    assert read_request("a photo of a dog") == ()
