"""Attention spelled out for the CPU equals the library's own."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaModel

from mllm.model import packed_mask
from train.cpu_speed import speed_up


def test_spelled_out_attention_equals_the_fused_one() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        vocab_size=11,
    )
    backbone = LlamaModel(config).eval()
    hidden_BTD = torch.randn(2, 7, 24)
    segments_BT = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 3, 0, 0]])
    expected = backbone(inputs_embeds=hidden_BTD, attention_mask=packed_mask(segments_BT)).last_hidden_state
    expected_causal = backbone(inputs_embeds=hidden_BTD).last_hidden_state
    speed_up(backbone, compiles=False)
    actual = backbone(inputs_embeds=hidden_BTD, attention_mask=packed_mask(segments_BT)).last_hidden_state
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(backbone(inputs_embeds=hidden_BTD).last_hidden_state, expected_causal)
