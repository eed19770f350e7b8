"""Layers equal their plain definitions: attention, GeGLU, stochastic depth, convolutions, projections."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer import layers
from tokenizer.config import UniTokConfig
from tokenizer.layers import AttentionProjection, DropPath, SelfAttention, Upsample


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_its_definition_with_and_without_gradients(causal: bool) -> None:
    layer, heads = SelfAttention(6, 2, causal=causal), []
    hidden_BND = torch.randn(2, 5, 6)
    query, key, value = layer.qkv(hidden_BND).split(6, dim=-1)
    for part in (slice(0, 3), slice(3, 6)):
        scores_BNN = query[..., part] @ key[..., part].transpose(1, 2) / 3**0.5
        if causal:
            scores_BNN = scores_BNN.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
        heads.append(scores_BNN.softmax(-1) @ value[..., part])
    expected = layer.proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(layer(hidden_BND), expected)
    with torch.no_grad():  # the fused kernel
        torch.testing.assert_close(layer(hidden_BND), expected)


def test_drop_path_drops_samples_in_training_only_and_grows_with_depth(small_config: UniTokConfig) -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    dropped_BND = layer(torch.ones(400, 2, 3))
    assert set(dropped_BND.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (dropped_BND.amax(dim=(1, 2)) == dropped_BND.amin(dim=(1, 2))).all()
    assert 0.15 < (dropped_BND[:, 0, 0] == 0).float().mean() < 0.35
    assert torch.equal(layer.eval()(torch.ones(4, 2, 3)), torch.ones(4, 2, 3))
    blocks = layers.TransformerStack(replace(small_config, drop_path=0.2), 5)
    assert [block.drop_path.probability for block in blocks] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_upsampling_equals_repetition_then_convolution_with_all_gradients() -> None:
    torch.manual_seed(0)
    upsample = Upsample(3, 5).double()
    hidden_BCHW = torch.randn(2, 3, 4, 7, dtype=torch.float64, requires_grad=True)
    fast = upsample(hidden_BCHW)
    plain = upsample.conv(F.interpolate(hidden_BCHW, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(fast, plain)
    weights = torch.randn_like(plain)
    inputs = (hidden_BCHW, upsample.conv.weight, upsample.conv.bias)
    fast_gradients = torch.autograd.grad((fast * weights).sum(), inputs)
    torch.testing.assert_close(fast_gradients, torch.autograd.grad((plain * weights).sum(), inputs))


def test_channel_norm_normalises_every_pixel() -> None:
    norm = layers.ChannelNorm(5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    hidden_BCHW = torch.randn(2, 5, 3, 4)
    expected = torch.empty_like(hidden_BCHW)
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        expected[b, :, y, x] = F.layer_norm(hidden_BCHW[b, :, y, x], (5,), norm.weight, norm.bias, eps=1e-6)
    for memory in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(norm(hidden_BCHW.contiguous(memory_format=memory)), expected)


def test_projection_with_cached_keys_equals_the_full_forward() -> None:
    torch.manual_seed(0)
    module = AttentionProjection(6, 24, 4, causal=True)
    torch.nn.init.normal_(module.attn.q_bias)
    torch.nn.init.normal_(module.attn.v_bias)
    hidden_BNI = torch.randn(2, 7, 6)
    kept: list[Tensor] = []

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        kept.append(torch.stack((key, value)))
        keys, values = torch.cat(kept, dim=3)
        return F.scaled_dot_product_attention(query, keys, values)

    steps = [module(hidden_BNI[:, n : n + 1], attend=attend) for n in range(7)]
    torch.testing.assert_close(torch.cat(steps, dim=1), module(hidden_BNI))
