"""Attention spelled out for the CPU equals the library's own."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

from tokenizer.hardware import fast_dtype
from train.hardware import speed_up
from train.optimizers import orthogonalize


def small_backbone() -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        vocab_size=11,
    )
    return LlamaModel(config).eval()


def test_spelled_out_attention_equals_the_fused_one() -> None:
    backbone = small_backbone()
    hidden_BTD = torch.randn(2, 7, 24)
    positions_BT = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 1, 0, 1, 0, 0, 0]])
    packed = {"inputs_embeds": hidden_BTD, "position_ids": positions_BT, "use_cache": False}
    expected = backbone(**packed).last_hidden_state
    expected_causal = backbone(inputs_embeds=hidden_BTD).last_hidden_state
    speed_up(backbone, compiles=False)
    actual = backbone(**packed).last_hidden_state
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(backbone(inputs_embeds=hidden_BTD).last_hidden_state, expected_causal)


def test_a_cached_step_of_spelled_out_attention_sees_all_that_came_before() -> None:
    backbone = small_backbone()
    hidden_BTD = torch.randn(1, 7, 24)
    expected_BTD = backbone(inputs_embeds=hidden_BTD).last_hidden_state
    speed_up(backbone, compiles=False)
    cache = DynamicCache(config=backbone.config)
    steps = [hidden_BTD[:, :4], *hidden_BTD[:, 4:].split(1, dim=1)]
    found = [backbone(inputs_embeds=step, past_key_values=cache).last_hidden_state for step in steps]
    torch.testing.assert_close(torch.cat(found, dim=1), expected_BTD)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_matrix_products_are_in_bfloat16_only_where_the_processor_has_it(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_bfloat16)
    fast_dtype.cache_clear()
    expected = torch.bfloat16 if has_bfloat16 else torch.float32
    try:
        with caplog.at_level("INFO"):
            found = orthogonalize(torch.randn(2, 4, 3), (3.4445, -4.775, 2.0315), steps=5, eps=1e-7)
        assert fast_dtype(torch.device("cpu")) == found.dtype == expected
    finally:
        fast_dtype.cache_clear()
    assert len(caplog.records) == 1 and str(expected).removeprefix("torch.") in caplog.text
