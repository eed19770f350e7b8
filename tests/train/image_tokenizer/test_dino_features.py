"""DINOv2's features against a plain vision transformer on the published names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.train.published_weights import dino_weights
from train.discriminators import DinoFeatures, resampled_positions

BLOCKS = (0, 2)


def linear(state: dict[str, Tensor], name: str, rows: Tensor) -> Tensor:
    return rows @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: dict[str, Tensor], name: str, rows: Tensor) -> Tensor:
    mean, deviation = rows.mean(-1, keepdim=True), rows.var(-1, unbiased=False, keepdim=True).add(1e-6).sqrt()
    return (rows - mean) / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]


def reference(state: dict[str, Tensor], pixels: Tensor) -> list[Tensor]:
    """Features of pixels (3, H, W) in [-1, 1], one head of width 64, no resampling of positions."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((pixels + 1) / 2 - mean[:, None, None]) / deviation[:, None, None]
    kernel = state["patch_embed.proj.weight"]
    rows = []
    for y in range(0, pixels.shape[1], 14):
        for x in range(0, pixels.shape[2], 14):
            patch = pixels[:, y : y + 14, x : x + 14]
            rows.append((kernel * patch).sum((1, 2, 3)) + state["patch_embed.proj.bias"])
    hidden = torch.cat([state["cls_token"][0], torch.stack(rows)]) + state["pos_embed"][0]
    found = []
    for index in range(3):
        name = f"blocks.{index}"
        query, key, value = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", hidden)).chunk(3, dim=1)
        attended = torch.softmax(query @ key.T / 8, dim=1) @ value
        hidden = hidden + state[f"{name}.ls1.gamma"] * linear(state, f"{name}.attn.proj", attended)
        inner = F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", hidden)))
        hidden = hidden + state[f"{name}.ls2.gamma"] * linear(state, f"{name}.mlp.fc2", inner)
        found.append(hidden[1:] + hidden[0])
    return found


def test_features_equal_a_plain_transformer() -> None:
    state = dino_weights(side=3)
    pixels = torch.rand(2, 3, 42, 42) * 2 - 1
    levels = DinoFeatures(state, image_size=42, blocks=BLOCKS)(pixels)
    for row in range(2):
        expected = reference(state, pixels[row])
        for level, block in zip(levels, BLOCKS, strict=True):
            torch.testing.assert_close(level[row], expected[block], rtol=1e-4, atol=1e-4)


def test_positions_are_resampled_as_dinov2_does() -> None:
    positions = torch.randn(1, 26, 8)
    found = resampled_positions(positions, 3)
    assert torch.equal(found[:, :1], positions[:, :1])
    grid = positions[:, 1:].reshape(1, 5, 5, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, scale_factor=(3 + 0.1) / 5, mode="bicubic").permute(0, 2, 3, 1).reshape(1, 9, 8)
    torch.testing.assert_close(found[:, 1:], expected)
    plain = F.interpolate(grid, size=(3, 3), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 9, 8)
    assert not torch.allclose(expected, plain, atol=1e-3)  # the 0.1 is not for nothing
    assert resampled_positions(positions, 5) is positions


def test_pictures_are_cropped_half_of_the_time_and_resampled_otherwise() -> None:
    features = DinoFeatures(dino_weights(), image_size=32, blocks=BLOCKS)
    pixels = torch.arange(32.0).expand(1, 3, 32, 32) + 100 * torch.arange(32.0)[:, None]
    kinds = {"crop": 0, "whole": 0}
    whole = F.interpolate(pixels, (28, 28), mode="area")
    corners = set()
    for seed in range(60):
        fitted = features.fit(pixels, torch.Generator().manual_seed(seed))
        assert fitted.shape == (1, 3, 28, 28)
        if torch.equal(fitted, whole):
            kinds["whole"] += 1
        else:
            y, x = divmod(int(fitted[0, 0, 0, 0]), 100)
            assert torch.equal(fitted, pixels[:, :, y : y + 28, x : x + 28])
            corners.add((y, x))
            kinds["crop"] += 1
    assert min(kinds.values()) > 15
    assert {y for y, _ in corners} == {x for _, x in corners} == set(range(5))
    small = torch.rand(1, 3, 20, 20)
    assert features.fit(small, torch.Generator().manual_seed(0)).shape == (1, 3, 28, 28)


def test_the_network_is_frozen_and_gradients_reach_the_pixels() -> None:
    features = DinoFeatures(dino_weights(), image_size=28, blocks=BLOCKS).train()
    assert not features.training and not any(parameter.requires_grad for parameter in features.parameters())
    pixels = torch.rand(1, 3, 28, 28).requires_grad_()
    sum(level.square().sum() for level in features(pixels)).backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_wrong_files_and_sizes_are_refused(tmp_path: Path) -> None:
    state = dino_weights()
    with pytest.raises(ValueError):
        DinoFeatures(state, image_size=28, blocks=(0, 11))
    with pytest.raises(ValueError):
        DinoFeatures(state, image_size=13, blocks=BLOCKS)
    state.pop("blocks.1.ls1.gamma")
    torch.save(state, tmp_path / "dino.pth")
    with pytest.raises(ValueError):
        DinoFeatures.from_file(tmp_path / "dino.pth", image_size=28, blocks=BLOCKS)
