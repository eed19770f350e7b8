"""What the image tokenizer is trained on: pure functions of pixels and features.

Letters: B batch, G batches of all processes, H W pixels, D feature width. Weights and their
values: UniTok's training code (trainer.py).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokenizer.across_ranks import gather_rows, rank

DETAIL_WINDOW = 5
"""Side of the window, in pixels, in which `detail_of` looks for contrast."""


def reconstruction_loss(
    reconstruction_B3HW: Tensor, pixels_B3HW: Tensor, *, l1_weight: float, l2_weight: float, detail_weight: float = 0.0
) -> Tensor:
    """Weighted mean absolute and mean squared error, in float32.

    Args:
        detail_weight: how much more a pixel counts where the picture is busy; see `detail_of`.
    """
    pixels_B3HW = pixels_B3HW.float()
    difference_B3HW = reconstruction_B3HW.float() - pixels_B3HW
    error_B3HW = l1_weight * difference_B3HW.abs() + l2_weight * difference_B3HW.square()
    if detail_weight:
        error_B3HW = error_B3HW * (1 + detail_weight * detail_of(pixels_B3HW))
    return error_B3HW.mean()


def detail_of(pixels_B3HW: Tensor) -> Tensor:
    """How busy the surroundings of each pixel are, 0 to 1, (B, 1, H, W): 1 where half the range meets in a window.

    Flat surfaces fill most of a drawing and are learned at once; borders decide what is seen and are few.
    """
    margin = DETAIL_WINDOW // 2
    highest_B3HW = functional.max_pool2d(pixels_B3HW, DETAIL_WINDOW, stride=1, padding=margin)
    lowest_B3HW = -functional.max_pool2d(-pixels_B3HW, DETAIL_WINDOW, stride=1, padding=margin)
    return (highest_B3HW - lowest_B3HW).amax(dim=1, keepdim=True).clamp(max=1.0)


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020, figure 3): row b of the pictures belongs to row b of the texts.

    Each process scores its own rows against those of all processes; the mean over the processes is the loss, and
    through `DistributedDataParallel` the gradient, of one process with the whole batch.

    Args:
        image_BD: features of the pictures, any length.
        text_BD: features of their captions, any length.
        scale: inverse temperature, already exponentiated.
    """
    image_BD = functional.normalize(image_BD.float(), dim=-1)
    text_BD = functional.normalize(text_BD.float(), dim=-1)
    targets_B = rank() * len(image_BD) + torch.arange(len(image_BD), device=image_BD.device)
    from_images_BG = scale * image_BD @ gather_rows(text_BD).T
    from_texts_BG = scale * text_BD @ gather_rows(image_BD).T
    both = (functional.cross_entropy(logits_BG, targets_B) for logits_BG in (from_images_BG, from_texts_BG))
    return sum(both, scale.new_zeros(())) / 2
