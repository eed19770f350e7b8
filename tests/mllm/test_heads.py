"""Codebook heads: decoding = teacher forcing, Llama's own layer as reference, guidance, causality, joined layers."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel

from mllm.heads import CodeHead, Guidance, is_plain, join
from tests.mllm.engine_helpers import CODEBOOK_SIZE, NUM_CODEBOOKS, build_model

HEADS = {
    "depth": {"head_type": "depth_transformer"},
    "depth, own outputs": {"head_type": "depth_transformer", "head_shared_output": False},
    "depth, own sizes": {"head_type": "depth_transformer", "head_num_heads": 3, "head_intermediate_size": 31},
    "mlp": {"head_type": "mlp"},
}


@pytest.fixture(params=HEADS.values(), ids=HEADS.keys())
def head(request: pytest.FixtureRequest) -> CodeHead:
    return build_model(**request.param).code_head


def random_inputs(num_rows: int, width: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden_PD = torch.randn(num_rows, width, generator=generator)
    return hidden_PD, torch.randint(CODEBOOK_SIZE, (num_rows, NUM_CODEBOOKS), generator=generator)


@torch.no_grad()
def test_decoding_sees_the_logits_of_teacher_forcing(head: CodeHead) -> None:
    hidden_PD, codes_PK = random_inputs(5)
    expected_PKC = head(hidden_PD, codes_PK)
    assert expected_PKC.shape == (5, NUM_CODEBOOKS, CODEBOOK_SIZE)

    def choose(k: int | None, logits: Tensor) -> Tensor:
        chosen = slice(None) if k is None else k
        torch.testing.assert_close(logits, expected_PKC[:, chosen])
        return codes_PK[:, chosen]

    assert torch.equal(head.decoder().decode(hidden_PD, choose=choose), codes_PK)


@torch.no_grad()
def test_guidance_mixes_logits_and_shares_the_code(head: CodeHead) -> None:
    """Rows 0 and 3 guide with 4 and 1 as their other branch; row 2 is alone. Reference: mixed logits, row by row."""
    hidden_RD, codes_NK = random_inputs(5)[0], random_inputs(3)[1]
    pairs, scales = [(0, 4), (2, 2), (3, 1)], [2.5, 7.0, 1.0]
    codes_RK = torch.zeros(5, NUM_CODEBOOKS, dtype=torch.int64)
    for (conditional, unconditional), codes_K in zip(pairs, codes_NK, strict=True):
        codes_RK[conditional] = codes_RK[unconditional] = codes_K
    logits_RKC = head(hidden_RD, codes_RK)
    mixed = [logits_RKC[u] + s * (logits_RKC[c] - logits_RKC[u]) for (c, u), s in zip(pairs, scales, strict=True)]

    def choose(k: int | None, logits: Tensor) -> Tensor:
        chosen = slice(None) if k is None else k
        torch.testing.assert_close(logits, torch.stack(mixed)[:, chosen], atol=2e-4, rtol=1e-4)
        return codes_NK[:, chosen]

    guidance = Guidance(
        conditional_N=torch.tensor([c for c, _ in pairs]),
        unconditional_N=torch.tensor([u for _, u in pairs]),
        scale_N=torch.tensor(scales),
    )
    assert torch.equal(head.decoder().decode(hidden_RD, choose=choose, guidance=guidance), codes_NK)


@torch.no_grad()
def test_the_depth_transformer_is_a_llama() -> None:
    """The same weights in transformers' own Llama, over the sequence [hidden, code 0, code 1]."""
    model = build_model()
    head, hidden_PD, codes_PK = model.code_head, *random_inputs(5)
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


def build(kind: str, out_width: int) -> nn.Module:
    linear = (DoubledLinear if kind == "subclass" else nn.Linear)(5, out_width, bias=kind != "no bias")
    if kind == "hook":
        linear.register_forward_hook(lambda module, inputs, output: output + 1)
    if kind == "replaced forward":
        linear.forward = lambda hidden: hidden.new_ones(*hidden.shape[:-1], out_width)  # type: ignore[method-assign]
    return linear


def test_joined_layers_give_what_they_give_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("plain", "no bias", "subclass", "hook", "replaced forward"):
        torch.manual_seed(2)
        linears = [build(kind, 3), build("no bias" if kind == "no bias" else "plain", 7)]
        hidden = torch.randn(4, 5)
        expected = torch.cat([linear(hidden) for linear in linears], dim=-1)
        torch.testing.assert_close(join(linears)(hidden), expected)
        monkeypatch.setattr("mllm.heads.MOST_BYTES_BY_INPUT", 0)
        torch.testing.assert_close(join(linears)(hidden), expected)
        monkeypatch.undo()
        assert is_plain(linears[0]) == (kind in ("plain", "no bias"))
    sharded = nn.Linear(5, 3)
    sharded.weight.data = torch.empty(0)
    assert not is_plain(sharded) and not is_plain(nn.Linear(5, 3, device="meta")), "weights that are elsewhere"
