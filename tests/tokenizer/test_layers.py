"""Attention spelled out equals the fused kernel; stochastic depth drops whole samples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tokenizer.layers import DropPath, GeGLU, SelfAttention, build_stack, scaled_attention


@pytest.mark.parametrize("causal", [False, True])
def test_plain_attention_equals_fused_attention(causal: bool) -> None:
    query, key, value = torch.randn(3, 2, 3, 7, 4)
    with torch.no_grad():
        fused = scaled_attention(query, key, value, causal=causal)
    plain = scaled_attention(query.requires_grad_(), key, value, causal=causal)
    torch.testing.assert_close(plain, fused)


def test_attention_is_what_the_paper_says() -> None:
    layer = SelfAttention(6, 2)
    hidden_BND = torch.randn(2, 5, 6)
    query, key, value = layer.qkv(hidden_BND).split(6, dim=-1)
    heads = []
    for h in range(2):
        part = slice(3 * h, 3 * h + 3)
        weights_BNN = (query[..., part] @ key[..., part].transpose(1, 2) / 3**0.5).softmax(-1)
        heads.append(weights_BNN @ value[..., part])
    torch.testing.assert_close(layer(hidden_BND), layer.proj(torch.cat(heads, dim=-1)))


def test_geglu_gates_with_tanh_gelu() -> None:
    layer = GeGLU(6, 10)
    hidden_BND = torch.randn(2, 3, 6)
    normed = F.layer_norm(hidden_BND, (6,), eps=1e-6)
    x = layer.w0(normed)
    gate = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(layer(hidden_BND), layer.w2(gate * layer.w1(normed)))


def test_drop_path_drops_samples_in_training_only() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    dropped_BND = layer(torch.ones(400, 2, 3))
    assert set(dropped_BND.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (dropped_BND.amax(dim=(1, 2)) == dropped_BND.amin(dim=(1, 2))).all()
    assert 0.15 < (dropped_BND[:, 0, 0] == 0).float().mean() < 0.35
    assert torch.equal(layer.eval()(torch.ones(4, 2, 3)), torch.ones(4, 2, 3))


def test_stochastic_depth_grows_linearly() -> None:
    blocks = build_stack(5, 6, 2, mlp_ratio=1.5, drop_path=0.2)
    assert [block.drop_path.probability for block in blocks] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
