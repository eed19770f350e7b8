"""Metrics against their formulas, written out; LPIPS against a second writing of it, and its file."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.train.published_weights import VGG, lpips_weights
from tokenizer import metrics
from tokenizer.metrics import LPIPS


def test_ssim_equals_the_loop() -> None:
    torch.manual_seed(0)
    first, second = torch.rand(2, 2, 3, 14, 12) * 2 - 1
    taps = torch.tensor([math.exp(-(x**2) / (2 * 1.5**2)) for x in range(-5, 6)])
    window = torch.outer(taps, taps) / taps.sum() ** 2
    expected = torch.zeros(2, 3, 4, 2)
    for b, c, y, x in torch.cartesian_prod(*map(torch.arange, expected.shape)).tolist():
        p, q = first[b, c, y : y + 11, x : x + 11], second[b, c, y : y + 11, x : x + 11]
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
        cov = (window * (p - mp) * (q - mq)).sum()
        c1, c2 = 0.02**2, 0.06**2
        expected[b, c, y, x] = (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
    torch.testing.assert_close(metrics.ssim(first, second), expected.mean((1, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(metrics.ssim(first, first), torch.ones(2))
    alone = metrics.ssim_of(metrics.Windows(first[:1]), metrics.Windows(second))
    torch.testing.assert_close(alone, metrics.ssim(first[:1].expand_as(second), second))


def lpips_by_loop(state: dict[str, Tensor], first: Tensor, second: Tensor) -> float:
    """Distance of two images (3, H, W), pixel by pixel."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    hidden = [((image - shift[:, None, None]) / scale[:, None, None])[None] for image in (first, second)]
    total = 0.0
    for level, row in enumerate(VGG):
        if level:
            hidden = [F.max_pool2d(tensor, 2, 2) for tensor in hidden]
        for name in (f"net.slice{level + 1}.{index}" for index in row):
            weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            hidden = [F.conv2d(tensor, weight, bias, padding=1).relu() for tensor in hidden]
        weights = state[f"lins.{level}.model.1.weight"].flatten()
        _, _, height, width = hidden[0].shape
        for y in range(height):
            for x in range(width):
                one, other = (tensor[0, :, y, x] / (tensor[0, :, y, x].norm() + 1e-10) for tensor in hidden)
                total += (weights * (one - other) ** 2).sum().item() / (height * width)
    return total


def test_lpips_equals_its_definition_and_gradients_reach_only_the_pixels() -> None:
    torch.manual_seed(0)
    state = lpips_weights()
    network = LPIPS(state)
    first, second = torch.rand(2, 2, 3, 18, 33) * 2 - 1
    expected = [lpips_by_loop(state, one, other) for one, other in zip(first, second, strict=True)]
    assert network(first, second).tolist() == pytest.approx(expected, rel=1e-4)
    image = first[:1].clone().requires_grad_()
    assert network(image, image.detach()).item() == 0.0
    network(image, -image.detach()).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())
    published = LPIPS(lpips_weights((64, 128, 256, 512, 512)))
    assert sum(parameter.numel() for parameter in published.parameters()) == 14_714_688  # VGG16 without its classifier
