"""Codebook heads: transformers' own Llama as reference, joined layers; decoding and guidance are in test_engine.py."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel

from mllm.heads import is_plain, join
from tests.mllm.engine_helpers import CODEBOOK_SIZE, NUM_CODEBOOKS, build_model


@torch.no_grad()
def test_the_depth_transformer_is_a_llama() -> None:
    """The same weights in transformers' own Llama, over the sequence [hidden, code 0, code 1]."""
    model = build_model()
    head, hidden_PD, codes_PK = model.code_head, torch.randn(5, 24), torch.randint(CODEBOOK_SIZE, (5, NUM_CODEBOOKS))
    llama = LlamaModel(model.config.text_config).eval()
    ours = {name: value for name, value in head.state_dict().items() if name.startswith(("layers.", "norm."))}
    missing = llama.load_state_dict(ours, strict=False)
    assert missing.missing_keys == ["embed_tokens.weight"] and not missing.unexpected_keys
    embedded = [head.codebooks.weight[k * CODEBOOK_SIZE + codes_PK[:, k]] for k in range(NUM_CODEBOOKS - 1)]
    outputs_PKD = llama(inputs_embeds=torch.stack([hidden_PD, *embedded], dim=1)).last_hidden_state
    torch.testing.assert_close(head(hidden_PD, codes_PK), head.linear_head(outputs_PKD), atol=2e-5, rtol=1e-4)


class DoubledLinear(nn.Linear):
    """Stands for adapters and quantised layers: its output is not what its weight says."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * super().forward(hidden)


def test_joined_layers_give_what_they_give_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("plain", "no bias", "subclass", "hook", "replaced forward"):
        torch.manual_seed(2)
        linear = (DoubledLinear if kind == "subclass" else nn.Linear)(5, 3, bias=kind != "no bias")
        if kind == "hook":
            linear.register_forward_hook(lambda module, inputs, output: output + 1)
        if kind == "replaced forward":
            linear.forward = lambda hidden: hidden[..., :3]
        linears, hidden = [linear, nn.Linear(5, 7, bias=kind != "no bias")], torch.randn(4, 5)
        expected = torch.cat([linear(hidden) for linear in linears], dim=-1)
        torch.testing.assert_close(join(linears)(hidden), expected)
        monkeypatch.setattr("mllm.heads.MOST_BYTES_BY_INPUT", 0)
        torch.testing.assert_close(join(linears)(hidden), expected)
        monkeypatch.undo()
        assert is_plain(linears[0]) == (kind in ("plain", "no bias"))
    sharded = nn.Linear(5, 3)
    sharded.weight.data = torch.empty(0)
    assert not is_plain(sharded) and not is_plain(nn.Linear(5, 3, device="meta")), "weights that are elsewhere"
