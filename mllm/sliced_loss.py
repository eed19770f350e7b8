"""The training loss without ever holding the logits of all places.

Rows are cut into slices; the backward pass computes each slice once more (gradient checkpointing), head and all. The
number of slices depends on the shape of the batch alone, not on how many of its places are learned: every process calls
a head equally often, as sharded weights (ZeRO-3) require. Slices may be empty. Knows no backbone.

Letters: L labelled text tokens, M learned image positions, R rows, D hidden width, K codebooks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mllm.config import MLLMConfig
from mllm.loss import LossParts, sum_code_loss, sum_text_loss, weigh

FLOAT32 = 4
"""Bytes of a logit in the loss."""


@dataclass(frozen=True, slots=True)
class SlicedHeads:
    """Both heads of a model over slices of rows."""

    lm_head: nn.Module
    code_head: nn.Module
    num_places: int
    """Of the batch: as many rows as there could be."""
    max_bytes: int
    """What the logits of a slice may take."""

    def loss(
        self,
        hidden_LD: Tensor,
        labels_L: Tensor,
        hidden_MD: Tensor,
        codes_MK: Tensor,
        config: MLLMConfig,
        num_items: Tensor | float | None,
    ) -> LossParts:
        """The same parts as from all logits at once."""
        (text_sum,) = self.add_up(
            lambda hidden_RD, labels_R: (sum_text_loss(self.lm_head(hidden_RD), labels_R),),
            hidden_LD,
            labels_L,
            logits_per_row=config.vocab_size,
        )
        image_sum_K, square_sum = self.add_up(
            lambda hidden_RD, codes_RK: sum_code_loss(self.code_head(hidden_RD, codes_RK), codes_RK),
            hidden_MD,
            codes_MK,
            logits_per_row=config.num_codebooks * config.codebook_size,
        )
        return weigh(
            text_sum,
            image_sum_K,
            square_sum * config.z_loss_weight,
            num_text=labels_L.numel(),
            num_positions=codes_MK.shape[0],
            text_weight=config.text_loss_weight,
            num_items=num_items,
        )

    def add_up(
        self,
        sums_of: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        hidden_RD: Tensor,
        targets_R: Tensor,
        *,
        logits_per_row: int,
    ) -> list[Tensor]:
        """`sums_of(hidden, targets)` of all rows, added up slice by slice."""
        rows = max(self.max_bytes // (FLOAT32 * logits_per_row), 1)
        slices = -(-self.num_places // rows)
        parts = zip(hidden_RD.tensor_split(slices), targets_R.tensor_split(slices), strict=True)
        sums = [checkpoint(sums_of, hidden, targets, use_reentrant=False) for hidden, targets in parts]
        return [torch.stack(values).sum(dim=0) for values in zip(*sums, strict=True)]
