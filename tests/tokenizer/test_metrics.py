"""Metrics against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch

from tokenizer import metrics


def test_psnr_is_per_picture_and_infinite_for_equal_ones() -> None:
    first = torch.zeros(2, 3, 4, 5)
    second = first.clone()
    second[1] += 0.2
    assert metrics.psnr(first, second).tolist() == pytest.approx([math.inf, 20.0])


def test_ssim_equals_the_loop() -> None:
    torch.manual_seed(0)
    first, second = torch.rand(2, 2, 3, 9, 8) * 2 - 1
    taps = torch.tensor([math.exp(-(x**2) / (2 * 1.5**2)) for x in (-2, -1, 0, 1, 2)])
    window = torch.outer(taps, taps) / taps.sum() ** 2
    expected = torch.zeros(2, 3, 5, 4)
    for b, c, y, x in torch.cartesian_prod(*map(torch.arange, expected.shape)).tolist():
        p, q = first[b, c, y : y + 5, x : x + 5], second[b, c, y : y + 5, x : x + 5]
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
        cov = (window * (p - mp) * (q - mq)).sum()
        c1, c2 = 0.02**2, 0.06**2
        expected[b, c, y, x] = (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
    torch.testing.assert_close(metrics.ssim(first, second, window=5), expected.mean((1, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(metrics.ssim(first, first, window=5), torch.ones(2))


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="sides of at least 11"):
        metrics.ssim(torch.zeros(1, 3, 8, 20), torch.zeros(1, 3, 8, 20))


def test_codebook_statistics_are_per_codebook() -> None:
    codes_BKN = torch.tensor([[[0, 0, 1], [4, 4, 4]], [[1, 2, 2], [4, 4, 4]]])
    assert metrics.code_counts(codes_BKN, 5).tolist() == [[2, 2, 2, 0, 0], [0, 0, 0, 0, 6]]
    assert metrics.codebook_usage(codes_BKN, 5).tolist() == pytest.approx([0.6, 0.2])
    assert metrics.codebook_entropy(codes_BKN, 5).tolist() == pytest.approx([math.log(3), 0.0])
    assert metrics.codebook_perplexity(codes_BKN, 5).tolist() == pytest.approx([3.0, 1.0])
    assert metrics.bits_per_picture(metrics.codebook_entropy(codes_BKN, 5), 10) == pytest.approx(10 * math.log2(3))
