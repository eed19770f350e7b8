"""Benchmarks and the world's scores in the training loop: those of `mllm evaluate` on the model that is saved."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from mllm.cli.main import main
from mllm.evaluation.run import RunFolder
from tests.mllm.evaluation.vqa_data import make_data
from tests.train.launching import ROOT, launch, losses, write_recipe
from train.recipe import BenchmarkInLoop, MLLMData, MLLMRecipe, Validation, WorldInLoop
from train.trainer import train_mllm

JOBS = ["draw", "ask"]


def with_benchmark(recipe: MLLMRecipe, wanted: BenchmarkInLoop, *, ema_decay: float = 0.0) -> MLLMRecipe:
    trainer = {**recipe.trainer, "max_steps": 2, "eval_steps": 1, "eval_strategy": "steps", "save_steps": 2}
    validation = Validation(batches=1, benchmarks=[wanted])
    return dataclasses.replace(recipe, trainer=trainer, validation=validation, ema_decay=ema_decay)


def benchmark_of(name: str, folder: Path, **fields: int | None) -> BenchmarkInLoop:
    data = make_data(name, folder)
    return BenchmarkInLoop(
        name=name, questions=data.questions, annotations=data.annotations, images=data.images, **fields
    )


def test_every_validation_answers_and_scores_part_of_a_benchmark(
    mllm_recipe: MLLMRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Answers of an earlier run, which a resumed one may find beyond its checkpoint, are replaced."""
    recipe = with_benchmark(mllm_recipe, benchmark_of("gqa", tmp_path / "gqa", limit=2, batch_size=2))
    folder = recipe.output / "benchmarks"
    old = RunFolder(folder / "step-2" / "gqa")
    old.open({"model": {"fingerprint": "of other weights"}})
    old.append(0, [{"index": 0, "text": "an answer of other weights"}])
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


def test_the_last_validation_scores_the_averaged_model_that_is_saved(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    wanted = benchmark_of("gqa", tmp_path / "gqa", batch_size=3)
    recipe = with_benchmark(mllm_recipe, wanted, ema_decay=0.9)
    recipe = dataclasses.replace(recipe, trainer={**recipe.trainer, "eval_steps": 2})
    train_mllm(recipe)
    files = ["--questions", str(wanted.questions), "--images", str(wanted.images)]
    model = ["--model", str(recipe.output / "final"), "--device", "cpu", "--batch-size", "3"]
    assert main(["evaluate", "gqa", *files, "--output", str(tmp_path / "again"), *model]) == 0
    score = ["--questions", str(wanted.questions), "--annotations", str(wanted.annotations)]
    assert main(["evaluate", "score", str(tmp_path / "again"), *score]) == 0
    of_loop = recipe.output / "benchmarks" / "step-2" / "gqa"
    for name in ("run.json", "answers.jsonl"):
        assert (of_loop / name).read_text() == (tmp_path / "again" / name).read_text()
    in_loop, again = (json.loads((folder / "result.json").read_text()) for folder in (of_loop, tmp_path / "again"))
    assert in_loop["scores"] == again["scores"] and in_loop["model"] == again["model"]


def test_what_cannot_be_measured_is_refused_before_training(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    """For want of a judge, of whole pairs, of text, of a file; of pixels, of a number of this name, of such a job."""
    wanted = [benchmark_of("mmvet", tmp_path / "mmvet"), benchmark_of("mme", tmp_path / "mme", limit=3)]
    wanted.append(dataclasses.replace(wanted[1], name="geneval", limit=None))
    wanted.append(dataclasses.replace(wanted[1], questions=tmp_path / "none.jsonl", limit=None))
    recipes = [with_benchmark(mllm_recipe, benchmark) for benchmark in wanted]
    recipes.append(dataclasses.replace(mllm_recipe, validation=Validation(world=WorldInLoop())))
    recipes.append(with_world(mllm_recipe, metric_for_best_model="eval_world_edit"))
    unknown = Validation(world=WorldInLoop(jobs=["sing"]))
    recipes.append(dataclasses.replace(with_world(mllm_recipe), validation=unknown))
    for recipe in recipes:
        with pytest.raises((ValueError, FileNotFoundError)):
            train_mllm(recipe)
    assert not (mllm_recipe.output / "final").exists()


def with_world(recipe: MLLMRecipe, *, ema_decay: float = 0.0, **trainer: object) -> MLLMRecipe:
    fields = {**recipe.trainer, "max_steps": 2, "save_steps": 2, "eval_steps": 1, "report_to": [], **trainer}
    validation = Validation(batches=1, world=WorldInLoop(count=1, jobs=JOBS, batch_size=1))
    text_config = {**recipe.model["text_config"], "max_position_embeddings": 1024}
    return dataclasses.replace(
        recipe,
        trainer=fields,
        validation=validation,
        ema_decay=ema_decay,
        image_tokenizer=ROOT / "mllm" / "assets" / "tiny" / "image_tokenizer",  # whose images the checker can read
        model={**recipe.model, "text_config": text_config},
        data=MLLMData(episodes=4, jobs={"draw": 1.0, "ask": 1.0}),
        length=256,
        rows=1,
    )


def test_the_last_scores_of_the_world_are_those_of_the_averaged_model_that_is_saved(
    mllm_recipe: MLLMRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mllm.evaluation.world.CHECKER_COUNT", 2)
    recipe = with_world(mllm_recipe, ema_decay=0.5, eval_steps=2)
    train_mllm(recipe)
    words = ["--count", "1", "--batch-size", "1", "--jobs", *JOBS, "--json", str(tmp_path / "scores.json")]
    assert main(["evaluate", "world", *words, "--model", str(recipe.output / "final"), "--device", "cpu"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    expected = [scores[name]["rate"] for name in ("draw, seen pairs", "draw, held-out pairs", "ask")]
    logged = [losses(recipe.output, f"eval_world_{name}")[2] for name in ("draw", "draw_held_out", "ask")]
    assert logged == pytest.approx(expected)
    assert losses(recipe.output, "eval_world")[2] == pytest.approx(sum(expected) / 3)


def test_the_best_by_a_named_number_is_saved_and_kept(mllm_recipe: MLLMRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between two `save_steps`, and while later ones are dropped."""
    rates = iter((0.1, 0.7, 0.3, 0.5, 0.7, 0.2))
    monkeypatch.setattr("train.callbacks.score_world", lambda *_: {"world": next(rates)})
    recipe = with_world(mllm_recipe, max_steps=6, save_steps=3, save_total_limit=2, metric_for_best_model="world")
    train_mllm(recipe)
    assert {path.name for path in recipe.output.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-6"}
    for step in (2, 6):
        state = json.loads((recipe.output / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert Path(state["best_model_checkpoint"]) == recipe.output / "checkpoint-2" and state["best_metric"] == 0.7


@pytest.mark.slow
def test_all_processes_know_the_scores(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    """The first one measures; both decide which checkpoint is the best."""
    recipe = with_world(mllm_recipe, max_steps=2, metric_for_best_model="world")
    recipe = dataclasses.replace(recipe, batches_per_step=2)
    launch("torchrun", write_recipe(recipe, tmp_path / "recipe.yaml"))
    assert losses(recipe.output, "eval_world").keys() == {1, 2}
    assert (recipe.output / "checkpoint-2" / "trainer_state.json").is_file()
