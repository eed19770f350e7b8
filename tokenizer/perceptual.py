"""LPIPS: how different two pictures look (Zhang et al. 2018, arXiv:1801.03924), on features of VGG16.

Comes in: pixels in [-1, 1], and the weights in the layout of `lpips_with_vgg.pth` (`net.slice{1..5}.{index}.*` of
torchvision's VGG16, `lins.{0..4}.model.1.weight`). Goes out: one number per picture. Widths are read from the file, so
that a small stand-in of the same layout works. Knows no training.

Letters: B batch, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.weight_file import read_tensors, require_names

SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Positions of VGG16's convolutions in torchvision's list; features are taken after the last one of each slice."""
MEAN = (-0.030, -0.088, -0.188)
DEVIATION = (0.458, 0.448, 0.450)
SMALLEST_SIDE = 16  # four poolings must leave a pixel


class LPIPS(nn.Module):
    """Frozen: no parameter learns, gradients reach the pixels."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        layers = [f"net.slice{number}.{i}" for number, row in enumerate(SLICES, start=1) for i in row]
        names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
        names += [f"lins.{level}.model.1.weight" for level in range(len(SLICES))]
        require_names(state, names, kind="LPIPS weights (lpips_with_vgg.pth)")
        self.slices = nn.ModuleList(
            nn.ModuleList(convolution(state, f"net.slice{number}.{index}") for index in row)
            for number, row in enumerate(SLICES, start=1)
        )
        for level in range(len(SLICES)):
            self.register_buffer(f"weights_{level}", state[names[level - len(SLICES)]].float())
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1))
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, path: Path) -> LPIPS:
        """Read the published file, or one with the same names."""
        return cls(read_tensors(path))

    def forward(self, first_B3HW: Tensor, second_B3HW: Tensor) -> Tensor:
        """Distance of each pair, (B,)."""
        if min(first_B3HW.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"LPIPS needs sides of {SMALLEST_SIDE} or more; got {tuple(first_B3HW.shape)}; use larger pictures"
            )
        distance_B = first_B3HW.new_zeros(len(first_B3HW), dtype=torch.float32)
        levels = zip(self.features(first_B3HW), self.features(second_B3HW), strict=True)
        for level, (first_BCHW, second_BCHW) in enumerate(levels):
            difference_BCHW = (unit_length(first_BCHW) - unit_length(second_BCHW)).square()
            weighted_B1HW = F.conv2d(difference_BCHW, getattr(self, f"weights_{level}"))
            distance_B = distance_B + weighted_B1HW.mean(dim=(1, 2, 3))
        return distance_B

    def features(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Activations of VGG16 after relu1_2, 2_2, 3_3, 4_3 and 5_3."""
        hidden_BCHW = (pixels_B3HW - self.mean) / self.deviation
        found = []
        for number, convolutions in enumerate(self.slices):
            if number:
                hidden_BCHW = F.max_pool2d(hidden_BCHW, 2)
            assert isinstance(convolutions, nn.ModuleList)
            for layer in convolutions:
                hidden_BCHW = F.relu(layer(hidden_BCHW))
            found.append(hidden_BCHW)
        return found


def unit_length(features_BCHW: Tensor) -> Tensor:
    """Every pixel's features at length 1, in float32; the two small numbers are those of UniTok's training."""
    features_BCHW = features_BCHW.float()
    return features_BCHW / ((features_BCHW.square().sum(dim=1, keepdim=True) + 1e-9).sqrt() + 1e-10)


def convolution(state: Mapping[str, Tensor], name: str) -> nn.Conv2d:
    """A 3x3 convolution with these weights."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=3, padding=1)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
