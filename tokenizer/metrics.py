"""How close a reconstruction is and how well the codebooks are used. Pure functions of tensors.

Letters: B batch, H W pixels, K codebooks, C entries per codebook, N positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.checkpoint import read_tensors, require_names
from tokenizer.text_tower import EncodeCaptions
from tokenizer.unitok import UniTok

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


# LPIPS: how different two pictures look (Zhang et al. 2018, arXiv:1801.03924), on features of VGG16.
#
# Comes in: pixels in [-1, 1], and the weights in the layout of `lpips_with_vgg.pth` (`net.slice{1..5}.{index}.*` of
# torchvision's VGG16, `lins.{0..4}.model.1.weight`). Goes out: one number per picture. Widths are read from the file,
# so
# that a small stand-in of the same layout works. Knows no training.
#
# Letters: B batch, H W pixels, C channels.


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


# FID and Inception Score of folders of pictures, by torch-fidelity (optional: extra `eval-images`).
#
# In: two folders of pictures. Out: numbers. FID of few pictures is biased upwards; compare equal counts only.


def fidelity(made: Path, real: Path | None, *, batch_size: int) -> dict[str, float]:
    """rFID and IS of a folder of pictures against another, as UniTok reports them (Inception of 2015, seed 0)."""
    torch_fidelity = need_fidelity()
    found = torch_fidelity.calculate_metrics(
        input1=str(made),
        input2=str(real),
        cuda=torch.cuda.is_available(),
        batch_size=batch_size,
        isc=True,
        fid=True,
        rng_seed=0,
        verbose=False,
    )
    return {"rfid": found["frechet_inception_distance"], "inception_score": found["inception_score_mean"]}


def need_fidelity() -> ModuleType:
    """The library, or how to get it."""
    try:
        import torch_fidelity
    except ImportError as error:
        raise ImportError(
            f"rFID and IS need torch-fidelity: found none ({error}); `pip install 'mllm-toolkit[eval-images]'` in an "
            "environment whose torchvision fits its torch"
        ) from error
    return torch_fidelity


# Classify pictures by captions of the classes, without training on them (CLIP, arXiv:2103.00020, section 3.1).
#
# Comes in: a tokenizer with a text tower, names, templates, pictures. Goes out: class vectors and counts of right
# answers. Pictures are judged through their codes, as UniTok reports it. Knows no files but the templates'.
#
# Letters: B batch, H W pixels, D embedding width, N classes, R ranks of the answer.


_WITH_EITHER_ARTICLE = (
    "a bad photo of {} %.", "a sculpture of {} %.", "a rendering of {} %.", "graffiti of {} %.",
    "a cropped photo of {} %.", "a tattoo of {} %.", "a bright photo of {} %.", "a dark photo of {} %.",
    "a drawing of {} %.", "a close-up photo of {} %.", "a black and white photo of {} %.", "a painting of {} %.",
    "a pixelated photo of {} %.", "a jpeg corrupted photo of {} %.", "a blurry photo of {} %.", "a good photo of {} %.",
    "a doodle of {} %.", "a sketch of {} %.", "a low resolution photo of {} %.", "a rendition of {} %.",
    "art of {} %.", "itap of {} %.", "a photo of {} %.", "a photo of {} clean %.", "a photo of {} dirty %.",
    "a photo of {} cool %.", "a photo of {} large %.", "a photo of {} small %.", "a photo of {} nice %.",
    "a photo of {} weird %.", "a photo of {} hard to see %.", "{} embroidered %.", "{} plastic %.", "{} origami %.",
    "{} toy %.", "{} plushie %.", "{} cartoon %.", "{} % in a video game.",
)  # fmt: skip
_OTHERS = ("a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}.")
TEMPLATES = (
    tuple(sentence.format(article).replace("%", "{}") for sentence in _WITH_EITHER_ARTICLE for article in ("a", "the"))
    + _OTHERS
)
"""The 80 sentences that CLIP's authors use for ImageNet (articles as they have them: "a embroidered {}.")."""


def read_templates(path: Path) -> tuple[str, ...]:
    """Sentences of a text file, one per line, each with one {}."""
    lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong or not lines:
        raise ValueError(f"a template holds {{}} once; {path} has {wrong[:1] or 'no line'}; mend the file")
    return lines


@torch.no_grad()
def class_vectors(model: UniTok, captions: EncodeCaptions, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One vector of length 1 per class, (N, D): the mean over the templates."""
    vectors = []
    for name in names:
        ids_BT = captions([template.format(name) for template in templates]).to(model.device)
        vectors.append(F.normalize(model.encode_text(ids_BT, normalize=True).float().mean(dim=0), dim=-1))
    return torch.stack(vectors)


@torch.no_grad()
def right_answers(
    model: UniTok, pixels_B3HW: Tensor, labels_B: Tensor, classes_ND: Tensor, *, ranks: Sequence[int] = (1, 5)
) -> Tensor:
    """How many pictures have their class among the R best, for each R, (len(ranks),) int64."""
    features_BD = model.encode_image(pixels_B3HW, normalize=True).float()
    order_BN = (features_BD @ classes_ND.T).argsort(dim=1, descending=True, stable=True)
    place_B = (order_BN == labels_B[:, None].to(order_BN.device)).int().argmax(dim=1)
    return torch.stack([(place_B < best).sum() for best in ranks])
