"""Packed batches of prepared data: nothing lost or twice, little padding, and the same batch whoever asks and when."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.conversation import Message, TextPart
from mllm.sequence import IGNORED, PackedBatch
from mllm.vocabulary import extend_tokenizer, load_text_tokenizer
from tests.train.data.raw_data import document, pair, prepared
from train.data.packing import ANCHOR_EVERY, Anchor, Anchors, Mixture, PackedBatches, SampleOptions, ShardSequences
from train.data.shards import CodesOf, Row, ShardFolder

CODES_OF = CodesOf("0123", 2, 16)
LENGTH = 61
LANES = 6


@pytest.fixture(scope="module")
def tokenizer(text_tokenizer_file: Path) -> PreTrainedTokenizerBase:
    return load_text_tokenizer(text_tokenizer_file)


@pytest.fixture(scope="module")
def config(tokenizer: PreTrainedTokenizerBase) -> MLLMConfig:
    vocabulary = extend_tokenizer(tokenizer)
    text = {"vocab_size": vocabulary.size, "hidden_size": 8, "num_attention_heads": 2}
    return MLLMConfig(text_config=text, num_codebooks=2, codebook_size=16, image_size=32, **vocabulary.config_fields())


def chat(number: int, rng: Random) -> Row:
    """A dialogue about one or two pictures."""
    codes = [part for seed in range(rng.randint(1, 2)) for part in pair(["x"], CODES_OF, seed).messages[1].parts]
    words = " ".join(rng.choices(["red", "blue", "circle", "star"], k=rng.randint(1, 9)))
    question = Message("user", (*codes[:1], TextPart(f"chat {number}")))
    return Row("chat", (question, Message("assistant", (*codes[1:], TextPart(words)))), "chat.jsonl", str(number))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[ShardFolder]:
    path, rng = tmp_path_factory.mktemp("packed"), Random(0)
    words = ["the", "circle", "is", "large", "and", "blue"]
    kinds = {
        "pairs": [pair([f"caption {number} " + "red " * rng.randint(0, 8)], CODES_OF, number) for number in range(70)],
        "chats": [chat(number, rng) for number in range(50)],
        "texts": [
            document(f"text {number} " + " ".join(rng.choices(words, k=rng.randint(0, 40)))) for number in range(60)
        ],
    }
    shards = {name: [rows[:13], rows[13:40], rows[40:]] for name, rows in kinds.items()}
    return [ShardFolder(str(prepared(path / name, parts, CODES_OF))) for name, parts in shards.items()]


@pytest.fixture
def make(folders: list[ShardFolder], tokenizer: PreTrainedTokenizerBase, config: MLLMConfig):
    """Batches of the mixture, made anew as another process would."""

    def make(
        length: int = LENGTH, num_batches: int = 60, some: slice = slice(None), **options: object
    ) -> PackedBatches:
        sequences = ShardSequences(
            Mixture(folders[some], [3.0, 2.0, 1.0][some], seed=5),
            SampleOptions(prompt_dropout=0.2, describe_share=0.3),
            tokenizer=tokenizer,
            config=config,
            length=length,
        )
        defaults = {"rows": 2, "num_lanes": LANES, "lookahead": 9}
        return PackedBatches(
            sequences, num_batches=num_batches, pad_token_id=config.pad_token_id, **(defaults | options)
        )

    return make


def same(first: PackedBatch, second: PackedBatch) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def samples_of(batch: PackedBatch) -> Iterator[tuple]:
    """The samples of a batch: their ids and labels."""
    for row, segments in enumerate(batch["segment_ids"]):
        for number in range(1, int(segments.max()) + 1):
            is_own = segments == number
            yield tuple(batch["input_ids"][row, is_own].tolist()), tuple(batch["labels"][row, is_own].tolist())


def test_a_lane_holds_its_samples_once_and_in_full(make) -> None:
    """Against a plain reading: what is packed is what the samples are; what is missing still waits."""
    batches = make(num_batches=10 * LANES)
    packed = Counter(sample[0] for turn in range(10) for sample in samples_of(batches[turn * LANES + 4]))
    lane = batches.lanes[4]
    read = [piece for turn in range(lane.sample) for piece in batches.sequences[turn * LANES + 4]]
    expected = Counter(tuple(sequence.token_ids_T.tolist()) for sequence in read)
    waiting = Counter(tuple(sequence.token_ids_T.tolist()) for _, _, sequence in lane.waiting)
    assert sum(packed.values()) > 20 and packed + waiting == expected


def test_the_oldest_never_waits_for_long(make) -> None:
    batches = make()
    for turn in range(10):
        batches[turn * LANES]
        lane = batches.lanes[0]
        assert lane.sample - min(sample for sample, _, _ in lane.waiting) <= 2 * batches.lookahead


def test_a_batch_is_the_same_whenever_it_is_asked_for(make) -> None:
    straight = make()
    expected = [straight[index] for index in range(60)]
    again = make()
    for index in (59, 3, 40, 0, 41, 40):
        assert same(again[index], expected[index])
    assert not same(expected[0], expected[1])


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_any_number_of_workers_gives_the_same_batches(make, num_workers: int) -> None:
    expected = make(num_batches=14)
    loader = DataLoader(make(num_batches=14), batch_size=None, num_workers=num_workers)
    for index, batch in enumerate(loader):
        assert same(batch, expected[index])
    assert index == 13


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_batches(make, world_size: int) -> None:
    expected = make(num_batches=12)
    for rank in range(world_size):
        own = make(num_batches=12)
        share: Dataset = Subset(own, range(rank, 12, world_size))
        for turn, batch in enumerate(DataLoader(share, batch_size=None, num_workers=rank)):
            assert same(batch, expected[turn * world_size + rank])


def test_a_process_reads_only_its_lanes(make) -> None:
    batches = make()
    read = []
    sequences = batches.sequences

    class Noting:
        length = sequences.length

        def __getitem__(self, index: int):
            read.append(index)
            return sequences[index]

    batches.sequences = Noting()
    for index in range(1, 60, 3):
        batches[index]
    assert {index % LANES for index in read} == {1, 4} and len(read) == len(set(read))


def test_a_resumed_run_goes_on_from_the_notes(make, tmp_path: Path) -> None:
    """In mid-epoch, in a new process: the same batches, and without reading from the beginning."""
    total = LANES * (2 * ANCHOR_EVERY + 5)
    straight = make(num_batches=total, anchors=tmp_path / "notes")
    expected = [straight[index] for index in range(total)]
    begin = LANES * (2 * ANCHOR_EVERY + 2) + 1
    resumed = make(num_batches=total, anchors=tmp_path / "notes")
    read: list[int] = []
    read_one = resumed.sequences.__class__.__getitem__
    resumed.sequences.__class__ = type(
        "Noting", (ShardSequences,), {"__getitem__": lambda self, index: read.append(index) or read_one(self, index)}
    )
    for index in range(begin, total):
        assert same(resumed[index], expected[index])
    everything = sum(lane.sample for lane in straight.lanes.values())
    assert len(read) < 0.35 * everything
    assert same(make(num_batches=total)[begin], expected[begin]), "the notes are not needed"


def test_notes_survive_a_kill_and_are_kept_once(tmp_path: Path) -> None:
    notes = [Anchor(16, 40, ((3, 0), (7, 1))), Anchor(32, 90, ())]
    for note in (*notes, notes[0]):
        Anchors(tmp_path).note(5, note)
    file = tmp_path / "lane-00005.jsonl"
    assert len([line for line in file.read_text().splitlines() if line]) == 2
    file.write_text(file.read_text() + '\n{"batch": 48, "sam')
    anchors = Anchors(tmp_path)
    assert [anchors.nearest(5, batch) for batch in (15, 16, 31, 1000)] == [None, notes[0], notes[0], notes[1]]
    anchors.note(5, Anchor(48, 130, ()))
    assert Anchors(tmp_path).nearest(5, 48) == Anchor(48, 130, ()) and anchors.nearest(6, 48) is None


@pytest.mark.parametrize("length", [96, 150, 320])
def test_padding_is_below_5_percent_on_mixed_data(make, length: int) -> None:
    batches = make(length=length, lookahead=64)
    padding = torch.stack([(batches[index]["segment_ids"] == 0).float().mean() for index in range(60)])
    assert padding.mean() < 0.05


def test_samples_do_not_see_or_learn_from_each_other(make) -> None:
    batches = make()
    for index in range(20):
        batch = batches[index]
        begins = batch["position_ids"] == 0
        is_sample = batch["segment_ids"] > 0
        for row in range(2):
            for number in range(1, int(batch["segment_ids"][row].max()) + 1):
                places = batch["position_ids"][row][batch["segment_ids"][row] == number]
                assert places.tolist() == list(range(len(places)))
        assert (batch["labels"][begins] == IGNORED).all() and (batch["labels"][~is_sample] == IGNORED).all()


def test_images_are_never_cut(make, config: MLLMConfig) -> None:
    """Long documents are cut into pieces, between images only."""
    batches = make(length=23, some=slice(1, 3))
    for index in range(30):
        batch = batches[index]
        is_image = batch["input_ids"] == config.image_token_id
        assert (batch["image_lengths"] == 4).all() and is_image.sum() == len(batch["codes"]) == len(
            batch["code_targets"]
        )
        for ids, _ in samples_of(batch):
            frames = [token for token in ids if token in (config.begin_image_id, config.end_image_id)]
            assert frames == [config.begin_image_id, config.end_image_id] * (len(frames) // 2)


def test_samples_that_cannot_fit_are_reported_and_left_out(make, caplog: pytest.LogCaptureFixture) -> None:
    batches = make(length=23, some=slice(1, 2))
    with caplog.at_level(logging.WARNING):
        batches[0]
    longest = [record.getMessage() for record in caplog.records]
    assert longest and all("chat.jsonl, " in line and "a row has 23; left out" in line for line in longest)
    with pytest.raises(ValueError, match="no sample fits: found 10000"):
        make(length=5, some=slice(0, 1))[0]


def test_documents_longer_than_a_row_are_learned_whole(make, tokenizer: PreTrainedTokenizerBase) -> None:
    batches = make(length=16, some=slice(2, 3), num_lanes=1, num_batches=40)
    sequences = batches.sequences
    whole = make(length=4000, some=slice(2, 3)).sequences
    for index in range(60):
        ids = [token for piece in sequences[index] for token in piece.token_ids_T.tolist()]
        assert ids == whole[index][0].token_ids_T.tolist()
        assert all(len(piece) <= 16 for piece in sequences[index])


def test_instructions_are_dropped_and_pictures_described_as_often_as_asked(
    make, tokenizer: PreTrainedTokenizerBase, config: MLLMConfig
) -> None:
    sequences = make(some=slice(0, 1)).sequences
    texts = [tokenizer.decode(sequences[index][0].token_ids_T) for index in range(600)]
    described = [sequences[index][0].code_targets_P.any() for index in range(600)].count(False)
    dropped = sum("<unconditional>" in text for text in texts)
    assert abs(described - 180) < 40 and abs(dropped - 0.2 * 420) < 30


def test_an_error_names_the_record(make, config: MLLMConfig) -> None:
    sequences = make().sequences
    sequences.config = MLLMConfig(**{**config.to_dict(), "image_size": 48})
    with pytest.raises(ValueError, match=r"made.tar, \d+: the fixed layout has one grid: found 2 x 2"):
        for index in range(9):
            sequences[index]


def test_settings_that_make_no_sense_are_refused(make) -> None:
    for name in ("rows", "num_lanes", "lookahead"):
        with pytest.raises(ValueError, match="of 1 or more"):
            make(**{name: 0})
