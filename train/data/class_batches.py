"""Packed batches of pictures by class: batch b is a pure function of b, so training can stop and go on anywhere.

In: codes by class. Out: one `PackedBatch` per index. Every epoch goes through all pictures in an order of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.conversation import ClassPart, CodesPart, Message
from mllm.packing import PackedBatch, Packer
from mllm.sequence import TokenSequence, build_sequence
from train.class_recipe import ClassData
from train.data.class_codes import ClassCodes


class ClassBatches(Dataset):
    """`num_batches` packed batches of `rows` rows of `length` positions.

    Args:
        codes: of the same pictures in the same order (other enlargements); each time one of them is picked.
    """

    def __init__(
        self,
        codes: Sequence[ClassCodes],
        data: ClassData,
        *,
        tokenizer: PreTrainedTokenizerBase,
        config: MLLMConfig,
        length: int,
        rows: int,
        num_batches: int,
    ) -> None:
        if len({len(part) for part in codes}) != 1:
            raise ValueError(
                f"the folders of codes hold different pictures: found {[len(part) for part in codes]} of them; "
                "give folders that were made from the same pictures"
            )
        self.codes, self.tokenizer, self.config = codes, tokenizer, config
        self.class_dropout, self.seed = data.class_dropout, data.seed
        self.length, self.rows, self.num_batches = length, rows, num_batches
        self.samples_per_batch = rows * (length // len(self.sequence(0, Random(0))))
        if not self.samples_per_batch:
            raise ValueError(f"no picture fits into a row: found a length of {length}; raise it")

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> PackedBatch:
        rng = Random(f"class batch/{self.seed}/{index}")
        packer = Packer(length=self.length, pad_token_id=self.config.pad_token_id, num_rows=self.rows)
        for number in range(index * self.samples_per_batch, (index + 1) * self.samples_per_batch):
            epoch, place = divmod(number, len(self.codes[0]))
            packer.add(self.sequence(int(order(len(self.codes[0]), self.seed, epoch)[place]), rng))
        return packer.batch()

    def sequence(self, picture: int, rng: Random) -> TokenSequence:
        """A class and a picture of it, in one of its views."""
        codes_SKN, label = rng.choice(self.codes)[picture]
        codes_KN = codes_SKN[rng.randrange(len(codes_SKN))]
        asked = ClassPart(None if rng.random() < self.class_dropout else label)
        drawn = CodesPart(codes_KN, (self.config.grid_side, self.config.grid_side))
        messages = [Message("user", (asked,)), Message("assistant", (drawn,))]
        return build_sequence(messages, tokenizer=self.tokenizer, config=self.config)


@lru_cache(maxsize=2)
def order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the pictures in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)
