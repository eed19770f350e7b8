"""The fast convolutions equal the plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tokenizer.layers import ChannelNorm, MBConv, Upsample, channels_last


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
    plain_gradients = torch.autograd.grad((plain * weights).sum(), inputs)
    torch.testing.assert_close(fast_gradients, plain_gradients)


def test_channel_norm_normalises_every_pixel() -> None:
    norm = ChannelNorm(5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    hidden_BCHW = torch.randn(2, 5, 3, 4)
    expected = torch.empty_like(hidden_BCHW)
    for b in range(2):
        for y in range(3):
            for x in range(4):
                pixel_C = hidden_BCHW[b, :, y, x]
                scale = (pixel_C.var(correction=0) + 1e-6).sqrt()
                expected[b, :, y, x] = (pixel_C - pixel_C.mean()) / scale * norm.weight + norm.bias
    torch.testing.assert_close(norm(hidden_BCHW), expected)
    torch.testing.assert_close(norm(channels_last(hidden_BCHW)), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_mbconv_is_a_bottleneck_beside_its_shortcut(stride: int) -> None:
    torch.manual_seed(0)
    block = MBConv(4, 6, 9, stride=stride)
    hidden_BCHW = torch.randn(2, 4, 8, 6)
    inner = F.gelu(block.conv1_1x1(block.pre_norm(hidden_BCHW)))
    branch = block.conv3_1x1(F.gelu(block.conv2_kxk(inner)))
    pooled = torch.empty(2, 4, 8 // stride, 6 // stride)
    for y in range(8 // stride):
        for x in range(6 // stride):
            top, left = y * stride, x * stride
            rows = slice(max(0, top - 1), top + 2) if stride == 2 else slice(top, top + 1)
            columns = slice(max(0, left - 1), left + 2) if stride == 2 else slice(left, left + 1)
            pooled[:, :, y, x] = hidden_BCHW[:, :, rows, columns].mean(dim=(2, 3))  # padding is not counted
    torch.testing.assert_close(block(hidden_BCHW), branch + block.expand(pooled))


def test_strided_block_trains_under_autocast() -> None:
    block = MBConv(4, 6, 9, stride=2)
    hidden_BCHW = torch.randn(2, 4, 8, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = block(hidden_BCHW)
        with torch.no_grad():
            used = block(hidden_BCHW)
    assert trained.dtype == used.dtype == torch.bfloat16
    torch.testing.assert_close(trained, used, atol=0.05, rtol=0.05)
