"""The discriminator's heads against plain sums, and their published size."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from train.discriminators import Discriminator


def test_sizes_are_those_of_unitok() -> None:
    heads = Discriminator(384, 5)
    state = heads.state_dict()
    assert len(state) == 50 and sum(tensor.numel() for tensor in state.values()) == 7_386_245
    assert tuple(state["heads.4.1.fn.0.weight"].shape) == (384, 384, 9)
    assert tuple(state["heads.0.2.weight"].shape) == (1, 384, 1)


def test_one_head_equals_plain_sums() -> None:
    torch.manual_seed(0)
    network = Discriminator(32, 2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    levels = [torch.randn(3, 11, 32), torch.randn(3, 11, 32)]
    state = network.state_dict()

    def layer(rows_ND: torch.Tensor, name: str, kernel: int) -> torch.Tensor:
        weight, bias = state[f"{name}.0.weight"], state[f"{name}.0.bias"]
        made = []
        for n in range(11):  # the line of patches is a ring
            around = [rows_ND[(n + k - kernel // 2) % 11] @ weight[:, :, k].T for k in range(kernel)]
            made.append(sum(around) + bias)
        made_ND = torch.stack(made)
        # 32 groups of one channel each: every channel is normalised over the patches.
        centred = made_ND - made_ND.mean(0)
        made_ND = centred / (made_ND.var(0, unbiased=False) + 1e-6).sqrt()
        return F.leaky_relu(made_ND * state[f"{name}.1.weight"] + state[f"{name}.1.bias"], 0.2)

    found = network(levels)
    assert found.shape == (3, 22)
    for row in range(3):
        hidden = layer(levels[1][row], "heads.1.0", 1)
        hidden = (layer(hidden, "heads.1.1.fn", 9) + hidden) / math.sqrt(2)
        expected = hidden @ state["heads.1.2.weight"][0, :, 0] + state["heads.1.2.bias"]
        torch.testing.assert_close(found[row, 11:], expected, rtol=1e-4, atol=1e-4)


def test_a_width_that_the_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError):
        Discriminator(48, 1)
