"""Training on prepared folders: exact resume in mid-epoch with mixing and packing on, with any workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.train.data.raw_data import OPTIONS, load, write_raw
from tests.train.launching import changed, losses, same, weights
from train.data.prepare import prepare_folder
from train.recipe import MLLMData, MLLMRecipe, ShardSource, Validation
from train.trainer import train_mllm


@pytest.fixture
def recipe(mllm_recipe: MLLMRecipe, image_tokenizer_folder: Path, tmp_path: Path) -> MLLMRecipe:
    write_raw(tmp_path / "raw")
    for name, files in {"images": ["captions.tar", "llava.json"], "words": ["documents.jsonl", "text.jsonl"]}.items():
        sources, tokenizer = [tmp_path / "raw" / file for file in files], load(image_tokenizer_folder)
        prepare_folder(sources, tmp_path / name, tokenizer=tokenizer, options=OPTIONS, shard_size=4)
    shards = [ShardSource(path="images", weight=2.0), ShardSource(path=str(tmp_path / "words"))]
    data = MLLMData(shards=shards, root=tmp_path, packing_buffers=2, buffer_size=12, describe_share=0.5)
    return changed(mllm_recipe, data=data, length=96)


def test_a_resumed_run_equals_an_uninterrupted_one_and_workers_change_nothing(recipe: MLLMRecipe) -> None:
    train_mllm(recipe)
    whole, final = losses(recipe.output), weights(recipe.output / "final")
    assert len(whole) == 6 and max(losses(recipe.output, "padding_share").values()) < 0.2
    for name in ("checkpoint-4", "checkpoint-6", "final"):
        shutil.rmtree(recipe.output / name)
    train_mllm(recipe)
    assert losses(recipe.output) == whole and same(weights(recipe.output / "final"), final)
    validation = Validation(batches=2, shards=recipe.data.shards)
    trainer = {"dataloader_num_workers": 2, "eval_strategy": "steps", "eval_steps": 6}
    other = changed(recipe, trainer, validation=validation, output=recipe.output.parent / "other")
    train_mllm(other)
    assert losses(other.output) == whole
    assert all(losses(other.output, f"eval_{name}_loss").keys() == {6} for name in ("images", "words"))
