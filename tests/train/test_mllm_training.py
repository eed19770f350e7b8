"""Training the unified model: it learns, it goes on exactly where it stopped, its numbers mean what they say."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from train.optimizers import OptimizerRecipe
from train.recipe import MLLMRecipe
from train.run import train_mllm


def losses(folder: Path) -> dict[int, float]:
    """Training loss by step, from the log."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def with_trainer(recipe: MLLMRecipe, **changes: object) -> MLLMRecipe:
    return dataclasses.replace(recipe, trainer={**recipe.trainer, **changes})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one(mllm_recipe: MLLMRecipe, optimizer: str) -> None:
    recipe = dataclasses.replace(
        mllm_recipe, optimizer=OptimizerRecipe(name=optimizer, learning_rate=3e-3, matrix_learning_rate=1e-2)
    )
    train_mllm(recipe)
    whole = losses(recipe.output)
    final = load_file(recipe.output / "final" / "model.safetensors")
    for path in recipe.output.glob("checkpoint-*"):  # as if it had been killed after step 3
        if int(path.name.split("-")[1]) > 2:
            shutil.rmtree(path)
    shutil.rmtree(recipe.output / "final")
    train_mllm(recipe)
    assert losses(recipe.output) == whole
    resumed = load_file(recipe.output / "final" / "model.safetensors")
    assert all(torch.equal(resumed[name], final[name]) for name in final)


def test_twenty_steps_lower_the_loss(mllm_recipe: MLLMRecipe) -> None:
    recipe = with_trainer(mllm_recipe, max_steps=20, save_steps=20)
    train_mllm(recipe)
    values = losses(recipe.output)
    assert values[20] < 0.8 * values[1]


def test_an_unknown_trainer_key_is_refused(mllm_recipe: MLLMRecipe) -> None:
    with pytest.raises(ValueError, match="learning_rat"):
        train_mllm(with_trainer(mllm_recipe, learning_rat=1.0))


def test_codes_of_another_tokenizer_are_refused(mllm_recipe: MLLMRecipe) -> None:
    codes = mllm_recipe.output / "codes"
    codes.mkdir(parents=True)
    (codes / "prepare.json").write_text(json.dumps({"tokenizer": "another"}))
    with pytest.raises(ValueError, match="another"):
        train_mllm(mllm_recipe)
