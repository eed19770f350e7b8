"""The world's scores in the training loop: those of `mllm evaluate world`, and the best checkpoint chosen by them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mllm.cli.main import main
from tests.train.launching import ROOT, launch, losses, write_recipe
from train.recipe import MLLMData, MLLMRecipe, Validation, WorldInLoop
from train.run import train_mllm

JOBS = ["draw", "ask"]


def with_world(recipe: MLLMRecipe, *, ema_decay: float = 0.0, **trainer: object) -> MLLMRecipe:
    fields = {**recipe.trainer, "max_steps": 4, "save_steps": 4, "eval_steps": 1, "report_to": [], **trainer}
    validation = Validation(batches=1, world=WorldInLoop(count=2, jobs=JOBS, batch_size=2))
    text_config = {**recipe.model["text_config"], "max_position_embeddings": 1024}
    return dataclasses.replace(
        recipe,
        trainer=fields,
        validation=validation,
        ema_decay=ema_decay,
        image_tokenizer=ROOT / "mllm" / "assets" / "tiny" / "image_tokenizer",  # whose pictures the checker can read
        model={**recipe.model, "text_config": text_config},
        data=MLLMData(episodes=8, jobs={"draw": 1.0, "ask": 1.0}),
        length=256,
        rows=1,
    )


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_the_last_scores_are_those_of_the_model_that_is_saved(
    ema_decay: float, mllm_recipe: MLLMRecipe, tmp_path: Path
) -> None:
    recipe = with_world(mllm_recipe, ema_decay=ema_decay, eval_steps=4)
    train_mllm(recipe)
    words = ["--count", "2", "--batch-size", "2", "--jobs", *JOBS, "--json", str(tmp_path / "scores.json")]
    assert main(["evaluate", "world", *words, "--model", str(recipe.output / "final"), "--device", "cpu"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    expected = [scores[name]["rate"] for name in ("draw, seen pairs", "draw, held-out pairs", "ask")]
    logged = [losses(recipe.output, f"eval_world_{name}")[4] for name in ("draw", "draw_held_out", "ask")]
    assert logged == pytest.approx(expected)
    assert losses(recipe.output, "eval_world")[4] == pytest.approx(sum(expected) / 3)


def test_the_best_by_a_named_number_is_saved_and_kept(mllm_recipe: MLLMRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between two `save_steps`, and while later ones are dropped."""
    rates = iter((0.1, 0.7, 0.3, 0.5, 0.7, 0.2))
    monkeypatch.setattr("train.callbacks.WorldScores.__call__", lambda *_: {"world": next(rates)})
    recipe = with_world(mllm_recipe, max_steps=6, save_steps=3, save_total_limit=2, metric_for_best_model="world")
    train_mllm(recipe)
    assert {path.name for path in recipe.output.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-6"}
    state = json.loads((recipe.output / "checkpoint-6" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).name == "checkpoint-2" and state["best_metric"] == 0.7


def test_a_number_that_is_not_measured_chooses_nothing(mllm_recipe: MLLMRecipe) -> None:
    recipe = with_world(mllm_recipe, metric_for_best_model="eval_world_edit")
    with pytest.raises(ValueError, match="found trainer.metric_for_best_model 'eval_world_edit'; name one of loss"):
        train_mllm(recipe)


def test_unknown_jobs_and_no_items_are_refused(mllm_recipe: MLLMRecipe) -> None:
    small = dataclasses.replace(mllm_recipe, validation=Validation(world=WorldInLoop()))
    with pytest.raises(ValueError, match="64 pixels or more: found an image tokenizer of 32; leave it out"):
        train_mllm(small)
    recipe = dataclasses.replace(with_world(mllm_recipe), validation=Validation(world=WorldInLoop(jobs=["sing"])))
    with pytest.raises(ValueError):
        train_mllm(recipe)
    with pytest.raises(ValueError, match="found count 0 and batch_size 32; use 1 or more"):
        WorldInLoop(count=0)


@pytest.mark.slow
def test_all_processes_know_the_scores(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    """The first one measures; every one of two decides which checkpoint is the best."""
    recipe = with_world(mllm_recipe, max_steps=2, metric_for_best_model="world")
    recipe = dataclasses.replace(recipe, batches_per_step=2)
    launch("torchrun", write_recipe(recipe, tmp_path / "recipe.yaml"))
    assert losses(recipe.output, "eval_world").keys() == {1, 2}
    assert (recipe.output / "checkpoint-2" / "trainer_state.json").is_file()
