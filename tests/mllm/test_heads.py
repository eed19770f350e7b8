"""Joined layers of codebook heads; heads are in test_golden.py, decoding and guidance in test_engine.py."""

import pytest
import torch
from torch import Tensor, nn

from mllm.heads import is_plain, join


class DoubledLinear(nn.Linear):
    """Stands for adapters and quantised layers: its output is not what its weight says."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * super().forward(hidden)


def test_joined_layers_give_what_they_give_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("plain", "no bias", "subclass", "hook", "replaced forward"):
        torch.manual_seed(2)
        linear = (DoubledLinear if kind == "subclass" else nn.Linear)(5, 3, bias=kind != "no bias")
        if kind == "hook":
            linear.register_forward_hook(lambda module, inputs, output: output + 1)
        if kind == "replaced forward":
            linear.forward = lambda hidden: hidden[..., :3]
        linears, hidden = [linear, nn.Linear(5, 7, bias=kind != "no bias")], torch.randn(4, 5)
        expected = torch.cat([linear(hidden) for linear in linears], dim=-1)
        torch.testing.assert_close(join(linears)(hidden), expected)
        monkeypatch.setattr("mllm.heads.MOST_BYTES_BY_INPUT", 0)
        torch.testing.assert_close(join(linears)(hidden), expected)
        monkeypatch.undo()
        assert is_plain(linears[0]) == (kind in ("plain", "no bias"))
    sharded = nn.Linear(5, 3)
    sharded.weight.data = torch.empty(0)
    assert not is_plain(sharded) and not is_plain(nn.Linear(5, 3, device="meta")), "weights that are elsewhere"
