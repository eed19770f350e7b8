"""Packed batches of prepared data: nothing lost or twice, little padding, the same whoever asks; and training."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.conversation import Message, TextPart
from mllm.sequence import PackedBatch, sample_numbers
from mllm.vocabulary import extend_tokenizer, load_text_tokenizer
from tests.train.conftest import check_resumed
from tests.train.data.raw_data import document, pair, prepare_with, prepared, write_raw
from tests.train.launching import changed, losses, same
from tokenizer.unitok import UniTok
from train.data.mixture import BLOCK, SHARDS_AT_ONCE, Mixture, ShardOrder, ShardSequences, block_quota
from train.data.packing import CHECKPOINT_EVERY, BatchShape, PackedBatches, Tokenizers
from train.data.records import Record
from train.data.shards import CodeSource, ShardFolder
from train.recipe import MLLMData, MLLMRecipe, ShardSource, Validation
from train.trainer import train_mllm

CODE_SOURCE = CodeSource("0123", 2, 16)
LENGTH = 61
BUFFERS = 6


@pytest.fixture(scope="module")
def tokenizer(text_tokenizer_file: Path) -> PreTrainedTokenizerBase:
    return load_text_tokenizer(text_tokenizer_file)


@pytest.fixture(scope="module")
def config(tokenizer: PreTrainedTokenizerBase) -> MLLMConfig:
    vocabulary = extend_tokenizer(tokenizer)
    text = {"vocab_size": vocabulary.size, "hidden_size": 8, "num_attention_heads": 2}
    return MLLMConfig(text_config=text, num_codebooks=2, codebook_size=16, image_size=32, **vocabulary.config_fields())


def chat(number: int, rng: Random) -> Record:
    """A dialogue about one or two images."""
    codes = [part for seed in range(rng.randint(1, 2)) for part in pair(["x"], CODE_SOURCE, seed).messages[1].parts]
    words = " ".join(rng.choices(["red", "blue", "circle", "star"], k=rng.randint(1, 9)))
    question = Message("user", (*codes[:1], TextPart(f"chat {number}")))
    return Record("chat", (question, Message("assistant", (*codes[1:], TextPart(words)))), "chat.jsonl", str(number))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[ShardFolder]:
    path, rng = tmp_path_factory.mktemp("packed"), Random(0)
    words = ["the", "circle", "is", "large", "and", "blue"]
    kinds = {
        "pairs": [pair([f"caption {i} " + "red " * rng.randint(0, 8)], CODE_SOURCE, i) for i in range(70)],
        "chats": [chat(i, rng) for i in range(50)],
        "texts": [document(f"text {i} " + " ".join(rng.choices(words, k=rng.randint(0, 40)))) for i in range(60)],
    }
    shards = {name: [rows[:13], rows[13:40], rows[40:]] for name, rows in kinds.items()}
    return [ShardFolder(prepared(path / name, parts, CODE_SOURCE)) for name, parts in shards.items()]


@pytest.fixture
def make(folders: list[ShardFolder], tokenizer: PreTrainedTokenizerBase, config: MLLMConfig):
    """Batches of the mixture, made anew as another process would."""

    def make(
        length: int = LENGTH, some: slice = slice(None), rows: int = 2, checkpoints: Path | None = None, **how: int
    ) -> PackedBatches:
        data = MLLMData(prompt_dropout=0.2, describe_share=0.3, **{"packing_buffers": BUFFERS, "buffer_size": 9, **how})
        mixture = Mixture(folders[some], [3.0, 2.0, 1.0][some], seed=5)
        tokenizers = Tokenizers(text=tokenizer, image=None, config=config)
        sequences = ShardSequences(mixture, data, tokenizers, BatchShape(rows, length))
        return PackedBatches(sequences, num_batches=14, checkpoints=checkpoints)

    return make


def samples_of(batch: PackedBatch) -> Iterator[tuple]:
    # every position of the padding restarts, with an id that no sample has
    is_padding_BT = (batch["position_ids"] == 0) & (batch["input_ids"] == MLLMConfig().pad_token_id)
    for row, is_padding in enumerate(is_padding_BT):
        begins = torch.nonzero((batch["position_ids"][row] == 0) & ~is_padding)[:, 0].tolist()
        ends = [*begins[1:], int((~is_padding).sum())]
        for begin, end in zip(begins, ends, strict=True):
            names = ("input_ids", "labels", "position_ids")
            yield tuple(tuple(batch[name][row, begin:end].tolist()) for name in names)


def test_a_buffer_holds_its_samples_once_and_in_full(make) -> None:
    """Against a plain reading: what is packed is what the samples are; what is missing still waits."""
    batches, packed = make(), Counter[tuple[int, ...]]()
    for turn in range(10):
        packed.update(ids for ids, _, _ in samples_of(batches[turn * BUFFERS + 4]))
        buffer = batches.buffers[4]
        oldest = min(entry.sample for entry in buffer.waiting)
        assert buffer.sample - oldest <= 2 * batches.source.data.buffer_size, "none waits for long"
    read = [piece for turn in range(buffer.sample) for piece in batches.source[turn * BUFFERS + 4]]
    expected = Counter(tuple(sequence.token_ids_T.tolist()) for sequence in read)
    waiting = Counter(tuple(entry.sequence.token_ids_T.tolist()) for entry in buffer.waiting)
    assert sum(packed.values()) > 20 and packed + waiting == expected


def test_a_batch_is_the_same_whenever_and_by_whatever_worker_it_is_asked_for(make) -> None:
    straight, again = make(), make()
    expected = [straight[index] for index in range(60)]
    for index in (59, 3, 40, 0, 41, 40):
        assert same(again[index], expected[index])
    assert not same(expected[0], expected[1])
    for num_workers in (1, 3):
        loaded = list(DataLoader(make(), batch_size=None, num_workers=num_workers))
        assert len(loaded) == 14 and all(map(same, loaded, expected))


def test_a_resumed_run_continues_from_the_checkpoints(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In mid-epoch, in a new process: the same batches, and without reading from the beginning."""
    total = BUFFERS * (2 * CHECKPOINT_EVERY + 5)
    straight = make(checkpoints=tmp_path / "packing")
    expected = [straight[index] for index in range(total)]
    for path in (tmp_path / "packing").iterdir():
        with path.open("a") as file:
            file.write('\n{"batch": 48, "sam')  # killed while it was written
    begin = BUFFERS * (2 * CHECKPOINT_EVERY + 2) + 1
    assert same(make()[begin], expected[begin]), "checkpoints are not needed"
    read, read_one = [], ShardSequences.__getitem__
    monkeypatch.setattr(ShardSequences, "__getitem__", lambda self, n: read.append(n) or read_one(self, n))
    resumed = make(checkpoints=tmp_path / "packing")
    for index in range(begin, total):
        assert same(resumed[index], expected[index])
    assert len(read) < 0.35 * sum(buffer.sample for buffer in straight.buffers.values())


def test_padding_is_below_5_percent_on_mixed_data(make) -> None:
    batches = make(length=160, buffer_size=64)
    padding = [(sample_numbers(batches[index]["position_ids"]) == 0).float().mean() for index in range(24)]
    assert sum(padding) / 24 < 0.05


def test_samples_that_cannot_fit_are_left_out_and_a_length_that_none_fits_is_refused_soon(
    make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(length=23, some=slice(1, 2))[0]
    longest = [record.getMessage() for record in caplog.records]
    assert longest and all("chat.jsonl, " in line and "a row has 23; left out" in line for line in longest)
    whole, read, read_one = make(length=4000, some=slice(0, 1)).source, [], ShardSequences.__getitem__
    monkeypatch.setattr(ShardSequences, "__getitem__", lambda self, n: read.append(n) or read_one(self, n))
    with pytest.raises(ValueError) as caught:
        make(length=5, some=slice(0, 1))[0]
    assert len(read) == 1000
    assert f"the shortest of {min(len(read_one(whole, n)[0]) for n in read)};" in str(caught.value)


def test_documents_longer_than_a_row_are_learned_whole(make) -> None:
    sequences = make(length=16, some=slice(2, 3), packing_buffers=1).source
    whole = make(length=4000, some=slice(2, 3)).source
    for index in range(60):
        ids = [token for piece in sequences[index] for token in piece.token_ids_T.tolist()]
        assert ids == whole[index][0].token_ids_T.tolist()
        assert all(len(piece) <= 16 for piece in sequences[index])


def test_each_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    sizes = np.array([3, 0, 7, 1, *[2] * (2 * SHARDS_AT_ONCE), 5])
    order = ShardOrder(sizes, seed=(4,))
    assert len({order.locate(place)[0] for place in range(24)}) <= SHARDS_AT_ONCE, "neighbours are shuffled together"
    every = sorted((shard, row) for shard, size in enumerate(sizes) for row in range(size))
    total = len(every)
    epochs = [[order.locate(epoch * total + place) for place in range(total)] for epoch in range(3)]
    assert all(sorted(epoch) == every for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    for turn in (total + 5, 0):  # any can be asked for first, and another seed gives another order
        assert ShardOrder(sizes, seed=(4,)).locate(turn) == epochs[turn // total][turn % total]
    assert [ShardOrder(sizes, seed=(5,)).locate(turn) for turn in range(total)] != epochs[0]


def test_folders_come_by_weight_and_none_loses_its_place(tmp_path: Path) -> None:
    parts = []
    for name, sizes in (("a", [5, 0, 70, 3]), ("b", [1] * 41), ("c", [9])):
        shards = [[document(f"{name} {shard} {row}") for row in range(size)] for shard, size in enumerate(sizes)]
        parts.append(ShardFolder(prepared(tmp_path / name, shards, CODE_SOURCE)))
    mixture = Mixture(parts, [5, 2, 1], seed=3)
    turns = [mixture.locate(index) for index in range(2 * BLOCK)]
    counts = Counter(folder for folder, _, _ in turns)
    assert [counts[folder] for folder in range(3)] == (2 * block_quota([5, 2, 1])).tolist()
    quota = block_quota(weights := [0.123, 4.56, 7.8, 0.01])
    assert quota.sum() == BLOCK and quota.min() >= 1
    assert (np.abs(quota - np.array(weights) / sum(weights) * BLOCK) <= 1).all()
    for number, folder in enumerate(parts):  # each folder's samples, in order, are its epochs one after the other
        own = [(shard, row) for place, shard, row in turns if place == number]
        order = ShardOrder(folder.num_rows, seed=(3, number))
        assert own == [order.locate(turn) for turn in range(len(own))]
    assert abs(Counter(folder for folder, _, _ in turns[:400])[0] - 250) < 40, "parts come mixed, not one after another"


@pytest.fixture
def recipe(mllm_recipe: MLLMRecipe, image_tokenizer: UniTok, tmp_path: Path) -> MLLMRecipe:
    write_raw(tmp_path / "raw")
    for name, files in {"images": ["captions.tar", "llava.json"], "words": ["documents.jsonl", "text.jsonl"]}.items():
        prepare_with(image_tokenizer, *(tmp_path / "raw" / file for file in files), out=tmp_path / name)
    shards = [ShardSource(path="images", weight=2.0), ShardSource(path=str(tmp_path / "words"))]
    data = MLLMData(shards=shards, root=tmp_path, packing_buffers=2, buffer_size=12, describe_share=0.5)
    return changed(mllm_recipe, data=data, length=96)


def test_a_resumed_run_equals_an_uninterrupted_one_and_workers_change_nothing(recipe: MLLMRecipe) -> None:
    train_mllm(recipe)
    whole = losses(recipe.output)
    assert len(whole) == 6 and max(losses(recipe.output, "padding_share").values()) < 0.2
    check_resumed(recipe, "checkpoint-4", "checkpoint-6")
    validation = Validation(batches=2, shards=recipe.data.shards)
    trainer = {"dataloader_num_workers": 2, "eval_strategy": "steps", "eval_steps": 6}
    other = changed(recipe, trainer, validation=validation, output=recipe.output.parent / "other")
    train_mllm(other)
    assert losses(other.output) == whole
    assert all(losses(other.output, f"eval_{name}_loss").keys() == {6} for name in ("images", "words"))


def test_a_sheet_is_drawn_without_held_out_shards(recipe: MLLMRecipe) -> None:
    train_mllm(changed(recipe, {"max_steps": 1, "eval_steps": 1}, validation=Validation(prompts=["a red circle"])))
    assert (recipe.output / "samples" / "step-1.png").is_file() and not losses(recipe.output, "eval_loss")
