"""Losses of image tokenizer training on images and captions: reconstruction and contrast, pure functions.

Weights and their values are those of UniTok's training code (trainer.py). `discriminators.py` has the adversarial loss.

Letters: B batch, G batches of all processes, H W pixels, D feature width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer.quantizer import gather_rows, rank

DETAIL_WINDOW = 5
"""Side of the window, in pixels, in which `detail_of` looks for contrast."""


def reconstruction_loss(
    reconstruction_B3HW: Tensor, pixels_B3HW: Tensor, *, l1_weight: float, l2_weight: float, detail_weight: float = 0.0
) -> Tensor:
    """Weighted mean absolute and mean squared error, in float32.

    Args:
        detail_weight: how much more a pixel counts where the image has detail; see `detail_of`.
    """
    pixels_B3HW = pixels_B3HW.float()
    difference_B3HW = reconstruction_B3HW.float() - pixels_B3HW
    error_B3HW = l1_weight * difference_B3HW.abs() + l2_weight * difference_B3HW.square()
    if detail_weight:
        error_B3HW = error_B3HW * (1 + detail_weight * detail_of(pixels_B3HW))
    return error_B3HW.mean()


def detail_of(pixels_B3HW: Tensor) -> Tensor:
    """Contrast around each pixel, 0 to 1, (B, 1, H, W): 1 where a window spans half of the range.

    Flat surfaces fill most of a drawing and are learned at once; borders decide what is seen and are few.
    """
    margin = DETAIL_WINDOW // 2
    highest_B3HW = F.max_pool2d(pixels_B3HW, DETAIL_WINDOW, stride=1, padding=margin)
    lowest_B3HW = -F.max_pool2d(-pixels_B3HW, DETAIL_WINDOW, stride=1, padding=margin)
    return (highest_B3HW - lowest_B3HW).amax(dim=1, keepdim=True).clamp(max=1.0)


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP, arXiv:2103.00020, figure 3): row b of the images belongs to row b of the captions.

    Each process scores its own rows against those of all processes; the mean over the processes is the loss of one
    process with the whole batch, and through `DistributedDataParallel` so is the gradient.

    Args:
        image_BD: features of the images, of any length.
        text_BD: features of their captions, of any length.
        scale: inverse temperature, already exponentiated.
    """
    image_BD, text_BD = F.normalize(image_BD.float(), dim=-1), F.normalize(text_BD.float(), dim=-1)
    targets_B = rank() * len(image_BD) + torch.arange(len(image_BD), device=image_BD.device)
    from_images_BG = scale * image_BD @ gather_rows(text_BD).T
    from_texts_BG = scale * text_BD @ gather_rows(image_BD).T
    return (F.cross_entropy(from_images_BG, targets_B) + F.cross_entropy(from_texts_BG, targets_B)) / 2
