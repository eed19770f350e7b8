"""A weighted mixture of prepared folders as one endless list of sequences: sample i is a function of i and the seed.

Which folder: each block of 4096 samples holds every folder as often as its weight says, in a shuffled order. Which row:
in each epoch of a folder its shards come in a new order, and the rows of 16 neighbouring shards are shuffled together,
so only those are open. What is learned: which caption, in which direction, and whether the instruction is dropped.
There is no state to save, and nothing depends on the number of processes or workers.

Letters: F folders, B samples of a block.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache, partial
from random import Random

import numpy as np

from mllm.conversation import ClassPart, Message, TextPart, has_image, text_of, unconditional
from mllm.sequence import TokenSequence, build_sequence, cut_sequence
from train.data.packing import BatchShape, PackingBuffer, SequenceSource, Tokenizers, Waiting
from train.data.records import Record
from train.data.shards import ShardFolder
from train.recipe import MLLMData

logger = logging.getLogger(__name__)

BLOCK = 4096
SHARDS_AT_ONCE = 16  # shards whose rows are shuffled together
SHORT_CAPTION_SHARE = 0.2  # where an image has a short and a long caption; UniTok's choice
MAX_REPORTS = 20  # samples that do not fit and are named one by one; later ones are only counted, at every power of two


class ShardSequences(SequenceSource):
    """`sequences[i]`: what sample i is learned as. Several pieces of a document that is longer than a row; nothing
    where a sample does not fit, which is logged."""

    num_buffers: int

    def __init__(self, mixture: Mixture, data: MLLMData, tokenizers: Tokenizers, shape: BatchShape) -> None:
        self.mixture, self.data, self.tokenizers, self.shape = mixture, data, tokenizers, shape
        self.num_buffers, self.num_left_out = data.packing_buffers, 0
        self.too_long: list[int] = []  # positions of the latest samples in succession that do not fit

    def __getitem__(self, index: int) -> list[TokenSequence]:
        record, config = self.mixture[index], self.tokenizers.config
        how = {"prompt_dropout": self.data.prompt_dropout, "describe_share": self.data.describe_share}
        sequence = sample_sequence(record, Random(f"sample/{self.mixture.seed}/{index}"), self.tokenizers, **how)
        pieces = [sequence] if len(sequence) <= self.shape.length else None
        if pieces is None and record.kind == "document":
            pieces = cut_sequence(sequence, self.shape.length, config=config)
        if pieces is None:
            self._leave_out(record, len(sequence))
            return []
        self.too_long.clear()
        return pieces

    def piece(self, buffer: int, sample: int, piece: int) -> TokenSequence:
        return self[sample * self.num_buffers + buffer][piece]

    def refill(self, buffer: PackingBuffer) -> None:
        """Read until `buffer_size` sequences wait."""
        while len(buffer.waiting) < self.data.buffer_size:
            pieces = self[buffer.sample * self.num_buffers + buffer.index]
            buffer.waiting += [Waiting(sequence, buffer.sample, piece) for piece, sequence in enumerate(pieces)]
            buffer.sample += 1

    def _leave_out(self, record: Record, num_positions: int) -> None:
        self.num_left_out += 1
        self.too_long.append(num_positions)
        self.require_some_fit(self.too_long)
        if self.num_left_out <= MAX_REPORTS or self.num_left_out.bit_count() == 1:
            text = "%s, %s does not fit: it has %d positions, a row has %d; left out (number %d)"
            logger.warning(text, record.source, record.place, num_positions, self.shape.length, self.num_left_out)


def sample_sequence(
    record: Record, rng: Random, tokenizers: Tokenizers, *, prompt_dropout: float, describe_share: float
) -> TokenSequence:
    """What is learned from a record this time (`choose_sample`). Raises ValueError: the model cannot learn it; names
    the record."""
    messages = choose_sample(record, rng, prompt_dropout=prompt_dropout, describe_share=describe_share)
    try:
        return build_sequence(messages, tokenizer=tokenizers.text, config=tokenizers.config)
    except ValueError as error:
        raise ValueError(f"{record.source}, {record.place}: {error}") from error


def choose_sample(record: Record, rng: Random, *, prompt_dropout: float, describe_share: float) -> list[Message]:
    """The messages that are learned from a record this time. `prompt_dropout`: share of the samples that draw whose
    instruction (or class) is dropped, for guidance. `describe_share`: share of the captioned images whose caption is
    learned from the image instead."""
    match record.kind:
        case "document":
            return list(record.messages)
        case "class":
            asked, answered = record.messages
            view = rng.choice(answered.parts)
            index = None if rng.random() < prompt_dropout else int(text_of(asked.parts[0]))
            return [Message("user", (ClassPart(index),)), Message("assistant", (view,))]
        case "chat":
            messages = list(record.messages)
        case "pair" | "draw":
            asked, answered = record.messages
            short, *longer = (part for part in asked.parts if isinstance(part, TextPart))
            caption = rng.choice(longer) if longer and rng.random() >= SHORT_CAPTION_SHARE else short
            if record.kind == "pair" and rng.random() < describe_share:
                return [Message("user", answered.parts), Message("assistant", (caption,))]
            messages = [Message("user", (caption,)), answered]
        case _:
            raise ValueError(
                f"the kind of a record must be chat, document, pair, draw or class, got {record.kind!r}; "
                "prepare the data with this version of the toolkit"
            )
    # only where the whole answer is one image: guidance has no other use for a dropped instruction
    draws = len(messages) == 2 and has_image(messages[1]) and len(messages[1].parts) == 1
    return unconditional(messages) if draws and rng.random() < prompt_dropout else messages


class Mixture:
    """Records of several folders by number."""

    def __init__(self, folders: Sequence[ShardFolder], weights: Sequence[float], *, seed: int) -> None:
        assert len(folders) == len(weights) <= BLOCK and min(weights) > 0, f"{len(folders)} folders, weights {weights}"
        self.folders, self.seed = list(folders), seed
        self.quota_F = block_quota(weights)
        self.orders = [ShardOrder(folder.num_rows, seed=(seed, number)) for number, folder in enumerate(folders)]
        self.block: tuple[int, np.ndarray, np.ndarray] | None = None

    def locate(self, index: int) -> tuple[int, int, int]:
        """Folder, shard and row of sample `index`."""
        number, within = divmod(index, BLOCK)
        if self.block is None or self.block[0] != number:
            self.block = (number, *self._make_block(number))
        _, folder_B, turn_B = self.block
        folder = int(folder_B[within])
        return (folder, *self.orders[folder].locate(number * int(self.quota_F[folder]) + int(turn_B[within])))

    def __getitem__(self, index: int) -> Record:
        folder, shard, row = self.locate(index)
        return self.folders[folder].row(shard, row)

    def _make_block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """For each sample of a block, its folder and how often that folder came before in the block."""
        folder_B = np.repeat(np.arange(len(self.quota_F)), self.quota_F)
        folder_B = np.random.default_rng((self.seed, number)).permutation(folder_B)
        turn_B = np.empty(BLOCK, dtype=np.int64)
        for folder, quota in enumerate(self.quota_F):
            turn_B[folder_B == folder] = np.arange(quota)
        return folder_B, turn_B


def block_quota(weights: Sequence[float]) -> np.ndarray:
    """How often each folder comes in a block: by weight, at least once. What rounding leaves over goes to the folders
    that it reduced most."""
    shares = np.array(weights, dtype=np.float64) / sum(weights) * BLOCK
    quota = np.maximum(np.floor(shares).astype(np.int64), 1)
    while (missing := BLOCK - int(quota.sum())) != 0:
        step = 1 if missing > 0 else -1
        gain = np.where(quota + step >= 1, (shares - quota) * step, -np.inf)
        quota[np.argmax(gain)] += step
    return quota


class ShardOrder:
    """In which order the rows of one folder come."""

    def __init__(self, num_rows: np.ndarray, *, seed: tuple[int, ...]) -> None:
        self.num_rows, self.seed = num_rows, seed
        self.total = int(num_rows.sum())
        self._epoch = lru_cache(2)(self._make_epoch)
        self._window = lru_cache(2)(self._make_window)

    def __reduce__(self) -> tuple:
        return partial(ShardOrder, seed=self.seed), (self.num_rows,)

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
