"""Class-conditional drawing and understanding only, trained: the loss falls, and only what should move moves."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart, Message, TextPart
from mllm.pipeline import Pipeline
from mllm.vocabulary import load_text_tokenizer
from mllm.world.scene import CLASSES
from tests.train.data.raw_data import prepared
from tests.train.launching import ROOT, launch, losses, write_recipe
from tokenizer.unitok import UniTok
from train.build_model import build_model
from train.data.shards import CodeSource, PreparedRecord
from train.recipe import ClassData, MLLMData, MLLMRecipe
from train.trainer import train_mllm

CLASS_FIELDS = {"prompt_style": "class", "image_layout": "bare", "num_classes": len(CLASSES), "tasks": ["draw_class"]}
UNDERSTANDING = {"embedding_context": "whole", "embedder_width": 24, "head_type": "none", "tasks": ["ask", "describe"]}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def moved_parts(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Beginnings of the names of all tensors that are not exactly as they were."""
    assert before.keys() == after.keys()
    return {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}


def with_steps(recipe: MLLMRecipe, steps: int, **changes: object) -> MLLMRecipe:
    trainer = {**recipe.trainer, "max_steps": steps, "save_steps": steps}
    return dataclasses.replace(recipe, trainer=trainer, ema_decay=0.0, **changes)


@pytest.fixture
def class_recipe(mllm_recipe: MLLMRecipe) -> Callable[..., MLLMRecipe]:
    def make(steps: int, *, class_dropout: float = 0.1, **fields: object) -> MLLMRecipe:
        return with_steps(
            mllm_recipe,
            steps,
            model={**mllm_recipe.model, **CLASS_FIELDS, **fields},
            classes=ClassData(world_images=90, class_dropout=class_dropout),
            length=22,  # four samples of a class and four positions, and two places of padding
        )

    return make


def test_a_class_conditional_model_learns_its_own_codes_and_resumes_exactly(
    class_recipe: Callable[..., MLLMRecipe], tmp_path: Path
) -> None:
    """Two classes with one image each: after a few steps each is drawn by its number."""
    recipe = class_recipe(80, num_classes=2, code_embedder="summed", image_guidance=1.0)
    codes_EKN = np.random.default_rng(0).integers(0, 16, (2, 2, 4)).astype(np.uint16)
    records = []
    for label in (0, 1):
        answer = Message("assistant", (CodesPart(codes_EKN[label], (2, 2)),))
        records.append(PreparedRecord("class", (Message("user", (TextPart(str(label)),)), answer), "made", str(label)))
    prepared(tmp_path / "codes", [records], CodeSource.of(UniTok.from_pretrained(recipe.image_tokenizer)))
    recipe = dataclasses.replace(recipe, classes=ClassData(folders=[tmp_path / "codes"]))
    recipe = dataclasses.replace(recipe, trainer={**recipe.trainer, "save_steps": 78})
    train_mllm(recipe)
    values, final = losses(recipe.output), weights(recipe.output)
    assert values[80] < 0.8 * values[1]
    pipeline = Pipeline.load(recipe.output / "final", device="cpu")
    for label in (0, 1):
        wanted = pipeline.processor.decode_images([CodesPart(codes_EKN[label], (2, 2))])[0]
        assert pipeline.draw_class(label, greedy=True)[0].tobytes() == wanted.tobytes()
    with pytest.raises(ValueError):
        pipeline.draw("a red circle")
    shutil.rmtree(recipe.output / "checkpoint-80")
    train_mllm(recipe)
    assert losses(recipe.output) == values
    assert not moved_parts(final, weights(recipe.output))


def test_classes_of_the_world_are_trained_with_dropped_ones_for_guidance(
    class_recipe: Callable[..., MLLMRecipe],
) -> None:
    with pytest.raises(ValueError, match="class_dropout"):
        train_mllm(class_recipe(1, class_dropout=0.0, image_guidance=2.5))
    recipe = class_recipe(20, code_embedder="projected")
    train_mllm(recipe)
    values = losses(recipe.output)
    assert values[20] < 0.8 * values[1]
    pipeline = Pipeline.load(recipe.output / "final", device="cpu")
    assert pipeline.draw_class(7, seed=1, guidance=2.0)[0].size == (32, 32)


def test_the_stages_of_understanding_move_what_they_should(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    first = with_steps(
        mllm_recipe,
        20,
        output=tmp_path / "stage1",
        model={**mllm_recipe.model, **UNDERSTANDING, "prompt_style": "plain"},
        trainable=["projector"],
        data=MLLMData(episodes=40, jobs={"describe": 1.0}),
    )
    tokenizer = UniTok.from_pretrained(mllm_recipe.image_tokenizer)
    start = build_model(first, load_text_tokenizer(first.text_tokenizer), tokenizer).state_dict()
    train_mllm(first)
    values = losses(first.output)
    assert values[20] < values[1]
    assert moved_parts(start, weights(first.output)) == {"code_embedding.projector"}

    second = with_steps(
        first,
        20,
        output=tmp_path / "stage2",
        start_from=first.output / "final",
        model={"prompt_style": "native"},
        trainable=["projector", "backbone", "text_embedding", "lm_head"],
        data=MLLMData(episodes=40, jobs={"ask": 1.0, "describe": 1.0}),
    )
    train_mllm(second)
    assert losses(second.output)[20] < losses(second.output)[1]
    after = weights(second.output)
    moved = moved_parts(weights(first.output), after)
    assert moved == {
        "code_embedding.projector",
        "backbone.layers",
        "backbone.norm",
        "backbone.embed_tokens",
        "lm_head.weight",
    }
    for name, value in tokenizer.post_quant_proj.state_dict().items():
        assert torch.equal(after[f"code_embedding.projection.{name}"], value), "the image tokenizer's own, still"

    pipeline = Pipeline.load(second.output / "final", device="cpu")
    assert isinstance(pipeline.ask(Image.new("RGB", (32, 32)), "What color is it?", max_new_tokens=3), str)
    with pytest.raises(ValueError):
        pipeline.draw("a red circle")


def test_a_model_that_is_trained_further_keeps_what_shapes_its_weights(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    text_tokenizer = load_text_tokenizer(mllm_recipe.text_tokenizer)
    image_tokenizer = UniTok.from_pretrained(mllm_recipe.image_tokenizer)
    build_model(mllm_recipe, text_tokenizer, image_tokenizer).save_pretrained(tmp_path)

    def build(**model: object) -> MLLMConfig:
        again = dataclasses.replace(mllm_recipe, start_from=tmp_path, model=model)
        return build_model(again, text_tokenizer, image_tokenizer).config

    for changes in ({"head_layers": 3}, {"text_config": {"hidden_size": 36}}, {"prompt_style": "latin"}):
        with pytest.raises(ValueError):
            build(**changes)
    config = build(**mllm_recipe.model, image_guidance=3.5)
    assert config.image_guidance == 3.5 and config.hidden_size == 32


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "sharding"), [("class", None), ("understanding", "zero3")])
def test_two_processes_give_the_losses_of_one(
    class_recipe: Callable[..., MLLMRecipe], mllm_recipe: MLLMRecipe, tmp_path: Path, mode: str, sharding: str | None
) -> None:
    recipe = class_recipe(3, code_embedder="summed")
    if mode == "understanding":
        fields = {**mllm_recipe.model, **UNDERSTANDING, "prompt_style": "plain"}
        data = MLLMData(episodes=20, jobs={"describe": 1.0})
        recipe = with_steps(mllm_recipe, 3, model=fields, data=data)
    recipe = dataclasses.replace(recipe, batches_per_step=2, trainer={**recipe.trainer, "report_to": []})
    start = with_steps(recipe, 1, output=tmp_path / "start")  # ZeRO-3 draws other first weights
    train_mllm(start)
    recipe = dataclasses.replace(recipe, start_from=start.output / "final")
    train_mllm(recipe)
    deepspeed = {"deepspeed": str(ROOT / "scripts" / f"{sharding}.json")} if sharding else {}
    two = dataclasses.replace(recipe, output=tmp_path / "two", trainer={**recipe.trainer, **deepspeed})
    launch("torchrun", write_recipe(two, tmp_path / "two.yaml"))
    one, both = losses(recipe.output), losses(two.output)
    assert both.keys() == one.keys() == {1, 2, 3}
    torch.testing.assert_close(list(both.values()), list(one.values()), rtol=1e-4, atol=1e-5)
    assert weights(two.output).keys() == weights(recipe.output).keys()
