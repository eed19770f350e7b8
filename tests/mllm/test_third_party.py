"""What training tools of others do to a model: peft on every layer and on tied ones, quantisers, a plain Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, cpu_offload, init_empty_weights, load_checkpoint_and_dispatch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForMultimodalLM,
    BitsAndBytesConfig,
    TorchAoConfig,
    Trainer,
    TrainingArguments,
)

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
    for number, options in enumerate(
        (
            {"target_modules": ["q_proj", "lm_head"]},
            {"target_modules": ["q_proj", "embed_tokens"]},
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
            {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 6]}},
        )
    ):
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


def test_a_loop_of_accelerate_trains_resumes_and_dispatches(processor: MLLMProcessor, tmp_path: Path) -> None:
    """`prepare`, accumulation, `backward`, `save_state`; then weights spread over places, some of them on disk."""
    chats, questions = [CHAT, CHAT[:1], [{"role": "user", "content": "Hi"}], CHAT], [CHAT[:1]]

    def collate(chats: list[Any]) -> dict[str, torch.Tensor]:
        inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")
        return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}

    model = load()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, loader = accelerator.prepare(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        torch.utils.data.DataLoader(chats, batch_size=2, collate_fn=collate),
    )

    def train() -> list[float]:
        losses = []
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    before = train()
    accelerator.save_state(tmp_path / "state")
    after = train()
    assert sum(after) < sum(before)
    accelerator.load_state(tmp_path / "state")
    assert train() == pytest.approx(after, rel=1e-5), "it goes on from where it was saved"
    accelerator.unwrap_model(model).save_pretrained(tmp_path / "model", save_function=accelerator.save)
    inputs = dict(processor.apply_chat_template(questions, add_generation_prompt=True, tokenize=True, return_dict=True))
    expected = load(tmp_path / "model").generate(**inputs, max_new_tokens=8)
    with init_empty_weights():
        empty = AutoModelForMultimodalLM.from_config(AutoConfig.from_pretrained(tmp_path / "model"))
    empty.tie_weights()
    places = {"backbone.layers": "disk", "code_embedding": "disk", "code_head": "cpu", "lm_head": "cpu"}
    places |= {name: "cpu" for name in ("backbone.embed_tokens", "backbone.norm", "backbone.rotary_emb")}
    disk = {"offload_folder": tmp_path / "disk", "offload_buffers": True}  # else buffers are not loaded
    spread = load_checkpoint_and_dispatch(empty, tmp_path / "model", places, dtype=torch.float32, **disk)
    for found in (
        spread,
        load(tmp_path / "model", device_map="auto"),
        load(tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk-again"),
        cpu_offload(load(tmp_path / "model"), execution_device="cpu"),
    ):
        assert found.eval().generate(**inputs, max_new_tokens=8).equal(expected)
    drawing = processor(text="a red circle", generation_mode="image")
    options = {"generation_mode": "image", "seed": 1, "resamples": 0}
    assert found.generate(**drawing, **options).equal(load(tmp_path / "model").generate(**drawing, **options))


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


def test_every_split_of_a_batch_has_the_loss_of_the_whole(processor: MLLMProcessor, tmp_path: Path) -> None:
    """A plain Trainer, texts of different length: each token counts alike."""
    texts = ["A red circle.", "A large blue square to the left of a small green star and more.", "Hi", "Three stars."]
    rows = [{"input_ids": processor.tokenizer(text, return_tensors="pt").input_ids[0]} for text in texts]

    def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        inputs = processor.tokenizer.pad(batch, padding_side="right", return_tensors="pt")
        return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}

    expected, shapes = float(load()(**collate(rows)).loss), []
    for size, steps in ((4, 1), (1, 4), (2, 2)):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(
            load(),
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=collate,
            compute_metrics=lambda found: shapes.append(found.predictions.shape) or {},
        )
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4), (size, steps)
    trainer.evaluate()
    assert shapes[0][0] == 4 and shapes[0][2] == trainer.model.config.vocab_size, "metrics get logits (B, T, V)"
