"""Layers equal their plain definitions; the projection with cached keys is in tests/mllm/test_engine.py."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer import layers
from tokenizer.config import UniTokConfig
from tokenizer.layers import AttentionProjection, DropPath, MBConv, SelfAttention, Upsample
from tokenizer.unitok import UniTok


def attend_by_definition(query_BNE: Tensor, key_BNE: Tensor, value_BNE: Tensor, *, causal: bool) -> Tensor:
    scores_BNN = query_BNE @ key_BNE.transpose(1, 2) / query_BNE.shape[-1] ** 0.5
    if causal:
        scores_BNN = scores_BNN.masked_fill(torch.ones_like(scores_BNN, dtype=torch.bool).triu(1), -torch.inf)
    return scores_BNN.softmax(-1) @ value_BNE


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_its_definition_with_and_without_gradients(causal: bool) -> None:
    layer = SelfAttention(6, 2, causal=causal)
    hidden_BND = torch.randn(2, 5, 6)
    query, key, value = layer.qkv(hidden_BND).split(6, dim=-1)
    parts = (slice(0, 3), slice(3, 6))
    heads = [attend_by_definition(query[..., p], key[..., p], value[..., p], causal=causal) for p in parts]
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


def test_mbconv_is_a_bottleneck_of_normalised_pixels_beside_its_shortcut() -> None:
    for stride, memory in product((1, 2), (torch.contiguous_format, torch.channels_last)):
        block = MBConv(4, 6, 9, stride=stride)
        for weights in (norm := block.pre_norm).parameters():
            torch.nn.init.normal_(weights)
        hidden_BCHW = torch.randn(2, 4, 8, 6).contiguous(memory_format=memory)
        normed_BCHW = torch.empty_like(hidden_BCHW)
        for b, y, x in product(range(2), range(8), range(6)):
            normed_BCHW[b, :, y, x] = F.layer_norm(hidden_BCHW[b, :, y, x], (4,), norm.weight, norm.bias, eps=1e-6)
        branch = block.conv3_1x1(F.gelu(block.conv2_kxk(F.gelu(block.conv1_1x1(normed_BCHW)))))
        pooled = torch.empty(2, 4, 8 // stride, 6 // stride)
        for y, x in product(range(8 // stride), range(6 // stride)):
            rows, columns = (slice(max(0, 2 * n - 1), 2 * n + 2) if stride == 2 else slice(n, n + 1) for n in (y, x))
            pooled[:, :, y, x] = hidden_BCHW[:, :, rows, columns].mean(dim=(2, 3))  # padding is not counted
        torch.testing.assert_close(block(hidden_BCHW), branch + block.expand(pooled))


def projection_by_loop(module: AttentionProjection, hidden_BNI: Tensor, *, causal: bool) -> Tensor:
    """Head by head, as the released network defines it."""
    inner, heads = module.attn.q_bias.numel(), module.attn.num_heads
    width = inner // heads
    normed = F.layer_norm(hidden_BNI, hidden_BNI.shape[-1:], module.norm1.weight, module.norm1.bias, eps=1e-5)
    query, key, value = (normed @ module.attn.qkv.weight.T).split(inner, dim=-1)
    query, value = query + module.attn.q_bias, value + module.attn.v_bias
    outputs = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        outputs.append(attend_by_definition(query[..., part], key[..., part], value[..., part], causal=causal))
    out_width = module.proj.out_features
    narrows = hidden_BNI.shape[-1] > out_width
    mixed = F.adaptive_avg_pool1d(torch.stack(outputs).mean(0), out_width) if narrows else torch.cat(outputs, dim=-1)
    hidden_BNO = module.proj(module.norm3(hidden_BNI)) + module.attn.proj(mixed)
    normed_BNO = F.layer_norm(module.norm2(hidden_BNO), (out_width,), eps=1e-6)
    x = module.mlp.w0(normed_BNO)
    gate = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return hidden_BNO + module.mlp.w2(gate * module.mlp.w1(normed_BNO))


def test_projection_equals_the_loop() -> None:
    for in_width, out_width, heads in ((24, 6, 4), (24, 5, 3), (6, 24, 4)):
        for causal in (False, True):
            module = AttentionProjection(in_width, out_width, heads, causal=causal)
            for bias in (module.attn.q_bias, module.attn.v_bias):
                torch.nn.init.normal_(bias)
            hidden_BNI = torch.randn(2, 7, in_width)
            expected = projection_by_loop(module, hidden_BNI, causal=causal)
            torch.testing.assert_close(module(hidden_BNI), expected)
    with pytest.raises(ValueError):
        AttentionProjection(24, 6, 5)


def test_first_weights_follow_their_table() -> None:
    torch.manual_seed(0)
    wide = UniTokConfig.tiny()
    state = UniTok(replace(wide, embed_dim=64, text_width=64, text_heads=2, text_layers=2, text_context=9)).state_dict()
    expected = {
        "encoder.blocks.0.attn.qkv.weight": 0.02,
        "decoder.blocks.1.mlp.w2.weight": 0.02,
        "encoder.stages.0.0.conv1_1x1.weight": math.sqrt(2 / 64),
        "encoder.stages.1.0.conv2_kxk.weight": math.sqrt(2 / 9),
        "decoder.stages.0.0.conv3_1x1.weight": 0.5 * math.sqrt(2 / 128),
        "quantizer.codebooks": 8**-0.5 / 36 / math.sqrt(3),
        "text_encoder.blocks.0.attn.qkv.weight": 64**-0.5,
        "text_encoder.blocks.1.narrow.weight": 64**-0.5 / 2,
        "text_encoder.token_embedding.weight": 0.02,
    }
    for name, deviation in expected.items():
        assert state[name].std().item() == pytest.approx(deviation, rel=0.1), name
    for name in ("encoder.blocks.0.attn.qkv.bias", "encoder.stem.conv1.bias", "decoder.head.conv2.bias"):
        assert not state[name].any(), name
