"""What the image tokenizer is trained on: pure functions of pixels and features.

Letters: B batch, G batches of all processes, H W pixels, D feature width. Weights and their
values: UniTok's training code (trainer.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import functional

from tokenizer.quantizer import gather_rows, num_ranks, rank

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


# Random changes of pictures that gradients pass through (DiffAugment, arXiv:2006.10738; StyleGAN-T's blur).
#
# Real and made pictures go through them before the discriminator sees them, so that it cannot learn the data by heart.
# All random numbers come from one generator on the CPU. They are drawn for the pictures of all processes, of which each
# takes its own: what happens to a picture does not depend on the number of processes.
#
# Letters: B batch, H W pixels.


SHIFT = 0.125  # of the side, at most, in either direction


@dataclass(frozen=True, kw_only=True)
class DiffAugment:
    """How strongly pictures are changed."""

    probability: float = 1.0
    """Of each of the three kinds of change (place, colour, cutout), drawn per batch."""
    cutout: float = 0.2
    """Side of the square that is set to zero, as a share of the picture's."""

    def __call__(self, pixels_B3HW: Tensor, generator: torch.Generator, *, blur: float = 0.0) -> Tensor:
        """Changed pictures of the same size.

        Args:
            blur: 0 to 1; 1 hides all but the coarsest shapes.
        """
        if blur > 0:
            pixels_B3HW = blurred(pixels_B3HW, sigma=blur * math.sqrt(pixels_B3HW.shape[-2] / 2))
        moves, colours, cuts = (torch.rand(3, generator=generator) < self.probability).tolist()
        # Drawn even where unused, so that the numbers that follow do not depend on what came before.
        draws_B7 = draws(len(pixels_B3HW), 7, generator).to(pixels_B3HW.device)
        if moves:
            pixels_B3HW = moved(pixels_B3HW, draws_B7[:, 0], draws_B7[:, 1])
        if colours:
            pixels_B3HW = recoloured(pixels_B3HW, *draws_B7[:, 2:5].unbind(1))
        if cuts and self.cutout > 0:
            pixels_B3HW = cut_out(pixels_B3HW, draws_B7[:, 5], draws_B7[:, 6], share=self.cutout)
        return pixels_B3HW


def draws(batch: int, count: int, generator: torch.Generator) -> Tensor:
    """This process's rows of uniform numbers that are drawn for all processes."""
    return torch.rand(batch * num_ranks(), count, generator=generator)[rank() * batch :][:batch]


def blurred(pixels_B3HW: Tensor, *, sigma: float) -> Tensor:
    """Convolve with 2^-(t / sigma)^2 up to 3 sigma, in both directions, reflecting at the borders."""
    radius = min(math.floor(3 * sigma), min(pixels_B3HW.shape[-2:]) - 1)
    if radius < 1:
        return pixels_B3HW
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32, device=pixels_B3HW.device)
    taps = torch.exp2(-(offset / sigma).square())
    taps = (taps / taps.sum()).to(pixels_B3HW.dtype)
    for shape, margin in (((1, -1), (radius, radius, 0, 0)), ((-1, 1), (0, 0, radius, radius))):
        kernel_311 = taps.view(1, 1, *shape).expand(3, -1, -1, -1)
        pixels_B3HW = F.conv2d(F.pad(pixels_B3HW, margin, mode="reflect"), kernel_311, groups=3)
    return pixels_B3HW


def moved(pixels_B3HW: Tensor, down_B: Tensor, right_B: Tensor) -> Tensor:
    """Shift each picture by whole pixels, up to an eighth of its side; what comes in is zero. Draws in [0, 1)."""
    height, width = pixels_B3HW.shape[-2:]
    rows_BH = source(height, whole_steps(down_B, round(SHIFT * height)))
    columns_BW = source(width, whole_steps(right_B, round(SHIFT * width)))
    inside_BHW = is_inside(rows_BH, height)[:, :, None] & is_inside(columns_BW, width)[:, None, :]
    index_B = torch.arange(len(pixels_B3HW), device=pixels_B3HW.device)[:, None, None]
    rows_BH1, columns_B1W = rows_BH.clamp(0, height - 1)[:, :, None], columns_BW.clamp(0, width - 1)[:, None, :]
    shifted_BHW3 = pixels_B3HW.permute(0, 2, 3, 1)[index_B, rows_BH1, columns_B1W]
    return shifted_BHW3.permute(0, 3, 1, 2) * inside_BHW[:, None]


def whole_steps(draw_B: Tensor, most: int) -> Tensor:
    """Uniform whole numbers from -most to most."""
    return (draw_B * (2 * most + 1)).floor().long() - most


def source(size: int, steps_B: Tensor) -> Tensor:
    return torch.arange(size, device=steps_B.device) - steps_B[:, None]


def is_inside(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)


def recoloured(pixels_B3HW: Tensor, bright_B: Tensor, saturated_B: Tensor, contrast_B: Tensor) -> Tensor:
    """Brightness plus up to half, saturation times 0 to 2, contrast times 0.5 to 1.5. Draws in [0, 1)."""
    bright, saturated, contrast = (draw_B.view(-1, 1, 1, 1) for draw_B in (bright_B, saturated_B, contrast_B))
    pixels_B3HW = pixels_B3HW + (bright - 0.5)
    grey_B1HW = pixels_B3HW.mean(dim=1, keepdim=True)
    pixels_B3HW = (pixels_B3HW - grey_B1HW) * (2 * saturated) + grey_B1HW
    mean_B111 = pixels_B3HW.mean(dim=(1, 2, 3), keepdim=True)
    return (pixels_B3HW - mean_B111) * (contrast + 0.5) + mean_B111


def cut_out(pixels_B3HW: Tensor, middle_y_B: Tensor, middle_x_B: Tensor, *, share: float) -> Tensor:
    """Set a square around a random place to zero; it may stick out of the picture. Draws in [0, 1)."""
    height, width = pixels_B3HW.shape[-2:]
    rows_BH = covered(height, middle_y_B, round(share * height))
    columns_BW = covered(width, middle_x_B, round(share * width))
    is_cut_BHW = rows_BH[:, :, None] & columns_BW[:, None, :]
    return pixels_B3HW * ~is_cut_BHW[:, None]


def covered(size: int, middle_B: Tensor, length: int) -> Tensor:
    """Which places of a side lie under the square, (B, size)."""
    first_B1 = (middle_B[:, None] * (size + 1 - length % 2)).floor() - length // 2
    places = torch.arange(size, device=middle_B.device)
    return (places >= first_B1) & (places < first_B1 + length)
