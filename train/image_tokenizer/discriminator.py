"""Judges whether features come from a real picture (StyleGAN-T, arXiv:2301.09515, section 3.2, as UniTok has it).

Comes in: features of a frozen network, one (B, N, D) per level. Goes out: logits (B, M), one per patch and level;
above zero means real. Parameter names are UniTok's. Knows no pixels.

Letters: B batch, N patches, D width, M = levels * N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

NORM_GROUPS = 32
KERNEL = 9  # patches that the second layer of a head looks at, along the row-major line


class Residual(nn.Module):
    """(f(x) + x) / sqrt(2): the variance stays."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, features_BDN: Tensor) -> Tensor:
        return (self.fn(features_BDN) + features_BDN) / math.sqrt(2)


def block(width: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(convolution, nn.GroupNorm(NORM_GROUPS, width, eps=1e-6), nn.LeakyReLU(0.2))


class Discriminator(nn.Module):
    """One small convolutional head per level of features."""

    def __init__(self, width: int, num_levels: int) -> None:
        super().__init__()
        if width % NORM_GROUPS:
            raise ValueError(
                f"the discriminator normalises in {NORM_GROUPS} groups; got features of width {width}; "
                "give a network with a multiple of it"
            )
        self.heads = nn.ModuleList(
            nn.Sequential(block(width, 1), Residual(block(width, KERNEL)), nn.Conv1d(width, 1, 1))
            for _ in range(num_levels)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.xavier_normal_(module.weight, gain=0.5)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Float32 logits (B, M) of features (B, N, D) per level."""
        logits = [head(level_BND.transpose(1, 2)) for head, level_BND in zip(self.heads, levels, strict=True)]
        return torch.cat([level_B1N.flatten(1) for level_B1N in logits], dim=1).float()
