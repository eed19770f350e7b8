"""The losses of tokenizer training equal their definitions, as do augmentation, DINOv2, heads and schedule."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.train.published_weights import dino_weights
from train import discriminators
from train.discriminators import AdversarialSchedule, DinoFeatures, Discriminator
from train.recipe import AdversarialRecipe, TokenizerLossWeights
from train.tokenizer_trainer import contrastive_loss, detail_of, reconstruction_loss

BLOCKS = (0, 2)


def images(batch: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_shifts_and_cutouts_are_by_single_pixels_and_filled_with_zeros() -> None:
    before = images(5)
    down, right = torch.tensor([0.0, 0.2, 0.5, 0.999, 0.6]), torch.tensor([0.999, 0.0, 0.5, 0.3, 0.8])
    moved = discriminators.shifted(before, down, right)
    cut = discriminators.cut_out(before, down, right, share=0.25)
    for row, (d, r) in enumerate(zip(down.tolist(), right.tolist(), strict=True)):
        # An eighth of 16 and 24: steps from -2 to 2 and from -3 to 3.
        dy, dx, top, left = math.floor(d * 5) - 2, math.floor(r * 7) - 3, math.floor(d * 17) - 2, math.floor(r * 25) - 3
        for y in range(16):
            for x in range(24):
                inside = 0 <= y - dy < 16 and 0 <= x - dx < 24
                expected = before[row, :, y - dy, x - dx] if inside else torch.zeros(3)
                assert torch.equal(moved[row, :, y, x], expected)
                is_cut = top <= y < top + 4 and left <= x < left + 6  # it may reach over the border
                assert torch.equal(cut[row, :, y, x], torch.zeros(3) if is_cut else before[row, :, y, x])


def test_augmentation_repeats_and_two_processes_draw_what_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    before, augment = images(4).requires_grad_(), partial(discriminators.augment, probability=1.0, cutout=0.25)
    changed = augment(before, torch.Generator().manual_seed(1), blur=0.3)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, augment(before, torch.Generator().manual_seed(1), blur=0.3))
    changed.square().sum().backward()
    assert before.grad is not None and before.grad.abs().sum() > 0
    assert torch.equal(augment(before, torch.Generator(), probability=0.0), before)
    assert augment(before, torch.Generator(), probability=0.0, blur=1.0).std() < 0.5 * before.std()
    monkeypatch.setattr("train.discriminators.num_ranks", lambda: 2)
    for number in range(2):
        monkeypatch.setattr("train.discriminators.rank", lambda number=number: number)
        part = augment(before[2 * number :][:2], torch.Generator().manual_seed(1), blur=0.3)
        torch.testing.assert_close(part, changed[2 * number :][:2])


def dino_by_loop(state: dict[str, Tensor], pixels: Tensor) -> list[Tensor]:
    """Features of pixels (3, 42, 42) in [-1, 1], one head of width 64, 5 x 5 positions resampled to 3 x 3."""

    def linear(name: str, rows: Tensor) -> Tensor:
        return F.linear(rows, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, rows: Tensor) -> Tensor:
        return F.layer_norm(rows, (64,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((pixels + 1) / 2 - mean[:, None, None]) / deviation[:, None, None]
    kernel = state["patch_embed.proj.weight"]
    rows = []
    for y in range(0, pixels.shape[1], 14):
        for x in range(0, pixels.shape[2], 14):
            patch = pixels[:, y : y + 14, x : x + 14]
            rows.append((kernel * patch).sum((1, 2, 3)) + state["patch_embed.proj.bias"])
    grid = state["pos_embed"][:, 1:].reshape(1, 5, 5, 64).permute(0, 3, 1, 2)
    resampled = F.interpolate(grid, mode="bicubic", scale_factor=(3 + 0.1) / 5).permute(0, 2, 3, 1).reshape(9, 64)
    positions = torch.cat([state["pos_embed"][0, :1], resampled])
    hidden = torch.cat([state["cls_token"][0], torch.stack(rows)]) + positions
    found = []
    for index in range(3):
        name = f"blocks.{index}"
        query, key, value = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", hidden)).chunk(3, dim=1)
        attended = torch.softmax(query @ key.T / 8, dim=1) @ value
        hidden = hidden + state[f"{name}.ls1.gamma"] * linear(f"{name}.attn.proj", attended)
        inner = F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", hidden)))
        hidden = hidden + state[f"{name}.ls2.gamma"] * linear(f"{name}.mlp.fc2", inner)
        found.append(hidden[1:] + hidden[0])
    return found


def test_dino_features_equal_a_plain_transformer_and_are_frozen() -> None:
    state = dino_weights()
    pixels = (torch.rand(2, 3, 42, 42) * 2 - 1).requires_grad_()
    features = DinoFeatures(state, image_size=42, blocks=BLOCKS).train()
    levels = features(pixels)
    for row in range(2):
        expected = dino_by_loop(state, pixels[row])
        for level, block in zip(levels, BLOCKS, strict=True):
            torch.testing.assert_close(level[row], expected[block], rtol=1e-4, atol=1e-4)
    assert not features.training and not any(parameter.requires_grad for parameter in features.parameters())
    sum(level.square().sum() for level in levels).backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    wrong = {**state, "norm.bias": torch.zeros(3)}
    for weights, size, blocks in ((state, 42, (0, 11)), (state, 13, BLOCKS), (wrong, 42, BLOCKS)):
        with pytest.raises(ValueError):
            DinoFeatures(weights, image_size=size, blocks=blocks)


def test_the_discriminator_has_unitoks_sizes_and_a_head_equals_plain_sums() -> None:
    sizes = Discriminator(384, 5).state_dict()
    assert len(sizes) == 50 and sum(tensor.numel() for tensor in sizes.values()) == 7_386_245
    torch.manual_seed(0)
    network = Discriminator(32, 2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    levels = [torch.randn(3, 11, 32), torch.randn(3, 11, 32)]
    state = network.state_dict()

    def layer(rows_ND: Tensor, name: str, kernel: int) -> Tensor:
        weight, bias = state[f"{name}.0.weight"], state[f"{name}.0.bias"]
        made = []
        for n in range(11):  # the line of patches is a ring
            around = [rows_ND[(n + k - kernel // 2) % 11] @ weight[:, :, k].T for k in range(kernel)]
            made.append(sum(around) + bias)
        made_ND = torch.stack(made)
        # 32 groups of one channel each: every channel is normalised over the patches.
        made_ND = (made_ND - made_ND.mean(0)) / (made_ND.var(0, unbiased=False) + 1e-6).sqrt()
        return F.leaky_relu(made_ND * state[f"{name}.1.weight"] + state[f"{name}.1.bias"], 0.2)

    found = network(levels)
    assert found.shape == (3, 22)
    for row in range(3):
        hidden = layer(levels[1][row], "heads.1.0", 1)
        hidden = (layer(hidden, "heads.1.1.fn", 9) + hidden) / math.sqrt(2)
        expected = hidden @ state["heads.1.2.weight"][0, :, 0] + state["heads.1.2.bias"]
        torch.testing.assert_close(found[row, 11:], expected, rtol=1e-4, atol=1e-4)


def test_weight_blur_and_learning_rate_follow_the_schedule() -> None:
    schedule = AdversarialSchedule(AdversarialRecipe(), steps=1000)
    for step, weight, blur in (
        *((0, 0.0, 1.0), (375, 0.0, 1.0), (376, 1 / 30, 59 / 60)),
        *((405, 1.0, 0.5), (435, 1.0, 0.0), (999, 1.0, 0.0)),
    ):
        assert schedule.weight(step) == pytest.approx(weight) and schedule.blur(step) == pytest.approx(blur)
    assert schedule.learning_rate(100) == 0.0 and schedule.learning_rate(390) == pytest.approx(0.5)
    for step in (405, 600, 998, 999):
        progress = (step - 375 - 30) / (625 - 30 - 1)
        assert schedule.learning_rate(step) == pytest.approx(0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * progress)))
    at_once = AdversarialSchedule(AdversarialRecipe(start=0.0, warmup=0.0, fade=0.0), steps=10)
    assert (at_once.weight(0), at_once.blur(0), at_once.learning_rate(0)) == (1.0, 0.0, 1.0)


def test_discriminator_loss_and_its_balance_equal_their_definitions() -> None:
    logits = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    parts = discriminators.discriminator_loss(logits.unbind(), objective="hinge", consistency=4.0)
    real, made, strong_real, strong_made = (tensor.flatten().tolist() for tensor in logits)
    assert parts["discriminator_real"].item() == pytest.approx(sum(max(0.0, 1 - value) for value in real) / 10)
    assert parts["discriminator_made"].item() == pytest.approx(sum(max(0.0, 1 + value) for value in made) / 10)
    pairs = list(zip(strong_real, real, strict=True)) + list(zip(strong_made, made, strict=True))
    assert parts["discriminator_consistency"].item() == pytest.approx(4 * sum((a - b) ** 2 for a, b in pairs) / 10)
    parts["discriminator_consistency"].backward()
    assert logits.grad is not None and (logits.grad.abs().sum(dim=(1, 2)) > 0).all()  # both sides learn
    for objective, expected in (("hinge", 1.5), ("softplus", math.log(1 + math.exp(0.5))), ("linear", 0.5)):
        assert discriminators.REAL_LOSSES[objective](torch.tensor([[-0.5]])).item() == pytest.approx(expected)
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    other = torch.randn(4, requires_grad=True)
    plain, adversarial = (weight @ other).square().sum(), 0.01 * weight.sum()
    found = discriminators.gradient_ratio(plain, adversarial, weight)
    expected = (2 * (weight @ other)[:, None] * other).norm() / (0.01 * math.sqrt(12) + 1e-6)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and not found.requires_grad
    (plain + found * adversarial).backward()  # the graphs are still there


def test_reconstruction_loss_equals_its_definition() -> None:
    made, real = torch.randn(2, 2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    differences = [(a - b).item() for a, b in zip(made.flatten(), real.flatten(), strict=True)]
    expected = sum(0.3 * abs(d) + 0.7 * d * d for d in differences) / len(differences)
    assert reconstruction_loss(made, real, TokenizerLossWeights(l1=0.3, l2=0.7)).item() == pytest.approx(
        expected, rel=1e-5
    )
    weighted = ((made - real).abs() * (1 + 2 * detail_of(real))).mean()
    found = reconstruction_loss(made, real, TokenizerLossWeights(l1=1.0, l2=0.0, detail=2.0))
    torch.testing.assert_close(found, weighted)
    pixels = torch.full((1, 3, 9, 20), -1.0)
    pixels[:, 1, :, 10:] = 1.0  # a border: detail is 1 around it, and 0 on flat ground
    assert torch.equal(detail_of(pixels)[0, 0], F.pad(torch.ones(9, 4), (8, 8)))


def test_contrastive_loss_equals_its_definition() -> None:
    images, texts = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    total = 0.0
    for row in range(3):
        for first, second in ((images, texts), (texts, images)):
            logits = [4.0 * torch.cosine_similarity(first[row], other, dim=0).item() for other in second]
            total -= logits[row] - math.log(sum(math.exp(value) for value in logits))
    assert contrastive_loss(images, texts, torch.tensor(4.0)).item() == pytest.approx(total / 6, rel=1e-5)


def test_colors_change_as_defined() -> None:
    before = images()
    changes = torch.tensor([[0.9, 0.1], [0.2, 0.7], [0.4, 0.8]])
    after = discriminators.recolored(before, *changes)
    for row, (brightness, saturation, contrast) in enumerate(changes.T.tolist()):
        brighter = before[row] + brightness - 0.5
        gray = sum(brighter[channel] for channel in range(3)) / 3
        colored = torch.stack([(brighter[channel] - gray) * 2 * saturation + gray for channel in range(3)])
        mean = colored.sum() / colored.numel()
        torch.testing.assert_close(after[row], (colored - mean) * (contrast + 0.5) + mean, rtol=1e-5, atol=1e-5)


def test_blur_equals_a_weighted_mean_of_the_neighbours() -> None:
    before, sigma = images(1, 12, 12), 1.3
    after = discriminators.blurred(before, sigma=sigma)
    radius = math.floor(3 * sigma)

    def reflect(index: int) -> int:
        return abs(index) if abs(index) < 12 else 22 - abs(index)

    weights = [2.0 ** -((offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    for y, x in ((0, 0), (5, 7), (11, 3)):
        expected = torch.zeros(3)
        for i, down in enumerate(weights):
            for j, right in enumerate(weights):
                pixel = before[0, :, reflect(y + i - radius), reflect(x + j - radius)]
                expected += down * right * pixel / sum(weights) ** 2
        torch.testing.assert_close(after[0, :, y, x], expected, rtol=1e-4, atol=1e-5)


def test_images_are_cropped_half_of_the_time_and_resized_otherwise() -> None:
    features = DinoFeatures(dino_weights(), image_size=32, blocks=BLOCKS)
    pixels = torch.arange(32.0).expand(1, 3, 32, 32) + 100 * torch.arange(32.0)[:, None]
    resized, corners = F.interpolate(pixels, (28, 28), mode="area"), []
    for seed in range(60):
        fitted = features.fit(pixels, torch.Generator().manual_seed(seed))
        assert fitted.shape == (1, 3, 28, 28)
        if not torch.equal(fitted, resized):
            y, x = divmod(int(fitted[0, 0, 0, 0]), 100)
            assert torch.equal(fitted, pixels[:, :, y : y + 28, x : x + 28])
            corners.append((y, x))
    assert 15 < len(corners) < 45
    assert {y for y, _ in corners} == {x for _, x in corners} == set(range(5))
