"""What makes training fast changes nothing else: Muon on stacked matrices, eager attention, the fast number format."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, DynamicCache, Gemma2Config, LlamaConfig, PreTrainedConfig

from tokenizer.number_format import fast_dtype
from train.hardware import speed_up
from train.optimizers import BatchedMuon, orthogonalize

SHAPES = [(6, 6), (10, 6), (6, 6), (6, 10), (10, 6), (4, 4)]


def run(optimizer_class: type[torch.optim.Muon], *, steps: int, nesterov: bool = True) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = optimizer_class(matrices, lr=0.02, weight_decay=0.1, nesterov=nesterov)
    for step in range(steps):
        for number, matrix in enumerate(matrices):
            matrix.grad = torch.randn(matrix.shape, generator=generator)
            if number == 5 and step % 2:  # not every matrix learns in every step
                matrix.grad = None
        optimizer.step()
    return matrices


@pytest.mark.parametrize(("nesterov", "together"), [(True, 2**26), (False, 2**26), (True, 1), (True, 72)])
def test_steps_are_those_of_the_library(nesterov: bool, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.optimizers.MAX_STACKED", together)
    theirs, ours = (run(kind, steps=4, nesterov=nesterov) for kind in (torch.optim.Muon, BatchedMuon))
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)  # its products are bfloat16


@pytest.mark.parametrize("config_class", [LlamaConfig, Gemma2Config])
def test_eager_attention_equals_the_library_s(config_class: type[PreTrainedConfig]) -> None:
    """Also of packed samples, step by step with a cache, and with capped scores."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 11, "head_dim": 4}
    config = config_class(num_attention_heads=6, num_key_value_heads=3, initializer_range=1.0, pad_token_id=0, **sizes)
    config.attn_logit_softcapping = 0.5
    backbone = AutoModel.from_config(config).eval()
    hidden_BTD = torch.randn(2, 7, 24)
    positions_BT = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 1, 0, 1, 0, 0, 0]])
    packed = {"inputs_embeds": hidden_BTD, "position_ids": positions_BT, "use_cache": False}
    expected_packed, expected_BTD = (backbone(**each)[0] for each in (packed, {"inputs_embeds": hidden_BTD}))
    speed_up(backbone, compiles=False)
    torch.testing.assert_close(backbone(**packed)[0], expected_packed)
    torch.testing.assert_close(backbone(inputs_embeds=hidden_BTD)[0], expected_BTD)
    cache = DynamicCache(config=backbone.config)
    steps = [hidden_BTD[:, :4], *hidden_BTD[:, 4:].split(1, dim=1)]
    found = [backbone(inputs_embeds=step, past_key_values=cache)[0] for step in steps]
    torch.testing.assert_close(torch.cat(found, dim=1), expected_BTD)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_singular_values_become_1_in_bfloat16_only_where_the_processor_has_it(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_bfloat16)
    fast_dtype.cache_clear()
    try:
        found = orthogonalize(torch.randn(3, 8, 5), (3.4445, -4.775, 2.0315), steps=5, eps=1e-7)
        assert fast_dtype(torch.device("cpu")) == found.dtype == (torch.bfloat16 if has_bfloat16 else torch.float32)
    finally:
        fast_dtype.cache_clear()
    values = torch.linalg.svdvals(found.float())
    assert found.shape == (3, 8, 5) and values.min() > 0.5 and values.max() < 1.3
