"""What tools of others do to a model: peft on every layer and on tied ones, accelerate, quantisers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, init_empty_weights, load_checkpoint_and_dispatch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoConfig, AutoModelForMultimodalLM, BitsAndBytesConfig, TorchAoConfig

from mllm.checkpoint import BUNDLED
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor

CHAT = [
    {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (256, 256), "red")}]},
    {"role": "assistant", "content": [{"type": "image", "image": Image.new("RGB", (256, 256), "blue")}]},
]


@pytest.fixture(scope="module")
def processor() -> MLLMProcessor:
    return MLLMProcessor.from_pretrained(BUNDLED)


def load(folder: Path = BUNDLED, **options: Any) -> MLLMForConditionalGeneration:
    return AutoModelForMultimodalLM.from_pretrained(folder, **{"dtype": torch.float32, **options}).eval()


def inputs_of(processor: MLLMProcessor) -> dict[str, torch.Tensor]:
    inputs = processor.apply_chat_template(CHAT, tokenize=True, return_dict=True)
    return {**inputs, "labels": inputs["input_ids"]}


def test_adapters_on_tied_layers_merge_into_what_they_did(processor: MLLMProcessor, tmp_path: Path) -> None:
    """peft adds the change of one of two tied layers to the weight of both."""
    inputs = inputs_of(processor)
    cases: list[dict[str, Any]] = [{"target_modules": ["q_proj", name]} for name in ("lm_head", "embed_tokens")]
    for more in ("lm_head", "embed_tokens", {"embed_tokens": [5, 6]}):
        kept = {"modules_to_save": [more]} if isinstance(more, str) else {"trainable_token_indices": more}
        cases.append({"target_modules": ["q_proj"], **kept})
    for number, options in enumerate(cases):
        torch.manual_seed(1)
        adapted = get_peft_model(load(), LoraConfig(r=2, lora_alpha=16, init_lora_weights=False, **options)).eval()
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad and "lora" not in name:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
            expected = adapted(**inputs).loss
            adapter, merged = tmp_path / f"adapter-{number}", tmp_path / f"merged-{number}"
            adapted.save_pretrained(adapter)
            again = PeftModel.from_pretrained(load(), str(adapter)).merge_and_unload()
            again.save_pretrained(merged)
            for model in (again, load(merged)):
                torch.testing.assert_close(model(**inputs).loss, expected, rtol=1e-4, atol=1e-4, msg=str(options))


def test_adapters_on_all_linear_layers_all_learn(processor: MLLMProcessor) -> None:
    adapted = get_peft_model(load(), LoraConfig(r=2, target_modules="all-linear"))
    adapted(**inputs_of(processor)).loss.backward()
    learned = {name: value.grad for name, value in adapted.named_parameters() if value.requires_grad}
    assert any("code_embedding.projection.attn.qkv" in name for name in learned)
    assert not [name for name, grad in learned.items() if "lora_B" in name and (grad is None or not grad.any())]


def test_weights_in_several_places_give_the_same_answers(folder: Path, tmp_path: Path) -> None:
    """As accelerate spreads them, some on the disk."""
    processor = MLLMProcessor.from_pretrained(folder)
    inputs = processor.apply_chat_template([CHAT[:1]], add_generation_prompt=True, tokenize=True, return_dict=True)
    expected = load(folder).generate(**inputs, max_new_tokens=8)
    with init_empty_weights():
        empty = AutoModelForMultimodalLM.from_config(AutoConfig.from_pretrained(folder))
    here = ("code_head", "lm_head", "backbone.embed_tokens", "backbone.norm", "backbone.rotary_emb")
    places = {"backbone.layers": "disk", "code_embedding": "disk", **dict.fromkeys(here, "cpu")}
    disk = {"offload_folder": tmp_path / "disk", "offload_buffers": True}  # else buffers are not loaded
    spread = load_checkpoint_and_dispatch(empty, folder, places, dtype=torch.float32, **disk)
    drawing = processor(text="a red circle", generation_mode="image")
    options = {"generation_mode": "image", "seed": 1, "resamples": 0}
    drawn = load(folder).generate(**drawing, **options)
    for found in (
        spread,
        load(folder, device_map="auto"),
        load(folder, device_map=places, offload_folder=tmp_path / "disk-again"),
        cpu_offload(load(folder), execution_device="cpu"),
    ):
        assert found.eval().generate(**inputs, max_new_tokens=8).equal(expected)
        if found is not spread:  # drawing reads the codebooks between passes, where accelerate has them nowhere
            assert found.generate(**drawing, **options).equal(drawn)


@pytest.mark.slow
def test_plain_quantizers_keep_what_reads_images(processor: MLLMProcessor) -> None:
    pytest.importorskip("bitsandbytes", reason="an optional extra")
    torchao = pytest.importorskip("torchao.quantization", reason="an optional extra")
    inputs = inputs_of(processor)
    inputs.pop("labels")
    with torch.no_grad():
        expected = load()(**inputs).logits
    for config in (
        BitsAndBytesConfig(load_in_4bit=True),
        BitsAndBytesConfig(load_in_8bit=True),
        TorchAoConfig(torchao.Int8WeightOnlyConfig()),
        {"load_in_4bit": True, "quant_method": "bitsandbytes"},
    ):
        model = load(quantization_config=config)
        assert type(model.code_embedding.projection.attn.qkv) is torch.nn.Linear
        quantized = model.backbone.layers[0].self_attn.q_proj
        assert type(quantized) is not torch.nn.Linear or type(quantized.weight) is not torch.nn.Parameter
        with torch.no_grad():
            logits = model(**inputs).logits
        assert 0.97 < torch.cosine_similarity(logits.flatten().float(), expected.flatten(), dim=0) < 1, config
        drawn = model.generate(
            **processor(text="a red circle", generation_mode="image"), generation_mode="image", seed=1
        )
        assert drawn.shape == (1, 64 * 8)
