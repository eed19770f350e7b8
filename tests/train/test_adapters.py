"""Low-rank adapters: what they train, that they are saved alone, and that merging keeps what they do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mllm.checkpoint import find_model_folder
from mllm.cli.main import main as toolkit
from mllm.model import MLLMForConditionalGeneration
from tests.train.launching import losses
from train import run
from train.lora import image_token_ids, merge_folder
from train.recipe import AdapterRecipe, MLLMData, MLLMRecipe, Validation
from train.run import train_mllm

ADAPTER = AdapterRecipe(rank=3, alpha=6.0, dropout=0.0)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def recipe(mllm_recipe: MLLMRecipe, request: pytest.FixtureRequest) -> MLLMRecipe:
    """An adapter on a model that never saw an image token."""
    text_config = {**mllm_recipe.model["text_config"], "tie_word_embeddings": request.param}
    trainer = {**mllm_recipe.trainer, "max_steps": 2, "save_steps": 100, "report_to": []}
    words_only = dataclasses.replace(
        mllm_recipe,
        model={**mllm_recipe.model, "text_config": text_config},
        data=MLLMData(episodes=40, jobs={"talk": 1.0}),
        output=mllm_recipe.output / "base",
        ema_decay=0.0,
        trainer=trainer,
    )
    train_mllm(words_only)
    return dataclasses.replace(
        words_only,
        model={},
        start_from=words_only.output / "final",
        adapter=ADAPTER,
        trains=["projector", "code_head"],
        data=mllm_recipe.data,
        output=mllm_recipe.output / "lora",
    )


def loss_of(model: MLLMForConditionalGeneration) -> torch.Tensor:
    codes_PK = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    begin, end, image = model.config.begin_image_id, model.config.end_image_id, model.config.image_token_id
    ids_BT = torch.tensor([[1, 40, begin, image, image, image, image, end, 2]])
    with torch.no_grad():
        return model.eval()(
            ids_BT,
            labels=ids_BT.masked_fill(ids_BT == image, -100),
            codes=codes_PK,
            image_lengths=torch.tensor([4]),
            code_targets=torch.ones(4, dtype=torch.bool),
        ).loss


def test_an_unseen_tokens_embedding_moves_and_the_rest_of_the_table_does_not(recipe: MLLMRecipe) -> None:
    train_mllm(recipe)
    merge_folder(recipe.output / "final", recipe.output / "merged")
    before = MLLMForConditionalGeneration.from_pretrained(recipe.start_from)
    after = MLLMForConditionalGeneration.from_pretrained(recipe.output / "merged")
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        has_moved_V = (getattr(before, layer)().weight != getattr(after, layer)().weight).any(dim=1)
        moved = set(has_moved_V.nonzero()[:, 0].tolist())
        assert before.config.begin_image_id in moved, layer
        assert moved <= set(image_token_ids(before.config)), layer
    changed = {name for name, old in before.state_dict().items() if not torch.equal(old, after.state_dict()[name])}
    assert any("q_proj" in name for name in changed) and any("code_head" in name for name in changed)
    assert any("projector" in name for name in changed)
    assert not any("norm" in name and "backbone" in name for name in changed)


def test_what_is_saved_is_small_and_the_merged_model_computes_the_same(
    recipe: MLLMRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel

    train_mllm(recipe)
    final, merged = recipe.output / "final", recipe.output / "merged"
    saved = load_file(final / "adapter_model.safetensors")
    assert not any("backbone.layers" in name and name.endswith("q_proj.weight") for name in saved)
    assert max(tensor.shape[0] for name, tensor in saved.items() if "embed_tokens" in name) <= 3
    base = MLLMForConditionalGeneration.from_pretrained(recipe.start_from)
    adapted = PeftModel.from_pretrained(base, str(final))
    expected = loss_of(adapted)
    assert toolkit(["merge", str(final), "-o", str(merged)]) == 0
    assert str(merged) in capsys.readouterr().out
    torch.testing.assert_close(loss_of(MLLMForConditionalGeneration.from_pretrained(merged)), expected)
    assert find_model_folder(merged) == merged


def test_what_learns_beside_bfloat16_weights_is_float32_and_the_model_still_draws(recipe: MLLMRecipe) -> None:
    trainer = {**recipe.trainer, "bf16": True, "max_steps": 1, "eval_steps": 1}
    small = dataclasses.replace(recipe, trainer=trainer, validation=Validation(batches=1, prompts=["a red circle"]))
    learned = {}
    add = run.learner

    def remembered(*arguments: Any) -> torch.nn.Module:
        model = add(*arguments)
        learned.update({name: value.dtype for name, value in model.named_parameters() if value.requires_grad})
        assert {value.dtype for value in model.parameters() if not value.requires_grad} == {torch.bfloat16}
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "learner", remembered)
        train_mllm(small)
    assert set(learned.values()) == {torch.float32} and any("code_head" in name for name in learned)
    assert (small.output / "samples" / "step-1.png").is_file()
    saved = load_file(small.output / "final" / "adapter_model.safetensors")
    assert {tensor.dtype for name, tensor in saved.items() if "code_head" in name} == {torch.float32}


def test_a_resumed_adapter_equals_an_uninterrupted_one(recipe: MLLMRecipe) -> None:
    import shutil

    whole = dataclasses.replace(recipe, trainer={**recipe.trainer, "max_steps": 4, "save_steps": 2}, ema_decay=0.5)
    train_mllm(whole)
    expected, weights = losses(whole.output), load_file(whole.output / "final" / "adapter_model.safetensors")
    shutil.rmtree(whole.output / "checkpoint-4")
    train_mllm(whole)
    assert losses(whole.output) == expected
    resumed = load_file(whole.output / "final" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_an_adapter_of_nothing_is_refused(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an adapter needs a model to go on from"):
        dataclasses.replace(mllm_recipe, adapter=ADAPTER, trains=["projector"])
    with pytest.raises(ValueError, match=r"trains may then name code_head, places.*found start_from"):
        dataclasses.replace(mllm_recipe, adapter=ADAPTER, start_from=tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no adapter in"):
        merge_folder(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="adapter.bits is 3; use 4 or 8"):
        AdapterRecipe(bits=3)
    with pytest.raises(ValueError, match="adapter.rank is 0"):
        AdapterRecipe(rank=0)


def test_a_quantized_backbone_says_what_to_install(
    mllm_recipe: MLLMRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mllm.checkpoint.find_spec", lambda name: None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unified_mllm"}))
    recipe = dataclasses.replace(
        mllm_recipe, model={}, adapter=AdapterRecipe(bits=4), trains=["projector"], start_from=tmp_path
    )
    with pytest.raises(ImportError, match=r"'nf4' needs bitsandbytes.*pip install 'mllm-toolkit\[quantization\]'"):
        train_mllm(recipe)


@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_learn_on_a_quantized_backbone(recipe: MLLMRecipe, bits: int) -> None:
    """QLoRA: the frozen weights are few bits, what is saved is the adapter alone, and it lowers the loss."""
    pytest.importorskip("bitsandbytes", reason="quantized backbones need bitsandbytes, an optional extra")
    steps = {**recipe.trainer, "max_steps": 12, "logging_steps": 1}
    recipe = dataclasses.replace(recipe, adapter=dataclasses.replace(ADAPTER, bits=bits), trainer=steps)
    train_mllm(recipe)
    found = losses(recipe.output)
    assert found[12] < found[1]
    merge_folder(recipe.output / "final", recipe.output / "merged")
    before = MLLMForConditionalGeneration.from_pretrained(recipe.start_from)
    after = MLLMForConditionalGeneration.from_pretrained(recipe.output / "merged")
    assert loss_of(after) < loss_of(before)
