"""The changes before the discriminator, each against loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch

from train.tokenizer_losses import DiffAugment, blurred, cut_out, moved, recoloured


def pictures(batch: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_moving_shifts_by_whole_pixels_and_fills_with_zeros() -> None:
    before = pictures(5)
    down, right = torch.tensor([0.0, 0.2, 0.5, 0.999, 0.6]), torch.tensor([0.999, 0.0, 0.5, 0.3, 0.8])
    after = moved(before, down, right)
    for row in range(5):
        # An eighth of 16 and 24: steps from -2 to 2 and from -3 to 3.
        dy, dx = math.floor(down[row].item() * 5) - 2, math.floor(right[row].item() * 7) - 3
        for y in range(16):
            for x in range(24):
                inside = 0 <= y - dy < 16 and 0 <= x - dx < 24
                expected = before[row, :, y - dy, x - dx] if inside else torch.zeros(3)
                assert torch.equal(after[row, :, y, x], expected)


def test_colours_change_as_defined() -> None:
    before = pictures()
    after = recoloured(before, torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.7]), torch.tensor([0.4, 0.8]))
    for row, (bright, saturated, contrast) in enumerate(((0.9, 0.2, 0.4), (0.1, 0.7, 0.8))):
        brighter = before[row] + bright - 0.5
        grey = sum(brighter[channel] for channel in range(3)) / 3
        coloured = torch.stack([(brighter[channel] - grey) * 2 * saturated + grey for channel in range(3)])
        mean = coloured.sum() / coloured.numel()
        torch.testing.assert_close(after[row], (coloured - mean) * (contrast + 0.5) + mean, rtol=1e-5, atol=1e-5)


def test_cutout_zeroes_a_square_that_may_stick_out() -> None:
    before = pictures(3)
    down, right = torch.tensor([0.0, 0.5, 0.99]), torch.tensor([0.5, 0.99, 0.0])
    after = cut_out(before, down, right, share=0.25)
    for row in range(3):
        tall, wide = 4, 6
        top, left = math.floor(down[row].item() * 17) - 2, math.floor(right[row].item() * 25) - 3
        for y in range(16):
            for x in range(24):
                is_cut = top <= y < top + tall and left <= x < left + wide
                assert torch.equal(after[row, :, y, x], torch.zeros(3) if is_cut else before[row, :, y, x])


def test_blur_equals_a_weighted_mean_of_the_neighbours() -> None:
    before, sigma = pictures(1, 12, 12), 1.3
    after = blurred(before, sigma=sigma)
    radius = math.floor(3 * sigma)

    def reflect(place: int) -> int:
        place = abs(place)
        return place if place < 12 else 22 - place

    weights = [2.0 ** -((offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    for y, x in ((0, 0), (5, 7), (11, 3)):
        expected = torch.zeros(3)
        for i, down in enumerate(weights):
            for j, right in enumerate(weights):
                place = before[0, :, reflect(y + i - radius), reflect(x + j - radius)]
                expected += down * right * place / sum(weights) ** 2
        torch.testing.assert_close(after[0, :, y, x], expected, rtol=1e-4, atol=1e-5)


def test_strength_decides_what_happens() -> None:
    before = pictures()
    assert torch.equal(DiffAugment(probability=0.0)(before, torch.Generator()), before)
    generator = torch.Generator().manual_seed(1)
    changed = DiffAugment()(before, generator)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, DiffAugment()(before, torch.Generator().manual_seed(1)))
    sharp = DiffAugment(probability=0.0)(before, torch.Generator(), blur=1.0)
    assert sharp.std() < 0.5 * before.std()


def test_gradients_pass_through() -> None:
    before = pictures().requires_grad_()
    DiffAugment(cutout=0.25)(before, torch.Generator().manual_seed(2), blur=0.3).square().sum().backward()
    assert before.grad is not None and before.grad.abs().sum() > 0


def test_two_processes_draw_what_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pictures(4)
    whole = DiffAugment()(before, torch.Generator().manual_seed(7), blur=0.2)
    monkeypatch.setattr("train.tokenizer_losses.num_ranks", lambda: 2)
    for number in range(2):
        monkeypatch.setattr("train.tokenizer_losses.rank", lambda number=number: number)
        part = DiffAugment()(before[2 * number :][:2], torch.Generator().manual_seed(7), blur=0.2)
        torch.testing.assert_close(part, whole[2 * number :][:2])
