"""The attention projection against plain loops, in both directions, and with keys and values kept outside."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tokenizer.layers import AttentionProjection


def reference(module: AttentionProjection, hidden_BNI: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Head by head, as the released network defines it."""
    inner = module.attn.q_bias.numel()
    heads = module.attn.num_heads
    width = inner // heads
    normed = F.layer_norm(hidden_BNI, hidden_BNI.shape[-1:], module.norm1.weight, module.norm1.bias, eps=1e-5)
    query, key, value = (normed @ module.attn.qkv.weight.T).split(inner, dim=-1)
    query, value = query + module.attn.q_bias, value + module.attn.v_bias
    outputs = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores_BNN = query[..., part] @ key[..., part].transpose(1, 2) / width**0.5
        if causal:
            scores_BNN = scores_BNN.masked_fill(torch.ones_like(scores_BNN, dtype=torch.bool).triu(1), -torch.inf)
        outputs.append(scores_BNN.softmax(-1) @ value[..., part])
    out_width = module.proj.out_features
    if hidden_BNI.shape[-1] > out_width:
        mixed = torch.stack(outputs).mean(0)
        if width != out_width:
            mixed = F.adaptive_avg_pool1d(mixed, out_width)
    else:
        mixed = torch.cat(outputs, dim=-1)
    hidden_BNO = module.proj(module.norm3(hidden_BNI)) + module.attn.proj(mixed)
    return hidden_BNO + module.mlp(module.norm2(hidden_BNO))


def build(in_width: int, out_width: int, heads: int, *, causal: bool) -> AttentionProjection:
    torch.manual_seed(0)
    module = AttentionProjection(in_width, out_width, heads, causal=causal)
    torch.nn.init.normal_(module.attn.q_bias)
    torch.nn.init.normal_(module.attn.v_bias)
    return module


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("in_width", "out_width", "heads"), [(24, 6, 4), (24, 5, 3), (6, 24, 4)])
def test_projection_equals_the_loop(in_width: int, out_width: int, heads: int, causal: bool) -> None:
    module = build(in_width, out_width, heads, causal=causal)
    hidden_BNI = torch.randn(2, 7, in_width)
    torch.testing.assert_close(module(hidden_BNI), reference(module, hidden_BNI, causal=causal))


def test_causal_projection_does_not_see_the_future() -> None:
    module = build(6, 24, 4, causal=True)
    hidden_BNI = torch.randn(2, 7, 6)
    changed = hidden_BNI.clone()
    changed[:, 5:] = torch.randn(2, 2, 6)
    before, after = module(hidden_BNI), module(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_position_by_position_with_kept_keys_equals_the_whole() -> None:
    module = build(6, 24, 4, causal=True)
    hidden_BNI = torch.randn(2, 7, 6)
    kept: list[torch.Tensor] = []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        kept.append(torch.stack((key, value)))
        keys, values = torch.cat(kept, dim=3)
        return F.scaled_dot_product_attention(query, keys, values)

    steps = [module(hidden_BNI[:, n : n + 1], attend=attend) for n in range(7)]
    torch.testing.assert_close(torch.cat(steps, dim=1), module(hidden_BNI))


def test_heads_must_divide_the_wider_side() -> None:
    with pytest.raises(ValueError, match="projection heads must divide"):
        AttentionProjection(24, 6, 5)
