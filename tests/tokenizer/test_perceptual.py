"""LPIPS against a second writing of it, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.train.published_weights import VGG, lpips_weights
from tokenizer.checkpoint import read_tensors
from tokenizer.metrics import LPIPS

CUTS = (4, 9, 16, 23, 30)
"""Where torchvision's list of VGG16's 31 layers is cut to get at the five activations."""


def torchvision_list(state: dict[str, Tensor]) -> list[nn.Module]:
    """VGG16's `features` as torchvision lists them: convolutions, activations and poolings by position."""
    layers: list[nn.Module] = [nn.ReLU() for _ in range(31)]
    for pooling in (4, 9, 16, 23, 30):
        layers[pooling] = nn.MaxPool2d(2, 2)
    for number, row in enumerate(VGG, start=1):
        for index in row:
            weight = state[f"net.slice{number}.{index}.weight"]
            layers[index] = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            layers[index].load_state_dict({"weight": weight, "bias": state[f"net.slice{number}.{index}.bias"]})
    return layers


def reference(state: dict[str, Tensor], first: Tensor, second: Tensor) -> float:
    """Distance of two pictures (3, H, W), pixel by pixel."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    hidden = [((picture - shift[:, None, None]) / scale[:, None, None])[None] for picture in (first, second)]
    layers, total, begin = torchvision_list(state), 0.0, 0
    for level, end in enumerate(CUTS):
        for layer in layers[begin:end]:
            hidden = [layer(tensor) for tensor in hidden]
        begin = end
        weights = state[f"lins.{level}.model.1.weight"].flatten()
        _, _, height, width = hidden[0].shape
        for y in range(height):
            for x in range(width):
                one, other = (tensor[0, :, y, x] / (tensor[0, :, y, x].norm() + 1e-10) for tensor in hidden)
                total += (weights * (one - other) ** 2).sum().item() / (height * width)
    return total


def test_lpips_equals_its_definition() -> None:
    torch.manual_seed(0)
    state = lpips_weights()
    first, second = torch.rand(2, 3, 34, 51) * 2 - 1, torch.rand(2, 3, 34, 51) * 2 - 1
    found = LPIPS(state)(first, second)
    expected = [reference(state, one, other) for one, other in zip(first, second, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_equal_pictures_are_at_no_distance_and_gradients_reach_only_the_pixels() -> None:
    network = LPIPS(lpips_weights())
    picture = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    assert network(picture, picture.detach()).item() == 0.0
    network(picture, -picture.detach()).sum().backward()
    assert picture.grad is not None and picture.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_published_sizes_fit() -> None:
    network = LPIPS(lpips_weights((64, 128, 256, 512, 512)))
    assert sum(parameter.numel() for parameter in network.parameters()) == 14_714_688  # VGG16 without its classifier


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    state = lpips_weights()
    state["extra"] = state.pop("lins.2.model.1.weight")
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"missing are \['lins.2.model.1.weight'\].*unknown are \['extra'\]"):
        LPIPS.from_file(tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match="sides of 16 or more"):
        LPIPS(lpips_weights())(torch.zeros(1, 3, 15, 32), torch.zeros(1, 3, 15, 32))


def test_files_that_hold_no_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        read_tensors(tmp_path / "absent.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="download the file again"):
        read_tensors(tmp_path / "broken.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="found list"):
        read_tensors(tmp_path / "list.pth")
