"""Hidden states to pixels: a transformer, then convolutions that grow by the patch size. Mirror of `encoder.py`.

Letters: B batch, N positions (row-major), D hidden width, C channels, H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.config import UniTokConfig
from tokenizer.convolution import ChannelNorm, MBConv, Upsample, UpsamplingMBConv
from tokenizer.layers import NORM_EPS, build_stack


class PixelHead(nn.Module):
    """The last doubling and the colours."""

    def __init__(self, width: int, *, padding: str) -> None:
        super().__init__()
        self.conv1 = Upsample(width, width)
        self.norm1 = ChannelNorm(width)
        self.conv2 = nn.Conv2d(width, 3, 3, padding=1, padding_mode=padding)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.norm1(self.conv1(hidden_BCHW))))


class Decoder(nn.Module):
    """Transformer blocks, norm, then upsampling stages. The output is not squashed: callers clamp to [-1, 1]."""

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__()
        self.blocks = build_stack(
            config.decoder_depth, config.width, config.num_heads, mlp_ratio=config.mlp_ratio, drop_path=config.drop_path
        )
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
    def last_weight(self) -> nn.Parameter:
        """Where training compares the gradients of its losses (adaptive GAN weight)."""
        return self.head.conv2.weight

    def forward(self, hidden_BND: Tensor, *, grid: tuple[int, int]) -> Tensor:
        hidden_BND = self.norm(self.blocks(hidden_BND))
        # The view is already channels-last in memory, so the convolutions stay there.
        hidden_BCHW = self.entry(hidden_BND.unflatten(1, grid).permute(0, 3, 1, 2))
        for stage in self.stages:
            hidden_BCHW = stage(hidden_BCHW)
        return self.head(hidden_BCHW)
