"""The synthetic world as training data: which episodes, their codes, and the sequences of batches."""

import dataclasses
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from scipy import ndimage

from mllm.config import MLLMConfig
from mllm.sequence import trained_grids
from mllm.vocabulary import extend_tokenizer, load_text_tokenizer
from mllm.world.dialogue import JOBS, ImageRef, apply_edit, make_dialogue, make_episode
from mllm.world.plan import centre, plan_of
from mllm.world.scene import RADIUS, split_of
from tests.mllm.tiny_folder import build_tiny_folder
from tokenizer.images import to_bytes, to_pixels
from tokenizer.unitok import UniTok
from train.data.packing import BatchShape, Tokenizers
from train.data.painters import Painter
from train.data.shards import ShardFolder
from train.data.world import ConversationSet, EpisodeSet, WorldSequences, centre_episode, encode_rendered, to_messages
from train.recipe import WorldData

GRIDS = [(2, 2), (1, 2), (2, 1)]
EPISODES = EpisodeSet(num_episodes=60, dense_every=4, seed=0, grids=GRIDS, patch_size=16)
SHAPE = BatchShape(rows=2, length=400)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> UniTok:
    return UniTok.from_pretrained(build_tiny_folder(tmp_path_factory.mktemp("model")) / "image_tokenizer")


@pytest.fixture(scope="module")
def codes(tokenizer: UniTok, tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    assert tokenizer.config.patch_size == EPISODES.patch_size
    return encode_rendered(EPISODES, tmp_path_factory.mktemp("codes"), tokenizer, num_workers=0, in_memory=True)


@pytest.fixture(scope="module")
def tokenizers(tokenizer: UniTok, text_tokenizer_file: Path) -> Tokenizers:
    """Of a model with size tokens and plans."""
    text, sizes = load_text_tokenizer(text_tokenizer_file), tokenizer.config
    vocabulary = extend_tokenizer(text, max_grid_side=2, plans=True)
    config = MLLMConfig(
        image_layout="grid",
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        num_codebooks=sizes.num_codebooks,
        sizes=[[columns * sizes.patch_size, rows * sizes.patch_size] for rows, columns in GRIDS],
        **vocabulary.config_fields(),
    )
    assert trained_grids(config) == GRIDS
    return Tokenizers(text=text, image=tokenizer, config=config)


@pytest.fixture
def make(codes: ShardFolder, tokenizers: Tokenizers):
    def make(episodes: EpisodeSet = EPISODES, shape: BatchShape = SHAPE, **data: object) -> WorldSequences:
        return WorldSequences(WorldData(episodes=60, **data), episodes, codes, tokenizers, shape)

    return make


def test_every_image_of_an_episode_is_encoded_at_its_size(codes: ShardFolder, tokenizer: UniTok) -> None:
    assert {EPISODES.grid_of(index) for index in range(0, 60, 4)} == set(GRIDS)
    for index in (0, 1, 4, 8, 59):
        rows, columns = EPISODES.grid_of(index)
        size = (columns * 16, rows * 16)
        images = make_episode(index).images[: 4 if index % 4 == 0 else 2]
        pixels_B3HW = to_pixels(torch.stack([to_bytes(image.render(size)) for image in images]))
        found = codes[index]
        assert (found.kind, found.place) == ("episode", str(index))
        assert {part.grid for part in found.messages[0].parts} == {(rows, columns)}
        assert np.array_equal([part.codes_KN for part in found.messages[0].parts], tokenizer.encode(pixels_B3HW))


def test_encoding_resumes_grows_or_refuses(tokenizer: UniTok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.world.RECORDS_PER_SHARD", 3)

    def encode(**changes: object) -> ShardFolder:
        fields = {"num_episodes": 7, "dense_every": 2, "seed": 0, "grids": [(1, 1)], "patch_size": 16}
        return encode_rendered(EpisodeSet(**(fields | changes)), tmp_path, tokenizer, num_workers=0)

    encode()
    before = {path: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    next((tmp_path / "shards").iterdir()).unlink()
    assert len(encode()) == 7 and {path: path.read_bytes() for path in (tmp_path / "shards").iterdir()} == before
    longer = encode(num_episodes=8)
    assert [longer[index].place for index in range(8)] == [str(index) for index in range(8)]
    for change in ({"seed": 1}, {"grids": [(1, 2)]}, {"centred_digits": 2}):
        with pytest.raises(ValueError):
            encode(**change)


def test_sequences_are_of_the_size_of_their_episode(make, tokenizers: Tokenizers) -> None:
    sequences, config, found = make(jobs={"draw": 1.0, "edit": 1.0}), tokenizers.config, set()
    for n in range(30):
        sequence = sequences.draw(Random(n))
        ids = sequence.token_ids_T.tolist()
        first = ids.index(config.begin_image_id)
        rows, columns = ids[first + 1] - config.first_row_size_id + 1, ids[first + 2] - config.first_column_size_id + 1
        assert set(sequence.image_lengths_I.tolist()) == {rows * columns}
        found.add((rows, columns))
    assert found == set(GRIDS)


def test_a_stage_sees_scenes_of_the_recipes_size_only_and_draws_centred_ones(make) -> None:
    for (low, high), is_dense in product(((2, 3), (1, 4)), (False, True)):
        sequences = make(min_objects=low, max_objects=high)
        found = [sequences.draw_episode(Random(n), is_dense=is_dense, is_drawn=False) for n in range(60)]
        assert {len(episode.scene.objects) for _, episode in found} == set(range(low, high + 1))
        assert all(episode == make_episode(index) and index % (4 if is_dense else 1) == 0 for index, episode in found)
    episodes = dataclasses.replace(EPISODES, centred_digits=2)
    found = [make(episodes).draw_episode(Random(n), is_dense=n % 2 == 0, is_drawn=True)[0] for n in range(40)]
    assert all(map(episodes.is_centred, found))


def test_images_of_scenes_have_plans_where_asked(codes: ShardFolder, make, tokenizers: Tokenizers) -> None:
    episode = make_episode(12)
    for job, digits in product(JOBS, (None, 1)):
        dialogue = make_dialogue(job, episode, Random(1))
        images = dict(zip(episode.images, codes[12].messages[0].parts, strict=True))
        messages = to_messages(dialogue.turns, images.__getitem__, plan_digits=digits)
        said = [part for turn in dialogue.turns for part in turn.parts]
        encoded = [part for message in messages for part in message.parts]
        for part, found in zip(said, encoded, strict=True):
            if isinstance(part, ImageRef):
                has_plan = digits is not None and part.kind == "image"
                assert found.plan == (plan_of(part.scene, grid=EPISODES.grid_of(12)) if has_plan else None)
    sequences = make(plans=True, prompt_dropout=0.5)  # a dropped instruction takes the plan with it
    drawn = [sequences.draw(Random(n)).token_ids_T.tolist() for n in range(40)]
    has_plan = [tokenizers.config.begin_plan_id in ids for ids in drawn]
    has_words = ["<unconditional>" not in tokenizers.text.decode(ids).replace(" ", "") for ids in drawn]
    assert has_words == has_plan and 5 < sum(has_words) < 35


def test_a_centred_episode_is_the_same_episode_moved_by_a_hair() -> None:
    for grid, index in product(((8, 8), (8, 10), (6, 8)), range(30)):
        before = make_episode(index)
        after = centre_episode(before, digits=2, grid=grid)
        assert apply_edit(after.scene, after.edit) == after.edited
        assert split_of(after.scene) == split_of(after.edited) == "train"
        assert after != before or grid == (6, 8)  # there, squares do not lie within the cells that decide the split
        for old, new in ((before.scene, after.scene), (before.edited, after.edited)):
            assert plan_of(new, digits=2, grid=grid) == plan_of(old, digits=2, grid=grid)
            middles = [centre(item, digits=2, grid=grid) for item in new.objects]
            there = [value for item in new.objects for value in (item.x, item.y)]
            assert after == before or there == pytest.approx([v for item in middles for v in (item.x, item.y)])


def test_conversations_have_images_or_words_alone(tokenizers: Tokenizers, codes: ShardFolder, tmp_path: Path) -> None:
    config, weights = tokenizers.config, {"chat": 2.0, "edit": 1.0, "talk": 1.0}
    records = ConversationSet(weights=weights, count=12, seed=0, digits=2, side=2, patch_size=16)
    folder = encode_rendered(records, tmp_path, tokenizers.image, num_workers=0)
    assert any(turn.shown for index in range(12) for turn in records.turns(index))
    for share, has_images in ((0.0, True), (1.0, False)):
        data = WorldData(jobs={}, conversations=weights, words_only=share, plans=True, plan_digits=2)
        source = WorldSequences(data, EPISODES, codes, tokenizers, SHAPE, conversations=(records, folder))
        found = [source.draw(Random(n)) for n in range(30)]
        assert any(len(sequence.codes_PK) for sequence in found) == has_images
        for sequence in found:
            ids, labels = sequence.token_ids_T, sequence.labels_T
            assert sequence.image_lengths_I.sum() == len(sequence.codes_PK) == (ids == config.image_token_id).sum()
            assert (labels[1:] == config.eos_token_id).any()
            for at in np.flatnonzero(ids[1:] == config.begin_plan_id) + 1:
                if ids[at - 1] == config.end_image_id:  # what is seen in an image can be learned only from the image
                    assert (labels[at + 1] == ids[at + 1]) == has_images


def test_images_that_are_shown_look_like_those_of_other_painters(tokenizers: Tokenizers) -> None:
    records = ConversationSet(weights={"ask": 1.0}, count=20, seed=0, digits=2, side=8, patch_size=16)
    differences = []
    for index in range(20):
        (scene,), (image, *_) = [turn.shown for turn in records.turns(index)][:1], records.images(index)
        plain = to_bytes(ImageRef(scene).render(128))
        differences.append((image.float() - plain.float()).abs().mean().item())
        painter = Painter.of(scene, Random(index))
        drawn_HW3 = np.asarray(painter.paint(scene, 256))
        _, number = ndimage.label((drawn_HW3 != drawn_HW3[0, 0]).any(axis=-1))
        assert number == len(scene.objects), "objects stay apart and inside, however large they are drawn"
        radius = RADIUS["large"] * painter.scales["large"]
        assert radius > RADIUS["small"] * painter.scales["small"] * 1.15, "and large ones larger than small ones"
    assert max(differences) > 4 and len(set(differences)) == 20
