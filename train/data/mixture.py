"""A weighted mixture of prepared folders as one endless list: sample i is a pure function of i and the seed.

Which folder: time runs in blocks of 4096 samples; each block holds every folder as often as its weight says, in an
order of its own. Which row: a folder is gone through again and again; each time its shards come in a new order, and
the rows of 16 neighbouring shards are shuffled together, so only those are open. Nothing here depends on how many
processes or workers ask, and there is no state to save.

Letters: F folders, B places of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from train.data.shard_folder import ShardFolder
from train.data.shard_format import Row

BLOCK = 4096
SHARDS_AT_ONCE = 16
"""Shards whose rows are shuffled together."""


class Mixture:
    """Rows of several folders by number."""

    def __init__(self, folders: Sequence[ShardFolder], weights: Sequence[float], *, seed: int) -> None:
        if len(folders) != len(weights) or not 0 < len(folders) <= BLOCK or min(weights) <= 0:
            raise ValueError(
                f"a mixture needs a weight above 0 for each folder: found {list(weights)} for {len(folders)} folders; "
                "mend data.shards"
            )
        self.folders, self.seed = list(folders), seed
        self.quota_F = block_quota(weights)
        self.orders = [ShardOrder(folder.num_rows, seed=(seed, place)) for place, folder in enumerate(folders)]
        self.block: tuple[int, np.ndarray, np.ndarray] | None = None

    def locate(self, index: int) -> tuple[int, int, int]:
        """Folder, shard and row of sample `index`."""
        number, place = divmod(index, BLOCK)
        if self.block is None or self.block[0] != number:
            self.block = (number, *self._make_block(number))
        _, folder_B, turn_B = self.block
        folder = int(folder_B[place])
        return (folder, *self.orders[folder].locate(number * int(self.quota_F[folder]) + int(turn_B[place])))

    def __getitem__(self, index: int) -> Row:
        folder, shard, row = self.locate(index)
        return self.folders[folder].row(shard, row)

    def _make_block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block, its folder and how often that folder came before in the block."""
        folder_B = np.repeat(np.arange(len(self.quota_F)), self.quota_F)
        folder_B = np.random.default_rng((self.seed, number)).permutation(folder_B)
        turn_B = np.empty(BLOCK, dtype=np.int64)
        for folder, quota in enumerate(self.quota_F):
            turn_B[folder_B == folder] = np.arange(quota)
        return folder_B, turn_B


class ShardOrder:
    """In which order the rows of one folder come."""

    def __init__(self, num_rows: np.ndarray, *, seed: tuple[int, ...]) -> None:
        self.num_rows, self.seed = num_rows, seed
        self.total = int(num_rows.sum())
        self._epoch = lru_cache(2)(self._make_epoch)
        self._window = lru_cache(2)(self._make_window)

    def __reduce__(self) -> tuple:
        return _rebuild, (self.num_rows, self.seed)

    def locate(self, turn: int) -> tuple[int, int]:
        """Shard and row of the folder's sample number `turn`; after all rows they come again."""
        epoch, place = divmod(turn, self.total)
        order, ends = self._epoch(epoch)
        window = int(np.searchsorted(ends[SHARDS_AT_ONCE - 1 :: SHARDS_AT_ONCE], place, side="right"))
        first = window * SHARDS_AT_ONCE
        begin = int(ends[first - 1]) if first else 0
        mixed = begin + int(self._window(epoch, window)[place - begin])
        number = int(np.searchsorted(ends, mixed, side="right"))
        return int(order[number]), mixed - (int(ends[number - 1]) if number else 0)

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards in this epoch's order, and how many rows there are up to the end of each."""
        order = np.random.default_rng((*self.seed, epoch)).permutation(len(self.num_rows))
        return order, np.cumsum(self.num_rows[order])

    def _make_window(self, epoch: int, window: int) -> np.ndarray:
        order, _ = self._epoch(epoch)
        rows = self.num_rows[order[window * SHARDS_AT_ONCE : (window + 1) * SHARDS_AT_ONCE]].sum()
        return np.random.default_rng((*self.seed, epoch, window)).permutation(int(rows))


def _rebuild(num_rows: np.ndarray, seed: tuple[int, ...]) -> ShardOrder:
    return ShardOrder(num_rows, seed=seed)


def block_quota(weights: Sequence[float]) -> np.ndarray:
    """How often each folder comes in a block: by weight, at least once; what rounding leaves goes to those it
    shortened most."""
    shares = np.array(weights, dtype=np.float64) / sum(weights) * BLOCK
    quota = np.maximum(np.floor(shares).astype(np.int64), 1)
    while (missing := BLOCK - int(quota.sum())) != 0:
        step = 1 if missing > 0 else -1
        gain = np.where(quota + step >= 1, (shares - quota) * step, -np.inf)
        quota[np.argmax(gain)] += step
    return quota
