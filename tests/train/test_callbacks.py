"""Benchmarks and the world's scores in the training loop: those of `mllm evaluate` on the model that is saved."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mllm.cli.main import main
from mllm.evaluation.run import RunFolder
from mllm.files import append_lines
from tests.mllm.evaluation.vqa_data import make_data
from tests.train.launching import ROOT, changed, launch, losses, write_recipe
from train.recipe import BenchmarkInLoop, MLLMData, MLLMRecipe, Validation, WorldInLoop
from train.trainer import train_mllm

JOBS = ["draw", "ask"]
WORLD = WorldInLoop(count=1, jobs=JOBS, batch_size=1)


def measured(recipe: MLLMRecipe, trainer: dict[str, Any] | None = None, **validation: Any) -> MLLMRecipe:
    """Two steps with a validation; where it asks for the world, with images that its checker can read."""
    settings = {"max_steps": 2, "eval_steps": 1, "save_steps": 2, "report_to": [], **(trainer or {})}
    recipe = changed(recipe, settings, validation=Validation(batches=1, **validation), ema_decay=0.0)
    if "world" not in validation:
        return recipe
    model = {**recipe.model, "text_config": {**recipe.model["text_config"], "max_position_embeddings": 1024}}
    image_tokenizer, data = ROOT / "mllm/assets/tiny/image_tokenizer", MLLMData(episodes=4, jobs={"draw": 1, "ask": 1})
    return changed(recipe, image_tokenizer=image_tokenizer, model=model, data=data, length=256, rows=1)


def benchmark_of(name: str, folder: Path, **fields: int | None) -> BenchmarkInLoop:
    data = make_data(name, folder)
    return BenchmarkInLoop(
        name=name, questions=data.questions, annotations=data.annotations, images=data.images, **fields
    )


def test_every_validation_answers_and_scores_part_of_a_benchmark(
    mllm_recipe: MLLMRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Answers of an earlier run, which a resumed one may find beyond its checkpoint, are replaced."""
    recipe = measured(mllm_recipe, benchmarks=[benchmark_of("gqa", tmp_path / "gqa", limit=2, batch_size=2)])
    folder = recipe.output / "benchmarks"
    old = RunFolder(folder / "step-2" / "gqa")
    old.open({"model": {"fingerprint": "of other weights"}})
    append_lines(old.part_file(0), [{"index": 0, "text": "an answer of other weights"}])
    with caplog.at_level(logging.INFO):
        train_mllm(recipe)
    assert {path.name for path in folder.iterdir()} == {"step-1", "step-2"}
    fingerprints = set()
    for step in (1, 2):
        result = json.loads((folder / f"step-{step}" / "gqa" / "result.json").read_text())
        assert result["items_scored"] == 2 and not result["is_complete"]
        fingerprints.add(result["model"]["fingerprint"])
        assert f"step {step}, {result['protocol']}, PARTIAL: 2 of " in caplog.text
        assert set(result["files"]) == {"annotations", "questions"}
    assert len(fingerprints) == 2 and "of other weights" not in fingerprints  # the weights of the moment
    run = json.loads((folder / "step-2" / "gqa" / "run.json").read_text())
    assert run["items"] == 2 and run["decoding"]["greedy"]
    answers = (folder / "step-2" / "gqa" / "answers.jsonl").read_text()
    assert len(answers.splitlines()) == 2 and "an answer of other weights" not in answers


def test_the_last_validation_scores_the_averaged_model_that_is_saved(
    mllm_recipe: MLLMRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mllm.evaluation.world.CHECKER_COUNT", 2)
    wanted = benchmark_of("gqa", tmp_path / "gqa", batch_size=3)
    recipe = measured(mllm_recipe, {"eval_steps": 2}, benchmarks=[wanted], world=WORLD)
    train_mllm(dataclasses.replace(recipe, ema_decay=0.5))
    questions, again = ["--questions", str(wanted.questions)], tmp_path / "again"
    model = ["--model", str(recipe.output / "final"), "--device", "cpu", "--batch-size"]
    run = ["evaluate", "gqa", *questions, "--images", str(wanted.images), "--output", str(again), *model, "3"]
    score = ["evaluate", "score", str(again), *questions, "--annotations", str(wanted.annotations)]
    world = ["evaluate", "world", "--count", "1", "--jobs", *JOBS, "--json", str(tmp_path / "scores.json"), *model, "1"]
    assert [main(words) for words in (run, score, world)] == [0, 0, 0]
    of_loop = recipe.output / "benchmarks" / "step-2" / "gqa"
    for name in ("run.json", "answers.jsonl"):
        assert (of_loop / name).read_text() == (again / name).read_text()
    in_loop, after = (json.loads((folder / "result.json").read_text()) for folder in (of_loop, again))
    assert in_loop["scores"] == after["scores"] and in_loop["model"] == after["model"]
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    expected = [scores[name]["rate"] for name in ("draw, seen pairs", "draw, held-out pairs", "ask")]
    logged = [losses(recipe.output, f"eval_world_{name}")[2] for name in ("draw", "draw_held_out", "ask")]
    assert logged == pytest.approx(expected)
    assert losses(recipe.output, "eval_world")[2] == pytest.approx(sum(expected) / 3)


def test_what_cannot_be_measured_is_refused_before_training(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    """For want of a judge, of whole pairs, of text, of a file; of pixels, of a number of this name, of such a job."""
    mme = benchmark_of("mme", tmp_path / "mme")
    for benchmark in (
        benchmark_of("mmvet", tmp_path / "mmvet"),
        dataclasses.replace(mme, limit=3),
        dataclasses.replace(mme, name="geneval"),
        dataclasses.replace(mme, questions=tmp_path / "none.jsonl"),
    ):
        with pytest.raises((ValueError, FileNotFoundError)):
            train_mllm(measured(mllm_recipe, benchmarks=[benchmark]))
    for recipe in (
        dataclasses.replace(mllm_recipe, validation=Validation(world=WorldInLoop())),
        measured(mllm_recipe, {"metric_for_best_model": "eval_world_edit"}, world=WORLD),
        measured(mllm_recipe, world=WorldInLoop(jobs=["sing"])),
    ):
        with pytest.raises(ValueError):
            train_mllm(recipe)
    assert not (mllm_recipe.output / "final").exists()


def test_the_best_by_a_named_number_is_saved_and_kept(mllm_recipe: MLLMRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between two `save_steps`, and while later ones are dropped."""
    rates = iter((0.1, 0.7, 0.3, 0.5, 0.7, 0.2))
    monkeypatch.setattr("train.callbacks.score_world", lambda *_: {"world": next(rates)})
    trainer = {"max_steps": 6, "save_steps": 3, "save_total_limit": 2, "metric_for_best_model": "world"}
    recipe = measured(mllm_recipe, trainer, world=WORLD)
    train_mllm(recipe)
    assert {path.name for path in recipe.output.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-6"}
    for step in (2, 6):
        state = json.loads((recipe.output / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert Path(state["best_model_checkpoint"]) == recipe.output / "checkpoint-2" and state["best_metric"] == 0.7


@pytest.mark.slow
def test_all_processes_know_the_scores(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    """The first one measures; both decide which checkpoint is the best."""
    recipe = changed(measured(mllm_recipe, {"metric_for_best_model": "world"}, world=WORLD), batches_per_step=2)
    launch("torchrun", write_recipe(recipe, tmp_path / "recipe.yaml"))
    assert losses(recipe.output, "eval_world").keys() == {1, 2}
    assert (recipe.output / "checkpoint-2" / "trainer_state.json").is_file()
