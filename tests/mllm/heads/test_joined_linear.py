"""Joined linear layers: the same outputs side by side, and nothing lost of layers that something else has changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mllm.heads import is_plain, join


class DoubledLinear(nn.Linear):
    """Stands for adapters and quantised layers: its output is not what its weight says."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * super().forward(hidden)


def build(kind: str, out_width: int) -> nn.Module:
    linear = (DoubledLinear if kind == "subclass" else nn.Linear)(5, out_width, bias=kind != "no bias")
    if kind == "hook":
        linear.register_forward_hook(lambda module, inputs, output: output + 1)
    if kind == "replaced forward":
        linear.forward = lambda hidden: hidden.new_ones(*hidden.shape[:-1], out_width)  # type: ignore[method-assign]
    return linear


@pytest.mark.parametrize("kind", ["plain", "no bias", "subclass", "hook", "replaced forward"])
def test_joined_layers_give_what_they_give_one_by_one(kind: str) -> None:
    torch.manual_seed(2)
    linears = [build(kind, 3), build("no bias" if kind == "no bias" else "plain", 7)]
    hidden = torch.randn(4, 5)
    expected = torch.cat([linear(hidden) for linear in linears], dim=-1)
    torch.testing.assert_close(join(linears)(hidden), expected)
    assert is_plain(linears[0]) == (kind in ("plain", "no bias"))


def test_weights_that_are_elsewhere_are_not_copied() -> None:
    with torch.device("meta"):
        assert not is_plain(nn.Linear(5, 3))
    sharded = nn.Linear(5, 3)
    sharded.weight.data = torch.empty(0)
    assert not is_plain(sharded)
