"""The adversarial losses, their balance and their schedule against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from train.discriminators import UNREALNESS, AdversarialSchedule, balance, discriminator_loss

SCHEDULE = AdversarialSchedule(start=375.0, warmup=30.0, fade=60.0, steps=1000, final_learning_rate=0.1)
"""UniTok's shares of a training of 1000 steps."""


@pytest.mark.parametrize(
    ("step", "weight", "blur"),
    [(0, 0.0, 1.0), (375, 0.0, 1.0), (376, 1 / 30, 59 / 60), (405, 1.0, 0.5), (435, 1.0, 0.0), (999, 1.0, 0.0)],
)
def test_weight_and_blur_follow_the_schedule(step: int, weight: float, blur: float) -> None:
    assert SCHEDULE.weight(step) == pytest.approx(weight)
    assert SCHEDULE.blur(step) == pytest.approx(blur)


def test_the_discriminators_learning_rate_has_a_clock_of_its_own() -> None:
    assert SCHEDULE.learning_rate(100) == 0.0
    assert SCHEDULE.learning_rate(390) == pytest.approx(0.5)
    for step in (405, 600, 998):
        progress = (step - 375 - 30) / (625 - 30 - 1)
        assert SCHEDULE.learning_rate(step) == pytest.approx(0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * progress)))
    assert SCHEDULE.learning_rate(999) == pytest.approx(0.1)


def test_a_schedule_without_warmup_begins_at_once() -> None:
    at_once = AdversarialSchedule(start=0.0, warmup=0.0, fade=0.0, steps=10, final_learning_rate=0.1)
    assert (at_once.weight(0), at_once.blur(0), at_once.learning_rate(0)) == (1.0, 0.0, 1.0)


def test_the_discriminators_loss_equals_its_definition() -> None:
    logits = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0)).unbind()
    parts = discriminator_loss(logits, objective="hinge", consistency=4.0)
    real, made, strong_real, strong_made = (tensor.flatten().tolist() for tensor in logits)
    assert parts["discriminator_real"].item() == pytest.approx(sum(max(0.0, 1 - value) for value in real) / 10)
    assert parts["discriminator_made"].item() == pytest.approx(sum(max(0.0, 1 + value) for value in made) / 10)
    pairs = list(zip(strong_real, real, strict=True)) + list(zip(strong_made, made, strict=True))
    assert parts["discriminator_consistency"].item() == pytest.approx(4 * sum((a - b) ** 2 for a, b in pairs) / 10)


def test_both_sides_of_the_consistency_learn() -> None:
    logits = [torch.randn(2, 3, requires_grad=True) for _ in range(4)]
    discriminator_loss(logits, objective="hinge", consistency=1.0)["discriminator_consistency"].backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in logits)


@pytest.mark.parametrize(
    ("objective", "expected"), [("hinge", 1.5), ("softplus", math.log(1 + math.exp(0.5))), ("linear", 0.5)]
)
def test_objectives_of_one_logit(objective: str, expected: float) -> None:
    assert UNREALNESS[objective](torch.tensor([[-0.5]])).item() == pytest.approx(expected)


def test_balance_is_the_ratio_of_the_gradients_at_the_last_weight() -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    other = torch.randn(4, requires_grad=True)
    plain, adversarial = (weight @ other).square().sum(), 0.01 * weight.sum()
    found = balance(plain, adversarial, weight)
    expected = (2 * (weight @ other)[:, None] * other).norm() / (0.01 * math.sqrt(12) + 1e-6)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not found.requires_grad
    (plain + found * adversarial).backward()  # the graphs are still there
