"""Metrics of image tokenizers: PSNR, SSIM, LPIPS, FID, codebook usage, zero-shot classification.

PSNR and SSIM are computed here because those of torchmetrics take seconds to import, and its SSIM differs by 0.005.

Letters: B batch, H W pixels, K codebooks, C entries per codebook (in LPIPS: channels), N positions (in zero-shot
classification: classes), D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.text_tower import EncodeCaptions
from tokenizer.unitok import UniTok
from tokenizer.weights import read_tensors, require_same_tensors

PIXEL_RANGE = 2.0  # pixels lie in [-1, 1]
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # Wang et al. 2004

VGG_SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Indices of VGG16's convolutions in torchvision's list; LPIPS takes features after the last one of each slice."""
VGG_MEAN, VGG_DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALLEST_LPIPS_SIDE = 16  # four poolings must leave a pixel

CLIP_TEMPLATES = Path(__file__).with_name("clip_templates.txt")
"""The 80 sentences of CLIP's authors for ImageNet, with their articles ("a embroidered {}.")."""


def psnr(first_B3HW: Tensor, second_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,); infinite for equal images."""
    error_B = (first_B3HW.float() - second_B3HW.float()).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(PIXEL_RANGE**2 / error_B)


def ssim(first_B3HW: Tensor, second_B3HW: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004), (B,): mean over colors and windows inside the image."""
    if min(first_B3HW.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM must have sides >= {SSIM_WINDOW}, got {tuple(first_B3HW.shape)}; use larger images")
    return ssim_of(Windows(first_B3HW.float()), Windows(second_B3HW.float()))


class Windows:
    """Images with their means and variances in windows, which SSIM needs of each, however often it is compared."""

    def __init__(self, pixels_B3HW: Tensor) -> None:
        self.pixels_B3HW, self.mean_B3HW = pixels_B3HW, blur(pixels_B3HW)
        self.variance_B3HW = blur(pixels_B3HW.square()) - self.mean_B3HW.square()


def ssim_of(first: Windows, second: Windows) -> Tensor:
    """SSIM of each image, (B,); either may be a single image that is compared with many."""
    c1, c2 = (0.01 * PIXEL_RANGE) ** 2, (0.03 * PIXEL_RANGE) ** 2
    product = first.mean_B3HW * second.mean_B3HW
    covariance = blur(first.pixels_B3HW * second.pixels_B3HW) - product
    luminance = (2 * product + c1) / (first.mean_B3HW.square() + second.mean_B3HW.square() + c1)
    structure = (2 * covariance + c2) / (first.variance_B3HW + second.variance_B3HW + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def blur(pixels_B3HW: Tensor) -> Tensor:
    """Means in windows, by two matrix products: of many images several times faster than convolutions."""
    offset = torch.arange(SSIM_WINDOW, device=pixels_B3HW.device, dtype=torch.float32) - (SSIM_WINDOW - 1) / 2
    taps = torch.softmax(-offset.square() / (2 * SSIM_SIGMA**2), dim=0)
    down, across = (F.pad(taps, (n - SSIM_WINDOW,) * 2).unfold(0, n, 1).flip(0) for n in pixels_B3HW.shape[-2:])
    return down @ pixels_B3HW @ across.T


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


def bits_per_image(entropy_K: Tensor, positions_per_image: int) -> float:
    """Information in the codes of one image, given the entropy of each codebook in nats."""
    return float(entropy_K.sum()) / math.log(2) * positions_per_image


class LPIPS(nn.Module):
    """Perceptual distance (Zhang et al. 2018, arXiv:1801.03924) on features of VGG16. Takes the weights of
    `lpips_with_vgg.pth`, or others with the same names. Frozen; gradients reach the pixels."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        layers = [[f"net.slice{level}.{index}" for index in row] for level, row in enumerate(VGG_SLICES, start=1)]
        linear = [f"lins.{level}.model.1.weight" for level in range(len(VGG_SLICES))]
        names = [f"{layer}.{part}" for row in layers for layer in row for part in ("weight", "bias")]
        require_same_tensors(state, [*names, *linear], source="the file of LPIPS weights (lpips_with_vgg.pth)")
        self.slices = nn.ModuleList(nn.ModuleList(convolution(state, layer) for layer in row) for row in layers)
        for level, name in enumerate(linear):
            self.register_buffer(f"weights_{level}", state[name].float())
        self.register_buffer("mean", torch.tensor(VGG_MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(VGG_DEVIATION).view(1, 3, 1, 1))
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, path: Path) -> LPIPS:
        return cls(read_tensors(path))

    def forward(self, first_B3HW: Tensor, second_B3HW: Tensor) -> Tensor:
        """Distance of each pair of images in [-1, 1], (B,)."""
        if min(first_B3HW.shape[-2:]) < SMALLEST_LPIPS_SIDE:
            raise ValueError(f"LPIPS must have sides >= {SMALLEST_LPIPS_SIDE}, got {tuple(first_B3HW.shape)}")
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
        for level, convolutions in enumerate(self.slices):
            if level:
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
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=3, padding=1)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def fidelity(made: Path, real: Path | None, *, batch_size: int) -> dict[str, float]:
    """rFID and IS of a folder of images against another, as UniTok reports them (Inception of 2015, seed 0). FID of few
    images is biased upwards; compare equal counts only."""
    how = {"cuda": torch.cuda.is_available(), "batch_size": batch_size, "rng_seed": 0, "verbose": False}
    found = need_fidelity().calculate_metrics(input1=str(made), input2=str(real), isc=True, fid=True, **how)
    return {"rfid": found["frechet_inception_distance"], "inception_score": found["inception_score_mean"]}


def need_fidelity() -> ModuleType:
    try:
        import torch_fidelity
    except ImportError as error:
        raise ImportError(
            f"rFID needs torch-fidelity ({error}); `pip install 'mllm-toolkit[eval-images]'` in its own environment"
        ) from error
    return torch_fidelity


def read_templates(path: Path) -> tuple[str, ...]:
    """Caption templates of a text file, one per line, each with one {}."""
    lines = tuple(line.strip() for line in path.read_bytes().decode("utf-8-sig").split("\n") if line.strip())
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong or not lines:
        raise ValueError(f"each line of {path} must have {{}} once, got {wrong[0] if wrong else 'no line'}; correct it")
    return lines


@torch.no_grad()
def class_vectors(model: UniTok, captions: EncodeCaptions, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One vector of length 1 per class, (N, D): the mean over the templates (CLIP, arXiv:2103.00020, section 3.1)."""
    vectors = []
    for name in names:
        ids_BT = captions([template.format(name) for template in templates]).to(model.device)
        vectors.append(F.normalize(model.encode_text(ids_BT, normalize=True).float().mean(dim=0), dim=-1))
    return torch.stack(vectors)


@torch.no_grad()
def class_ranks(model: UniTok, pixels_B3HW: Tensor, labels_B: Tensor, classes_ND: Tensor) -> Tensor:
    """Rank of each image's class among all classes, 0 for the best, int (B,); images are seen through their codes."""
    features_BD = model.encode_image(pixels_B3HW, normalize=True).float()
    order_BN = (features_BD @ classes_ND.T).argsort(dim=1, descending=True, stable=True)
    return (order_BN == labels_B[:, None].to(order_BN.device)).int().argmax(dim=1)
