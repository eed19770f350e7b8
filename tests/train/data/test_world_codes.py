"""Codes of the world's pictures: of every size the model has, in turns, the same as encoding them by hand."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from mllm.config import MLLMConfig
from mllm.sequence import Grid, trained_grids
from mllm.vocabulary import extend_tokenizer, load_text_tokenizer
from mllm.world.dialogue import make_episode
from mllm.world.edits import apply_edit
from mllm.world.outline import centre, outline_of
from mllm.world.scene import split_of
from tests.mllm.tiny_folder import build_tiny_folder
from tokenizer.config import UniTokConfig
from tokenizer.images import to_bytes
from tokenizer.unitok import UniTok
from train.data.world import EpisodeSet, WorldBatches, WorldCodes, centre_episode, encode_bytes
from train.recipe import WorldData

GRIDS = [(2, 2), (1, 2), (2, 1)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> UniTok:
    return UniTok.from_pretrained(build_tiny_folder(tmp_path_factory.mktemp("model")) / "image_tokenizer")


def test_episodes_take_turns_with_the_sizes(tokenizer: UniTok, tmp_path: Path) -> None:
    patch = tokenizer.config.patch_size
    codes = WorldCodes(tmp_path, EpisodeSet(num_episodes=8, dense_every=2, seed=0, grids=GRIDS))
    codes.encode_missing(tokenizer, num_workers=0)
    assert {codes.episodes.grid_of(index) for index in range(8)} == set(GRIDS)
    assert {codes.episodes.grid_of(index) for index in range(0, 8, 2)} == set(GRIDS)
    for index in range(8):
        rows, columns = codes.episodes.grid_of(index)
        pictures = make_episode(index).images[: 4 if index % 2 == 0 else 2]
        pixels = [to_bytes(picture.render((columns * patch, rows * patch))) for picture in pictures]
        expected = tokenizer.encode(torch.stack(pixels).float().div(127.5).sub(1)).numpy()
        assert np.array_equal(codes[index], expected)
    with pytest.raises(ValueError, match="were made with .*grids"):
        WorldCodes(tmp_path, EpisodeSet(num_episodes=8, dense_every=2, seed=0, grids=[(2, 2)])).encode_missing(
            tokenizer
        )


def test_sequences_are_of_the_size_of_their_episode(
    tokenizer: UniTok, tmp_path: Path, text_tokenizer_file: Path
) -> None:
    codes = WorldCodes(tmp_path, EpisodeSet(num_episodes=8, dense_every=2, seed=0, grids=GRIDS))
    codes.encode_missing(tokenizer, num_workers=0)
    text = load_text_tokenizer(text_tokenizer_file)
    vocabulary = extend_tokenizer(text, max_grid_side=2)
    sizes = tokenizer.config
    patch = sizes.patch_size
    config = MLLMConfig(
        image_layout="grid",
        image_size=sizes.image_size,
        patch_size=patch,
        num_codebooks=sizes.num_codebooks,
        sizes=[[columns * patch, rows * patch] for rows, columns in GRIDS],
        **vocabulary.config_fields(),
    )
    assert trained_grids(config) == GRIDS
    data = WorldData(episodes=8, dense_every=2, jobs={"draw": 1.0, "edit": 1.0})
    batches = WorldBatches(data, codes, tokenizer=text, config=config, length=400, rows=2, num_batches=1)
    found = set()
    for n in range(30):
        sequence = batches.draw_sequence(Random(n))
        ids = sequence.token_ids_T.tolist()
        first = ids.index(config.begin_image_id)
        rows = ids[first + 1] - config.first_row_size_id + 1
        columns = ids[first + 2] - config.first_column_size_id + 1
        assert set(sequence.image_lengths_I.tolist()) == {rows * columns}
        found.add((rows, columns))
    assert found == set(GRIDS)


@pytest.mark.parametrize("larger", [{}, {"shrink": 2, "decoder_widths": (64, 32, 8), "decoder_depths": (2, 1, 1)}])
def test_equal_patches_are_encoded_once_and_alike(larger: dict) -> None:
    torch.manual_seed(0)
    local = {"depth": 0, "encoder_scope": "patch", **larger}
    tokenizer = UniTok(UniTokConfig.from_dict({**UniTokConfig.tiny().to_dict(), **local})).eval()
    pixels_B3HW = torch.stack([to_bytes(make_episode(index).images[0].render(128)) for index in range(3)])
    expected = tokenizer.encode(pixels_B3HW.float().div(127.5).sub(1)).numpy()
    assert np.array_equal(encode_bytes(tokenizer, pixels_B3HW), expected)


def test_every_other_episode_is_centred_dense_ones_and_every_size_too() -> None:
    episodes = EpisodeSet(num_episodes=48, dense_every=3, seed=0, grids=GRIDS, centred_digits=2)
    found = {(episodes.grid_of(n), episodes.is_dense(n), episodes.is_centred(n)) for n in range(48)}
    assert found == {(grid, is_dense, is_centred) for grid in GRIDS for is_dense in (0, 1) for is_centred in (0, 1)}
    plain = EpisodeSet(num_episodes=48, dense_every=3, seed=0, grids=GRIDS)
    assert not any(plain.is_centred(n) for n in range(48))
    for n in range(48):
        if not episodes.is_centred(n):
            assert episodes[n] == make_episode(n) == plain[n]


@pytest.mark.parametrize("grid", [(8, 8), (8, 10), (6, 8)])
@pytest.mark.parametrize("index", range(30))
def test_a_centred_episode_is_the_same_episode_moved_by_a_hair(index: int, grid: Grid) -> None:
    before = make_episode(index)
    after = centre_episode(before, digits=2, grid=grid)
    assert split_of(after.scene) == split_of(after.edited) == "train"
    assert after != before or grid == (6, 8)  # there, squares do not lie within the cells that decide the split
    for old, new in ((before.scene, after.scene), (before.edited, after.edited)):
        assert outline_of(new, digits=2, grid=grid) == outline_of(old, digits=2, grid=grid)
        if after != before:
            assert all(
                (item.x, item.y) == pytest.approx((middle.x, middle.y))
                for item in new.objects
                for middle in [centre(item, digits=2, grid=grid)]
            )
    assert apply_edit(after.scene, after.edit) == after.edited
