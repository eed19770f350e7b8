"""Convolution blocks of the hybrid encoder and decoder (ViTamin, arXiv:2404.02132). Knows no transformer.

Everything runs in channels-last memory: there the channel norm is a plain LayerNorm on a free view, and
convolutions on a CPU are 1.3 to 2 times faster.

Letters: B batch, C channels, H W pixels at the current resolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.layers import NORM_EPS


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return super().forward(hidden_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Upsample(nn.Module):
    """Repeat every pixel 2 x 2, then convolve 3 x 3.

    Computed as one transposed convolution of stride 2 whose 4 x 4 kernel holds the 3 x 3 taps summed over the
    repeated pixels: exact, 9/4 fewer multiplications, and no doubled input in memory.
    """

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, out_width, 3, padding=1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        kernel = spread_kernel(self.conv.weight)
        return F.conv_transpose2d(hidden_BCHW, kernel, self.conv.bias, stride=2, padding=1)


def spread_kernel(weight_OI33: Tensor) -> Tensor:
    """(out, in, 3, 3) taps after nearest upsampling -> (in, out, 4, 4) taps of a stride-2 transposed convolution.

    Output row o reads repeated row o + t - 1 through tap t; repeated row 2i + a is input row i. So input row i
    reaches output row 2i + m - 1 through the taps with t = a + 2 - m, a in {0, 1}.
    """
    flipped_IO33 = weight_OI33.transpose(0, 1).flip(2, 3)
    tall_IO43 = F.pad(flipped_IO33, (0, 0, 0, 1)) + F.pad(flipped_IO33, (0, 0, 1, 0))
    return F.pad(tall_IO43, (0, 1)) + F.pad(tall_IO43, (1, 0))


class MBConv(nn.Module):
    """Inverted bottleneck with a pre-norm: 1x1 out to `inner_width`, depthwise 3x3, 1x1 back, plus a shortcut."""

    def __init__(self, in_width: int, out_width: int, inner_width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.pre_norm = ChannelNorm(in_width)
        self.conv1_1x1 = nn.Conv2d(in_width, inner_width, 1)
        self.conv2_kxk = nn.Conv2d(inner_width, inner_width, 3, stride=stride, padding=1, groups=inner_width)
        self.conv3_1x1 = nn.Conv2d(inner_width, out_width, 1)
        self.expand = nn.Conv2d(in_width, out_width, 1) if in_width != out_width else nn.Identity()

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        shortcut_BCHW = hidden_BCHW
        if self.stride == 2:
            shortcut_BCHW = F.avg_pool2d(hidden_BCHW, 3, stride=2, padding=1, count_include_pad=False)
        shortcut_BCHW = self.expand(shortcut_BCHW)
        hidden_BCHW = F.gelu(self.conv1_1x1(self.pre_norm(hidden_BCHW)))
        hidden_BCHW = F.gelu(self._depthwise(hidden_BCHW))
        return self.conv3_1x1(hidden_BCHW) + shortcut_BCHW

    def _depthwise(self, hidden_BCHW: Tensor) -> Tensor:
        """On a CPU, going backward through a strided depthwise convolution is eight times slower in bfloat16."""
        if self.stride == 1 or hidden_BCHW.device.type != "cpu" or not torch.is_grad_enabled():
            return self.conv2_kxk(hidden_BCHW)
        with torch.autocast("cpu", enabled=False):
            return self.conv2_kxk(hidden_BCHW.to(self.conv2_kxk.weight.dtype)).to(hidden_BCHW.dtype)


class UpsamplingMBConv(nn.Module):
    """MBConv that doubles the resolution between its first 1x1 and its depthwise convolution."""

    def __init__(self, in_width: int, out_width: int, inner_width: int) -> None:
        super().__init__()
        self.shortcut = Upsample(in_width, out_width)
        self.pre_norm = ChannelNorm(in_width)
        self.conv1_1x1 = nn.Conv2d(in_width, inner_width, 1)
        self.up = Upsample(inner_width, inner_width)
        self.conv2_kxk = nn.Conv2d(inner_width, inner_width, 3, padding=1, groups=inner_width)
        self.conv3_1x1 = nn.Conv2d(inner_width, out_width, 1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        shortcut_BCHW = self.shortcut(hidden_BCHW)
        hidden_BCHW = self.up(F.gelu(self.conv1_1x1(self.pre_norm(hidden_BCHW))))
        hidden_BCHW = F.gelu(self.conv2_kxk(hidden_BCHW))
        return self.conv3_1x1(hidden_BCHW) + shortcut_BCHW


def channels_last(hidden_BCHW: Tensor) -> Tensor:
    """The same values with the channels of a pixel side by side in memory."""
    return hidden_BCHW.contiguous(memory_format=torch.channels_last)
