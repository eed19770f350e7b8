"""The mixture as a list: weights, order, epochs, and that a number alone decides what a sample is."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.train.data.raw_data import content, document, prepared
from train.data.mixture import BLOCK, SHARDS_AT_ONCE, Mixture, ShardOrder, block_quota
from train.data.shards import OPEN_FILES, ROW_GROUPS, CodeSource, ShardFolder

CODE_SOURCE = CodeSource("tokenizer", 2, 16)


def make_folder(path: Path, name: str, sizes: list[int]) -> ShardFolder:
    shards = [[document(f"{name} {shard} {row}") for row in range(size)] for shard, size in enumerate(sizes)]
    return ShardFolder(prepared(path / name, shards, CODE_SOURCE))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[ShardFolder]:
    path = tmp_path_factory.mktemp("mixture")
    return [make_folder(path, "a", [5, 0, 70, 3]), make_folder(path, "b", [1] * 41), make_folder(path, "c", [9])]


def test_each_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    sizes = np.array([3, 0, 7, 1, *[2] * (2 * SHARDS_AT_ONCE), 5])
    order = ShardOrder(sizes, seed=(4,))
    every = sorted((shard, row) for shard, size in enumerate(sizes) for row in range(size))
    total = len(every)
    epochs = [[order.locate(epoch * total + place) for place in range(total)] for epoch in range(3)]
    assert all(sorted(epoch) == every for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    for turn in (total + 5, 0):  # any can be asked for first, and another seed gives another order
        assert ShardOrder(sizes, seed=(4,)).locate(turn) == epochs[turn // total][turn % total]
    assert [ShardOrder(sizes, seed=(5,)).locate(turn) for turn in range(total)] != epochs[0]


def test_only_neighbouring_shards_are_shuffled_together() -> None:
    order = ShardOrder(np.full(100, 6), seed=(0,))
    for begin in range(0, 600, SHARDS_AT_ONCE * 6):
        places = range(begin, min(begin + SHARDS_AT_ONCE * 6, 600))
        assert len({order.locate(place)[0] for place in places}) <= SHARDS_AT_ONCE


def test_a_block_holds_folders_by_weight() -> None:
    for weights in ([1.0], [3, 1, 1], [1e-9, 1.0], [0.123, 4.56, 7.8, 0.01], [1] * 37):
        quota = block_quota(weights)
        shares = np.array(weights) / sum(weights) * BLOCK
        assert quota.sum() == BLOCK and quota.min() >= 1
        assert (np.abs(quota - shares) <= 1).all()


def test_folders_come_by_weight_and_none_loses_its_place(folders: list[ShardFolder]) -> None:
    mixture = Mixture(folders, [5, 2, 1], seed=3)
    turns = [mixture.locate(index) for index in range(2 * BLOCK)]
    counts = Counter(folder for folder, _, _ in turns)
    assert [counts[folder] for folder in range(3)] == (2 * block_quota([5, 2, 1])).tolist()
    for number, folder in enumerate(folders):  # each folder's samples, in order, are its epochs one after the other
        own = [(shard, row) for place, shard, row in turns if place == number]
        order = ShardOrder(folder.num_rows, seed=(3, number))
        assert own == [order.locate(turn) for turn in range(len(own))]
    first = Counter(folder for folder, _, _ in turns[:400])
    assert abs(first[0] - 250) < 40, "folders come mixed, not one after another"


def test_samples_are_a_function_of_their_number(folders: list[ShardFolder]) -> None:
    straight = Mixture(folders, [5, 2, 1], seed=3)
    expected = [content(straight[index]) for index in range(90)]
    mixture = pickle.loads(pickle.dumps(Mixture(folders, [5, 2, 1], seed=3)))
    assert [content(mixture[index]) for index in reversed(range(90))] == expected[::-1]
    other = Mixture(folders, [5, 2, 1], seed=4)
    assert [content(other[index]) for index in range(90)] != expected


def test_what_is_kept_open_does_not_grow(folders: list[ShardFolder]) -> None:
    mixture = Mixture(folders, [1, 9, 1], seed=0)
    for index in range(500):
        mixture[index]
    assert all(folder.open_shard.cache_info().currsize <= OPEN_FILES for folder in folders)
    assert folders[1].open_shard.cache_info().currsize == OPEN_FILES
    assert all(folder.row_group.cache_info().currsize <= ROW_GROUPS for folder in folders)
