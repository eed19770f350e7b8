"""How close a reconstruction is and how well the codebooks are used. Pure functions of tensors.

Letters: B batch, H W pixels, K codebooks, C entries per codebook, N positions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PIXEL_RANGE = 2.0  # pixels lie in [-1, 1]


def psnr(first_B3HW: Tensor, second_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, (B,); infinite for equal pictures."""
    error_B = (first_B3HW.float() - second_B3HW.float()).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(PIXEL_RANGE**2 / error_B)


def ssim(first_B3HW: Tensor, second_B3HW: Tensor, *, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of each picture, (B,), mean over colours and windows inside the picture.

    Wang et al. 2004 with its Gaussian window and constants; float32 needs no more than that for pictures.
    """
    if min(first_B3HW.shape[-2:]) < window:
        raise ValueError(f"ssim needs sides of at least {window}; got {tuple(first_B3HW.shape)}; use a smaller window")
    first, second = first_B3HW.float(), second_B3HW.float()
    mean_1, mean_2 = blur(first, window, sigma), blur(second, window, sigma)
    variance_1 = blur(first * first, window, sigma) - mean_1.square()
    variance_2 = blur(second * second, window, sigma) - mean_2.square()
    covariance = blur(first * second, window, sigma) - mean_1 * mean_2
    c1, c2 = (0.01 * PIXEL_RANGE) ** 2, (0.03 * PIXEL_RANGE) ** 2
    brightness = (2 * mean_1 * mean_2 + c1) / (mean_1.square() + mean_2.square() + c1)
    structure = (2 * covariance + c2) / (variance_1 + variance_2 + c2)
    return (brightness * structure).mean(dim=(1, 2, 3))


def blur(pixels_B3HW: Tensor, window: int, sigma: float) -> Tensor:
    """Gaussian mean over each window that lies wholly inside the picture."""
    offset = torch.arange(window, device=pixels_B3HW.device, dtype=torch.float32) - (window - 1) / 2
    taps = torch.softmax(-offset.square() / (2 * sigma**2), dim=0)
    channels = pixels_B3HW.shape[1]
    down = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    across = taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(pixels_B3HW, down, groups=channels), across, groups=channels)


def code_counts(codes_BKN: Tensor, codebook_size: int) -> Tensor:
    """How often each entry occurs, (K, C) int64; add up over batches to measure a data set."""
    codes_KM = codes_BKN.transpose(0, 1).flatten(1).long()
    counts_KC = torch.zeros(len(codes_KM), codebook_size, dtype=torch.int64, device=codes_KM.device)
    return counts_KC.scatter_add_(1, codes_KM, torch.ones_like(codes_KM))


def usage_of(counts_KC: Tensor) -> Tensor:
    """Share of each codebook's entries that occur at all, (K,)."""
    return (counts_KC > 0).float().mean(dim=1)


def entropy_of(counts_KC: Tensor) -> Tensor:
    """Entropy of each codebook's entries in nats, (K,); at most log C. Its exponential is the perplexity."""
    share_KC = counts_KC.float() / counts_KC.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.special.entr(share_KC).sum(dim=1)


def codebook_usage(codes_BKN: Tensor, codebook_size: int) -> Tensor:
    """Share of each codebook's entries that these codes use, (K,)."""
    return usage_of(code_counts(codes_BKN, codebook_size))


def codebook_entropy(codes_BKN: Tensor, codebook_size: int) -> Tensor:
    """Entropy of these codes per codebook in nats, (K,)."""
    return entropy_of(code_counts(codes_BKN, codebook_size))


def codebook_perplexity(codes_BKN: Tensor, codebook_size: int) -> Tensor:
    """Number of equally used entries with the same entropy, (K,)."""
    return codebook_entropy(codes_BKN, codebook_size).exp()


def bits_per_picture(entropy_K: Tensor, positions_per_image: int) -> float:
    """Information in the codes of one picture, given the entropy of each codebook in nats."""
    return float(entropy_K.sum()) / math.log(2) * positions_per_image
