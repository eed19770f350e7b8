"""Requests are read as the spec they were made from; descriptions are read back and false ones are caught."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from mllm.world.language import describe, make_draw_request
from mllm.world.scene import Scene, SceneObject, random_scene
from mllm.world.sentence_reader import check_description, read_description, read_request
from mllm.world.spec import Background, Filter, Related, Spec, check_scene, enumerate_objects

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


def test_descriptions_are_read_back() -> None:
    for seed in range(500):
        scene = random_scene(Random(seed))
        for short in (False, True):
            text = describe(scene, short=short)
            assert passes(text, scene), text
            claimed = read_description(text)[0].constraints
            assert claimed[: len(scene.objects) + 1] == enumerate_objects(list(map(Filter.of, scene.objects)))
            assert claimed[-1] == Background(scene.background)


def test_false_or_incomplete_descriptions_fail() -> None:
    text = describe(SCENE)
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
    ):
        assert old in text and passes(text)
        assert not passes(text.replace(old, new)), new
    for foreign in ("", "Hello!", "a dog on a white background", "left of below the the the", "3 3 3"):
        assert not passes(foreign)


def test_other_ways_to_say_it_are_understood() -> None:
    circle, square = Filter("circle", "red", "large"), Filter("square", "blue", "small")
    constraints = (*enumerate_objects([circle, square]), Related(0, "left of", 1), Background("white"))
    text = "a big red disk to the left of a tiny blue square on a white background"
    assert read_description(text) == (Spec(constraints), [])
    constraints = (*enumerate_objects([Filter("cross", "red", "small")] * 2), Background("gray"))
    assert read_description("The background is grey. There are two small red pluses.") == (Spec(constraints), [])


def test_plain_requests_to_draw_are_descriptions_too() -> None:
    """A second reader of the draw language: what it understands holds on the scene."""
    for seed in range(300):
        scene = random_scene(Random(seed), num_objects=1 + seed % 2)
        request = make_draw_request(scene, Random(seed), kind="full")
        spec, _ = read_description(request.core)
        assert all(verdict.holds for verdict in check_scene(spec, scene)), request.core


def test_twins_are_told_apart_by_counting_and_nothing_known_is_an_empty_spec() -> None:
    twins = Scene("gray", (SCENE.objects[0], replace(SCENE.objects[0], x=0.75)))
    assert passes(describe(twins), twins)
    assert not passes("A large red circle on a gray background.", twins)
    assert read_request("a photo of a dog") == Spec(())
