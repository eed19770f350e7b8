"""Scenes keep the world's rules, compare by content and come back from plain data."""

from __future__ import annotations

from random import Random

import pytest

from mllm.world.scene import RADIUS, Scene, SceneObject, is_valid, place_in_corners, random_scene

LARGE_FOUR = [("star", "red", "large")] * 4


def test_random_scenes_are_valid_and_of_the_asked_number() -> None:
    for number in (1, 2, 3, 4):
        for seed in range(150):
            scene = random_scene(Random(seed), num_objects=number)
            assert len(scene.objects) == number
            assert is_valid(scene), scene


def test_four_large_objects_always_fit() -> None:
    for seed in range(300):
        assert is_valid(Scene("white", place_in_corners(LARGE_FOUR, Random(seed))))


def test_overlap_and_the_border_are_invalid() -> None:
    circle = SceneObject("circle", "red", "large", 0.5, 0.5)
    near = SceneObject("square", "blue", "small", 0.5 + RADIUS["large"] + RADIUS["small"] + 0.01, 0.5)
    outside = SceneObject("square", "blue", "small", 0.05, 0.5)
    assert is_valid(Scene("white", (circle,)))
    assert not is_valid(Scene("white", (circle, near)))
    assert not is_valid(Scene("white", (circle, outside)))
    assert not is_valid(Scene("white", ()))


def test_order_does_not_matter_and_plain_data_comes_back() -> None:
    scene = random_scene(Random(5), num_objects=3)
    turned = Scene(scene.background, scene.objects[::-1])
    assert turned == scene and hash(turned) == hash(scene)
    assert Scene.from_dict(scene.to_dict()) == scene


def test_allowed_pairs_are_kept() -> None:
    allowed = frozenset({("red", "circle"), ("blue", "star")})
    for seed in range(200):
        assert random_scene(Random(seed), allowed_pairs=allowed).pairs <= allowed


def test_unknown_values_are_refused() -> None:
    with pytest.raises(ValueError, match="pink"):
        SceneObject("circle", "pink", "small", 0.5, 0.5)
    with pytest.raises(ValueError, match="beige"):
        Scene("beige", ())
    with pytest.raises(ValueError, match="5 were asked"):
        random_scene(Random(0), num_objects=5)
