"""Batches of the world: which episodes they are made of."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from mllm.config import MLLMConfig
from mllm.vocabulary import load_text_tokenizer
from mllm.world.episode import make_episode
from train.data.world_codes import NUM_PICTURES, WorldCodes
from train.data.world_sequences import WorldBatches
from train.mllm_recipe import WorldData

EPISODES = 60


@pytest.fixture
def codes(tmp_path: Path) -> WorldCodes:
    """Codes that say which episode and picture they are of."""
    found = WorldCodes(tmp_path, num_episodes=EPISODES, dense_every=4, seed=0)
    numbers_ES = np.arange(EPISODES * NUM_PICTURES, dtype=np.uint16).reshape(EPISODES, NUM_PICTURES, 1, 1)
    np.save(tmp_path / "codes-00000.npy", np.broadcast_to(numbers_ES, (EPISODES, NUM_PICTURES, 2, 4)))
    return found


def batches(codes: WorldCodes, text_tokenizer_file: Path, **data: object) -> WorldBatches:
    return WorldBatches(
        WorldData(episodes=EPISODES, dense_every=4, **data),
        codes,
        tokenizer=load_text_tokenizer(text_tokenizer_file),
        config=MLLMConfig(),
        grid=(2, 2),
        length=320,
        rows=2,
        num_batches=3,
    )


@pytest.mark.parametrize("max_objects", [1, 2])
@pytest.mark.parametrize("is_dense", [False, True])
def test_a_first_stage_sees_scenes_of_few_objects_only(
    codes: WorldCodes, text_tokenizer_file: Path, max_objects: int, is_dense: bool
) -> None:
    data = batches(codes, text_tokenizer_file, max_objects=max_objects)
    found = [data.draw_episode(Random(n), is_dense=is_dense) for n in range(50)]
    assert {len(episode.scene.objects) for _, episode in found} == set(range(1, max_objects + 1))
    assert all(episode == make_episode(index) for index, episode in found)
    if is_dense:
        assert all(index % 4 == 0 for index, _ in found)


def test_without_a_limit_scenes_of_every_size_are_seen(codes: WorldCodes, text_tokenizer_file: Path) -> None:
    data = batches(codes, text_tokenizer_file)
    found = [data.draw_episode(Random(n), is_dense=False)[1] for n in range(80)]
    assert {len(episode.scene.objects) for episode in found} == {1, 2, 3, 4}


def test_no_scene_that_small_is_said(tmp_path: Path, text_tokenizer_file: Path) -> None:
    assert len(make_episode(0, seed=1).scene.objects) == 2
    data = batches(WorldCodes(tmp_path, num_episodes=1, dense_every=4, seed=1), text_tokenizer_file, max_objects=1)
    with pytest.raises(ValueError, match="of at most 1 objects among 1 episodes"):
        data.draw_episode(Random(0), is_dense=False)


def test_a_row_that_no_sample_fits_into_is_said(codes: WorldCodes, text_tokenizer_file: Path) -> None:
    data = batches(codes, text_tokenizer_file, jobs={"talk": 1.0})
    data.length = 5
    with pytest.raises(ValueError, match="found 1000 one after another that are longer than a row of 5 positions"):
        data[0]


@pytest.mark.parametrize("max_objects", [0, 5])
def test_a_number_of_objects_that_no_scene_has_is_refused(max_objects: int) -> None:
    with pytest.raises(ValueError, match=f"max_objects is {max_objects}; scenes have 1 to 4"):
        WorldData(max_objects=max_objects)
