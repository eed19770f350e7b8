"""Slots: what is written where, and that the lean layers compute what transformers computes."""

import pytest
import torch
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from mllm.engine.forward import AnyBackbone, CachedForward, LlamaBackbone
from mllm.model import MLLMForConditionalGeneration
from tests.mllm.engine_helpers import build_model
from tests.mllm.test_backbones import SIZES


@pytest.mark.parametrize("text_config", [LlamaConfig(**SIZES), Qwen2Config(**SIZES), Qwen3Config(**SIZES, head_dim=8)])
@torch.inference_mode()
def test_pieces_in_slots_give_what_transformers_gives_for_the_whole(text_config: PreTrainedConfig) -> None:
    """Rows of different lengths, pieces of different sizes, guesses that are fed again, slots moved and copied."""
    torch.manual_seed(0)
    config = build_model().config
    config.text_config = text_config
    model = MLLMForConditionalGeneration(config).eval()
    for parameter in model.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sequences = [torch.randn(length, 24) for length in (13, 9, 16)]
    whole = [model.backbone(inputs_embeds=sequence[None]).last_hidden_state[0] for sequence in sequences]
    lean, plain = CachedForward(model), CachedForward(model)
    assert isinstance(lean.run_backbone, LlamaBackbone)
    plain.run_backbone = AnyBackbone(model.backbone)
    for forward in (lean, plain):
        forward.reserve(2, 9, 0)
        forward.reserve(4, 17, 0)
        done, order = [0, 0, 0], [0, 1, 2]
        for counts in ([5, 1, 7], [1, 0, 2], [3, 4, 1], [4, 1, 6], [0, 3, 0]):
            # one place too many everywhere: a guess, fed again in the next pass
            rows = [sequences[n][done[n] : done[n] + count + 1] for n, count in zip(order, counts, strict=True)]
            lengths, fed = [done[n] for n in order], [len(row) for row in rows]
            places, begins = forward.arrange(lengths, fed, bucket=forward.bucket(lengths, fed))
            embedded_PD = torch.zeros(len(places.position_P), 24)
            for begin, row in zip(begins, rows, strict=True):
                embedded_PD[begin : begin + len(row)] = row
            hidden_PD = forward(embedded_PD, places)
            for n, count, begin, row in zip(order, counts, begins, rows, strict=True):
                hidden_WD = hidden_PD[begin : begin + len(row)]
                expected_WD = whole[n][done[n] : done[n] + len(hidden_WD)]
                torch.testing.assert_close(hidden_WD, expected_WD, rtol=1e-4, atol=1e-4)
                done[n] += count
            forward.swap(0, 2, 17)
            forward.copy(1, 3, 17)
            forward.swap(1, 3, 17)
            order.reverse()
        assert done == [13, 9, 16] or min(done) > 8
