"""Class-conditional drawing, understanding only, and adapters: what moves, what is saved, exact resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image

from mllm.checkpoint import find_model_folder
from mllm.conversation import CodesPart
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.processor import MLLMProcessor
from mllm.vocabulary import added_ids, load_text_tokenizer
from tests.train.conftest import build, check_resumed
from tests.train.data.raw_data import of_class, prepared
from tests.train.launching import changed, losses, weights
from tests.train.test_distributed_training import MODELS
from tokenizer.unitok import UniTok
from train import trainer as training
from train.build_model import build_model
from train.data.shards import CodeSource
from train.lora import merge_folder
from train.recipe import AdapterRecipe, ClassData, MLLMData, MLLMRecipe, Validation
from train.trainer import train_mllm


def test_a_model_of_classes_learns_its_own_codes_and_resumes_exactly(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    """Two classes with one image each: after a few steps each is drawn by its number."""
    model = {**mllm_recipe.model, **MODELS["class"], "num_classes": 2, "image_guidance": 1.0}
    # a row holds four samples of a class and four positions, and two positions of padding
    recipe = changed(mllm_recipe, {"max_steps": 80, "save_steps": 78}, ema_decay=0.0, model=model, length=22)
    codes_EKN = np.random.default_rng(0).integers(0, 16, (2, 2, 4)).astype(np.uint16)
    records = [of_class(label, [codes_EKN[label]]) for label in (0, 1)]
    prepared(tmp_path / "codes", [records], CodeSource.of(UniTok.from_pretrained(recipe.image_tokenizer)))
    classes = ClassData(folders=[tmp_path / "codes"])
    with pytest.raises(ValueError, match="class_dropout"):
        train_mllm(changed(recipe, classes=classes, model={**model, "image_guidance": 2.5}))
    recipe = changed(recipe, classes=replace(classes, class_dropout=0.1))
    train_mllm(recipe)
    values = losses(recipe.output)
    assert values[80] < 0.8 * values[1]
    pipeline = Pipeline.load(recipe.output / "final", device="cpu")
    for label in (0, 1):
        wanted = pipeline.processor.decode_images([CodesPart(codes_EKN[label], (2, 2))])[0]
        assert pipeline.draw_class(label, greedy=True)[0].tobytes() == wanted.tobytes()
    with pytest.raises(ValueError):
        pipeline.draw("a red circle")
    check_resumed(recipe, "checkpoint-80")


def test_the_stages_of_understanding_move_what_they_should(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    first = changed(
        mllm_recipe,
        {"max_steps": 12, "save_steps": 20},
        ema_decay=0.0,
        output=tmp_path / "stage1",
        model={**mllm_recipe.model, **MODELS["understanding"]},
        trainable=["projector"],
        data=MLLMData(episodes=20, jobs={"describe": 1.0}),
    )
    second = replace(
        first,
        output=tmp_path / "stage2",
        start_from=first.output / "final",
        model={"prompt_style": "native"},
        trainable=["projector", "backbone", "text_embedding", "lm_head"],
    )
    before = build(first).state_dict()
    text = {"backbone.layers", "backbone.norm", "backbone.embed_tokens", "lm_head.weight"}
    for recipe, moved in ((first, set()), (second, text)):
        train_mllm(recipe)
        values, after = losses(recipe.output), weights(recipe.output / "final")
        assert values[12] < values[1]
        parts = {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}
        assert before.keys() == after.keys() and parts == {"code_embedding.projector", *moved}
        before = after
    for name, value in UniTok.from_pretrained(mllm_recipe.image_tokenizer).post_quant_proj.state_dict().items():
        assert torch.equal(before[f"code_embedding.projection.{name}"], value), "the image tokenizer's own, still"
    pipeline = Pipeline.load(second.output / "final", device="cpu")
    assert isinstance(pipeline.ask(Image.new("RGB", (32, 32)), "What color is it?", max_new_tokens=3), str)
    with pytest.raises(ValueError):
        pipeline.draw("a red circle")


ADAPTER = AdapterRecipe(rank=3, alpha=6.0, dropout=0.0)


def on_a_new_model(mllm_recipe: MLLMRecipe, *, tied: bool = False, steps: int = 4) -> MLLMRecipe:
    """An adapter on a model whose embeddings are tied or not."""
    fields = {**mllm_recipe.model, "text_config": {**mllm_recipe.model["text_config"], "tie_word_embeddings": tied}}
    tokenizers = load_text_tokenizer(mllm_recipe.text_tokenizer), UniTok.from_pretrained(mllm_recipe.image_tokenizer)
    base, output = mllm_recipe.output / "base", mllm_recipe.output / "lora"
    build_model(replace(mllm_recipe, model=fields), *tokenizers).save_pretrained(base)
    MLLMProcessor(*tokenizers).save_pretrained(base)
    start: dict[str, Any] = {"model": {}, "start_from": base, "output": output, "adapter": ADAPTER}
    trainer = {"max_steps": steps, "save_steps": 2, "report_to": []}
    return changed(mllm_recipe, trainer, trainable=["projector", "code_head"], **start)


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    codes_PK = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    begin, end, image = model.config.begin_image_id, model.config.end_image_id, model.config.image_token_id
    ids_BT = torch.tensor([[1, 40, begin, image, image, image, image, end, 2]])
    labels_BT = ids_BT.masked_fill(ids_BT == image, -100)
    images = {"codes": codes_PK, "image_lengths": torch.tensor([4]), "code_targets": torch.ones(4, dtype=torch.bool)}
    with torch.no_grad():
        return model.eval()(ids_BT, labels=labels_BT, **images).loss


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_trained_is_saved_alone_resumes_exactly_and_merges(mllm_recipe: MLLMRecipe, tied: bool) -> None:
    recipe = on_a_new_model(mllm_recipe, tied=tied)
    train_mllm(recipe)
    final, merged = recipe.output / "final", recipe.output / "merged"
    saved = weights(final)
    assert not any("backbone.layers" in name and name.endswith("q_proj.weight") for name in saved)
    assert max(tensor.shape[0] for name, tensor in saved.items() if "embed_tokens" in name) <= 3
    check_resumed(recipe, "checkpoint-4")
    merge_folder(final, merged)
    assert find_model_folder(merged) == merged
    before, after = map(MLLMForConditionalGeneration.from_pretrained, (recipe.start_from, merged))
    moved = {name for name, old in before.state_dict().items() if not torch.equal(old, after.state_dict()[name])}
    assert all(any(part in name for name in moved) for part in ("q_proj", "code_head", "projector"))
    assert not any("norm" in name and "backbone" in name for name in moved)
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        has_moved_V = (getattr(before, layer)().weight != getattr(after, layer)().weight).any(dim=1)
        rows = set(has_moved_V.nonzero()[:, 0].tolist())
        assert before.config.begin_image_id in rows and rows <= added_ids(before.config), layer
    torch.testing.assert_close(loss_of(after), loss_of(PeftModel.from_pretrained(before, str(final))))
    (final / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="must name the base model"):
        merge_folder(final, recipe.output / "out")


def test_float32_is_trained_beside_bfloat16_weights(mllm_recipe: MLLMRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = Validation(batches=1, prompts=["a red circle"])
    recipe = changed(on_a_new_model(mllm_recipe, steps=1), {"bf16": True, "eval_steps": 1}, validation=validation)
    found, build = set(), training.trainable_model

    def remembered(*arguments: Any) -> torch.nn.Module:
        model = build(*arguments)
        found.update((value.requires_grad, value.dtype) for value in model.parameters())
        return model

    monkeypatch.setattr(training, "trainable_model", remembered)
    train_mllm(recipe)
    assert found == {(True, torch.float32), (False, torch.bfloat16)}
    assert (recipe.output / "samples" / "step-1.png").is_file()


def test_adapters_learn_on_a_quantized_backbone(mllm_recipe: MLLMRecipe) -> None:
    """QLoRA: the frozen weights are few bits, what is saved is the adapter alone, and it lowers the loss."""
    pytest.importorskip("bitsandbytes", reason="quantized backbones need bitsandbytes, an optional extra")
    recipe = replace(on_a_new_model(mllm_recipe, steps=8), adapter=replace(ADAPTER, bits=4), ema_decay=0.0)
    train_mllm(recipe)
    found = losses(recipe.output)
    assert found[8] < found[1]
    merge_folder(recipe.output / "final", recipe.output / "merged")
    before, after = map(MLLMForConditionalGeneration.from_pretrained, (recipe.start_from, recipe.output / "merged"))
    assert loss_of(after) < loss_of(before)
