"""Scenes keep the world's rules, compare by content and belong to one split; held-out pairs stay out of training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from random import Random

import pytest

from mllm.world.scene import (
    COLORS,
    HELD_OUT_PAIRS,
    RADIUS,
    SHAPES,
    Scene,
    SceneObject,
    is_valid,
    place_in_corners,
    random_scene,
    random_scene_for,
    split_of,
)


def test_random_scenes_keep_the_rules_and_the_order_of_objects_does_not_matter() -> None:
    for number, seed in product((1, 2, 3, 4), range(50)):
        scene = random_scene(Random(seed), num_objects=number)
        assert len(scene.objects) == number and is_valid(scene), scene
        turned = Scene(scene.background, scene.objects[::-1])
        assert turned == scene and hash(turned) == hash(scene)
    for seed in range(50):
        assert is_valid(Scene("white", place_in_corners([("star", "red", "large")] * 4, Random(seed))))
    circle = SceneObject("circle", "red", "large", 0.5, 0.5)
    near = SceneObject("square", "blue", "small", 0.5 + RADIUS["large"] + RADIUS["small"] + 0.01, 0.5)
    for objects in ((circle, near), (circle, replace(near, x=0.05)), ()):
        assert is_valid(Scene("white", (circle,))) and not is_valid(Scene("white", objects))


def test_pairs_are_held_out_and_allowed_ones_kept() -> None:
    assert sorted(color for color, _ in HELD_OUT_PAIRS) == sorted(COLORS)
    assert sorted(shape for _, shape in HELD_OUT_PAIRS) == sorted(SHAPES)
    allowed = frozenset({("red", "circle"), ("blue", "star")})
    assert all(random_scene(Random(seed), allowed_pairs=allowed).pairs <= allowed for seed in range(200))
    for seed in range(40):
        scene = random_scene_for("test", Random(seed), pairs="held_out")
        assert scene.pairs & HELD_OUT_PAIRS and split_of(scene) == "test"


def test_unknown_values_and_leaks_are_refused() -> None:
    for make in (
        lambda: SceneObject("circle", "pink", "small", 0.5, 0.5),
        lambda: Scene("beige", ()),
        lambda: random_scene(Random(0), num_objects=5),
        lambda: random_scene_for("train", Random(0), pairs="held_out"),
        lambda: random_scene_for("test", Random(0), pairs="unseen"),
    ):
        with pytest.raises(ValueError):
            make()


def test_splits_have_their_shares_and_a_scene_moved_by_a_hair_stays() -> None:
    scenes = [random_scene(Random(seed)) for seed in range(2000)]
    counts = Counter(map(split_of, scenes))
    assert 0.08 < counts["test"] / 2000 < 0.12 and 0.08 < counts["validation"] / 2000 < 0.12
    nudged = [replace(s, objects=tuple(replace(item, x=item.x + 0.0001) for item in s.objects)) for s in scenes[:200]]
    moved = sum(split_of(before) != split_of(after) for before, after in zip(scenes, nudged, strict=False))
    assert moved <= 2  # only where an object lies on the border of a grid cell
