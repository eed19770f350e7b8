"""Samples of a mixture as encoded sequences: sample i is a pure function of i.

In: a mixture, a text tokenizer and the model's config. Out: the sequences of a sample: one, or several pieces of a
document that is longer than a row, or none where a sample cannot fit, which is reported. Knows no rows and no batches.
"""

from __future__ import annotations

import logging
from random import Random

from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.sequence import TokenSequence, build_sequence, cut_sequence
from train.data.mixture import Mixture
from train.data.row_samples import SampleOptions, sample_of
from train.data.shard_format import Row

logger = logging.getLogger(__name__)

REPORTS = 20
"""Samples that do not fit and are named one by one; later ones are only counted, at every power of two."""


class ShardSequences:
    """`sequences[i]`: what sample i is learned as."""

    def __init__(
        self,
        mixture: Mixture,
        options: SampleOptions,
        *,
        tokenizer: PreTrainedTokenizerBase,
        config: MLLMConfig,
        length: int,
    ) -> None:
        self.mixture, self.options = mixture, options
        self.tokenizer, self.config, self.length = tokenizer, config, length
        self.num_left_out = 0

    def __getitem__(self, index: int) -> list[TokenSequence]:
        row = self.mixture[index]
        rng = Random(f"sample/{self.mixture.seed}/{index}")
        try:
            sequence = build_sequence(sample_of(row, rng, self.options), tokenizer=self.tokenizer, config=self.config)
        except ValueError as error:
            raise ValueError(f"{row.source}, {row.place}: {error}") from error
        if len(sequence) <= self.length:
            return [sequence]
        pieces = cut_sequence(sequence, self.length, config=self.config) if row.kind == "document" else None
        if pieces is None:
            self._report(row, len(sequence))
        return pieces or []

    def _report(self, row: Row, num_positions: int) -> None:
        self.num_left_out += 1
        if self.num_left_out <= REPORTS or self.num_left_out & (self.num_left_out - 1) == 0:
            logger.warning(
                "%s, %s does not fit: it has %d positions, a row has %d; left out (number %d)",
                row.source,
                row.place,
                num_positions,
                self.length,
                self.num_left_out,
            )
