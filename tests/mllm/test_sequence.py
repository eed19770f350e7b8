"""From messages to ids, and the text tokenizer below: prompts are prefixes, text is never a special token."""

import copy
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart, Message, Segment, TextPart
from mllm.sequence import (
    IGNORED,
    build_sequence,
    cut_sequence,
    encode_segments,
    pack,
    pack_rows,
    sample_numbers,
    take_row,
)
from mllm.vocabulary import (
    OLD_PLAN,
    PLAN,
    Vocabulary,
    decode_text,
    encode_text,
    extend_tokenizer,
    load_text_tokenizer,
    save_text_tokenizer,
)
from tests.mllm.engine_helpers import IDS, learned_sample
from tests.mllm.tiny_folder import write_text_tokenizer

TEXTS = (" a red circle", " what?", "USER:", "  two  spaces ", " \u4f60\u00e9\n\tz", " </s><image><s>", " 12")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tokenizer.model"
    write_text_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(model_file: Path) -> PreTrainedTokenizerBase:
    return load_text_tokenizer(model_file)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    return extend_tokenizer(tokenizer, max_grid_side=5)


def config_of(vocabulary: Vocabulary, **fields: object) -> MLLMConfig:
    text = {"vocab_size": vocabulary.size, "hidden_size": 8, "num_attention_heads": 2}
    sizes = {"num_codebooks": 3, "codebook_size": 11, "image_size": 48}
    return MLLMConfig(text_config=text, **sizes, **{**vocabulary.config_fields(), **fields})


def codes(rows: int, columns: int) -> CodesPart:
    values = np.arange(3 * rows * columns, dtype=np.uint16).reshape(3, -1) % 11
    return CodesPart(values, (rows, columns))


def test_special_tokens_have_names_and_are_added_once(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
) -> None:
    assert vocabulary.size == 330 + 3 + 1 + 2 * 5
    assert (vocabulary.pad_token_id, vocabulary.bos_token_id, vocabulary.eos_token_id) == (0, 1, 2)
    assert vocabulary.first_column_size_id == vocabulary.first_row_size_id + 5
    assert extend_tokenizer(tokenizer, max_grid_side=5) == vocabulary
    earlier = copy.deepcopy(tokenizer)
    earlier.add_tokens([OLD_PLAN], special_tokens=True)
    assert extend_tokenizer(earlier, plans=True).begin_plan_id == earlier.convert_tokens_to_ids(OLD_PLAN)
    assert PLAN not in earlier.get_vocab()


@pytest.mark.parametrize("layout", ["fixed", "grid"])
def test_an_outline_is_learned_with_its_marker(model_file: Path, layout: str) -> None:
    """Where sizes differ it begins with that of its image, as what can be where depends on it; that is dictated when
    decoding, so it is not learned."""
    tokenizer = load_text_tokenizer(model_file)
    vocabulary = extend_tokenizer(tokenizer, max_grid_side=5, plans=True)
    config, marker = config_of(vocabulary, image_layout=layout), vocabulary.begin_plan_id
    assert marker == vocabulary.size - 1
    messages = [
        Message("user", (replace(codes(3, 3), plan="seen"), TextPart("a red circle"))),
        Message("assistant", (replace(codes(3, 3), plan="red circle 12"),)),
    ]
    sequence = build_sequence(messages, tokenizer=tokenizer, config=config)
    sizes = [vocabulary.first_row_size_id + 2, vocabulary.first_column_size_id + 2] if layout == "grid" else []
    words = [*encode_text(tokenizer, " red circle 12"), vocabulary.begin_image_id]
    ids = sequence.token_ids_T.tolist()
    seen, seen_end, start = (place for place, id_ in enumerate(ids) if id_ == marker)
    assert ids[seen + 1 : seen_end] == encode_text(tokenizer, " seen")  # after an image, whose size was said
    place = slice(start, start + 1 + len(sizes) + len(words))
    assert ids[place] == [marker, *sizes, *words]
    assert sequence.labels_T[place].tolist() == [marker, *[IGNORED] * len(sizes), *words]
    with pytest.raises(ValueError):
        build_sequence(messages, tokenizer=tokenizer, config=config_of(vocabulary, begin_plan_id=None))


def test_saved_files_give_the_same_ids(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, model_file: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    save_text_tokenizer(tokenizer, first)
    save_text_tokenizer(load_text_tokenizer(first), second)
    for folder in (first, second):
        assert (folder / "tokenizer.model").read_bytes() == model_file.read_bytes()
        for loaded in (load_text_tokenizer(folder), AutoTokenizer.from_pretrained(folder)):
            found = [encode_text(loaded, text) for text in TEXTS]
            assert found == [encode_text(tokenizer, text) for text in TEXTS]
            assert all(ids and min(ids) > 2 and max(ids) < vocabulary.begin_image_id for ids in found), "only text"
            assert [decode_text(loaded, ids) for ids in found] == [text.strip() for text in TEXTS]
            assert extend_tokenizer(loaded, max_grid_side=5) == vocabulary
    with pytest.raises(FileNotFoundError):
        load_text_tokenizer(tmp_path / "nothing")


DIALOGUE = [
    Message("user", (TextPart("a red circle"),)),
    Message("assistant", (TextPart("yes"), codes(2, 3))),
    Message("user", (TextPart("what color is it?"), codes(1, 2))),
    Message("assistant", (TextPart("red"),)),
]


def test_ids_and_labels_of_a_whole_dialogue(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
    v, config = vocabulary, config_of(vocabulary, image_layout="grid")
    image, line = v.image_token_id, v.new_line_id

    def frame(rows: int, columns: int) -> list[int]:
        sizes = [v.first_row_size_id + rows - 1, v.first_column_size_id + columns - 1]
        return [v.begin_image_id, *sizes, *([image] * columns + [line]) * rows, v.end_image_id]

    def text(words: str) -> list[int]:
        return encode_text(tokenizer, words)

    begin, *rest = frame(2, 3)
    pieces = [
        ([1, *text("USER:"), *text(" a red circle"), *text(" ASSISTANT:")], False),
        ([*text(" yes"), begin], True),
        (rest, False),
        ([2], True),
        (text("USER:") + text(" what color is it?") + frame(1, 2) + text(" ASSISTANT:"), False),
        (text(" red") + [2], True),
    ]
    sequence = build_sequence(DIALOGUE, tokenizer=tokenizer, config=config)
    assert sequence.token_ids_T.tolist() == [i for ids, _ in pieces for i in ids]
    assert sequence.labels_T.tolist() == [i if learned else IGNORED for ids, learned in pieces for i in ids]
    assert sequence.image_lengths_I.tolist() == [6, 2]
    assert sequence.code_targets_P.tolist() == [True] * 6 + [False] * 2
    assert sequence.codes_PK.tolist() == codes(2, 3).codes_KN.T.tolist() + codes(1, 2).codes_KN.T.tolist()


def test_a_prompt_is_a_prefix_of_its_sample(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
    config = config_of(vocabulary, image_layout="grid")
    for turns in (1, 3):
        prompt = build_sequence(DIALOGUE[:turns], tokenizer=tokenizer, config=config, add_generation_prompt=True)
        sample = build_sequence(DIALOGUE[: turns + 1], tokenizer=tokenizer, config=config)
        assert sample.token_ids_T[: len(prompt)].tolist() == prompt.token_ids_T.tolist()
        assert sample.labels_T[len(prompt)] != IGNORED and (prompt.labels_T[-2:] == IGNORED).all()
    few, large = np.zeros((2, 9), dtype=np.uint16), np.full((3, 4), 11, dtype=np.uint16)
    for foreign in (CodesPart(few, (3, 3)), CodesPart(large, (2, 2))):
        with pytest.raises(ValueError, match="own image tokenizer"):
            build_sequence([Message("user", (foreign,)), DIALOGUE[3]], tokenizer=tokenizer, config=config)
    with pytest.raises(TypeError):
        encode_segments([Segment(3)], tokenizer=tokenizer, config=config)


@pytest.mark.parametrize("layout", ["fixed", "grid", "bare"])
@pytest.mark.parametrize("length", [14, 17, 31])
def test_a_long_document_is_cut_between_images(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, layout: str, length: int
) -> None:
    config = config_of(vocabulary, image_layout=layout)
    side = 2 if layout == "grid" else 3
    parts = (TextPart("what color is it?"), codes(side, side), codes(side, side), TextPart("a red circle, no."))
    sequence = build_sequence([Message("assistant", parts * 3)], tokenizer=tokenizer, config=config)
    pieces = cut_sequence(sequence, length, config=config)
    for name in sequence.__slots__:
        assert np.concatenate([getattr(piece, name) for piece in pieces]).tolist() == getattr(sequence, name).tolist()
    assert len(pieces) > 3 and max(map(len, pieces)) <= length
    assert all(piece.image_lengths_I.sum() == len(piece.codes_PK) == len(piece.code_targets_P) for piece in pieces)
    assert all((piece.token_ids_T == config.image_token_id).sum() == piece.image_lengths_I.sum() for piece in pieces)
    assert cut_sequence(sequence, 4, config=config) is None, "an image alone is longer"
    assert len(cut_sequence(sequence, len(sequence), config=config)) == 1


# ---- packing, against a plain reading of its rows: nothing lost, nothing cut, samples apart ----

PLANS = (["text", "IMAGE"], ["text", "TEXT"], ["text", "image", "TEXT", "IMAGE"], ["text", "image", "TEXT"])
SAMPLES = [learned_sample(seed=seed, plan=PLANS[seed % len(PLANS)]) for seed in range(11)]


def test_every_sample_can_be_read_back_from_the_rows() -> None:
    batch = pack(SAMPLES, length=47, pad_token_id=0)
    is_image_BT = batch["input_ids"] == IDS["image_token_id"]
    positions, images = iter(range(len(batch["codes"]))), iter(batch["image_lengths"].tolist())
    found = []
    for row, segments in enumerate(sample_numbers(batch["position_ids"])):
        for number in range(1, int(segments.max()) + 1):
            (places,) = (segments == number).nonzero(as_tuple=True)
            assert places.tolist() == list(range(int(places[0]), int(places[-1]) + 1)), "a sample is one run"
            assert batch["position_ids"][row, places].tolist() == list(range(len(places)))
            taken = [next(positions) for _ in range(int(is_image_BT[row, places].sum()))]
            lengths: list[int] = []
            while sum(lengths) < len(taken):
                lengths.append(next(images))
            texts = [batch[name][row, places].tolist() for name in ("input_ids", "labels")]
            found.append([*texts, batch["codes"][taken].tolist(), lengths, batch["code_targets"][taken].tolist()])
        assert (batch["labels"][row][segments == 0] == IGNORED).all() and not batch["input_ids"][row][
            segments == 0
        ].any()
    expected = [[getattr(sample, name).tolist() for name in sample.__slots__] for sample in SAMPLES]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert next(positions, None) is None and next(images, None) is None
    for samples, length in ((SAMPLES, 8), ([], 8)):
        with pytest.raises(ValueError):
            pack(samples, length=length, pad_token_id=0)
    rows = [SAMPLES[:2], SAMPLES[2:3]]  # filled already
    assert sample_numbers(pack_rows(rows, length=60, pad_token_id=0)["position_ids"]).amax(dim=1).tolist() == [2, 1]


def test_a_label_at_the_start_of_a_sample_is_dropped() -> None:
    """It would be predicted from the sample before it."""
    sample = learned_sample(seed=0, plan=["TEXT"])
    labelled = replace(sample, labels_T=sample.token_ids_T)
    batch = pack([labelled, labelled], length=2 * len(sample), pad_token_id=0)
    assert (batch["labels"][batch["position_ids"] == 0] == IGNORED).all()
    assert (batch["labels"] == IGNORED).sum() == 2


def test_a_row_is_filled_as_well_as_possible() -> None:
    """Against trying every choice that holds the first sequence."""
    choices, room = [(0, *some) for count in range(9) for some in combinations(range(1, 9), count)], 71
    for seed in range(9):
        lengths = np.random.default_rng(seed).integers(1, 40, 9).tolist()
        sums = [sum(lengths[index] for index in choice) for choice in choices]
        taken = take_row(lengths, room)
        assert tuple(taken) in choices
        assert sum(lengths[index] for index in taken) == max(total for total in sums if total <= room)
    # of equal fillings the earlier sequences: not 0, 3, 6
    assert take_row([5, 3, 9, 4, 3, 1, 4], 13) == [0, 1, 3, 5]
    assert take_row([13, 1], 13) == [0] and take_row([2], 13) == [0] and take_row([], 13) == []
