"""No scene is in two splits, and held-out pairs stay out of training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from mllm.world.dialogue import make_episode
from mllm.world.scene import (
    COLORS,
    HELD_OUT_PAIRS,
    SEEN_PAIRS,
    SHAPES,
    SPLITS,
    Scene,
    random_scene,
    random_scene_for,
    split_of,
)


def test_every_color_and_shape_is_held_out_once() -> None:
    assert sorted(color for color, _ in HELD_OUT_PAIRS) == sorted(COLORS)
    assert sorted(shape for _, shape in HELD_OUT_PAIRS) == sorted(SHAPES)


def test_shares_are_as_documented() -> None:
    counts = Counter(split_of(random_scene(Random(seed))) for seed in range(3000))
    assert 0.08 < counts["test"] / 3000 < 0.12 and 0.08 < counts["validation"] / 3000 < 0.12


def test_a_scene_moved_by_a_hair_stays_in_its_split() -> None:
    moved = 0
    for seed in range(200):
        scene = random_scene(Random(seed))
        nudged = Scene(scene.background, tuple(replace(item, x=item.x + 0.0001) for item in scene.objects))
        moved += split_of(scene) != split_of(nudged)
    assert moved <= 2  # only where an object lies on the border of a grid cell


@pytest.mark.parametrize("split", SPLITS)
def test_episodes_belong_to_their_split(split: str) -> None:
    for index in range(40):
        episode = make_episode(index, split=split)
        assert split_of(episode.scene) == split_of(episode.edited) == split
        assert episode.scene.pairs | episode.edited.pairs <= SEEN_PAIRS


def test_held_out_scenes_have_a_held_out_pair() -> None:
    for seed in range(40):
        scene = random_scene_for("test", Random(seed), pairs="held_out")
        assert scene.pairs & HELD_OUT_PAIRS and split_of(scene) == "test"


def test_held_out_pairs_are_refused_in_training() -> None:
    with pytest.raises(ValueError, match="held-out pairs were asked for in training"):
        random_scene_for("train", Random(0), pairs="held_out")
    with pytest.raises(ValueError, match="unknown"):
        random_scene_for("dev", Random(0))


def test_episodes_are_deterministic_and_differ() -> None:
    assert [make_episode(index) for index in range(20)] == [make_episode(index) for index in range(20)]
    assert len({make_episode(index).scene for index in range(50)}) == 50
    assert make_episode(1, seed=1) != make_episode(1, seed=2)
