"""Saving and loading as transformers does it: Auto classes, tied weights, bf16, adapters, checkpointing, resizing."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from mllm.config import MLLMConfig
from mllm.model import MLLMForConditionalGeneration
from mllm.sequence import pack
from mllm.vocabulary import fill_new_rows
from tests.mllm.engine_helpers import build_model
from tests.mllm.learned_samples import learned_sample

HEADS = ({"head_type": "depth_transformer"}, {"head_shared_output": False}, {"head_type": "mlp"})
SAMPLES = [
    learned_sample(seed=1, plan=["text", "IMAGE", "TEXT"]),
    learned_sample(seed=2, plan=["text", "image", "TEXT"]),
]


@pytest.mark.parametrize(
    ("fields", "auto_class"), zip(HEADS, (AutoModel, AutoModelForCausalLM, MLLMForConditionalGeneration), strict=True)
)
def test_a_saved_model_is_loaded_bit_equal(tmp_path: Path, fields: dict, auto_class: type) -> None:
    model = build_model(**fields)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["model.safetensors"]
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is MLLMForConditionalGeneration
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    batch = pack(SAMPLES, length=40, pad_token_id=0)
    torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss, rtol=0, atol=0)


def test_the_config_comes_back_with_every_field(tmp_path: Path) -> None:
    model = build_model(layout="grid", tasks=["draw"], sizes=[[48, 32]], image_guidance=2.5)
    model.config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is MLLMConfig
    before, after = model.config.to_dict(), loaded.to_dict()
    for fields in (before, before["text_config"], after, after["text_config"]):
        fields.pop("architectures", None), fields.pop("dtype", None), fields.pop("_name_or_path", None)
    assert after == before


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**pack(SAMPLES, length=40, pad_token_id=0)).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, msg=name)


def test_new_vocabulary_rows_are_the_mean_of_the_old() -> None:
    model = build_model()
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(66, mean_resizing=False)
    fill_new_rows((model.get_input_embeddings(), model.get_output_embeddings()), range(61, model.config.vocab_size))
    assert model.config.vocab_size == model.config.text_config.vocab_size == 66
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert layer.weight.shape == (66, 24)
    new = model.get_input_embeddings().weight
    torch.testing.assert_close(new[:61], old)
    torch.testing.assert_close(new[61:], old.mean(dim=0).expand(5, -1))
