"""Training on prepared folders: exact resume in mid-epoch with mixing and packing on, any workers, and refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.data.raw_data import OPTIONS, load, write_raw
from train.data.batches import path_of
from train.data.prepare import prepare_folder
from train.recipe import MLLMData, MLLMRecipe, ShardSource, Validation, as_yaml, resolve
from train.trainer import train_mllm


@pytest.fixture(scope="module")
def data(image_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MLLMData:
    path = tmp_path_factory.mktemp("data")
    write_raw(path / "raw")
    for name, files in {"pictures": ["captions.tar", "llava.json"], "words": ["documents.jsonl", "text.jsonl"]}.items():
        sources = [path / "raw" / file for file in files]
        tokenizer = load(image_tokenizer_folder)
        prepare_folder(sources, path / name, tokenizer=tokenizer, options=OPTIONS, shard_size=4)
    shards = [ShardSource(path=str(path / "pictures"), weight=2.0), ShardSource(path=str(path / "words"))]
    return MLLMData(shards=shards, packing_buffers=2, buffer_size=12, describe_share=0.5)


@pytest.fixture
def recipe(mllm_recipe: MLLMRecipe, data: MLLMData) -> MLLMRecipe:
    return dataclasses.replace(mllm_recipe, data=data, length=96)


def logged(recipe: MLLMRecipe, name: str = "loss") -> dict[int, float]:
    entries = [json.loads(line) for line in (recipe.output / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry[name] for entry in entries if name in entry}


def test_a_resumed_run_equals_an_uninterrupted_one(recipe: MLLMRecipe) -> None:
    train_mllm(recipe)
    whole, final = logged(recipe), load_file(recipe.output / "final" / "model.safetensors")
    assert len(whole) == 6 and max(logged(recipe, "padding_share").values()) < 0.2
    for path in [*recipe.output.glob("checkpoint-4"), *recipe.output.glob("checkpoint-6"), recipe.output / "final"]:
        shutil.rmtree(path)
    train_mllm(recipe)
    assert logged(recipe) == whole
    resumed = load_file(recipe.output / "final" / "model.safetensors")
    assert all(torch.equal(resumed[name], final[name]) for name in final)


def test_workers_change_nothing_and_held_out_folders_are_measured(recipe: MLLMRecipe, tmp_path: Path) -> None:
    train_mllm(dataclasses.replace(recipe, output=tmp_path / "alone"))
    validation = Validation(batches=2, shards=recipe.data.shards)
    trainer = {**recipe.trainer, "dataloader_num_workers": 2, "eval_strategy": "steps", "eval_steps": 6}
    train_mllm(dataclasses.replace(recipe, validation=validation, trainer=trainer))
    assert logged(recipe) == logged(dataclasses.replace(recipe, output=tmp_path / "alone"))
    entries = (recipe.output / "metrics.jsonl").read_text()
    assert "pictures" in entries and "words" in entries


def test_shards_of_another_image_tokenizer_are_refused(recipe: MLLMRecipe, tmp_path: Path) -> None:
    other = load(recipe.image_tokenizer)
    with torch.no_grad():
        other.quantizer.codebooks.add_(0.1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError):
        train_mllm(dataclasses.replace(recipe, image_tokenizer=tmp_path / "other"))


def test_shards_are_named_in_the_recipe(recipe: MLLMRecipe) -> None:
    values = {"output": "x", "image_tokenizer": "t", "text_tokenizer": "s", "data": {"shards": [{"path": "a"}]}}
    values["data"] |= {"lanes": 4, "lookahead": 9}  # names of older recipes
    resolved = resolve(MLLMRecipe, values, ["--data.describe_share", "0.5"])
    assert resolved.data == MLLMData(
        shards=[ShardSource(path="a", weight=1.0)], describe_share=0.5, packing_buffers=4, buffer_size=9
    )
    assert "describe_share: 0.5" in as_yaml(resolved)
    with pytest.raises(ValueError):
        resolve(MLLMRecipe, {**values, "data": {"shards": [{"path": "a"}], "jobs": {"ask": 1.0}}})
    with pytest.raises(ValueError, match="must come with data.shards"):
        resolve(MLLMRecipe, {**values, "data": {"root": "a"}})


def test_relative_folders_are_below_the_root() -> None:
    for path, root, expected in (
        ("a", None, "a"),
        ("a", "data", "data/a"),
        ("/b/a", "data", "/b/a"),
        ("hf://datasets/x/y/a", "data", "hf://datasets/x/y/a"),
    ):
        assert str(path_of(ShardSource(path=path), Path(root) if root else None)) == expected
