"""Class-conditional drawing and understanding only, trained: the loss falls, and only what should move moves."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.conversation import CodesPart, Message, TextPart
from mllm.pipeline import Pipeline
from mllm.vocabulary import load_text_tokenizer
from tests.train.data.raw_data import prepared
from tests.train.launching import changed, losses, same, weights
from tests.train.test_distributed_training import MODELS
from tokenizer.unitok import UniTok
from train.build_model import build_model
from train.data.records import Record
from train.data.shards import CodeSource
from train.recipe import ClassData, MLLMData, MLLMRecipe
from train.trainer import train_mllm


def moved_parts(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Beginnings of the names of all tensors that are not exactly as they were."""
    assert before.keys() == after.keys()
    return {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}


def test_a_class_conditional_model_learns_its_own_codes_and_resumes_exactly(
    mllm_recipe: MLLMRecipe, tmp_path: Path
) -> None:
    """Two classes with one image each: after a few steps each is drawn by its number."""
    model = {**mllm_recipe.model, **MODELS["class"], "num_classes": 2, "image_guidance": 1.0}
    # a row holds four samples of a class and four positions, and two places of padding
    recipe = changed(mllm_recipe, {"max_steps": 80, "save_steps": 78}, ema_decay=0.0, model=model, length=22)
    codes_EKN = np.random.default_rng(0).integers(0, 16, (2, 2, 4)).astype(np.uint16)
    records = []
    for label in (0, 1):
        answer = Message("assistant", (CodesPart(codes_EKN[label], (2, 2)),))
        records.append(Record("class", (Message("user", (TextPart(str(label)),)), answer), "made", str(label)))
    prepared(tmp_path / "codes", [records], CodeSource.of(UniTok.from_pretrained(recipe.image_tokenizer)))
    classes = ClassData(folders=[tmp_path / "codes"])
    with pytest.raises(ValueError, match="class_dropout"):
        train_mllm(changed(recipe, classes=classes, model={**model, "image_guidance": 2.5}))
    recipe = changed(recipe, classes=replace(classes, class_dropout=0.1))
    train_mllm(recipe)
    values, final = losses(recipe.output), weights(recipe.output / "final")
    assert values[80] < 0.8 * values[1]
    pipeline = Pipeline.load(recipe.output / "final", device="cpu")
    for label in (0, 1):
        wanted = pipeline.processor.decode_images([CodesPart(codes_EKN[label], (2, 2))])[0]
        assert pipeline.draw_class(label, greedy=True)[0].tobytes() == wanted.tobytes()
    with pytest.raises(ValueError):
        pipeline.draw("a red circle")
    shutil.rmtree(recipe.output / "checkpoint-80")
    train_mllm(recipe)
    assert losses(recipe.output) == values and same(final, weights(recipe.output / "final"))


def test_the_stages_of_understanding_move_what_they_should(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    first = changed(
        mllm_recipe,
        {"max_steps": 20, "save_steps": 20},
        ema_decay=0.0,
        output=tmp_path / "stage1",
        model={**mllm_recipe.model, **MODELS["understanding"]},
        trainable=["projector"],
        data=MLLMData(episodes=40, jobs={"describe": 1.0}),
    )
    second = replace(
        first,
        output=tmp_path / "stage2",
        start_from=first.output / "final",
        model={"prompt_style": "native"},
        trainable=["projector", "backbone", "text_embedding", "lm_head"],
        data=MLLMData(episodes=40, jobs={"ask": 1.0, "describe": 1.0}),
    )
    tokenizer = UniTok.from_pretrained(mllm_recipe.image_tokenizer)
    before = build_model(first, load_text_tokenizer(first.text_tokenizer), tokenizer).state_dict()
    text = {"backbone.layers", "backbone.norm", "backbone.embed_tokens", "lm_head.weight"}
    for recipe, moved in ((first, set()), (second, text)):
        train_mllm(recipe)
        values, after = losses(recipe.output), weights(recipe.output / "final")
        assert values[20] < values[1]
        assert moved_parts(before, after) == {"code_embedding.projector", *moved}
        before = after
    for name, value in tokenizer.post_quant_proj.state_dict().items():
        assert torch.equal(before[f"code_embedding.projection.{name}"], value), "the image tokenizer's own, still"
    pipeline = Pipeline.load(second.output / "final", device="cpu")
    assert isinstance(pipeline.ask(Image.new("RGB", (32, 32)), "What color is it?", max_new_tokens=3), str)
    with pytest.raises(ValueError):
        pipeline.draw("a red circle")
