"""The released layout of a model: every tensor of the 7B model has its place, and any model goes out and back."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig

from mllm.checkpoint import RELEASED, convert_released, export_released, our_shapes
from mllm.config import MLLMConfig, from_released
from mllm.engine.loop import Engine
from mllm.engine.request import GenerationRequest
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor
from mllm.sampling import SamplingConfig
from tests.mllm.engine_helpers import text_prompt
from tests.mllm.released_folder import LLAMA_2_7B, write_released
from tests.mllm.tiny_folder import build_tiny_folder, write_text_tokenizer


def test_the_7b_model_has_the_released_tensors() -> None:
    """Their names are those of the golden model (test_golden_model.py)."""
    config = MLLMConfig.from_dict(from_released(LLAMA_2_7B))
    ours = our_shapes(MLLMForConditionalGeneration, config)
    assert all(tensor.is_meta for tensor in ours.values())
    theirs = RELEASED.to_theirs(ours, codebook_size=config.codebook_size)
    assert len(theirs) == 372
    layer = {name: tuple(tensor.shape) for name, tensor in theirs.items() if name.startswith("ar_head.layers.2.")}
    assert layer == {
        f"ar_head.layers.2.{name}.weight": shape
        for name, shape in (
            *((f"self_attn.{name}_proj", (4096, 4096)) for name in "qkvo"),
            *((f"mlp.{name}_proj", (11008, 4096)) for name in ("gate", "up")),
            ("mlp.down_proj", (4096, 11008)),
            *((f"{name}_layernorm", (4096,)) for name in ("input", "post_attention")),
        )
    }
    assert theirs["model.multi_embedder.attn_projection.attn.qkv.weight"].shape == (3072, 64)
    buffers = sum(tensor.numel() for name, tensor in theirs.items() if name.endswith(("zero_k_bias", "vocab_usage")))
    assert buffers == 33_792 and sum(tensor.numel() for tensor in theirs.values()) - buffers == 7_508_651_264


CHOICES: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"num_key_value_heads": 1}, {"num_codebooks": 1, "head_layers": 3, "head_num_heads": 2, "image_token_id": 5}),
    ({"tie_word_embeddings": True}, {"num_codebooks": 4, "embedding_context": "current", "prompt_style": "unitok"}),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {"image_top_k": 3, "image_guidance": 1.0}),
    (
        {"rms_norm_eps": 1e-5, "num_hidden_layers": 1, "head_dim": 6},
        {"image_layout": "grid", "new_line_id": 6, "first_row_size_id": 330, "first_column_size_id": 340}
        | {"max_grid_side": 4, "head_intermediate_size": 19, "image_size": 48},
    ),
)
"""Fields of the text config and of the model's: every choice that the layout can hold."""


def build_case(number: int) -> MLLMForConditionalGeneration:
    text, fields = CHOICES[number]
    sizes = {"vocab_size": 350 + number, "hidden_size": 24, "intermediate_size": 29, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 80}
    codes = {"num_codebooks": 3, "codebook_size": 13, "code_width": 5, "image_size": 32, "head_layers": 1}
    torch.manual_seed(number)
    text_config = LlamaConfig(initializer_range=0.3, **{**sizes, **heads, **text})
    config = MLLMConfig(text_config=text_config, embedder_width=21, embedder_heads=3, **{**codes, **fields})
    model = MLLMForConditionalGeneration(config).eval()
    with torch.no_grad():
        for value in (*model.parameters(), model.code_embedding.codebook_usage):
            value.add_(torch.rand_like(value) * 0.1)
    return model


def greedy_codes(model: MLLMForConditionalGeneration) -> np.ndarray:
    """Codes of a picture drawn from a few tokens, guided."""
    prompt = partial(text_prompt, num_codebooks=model.config.num_codebooks)
    image = SamplingConfig(greedy=True, guidance=3.0)
    row = GenerationRequest(prompt=prompt([1, 20, 31, 12]), unconditional=prompt([1, 9]), mode="image", image=image)
    return Engine(model).generate([row])[0].images[0].codes_KN


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) and value.dtype == second[name].dtype for name, value in first.items()
    )


def fields_of(config: MLLMConfig) -> dict[str, Any]:
    """What a config says, without where it came from."""
    fields = json.loads(config.to_json_string(use_diff=False))
    for part in (fields, fields["text_config"]):
        for name in ("architectures", "_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            part.pop(name, None)
    return fields


def export(model: MLLMForConditionalGeneration, folder: Path) -> Path:
    model.save_pretrained(folder / "ours")
    write_text_tokenizer(folder / "ours" / "tokenizer.model")
    export_released(folder / "ours", folder / "theirs", max_shard_bytes=5000)
    return folder / "theirs"


@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_any_model_goes_out_and_back_bit_equal_and_draws_the_same(number: int, tmp_path: Path) -> None:
    dtype = (torch.float32, torch.bfloat16)[number % 2]
    model = build_case(number).to(dtype)
    export(model, tmp_path)
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    convert_released(tmp_path / "theirs", tmp_path / "again", max_shard_bytes=7000)
    codes_KN = greedy_codes(MLLMForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype=dtype))
    for folder in ("theirs", "again"):
        loaded = MLLMForConditionalGeneration.from_pretrained(tmp_path / folder, dtype=dtype)
        assert type(loaded.config) is MLLMConfig
        assert same(loaded.state_dict(), model.state_dict())
        assert fields_of(loaded.config) == fields_of(model.config)
        assert (greedy_codes(loaded) == codes_KN).all()
    convert_released(tmp_path / "theirs", tmp_path / "single", dtype=torch.float16)
    single = MLLMForConditionalGeneration.from_pretrained(tmp_path / "single", dtype="auto")
    assert single.dtype == torch.float16
    assert [path.name for path in (tmp_path / "single").glob("*.safetensors")] == ["model.safetensors"]


def test_what_the_released_layout_cannot_hold_is_not_exported(tmp_path: Path) -> None:
    others = {"head_type": "mlp", "head_shared_output": False, "image_position_embedding": True}
    for name, value in {**others, "code_embedder": "summed"}.items():
        with pytest.raises(ValueError):
            export_released(build_tiny_folder(tmp_path / name, **{name: value}), tmp_path / "theirs")
        assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForCausalLM])
@pytest.mark.parametrize(("ending", "num_shards"), [("safetensors", 1), ("bin", 1), ("safetensors", 4)])
def test_auto_classes_read_the_released_folder(tmp_path: Path, auto_class: type, ending: str, num_shards: int) -> None:
    model = build_case(1)
    exported = export(model, tmp_path)
    state = dict(MLLMForConditionalGeneration.from_pretrained(exported).state_dict())
    theirs = RELEASED.to_theirs(state, codebook_size=model.config.codebook_size)
    if model.config.tie_word_embeddings:
        del theirs["lm_head.weight"]
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}  # as old programs saved it
    tensors = {name: tensor.contiguous() for name, tensor in {**theirs, **inv_freq}.items()}
    fields = json.loads((exported / "config.json").read_text())
    folder = write_released(tmp_path / "folder", tensors, fields, ending=ending, num_shards=num_shards)
    loaded = auto_class.from_pretrained(folder)
    assert type(loaded) is MLLMForConditionalGeneration and type(AutoConfig.from_pretrained(folder)) is MLLMConfig
    processor = MLLMProcessor.from_pretrained(exported)
    assert processor.preparation == "understanding", "as upstream prepares images"
    with pytest.raises(ValueError):
        processor.need_image_tokenizer()
    assert same(loaded.state_dict(), model.state_dict())
    # nothing hangs on the files any more, and what is saved has our own layout
    for path in folder.glob("*model*"):
        path.write_bytes(b"")
    loaded.save_pretrained(tmp_path / "saved")
    assert same(MLLMForConditionalGeneration.from_pretrained(tmp_path / "saved").state_dict(), model.state_dict())
    placed = auto_class.from_pretrained(exported, device_map={"": "cpu"}, dtype=torch.bfloat16)
    assert placed.dtype == torch.bfloat16
    changed = auto_class.from_pretrained(exported, embedding_context="current", image_guidance=2.0)
    assert (changed.config.embedding_context, changed.config.image_guidance) == ("current", 2.0)


def test_the_released_config_is_read_with_its_prompts_and_settings() -> None:
    config = MLLMConfig.from_dict(from_released(LLAMA_2_7B))
    assert (config.prompt_style, config.begin_image_id, config.end_image_id) == ("unitok", 3, 4)
    assert (config.num_codebooks, config.codebook_size, config.positions_per_image) == (8, 4096, 256)
    sampling = (config.image_guidance, config.image_temperature, config.image_top_k, config.image_top_p)
    assert sampling == (5.0, 0.9, 2048, 0.96)
    assert config.text_config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert config.tasks == ["draw", "ask", "describe", "chat"]
