"""Packing against a plain reading of its rows: nothing lost, nothing cut, samples apart."""

from itertools import combinations

import numpy as np
import pytest

from mllm.sequence import IGNORED, pack, pack_rows, sample_numbers, take_row
from tests.mllm.engine_helpers import IDS
from tests.mllm.learned_samples import learned_sample

PLANS = (["text", "IMAGE"], ["text", "TEXT"], ["text", "image", "TEXT", "IMAGE"], ["text", "image", "TEXT"])
SAMPLES = [learned_sample(seed=seed, plan=PLANS[seed % len(PLANS)]) for seed in range(11)]


def test_every_sample_can_be_read_back_from_the_rows() -> None:
    batch = pack(SAMPLES, length=47, pad_token_id=0)
    is_image_BT = batch["input_ids"] == IDS["image_token_id"]
    positions, images = iter(range(len(batch["codes"]))), iter(batch["image_lengths"].tolist())
    found = []
    for row, segments in enumerate(sample_numbers(batch["position_ids"])):
        for number in range(1, int(segments.max()) + 1):
            places = (segments == number).nonzero()[:, 0]
            assert places.tolist() == list(range(int(places[0]), int(places[-1]) + 1)), "a sample is one run"
            assert batch["position_ids"][row, places].tolist() == list(range(len(places)))
            taken = [next(positions) for _ in range(int(is_image_BT[row, places].sum()))]
            lengths = []
            while sum(lengths) < len(taken):
                lengths.append(next(images))
            labels = batch["labels"][row, places].tolist()
            content = (batch["input_ids"][row, places].tolist(), labels, batch["codes"][taken].tolist(), lengths)
            found.append((*content, batch["code_targets"][taken].tolist()))
        is_padding = segments == 0
        assert (batch["labels"][row][is_padding] == IGNORED).all() and (batch["input_ids"][row][is_padding] == 0).all()
    expected = [
        (
            s.token_ids_T.tolist(),
            s.labels_T.tolist(),
            s.codes_PK.tolist(),
            s.image_lengths_I.tolist(),
            s.code_targets_P.tolist(),
        )
        for s in SAMPLES
    ]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert next(positions, None) is None and next(images, None) is None


def test_a_label_at_the_start_of_a_sample_is_dropped() -> None:
    """It would be predicted from the sample before it."""
    sample = learned_sample(seed=0, plan=["TEXT"])
    labelled = type(sample)(
        **{name: getattr(sample, name) for name in sample.__slots__} | {"labels_T": sample.token_ids_T}
    )
    batch = pack([labelled, labelled], length=2 * len(sample), pad_token_id=0)
    assert (batch["labels"][batch["position_ids"] == 0] == IGNORED).all()
    assert (batch["labels"] == IGNORED).sum() == 2


def test_too_long_and_empty_are_refused() -> None:
    with pytest.raises(ValueError):
        pack(SAMPLES, length=8, pad_token_id=0)
    with pytest.raises(ValueError):
        pack([], length=8, pad_token_id=0)


def test_a_row_is_filled_as_well_as_possible() -> None:
    """Against trying every choice that holds the first sequence."""
    choices, room = [(0, *some) for count in range(9) for some in combinations(range(1, 9), count)], 71
    for seed in range(9):
        lengths = np.random.default_rng(seed).integers(1, 40, 9).tolist()
        sums = [sum(lengths[index] for index in choice) for choice in choices]
        taken = take_row(lengths, room)
        assert tuple(taken) in choices
        assert sum(lengths[index] for index in taken) == max(total for total in sums if total <= room)


def test_of_equal_fillings_the_earlier_sequences_are_taken() -> None:
    assert take_row([5, 3, 9, 4, 3, 1, 4], 13) == [0, 1, 3, 5]  # not 0, 3, 6
    assert take_row([13, 1], 13) == [0] and take_row([2], 13) == [0] and take_row([], 13) == []


def test_rows_that_are_filled_already_become_a_batch() -> None:
    batch = pack_rows([SAMPLES[:2], SAMPLES[2:3]], length=60, pad_token_id=0)
    reference = pack(SAMPLES[:3], length=60, pad_token_id=0)
    assert sample_numbers(batch["position_ids"]).max(dim=1).values.tolist() == [2, 1]
    assert batch["codes"].equal(reference["codes"])
    with pytest.raises(ValueError):
        pack_rows([], length=60, pad_token_id=0)
