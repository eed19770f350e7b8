"""Reconstruction and contrastive losses equal their definitions."""

import math

import pytest
import torch

from train.tokenizer_trainer import contrastive_loss, detail_of, reconstruction_loss


def test_reconstruction_loss_equals_its_definition() -> None:
    made, real = torch.randn(2, 2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    differences = [(a - b).item() for a, b in zip(made.flatten(), real.flatten(), strict=True)]
    expected = sum(0.3 * abs(d) + 0.7 * d * d for d in differences) / len(differences)
    assert reconstruction_loss(made, real, l1_weight=0.3, l2_weight=0.7).item() == pytest.approx(expected, rel=1e-5)
    weighted = ((made - real).abs() * (1 + 2 * detail_of(real))).mean()
    found = reconstruction_loss(made, real, l1_weight=1.0, l2_weight=0.0, detail_weight=2.0)
    torch.testing.assert_close(found, weighted)


def test_detail_is_one_at_a_strong_border_and_zero_on_flat_ground() -> None:
    pixels = torch.full((1, 3, 9, 20), -1.0)
    pixels[:, 1, :, 10:] = 1.0
    detail = detail_of(pixels)[0, 0]
    assert detail[:, 8:12].eq(1).all()
    assert detail[:, :8].eq(0).all() and detail[:, 12:].eq(0).all()


def test_contrastive_loss_equals_its_definition() -> None:
    images, texts = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    total = 0.0
    for row in range(3):
        for first, second in ((images, texts), (texts, images)):
            logits = [4.0 * torch.cosine_similarity(first[row], other, dim=0).item() for other in second]
            total -= logits[row] - math.log(sum(math.exp(value) for value in logits))
    assert contrastive_loss(images, texts, torch.tensor(4.0)).item() == pytest.approx(total / 6, rel=1e-5)
