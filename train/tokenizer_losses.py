"""What the image tokenizer is trained on: pure functions of pixels and features.

Letters: B batch, H W pixels, D feature width. Weights and their values: UniTok's training code (trainer.py).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def reconstruction_loss(
    reconstruction_B3HW: Tensor, pixels_B3HW: Tensor, *, l1_weight: float, l2_weight: float
) -> Tensor:
    """Weighted mean absolute and mean squared error, in float32."""
    difference_B3HW = reconstruction_B3HW.float() - pixels_B3HW.float()
    return l1_weight * difference_B3HW.abs().mean() + l2_weight * difference_B3HW.square().mean()


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020, figure 3): row b of the pictures belongs to row b of the texts.

    Args:
        image_BD: features of the pictures, any length.
        text_BD: features of their captions, any length.
        scale: inverse temperature, already exponentiated.
    """
    image_BD = functional.normalize(image_BD.float(), dim=-1)
    text_BD = functional.normalize(text_BD.float(), dim=-1)
    logits_BB = scale * image_BD @ text_BD.T
    targets_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (functional.cross_entropy(logits_BB, targets_B) + functional.cross_entropy(logits_BB.T, targets_B)) / 2
