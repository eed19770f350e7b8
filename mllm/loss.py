"""The training loss, from logits and targets alone: text cross-entropy, code cross-entropy per codebook, z-loss.

With w the weight of a text token, z the weight of the z-loss, L labelled text tokens and P learned image positions:

    total = ( w * sum of text CE + sum of code CE + z * sum of (max logit)^2 ) / ( w * L + P * K )

that is, every text token and every code counts alike (for w = 1), as upstream does within a batch. To count alike over
accumulation steps and ranks, divide by the number of items of ALL of them: `num_items` = sum of `count_items` of every
micro-batch on every rank. Frameworks average gradients over ranks, so the trainer multiplies the loss by the world size
(transformers does so when `average_tokens_across_devices` is set) and sums over accumulation steps undivided.
Upstream's z-term is the square of the largest logit, not of the logsumexp.

Letters: L labelled text tokens, P learned image positions, V text vocabulary, K codebooks, C codes per codebook.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm.sequence import IGNORED


@dataclass(frozen=True, kw_only=True, slots=True)
class LossParts:
    """The loss and what it is made of. All but `total` are for the log: detached, means over this batch alone."""

    total: Tensor  # what is differentiated
    text: Tensor  # cross-entropy per labelled text token; 0 without any
    image: Tensor  # cross-entropy per code; 0 without any
    z: Tensor  # weighted z-term per code
    image_per_codebook_K: Tensor
    num_text: int  # L
    num_image: int  # P * K


def count_items(labels_BT: Tensor, code_targets_P: Tensor, *, num_codebooks: int, text_weight: float = 1.0) -> Tensor:
    """What a batch weighs in the loss (float, 0-d): the divisor of `total`. Labels at t = 0 predict nothing."""
    num_text = (labels_BT[:, 1:] != IGNORED).sum()
    return num_text * text_weight + code_targets_P.sum() * num_codebooks


def compute_loss(
    text_logits_LV: Tensor,
    labels_L: Tensor,
    code_logits_PKC: Tensor,
    codes_PK: Tensor,
    *,
    z_weight: float,
    text_weight: float = 1.0,
    num_items: Tensor | float | None = None,
) -> LossParts:
    """All parts from rows that are already aligned: logits row i predicts target row i. L or P may be 0.

    Args:
        num_items: what to divide by; None: the items of this batch.
    """
    text_sum = sum_text_loss(text_logits_LV, labels_L)
    image_sum_K, square_sum = sum_code_loss(code_logits_PKC, codes_PK)
    return weigh(
        text_sum,
        image_sum_K,
        square_sum * z_weight,
        num_text=labels_L.numel(),
        num_positions=codes_PK.shape[0],
        text_weight=text_weight,
        num_items=num_items,
    )


def sum_text_loss(logits_LV: Tensor, labels_L: Tensor) -> Tensor:
    """Cross-entropy of all rows together, in float32."""
    return F.cross_entropy(logits_LV.float(), labels_L, reduction="sum")


def sum_code_loss(logits_PKC: Tensor, codes_PK: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (K,) of all positions together, and the sum of the squared largest logits."""
    logits_PKC = logits_PKC.float()
    loss_PK = F.cross_entropy(logits_PKC.flatten(0, 1), codes_PK.flatten(), reduction="none").view(codes_PK.shape)
    largest_PK = logits_PKC.max(dim=-1).values  # cheaper backward than amax: no ties
    return loss_PK.sum(dim=0), largest_PK.square().sum()


def weigh(
    text_sum: Tensor,
    image_sum_K: Tensor,
    z_sum: Tensor,
    *,
    num_text: int,
    num_positions: int,
    text_weight: float = 1.0,
    num_items: Tensor | float | None = None,
) -> LossParts:
    """The parts from their sums; `z_sum` comes weighted."""
    num_image = num_positions * image_sum_K.shape[0]
    if num_items is None:
        num_items = max(text_weight * num_text + num_image, 1)
    total = (text_sum * text_weight + image_sum_K.sum() + z_sum) / num_items
    with torch.no_grad():
        return LossParts(
            total=total,
            text=text_sum.detach() / max(num_text, 1),
            image=image_sum_K.detach().sum() / max(num_image, 1),
            z=z_sum.detach() / max(num_image, 1),
            image_per_codebook_K=image_sum_K.detach() / max(num_positions, 1),
            num_text=num_text,
            num_image=num_image,
        )
