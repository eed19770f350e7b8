"""Encoder and decoder (ViTamin, arXiv:2404.02132): convolutions at pixel resolution, a transformer at code resolution.

Pixels come in and hidden states go out, and back. Knows no codes.

Letters: B batch, C channels, H W pixels, N positions (row-major), D hidden width, M = B * N patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.config import Padding, UniTokConfig
from tokenizer.layers import NORM_EPS, ChannelNorm, MBConv, TransformerStack, Upsample, UpsamplingMBConv


class Stem(nn.Module):
    """Two 3x3 convolutions; the first halves the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm1 = ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.norm1(self.conv1(pixels_B3HW))))


class Pool(nn.Module):
    """Halve the resolution once more and widen to the transformer's width."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(in_width)
        self.proj = nn.Conv2d(in_width, out_width, 3, stride=2, padding=1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.proj(self.norm(hidden_BCHW))


class Encoder(nn.Module):
    """Stem, convolution stages, pool, transformer blocks, norm. No position embedding, no class token."""

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__()
        self.stem = Stem(config.stem_width)
        self.stages = nn.ModuleList()
        in_width = config.stem_width
        for width, depth in zip(config.stage_widths, config.stage_depths, strict=True):
            inner_width = width * config.conv_expansion
            first = MBConv(in_width, width, inner_width, stride=2)
            rest = (MBConv(width, width, inner_width) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(first, *rest))
            in_width = width
        self.pool = Pool(in_width, config.width)
        self.blocks = TransformerStack(config, config.depth)
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        hidden_BCHW = self.stem(pixels_B3HW.contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            hidden_BCHW = stage(hidden_BCHW)
        hidden_BND = self.pool(hidden_BCHW).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(hidden_BND))


class PixelHead(nn.Module):
    """The last upsampling and the colors."""

    def __init__(self, width: int, *, padding: Padding) -> None:
        super().__init__()
        self.conv1 = Upsample(width, width)
        self.norm1 = ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, 3, 3, padding=1, padding_mode=padding)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.norm1(self.conv1(hidden_BCHW))))


class Decoder(nn.Module):
    """Transformer blocks, norm, upsampling stages. The output is not clamped to [-1, 1]; callers do that."""

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__()
        self.blocks = TransformerStack(config, config.decoder_depth)
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        in_width = config.decoder_widths[0]
        self.entry = Upsample(config.width, in_width)
        self.stages = nn.ModuleList()
        for width, depth in zip(config.decoder_widths, config.decoder_depths, strict=True):
            inner_width = width * config.decoder_expansion
            first = UpsamplingMBConv(in_width, width, inner_width)
            rest = (MBConv(width, width, inner_width) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(first, *rest))
            in_width = width
        self.head = PixelHead(in_width, padding=config.decoder_padding)

    @property
    def last_weight(self) -> Tensor:
        """Where training compares the gradients of its losses (adaptive GAN weight)."""
        return self.head.conv2.weight

    def forward(self, hidden_BND: Tensor, *, grid: tuple[int, int]) -> Tensor:
        hidden_BND = self.norm(self.blocks(hidden_BND))
        # The view is already channels-last in memory, so the convolutions stay there.
        hidden_BCHW = self.entry(hidden_BND.unflatten(1, grid).permute(0, 3, 1, 2))
        for stage in self.stages:
            hidden_BCHW = stage(hidden_BCHW)
        return self.head(hidden_BCHW)


def cut_into_patches(pixels_B3HW: Tensor, size: int) -> Tensor:
    """Every patch as an image of its own, row by row: (M, 3, size, size)."""
    rows_B3RsCs = pixels_B3HW.unflatten(2, (-1, size)).unflatten(4, (-1, size))  # (B, 3, rows, size, columns, size)
    return rows_B3RsCs.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
