"""A new model around a language model, or from one of ours: whose weights are whose, alone and under ZeRO-3."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mllm.model import MLLMForConditionalGeneration
from mllm.vocabulary import load_text_tokenizer, save_text_tokenizer
from tests.train.conftest import build
from tests.train.launching import changed, launch, write_recipe
from tokenizer.unitok import UniTok
from train.build_model import build_model
from train.recipe import MLLMRecipe

NUM_TOKENS = 400
UNDERSTANDING = {"embedding_context": "whole", "head_type": "none", "tasks": ["ask", "describe"]}


def language_model(folder: Path, model_type: str = "llama") -> Path:
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(model_type, vocab_size=NUM_TOKENS, num_key_value_heads=1, head_dim=16, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / model_type)
    return folder / model_type


@pytest.fixture
def recipe(mllm_recipe: MLLMRecipe, tmp_path: Path) -> MLLMRecipe:
    fields = {"embedder_width": 24, "embedder_heads": 2, "head_layers": 1}  # the image tokenizer's projection
    return replace(mllm_recipe, model=fields, backbone=language_model(tmp_path), ema_decay=0.0)


def check_weights(weights: dict[str, torch.Tensor], recipe: MLLMRecipe) -> None:
    """Everything comes from where it should."""
    for name, value in AutoModelForCausalLM.from_pretrained(recipe.backbone).state_dict().items():
        ours = weights[name.replace("model.", "backbone.")]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert ours.shape[0] == NUM_TOKENS + 3
            torch.testing.assert_close(ours[NUM_TOKENS:], value.mean(dim=0).expand(3, -1))
            ours = ours[:NUM_TOKENS]
        assert torch.equal(ours, value), name
    image_tokenizer = UniTok.from_pretrained(recipe.image_tokenizer)
    assert torch.equal(weights["code_embedding.codebooks"], image_tokenizer.quantizer.codebooks)
    for name, value in image_tokenizer.post_quant_proj.named_parameters():
        assert torch.equal(weights[f"code_embedding.projection.{name}"], value), name
    if recipe.model.get("head_type") == "none":
        assert not any(name.startswith("code_head.") for name in weights)
        return
    head = weights["code_head.layers.0.mlp.up_proj.weight"]
    assert 0.01 < head.std() < 0.04 and weights["code_head.norm.weight"].eq(1).all()


def test_any_language_model_gets_eyes_and_hands(recipe: MLLMRecipe, tmp_path: Path) -> None:
    """Its weights and what it says of text stay the same."""
    for model_type in ("llama", "qwen2", "qwen3", "gemma"):
        recipe = replace(recipe, backbone=language_model(tmp_path, model_type))
        model = build(recipe).eval()
        check_weights(model.state_dict(), recipe)
        assert model.config.vocab_size == NUM_TOKENS + 3
        assert {model.config.begin_image_id, model.config.end_image_id, model.config.image_token_id} == {400, 401, 402}
        ids_BT = torch.tensor([[1, 7, 300, 12, 5]])
        with torch.no_grad():
            expected = AutoModelForCausalLM.from_pretrained(recipe.backbone).eval()(ids_BT).logits
            torch.testing.assert_close(model(ids_BT).logits[..., :NUM_TOKENS], expected)


def test_rows_without_a_token_become_those_of_the_new_tokens(recipe: MLLMRecipe, tmp_path: Path) -> None:
    """Padded vocabularies have more rows than their tokenizer has tokens, of zeros or noise."""
    backbone = AutoModelForCausalLM.from_pretrained(recipe.backbone)
    backbone.resize_token_embeddings(NUM_TOKENS + 64)
    for layer in (backbone.get_input_embeddings(), backbone.get_output_embeddings()):
        layer.weight.data[NUM_TOKENS:] = 0
    backbone.save_pretrained(tmp_path / "padded")
    model = build(replace(recipe, backbone=tmp_path / "padded"))
    assert model.config.vocab_size == NUM_TOKENS + 64
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        mean = layer.weight[:NUM_TOKENS].mean(dim=0)
        torch.testing.assert_close(layer.weight[NUM_TOKENS : NUM_TOKENS + 3], mean.expand(3, -1))
        assert not layer.weight[NUM_TOKENS + 3 :].any()


def test_a_model_of_ours_lends_its_words_to_other_codes(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    """Its image parts are left behind, also where they would fit."""
    before = build(mllm_recipe)
    before.save_pretrained(tmp_path / "before")
    for head_type in ("depth_transformer", "mlp"):
        fields = {"embedder_width": 24, "embedder_heads": 2, "head_type": head_type, "head_layers": 1}
        after = build(changed(mllm_recipe, {"seed": 1}, model=fields, backbone=tmp_path / "before"))
        ours, theirs = after.state_dict(), before.state_dict()
        words = [name for name in theirs if name.startswith(("backbone.", "lm_head."))]
        assert words and all(torch.equal(ours[name], theirs[name]) for name in words)
        head = [name for name in theirs if "code_head" in name and theirs[name].ndim > 1 and name in ours]
        assert head and not any(torch.equal(ours[name], theirs[name]) for name in head)


def test_what_does_not_fit_the_start_is_refused(mllm_recipe: MLLMRecipe, recipe: MLLMRecipe, tmp_path: Path) -> None:
    """Other ids (sizes get those of plans), codes that look alike with larger patches, fields that shape weights."""
    planned = replace(mllm_recipe, data=replace(mllm_recipe.data, plans=True))
    build(planned).save_pretrained(tmp_path / "before")
    grid = {"embedder_width": 24, "embedder_heads": 2, "image_layout": "grid", "max_grid_side": 3}
    further = replace(mllm_recipe, model={}, start_from=tmp_path / "before")
    sizes = {"shrink": 2, "image_size": 64, "decoder_widths": (12, 8, 8), "decoder_depths": (1, 1, 1)}
    larger = UniTok(replace(UniTok.from_pretrained(mllm_recipe.image_tokenizer).config, **sizes))
    for wrong, other, named in (
        (replace(planned, model=grid, backbone=tmp_path / "before"), None, "text_tokenizer"),
        (further, larger, "image_tokenizer"),
        (replace(recipe, model={**recipe.model, "embedder_width": 16}), None, "embedder_width"),
        (replace(mllm_recipe, model={**mllm_recipe.model, "image_size": 64}), None, r"model\.image_size must be 32"),
        (replace(further, model={"head_layers": 3}), None, "head_layers"),
    ):
        with pytest.raises(ValueError, match=named):
            build(wrong, other)
    config = build(replace(further, model={**mllm_recipe.model, "image_guidance": 3.5})).config
    assert config.image_guidance == 3.5 and config.hidden_size == 32


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["draws", "understands", "grows"])
def test_zero3_keeps_the_weights(mllm_recipe: MLLMRecipe, recipe: MLLMRecipe, tmp_path: Path, kind: str) -> None:
    """Around a language model, and with tokens and positions added to a model of ours."""
    if kind == "understands":
        recipe = replace(recipe, model={**recipe.model, **UNDERSTANDING})
    elif kind == "grows":
        before = build(replace(mllm_recipe, model={**mllm_recipe.model, "image_position_embedding": True}))
        before.save_pretrained(tmp_path / "before")
        many = {"image_layout": "grid", "max_grid_side": before.config.grid_side + 2}
        recipe = replace(mllm_recipe, start_from=tmp_path / "before", model=many, ema_decay=0.0)
        expected = build(recipe).state_dict()
    path = write_recipe(changed(recipe, {"deepspeed": "zero3"}), tmp_path / "recipe.yaml")
    launch("torchrun", path, str(tmp_path), module="tests.train.workers zero3")
    for rank in range(2):
        counts = json.loads((tmp_path / f"held-{rank}.json").read_text())
        assert counts["held"] < 0.52 * counts["total"]  # its half, and padding to even parts
        weights = torch.load(tmp_path / f"weights-{rank}.pt")
        if kind == "grows":
            torch.testing.assert_close(weights, {name: expected[name] for name in weights})
        else:
            check_weights(weights, recipe)


def test_a_model_of_one_size_can_learn_to_plan_and_then_many_sizes(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    def check_grown(before: MLLMForConditionalGeneration, after: MLLMForConditionalGeneration) -> None:
        old, new = before.state_dict(), after.state_dict()
        assert all(torch.equal(new[name][: len(value)], value) for name, value in old.items())

    unplanned = build(replace(mllm_recipe, model={**mllm_recipe.model, "image_position_embedding": True}))
    unplanned.save_pretrained(tmp_path / "plain")
    first = replace(mllm_recipe, start_from=tmp_path / "plain", model={}, data=replace(mllm_recipe.data, plans=True))
    text_tokenizer = load_text_tokenizer(first.text_tokenizer)
    before = build_model(first, text_tokenizer, UniTok.from_pretrained(first.image_tokenizer))
    assert before.config.begin_plan_id == unplanned.config.vocab_size == before.config.vocab_size - 1
    check_grown(unplanned, before)
    sourced = build(replace(first, model={"image_source_embedding": True}))
    check_grown(before, sourced)
    assert not sourced.code_embedding.source.codebooks.any()
    before.save_pretrained(tmp_path / "before")
    save_text_tokenizer(text_tokenizer, tmp_path / "before")
    side = before.config.grid_side
    many = {"image_layout": "grid", "max_grid_side": side, "sizes": [[32, 32], [16, 32]]}
    grown = replace(first, start_from=tmp_path / "before", model=many, text_tokenizer=tmp_path / "before")
    after = build(grown)
    for wrong in (
        {"text_tokenizer": first.text_tokenizer},  # with it the new tokens would come before that of plans
        *({"model": model} for model in ({"image_layout": "grid"}, {**many, "max_grid_side": side - 1})),
    ):
        with pytest.raises(ValueError):
            build(replace(grown, **wrong))
    assert after.config.begin_plan_id == before.config.begin_plan_id
    assert after.config.new_line_id == before.config.vocab_size
    assert after.config.vocab_size == before.config.vocab_size + 1 + 2 * side
    check_grown(before, after)

    larger = {**many, "max_grid_side": side + 2, "sizes": [[32, 32], [64, 32]]}
    wide = build(replace(grown, model=larger))
    config, rows, known = wide.config, wide.code_embedding.places.row, before.code_embedding.places.row
    assert config.max_grid_side == side + 2 and config.first_column_size_id == config.new_line_id + side + 3
    assert torch.equal(rows, torch.cat([known, known[-1:], known[-1:]])) and config.sizes == larger["sizes"]
    wide.save_pretrained(tmp_path / "wide")
    resumed = build(replace(grown, start_from=tmp_path / "wide", model={}))
    assert torch.equal(resumed.code_embedding.places.row, rows) and resumed.config.sizes == larger["sizes"]
