"""A benchmark in the training loop: answers and results of every validation, by the runner of `mllm evaluate`."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from mllm.cli.main import main
from mllm.evaluation.run import RunFolder
from tests.mllm.evaluation.vqa_data import make_data
from train.recipe import BenchmarkInLoop, MLLMRecipe, Validation
from train.run import train_mllm


def with_benchmark(recipe: MLLMRecipe, wanted: BenchmarkInLoop, *, ema_decay: float = 0.0) -> MLLMRecipe:
    trainer = {**recipe.trainer, "max_steps": 2, "eval_steps": 1, "eval_strategy": "steps", "save_steps": 2}
    validation = Validation(batches=1, benchmarks=[wanted])
    return dataclasses.replace(recipe, trainer=trainer, validation=validation, ema_decay=ema_decay)


def test_every_validation_answers_and_scores_the_benchmark(
    mllm_recipe: MLLMRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data("gqa", tmp_path / "gqa")
    wanted = BenchmarkInLoop(
        name="gqa", questions=data.questions, annotations=data.annotations, images=data.images, limit=3, batch_size=2
    )
    recipe = with_benchmark(mllm_recipe, wanted)
    with caplog.at_level(logging.INFO):
        train_mllm(recipe)
    folder = recipe.output / "benchmarks"
    assert {path.name for path in folder.iterdir()} == {"step-1", "step-2"}
    fingerprints = set()
    for step in (1, 2):
        result = json.loads((folder / f"step-{step}" / "gqa" / "result.json").read_text())
        assert result["items_scored"] == 3 and not result["is_complete"]
        fingerprints.add(result["model"]["fingerprint"])
        assert f"step {step}, {result['protocol']}, PARTIAL: 3 of {data.count} items: accuracy" in caplog.text
        assert set(result["files"]) == {"annotations", "questions"}
    assert len(fingerprints) == 2  # the weights of the moment
    run = json.loads((folder / "step-2" / "gqa" / "run.json").read_text())
    assert run["items"] == 3 and run["decoding"]["greedy"]
    assert len((folder / "step-2" / "gqa" / "answers.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_last_validation_scores_the_model_that_is_saved(
    ema_decay: float, mllm_recipe: MLLMRecipe, tmp_path: Path
) -> None:
    data = make_data("gqa", tmp_path / "gqa")
    wanted = BenchmarkInLoop(
        name="gqa", questions=data.questions, annotations=data.annotations, images=data.images, batch_size=3
    )
    recipe = with_benchmark(mllm_recipe, wanted, ema_decay=ema_decay)
    train_mllm(recipe)
    files = ["--questions", str(data.questions), "--images", str(data.images)]
    model = ["--model", str(recipe.output / "final"), "--device", "cpu", "--batch-size", "3"]
    assert main(["evaluate", "gqa", *files, "--output", str(tmp_path / "again"), *model]) == 0
    score = ["--questions", str(data.questions), "--annotations", str(data.annotations)]
    assert main(["evaluate", "score", str(tmp_path / "again"), *score]) == 0
    of_loop = recipe.output / "benchmarks" / "step-2" / "gqa"
    for name in ("run.json", "answers.jsonl"):
        assert (of_loop / name).read_text() == (tmp_path / "again" / name).read_text()
    in_loop, again = (json.loads((folder / "result.json").read_text()) for folder in (of_loop, tmp_path / "again"))
    assert in_loop["scores"] == again["scores"] and in_loop["model"] == again["model"]


def test_a_step_that_is_trained_again_is_answered_again(
    mllm_recipe: MLLMRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a GPU a resumed training does not come to the last bit to where it was; its old answers must not stop it."""
    data = make_data("gqa", tmp_path / "gqa")
    wanted = BenchmarkInLoop(name="gqa", questions=data.questions, annotations=data.annotations, images=data.images)
    recipe = with_benchmark(mllm_recipe, wanted)
    old = RunFolder(recipe.output / "benchmarks" / "step-2" / "gqa")
    old.open({"model": {"fingerprint": "of other weights"}})
    old.append(0, [{"index": 0, "text": "an answer of other weights"}])
    train_mllm(recipe)
    assert "answers of an earlier course" in caplog.text
    result = json.loads((old.folder / "result.json").read_text())
    assert result["model"]["fingerprint"] != "of other weights" and result["is_complete"]
    assert "an answer of other weights" not in (old.folder / "answers.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "limit", "message"),
    [("mmvet", None, "--judge-url"), ("mme", 3, "even --limit"), ("geneval", None, "which draws")],
)
def test_what_cannot_be_scored_is_refused_before_training(
    name: str, limit: int | None, message: str, mllm_recipe: MLLMRecipe, tmp_path: Path
) -> None:
    data = make_data("mme" if name == "geneval" else name, tmp_path / name)
    files = {"questions": data.questions, "annotations": data.annotations, "images": data.images}
    with pytest.raises(ValueError, match=message):
        train_mllm(with_benchmark(mllm_recipe, BenchmarkInLoop(name=name, limit=limit, **files)))
    assert not (mllm_recipe.output / "final").exists()


def test_a_wrong_path_is_refused_before_training(mllm_recipe: MLLMRecipe, tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl"
    wanted = BenchmarkInLoop(name="gqa", questions=missing, annotations=missing, images=tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        train_mllm(with_benchmark(mllm_recipe, wanted))
    assert not (mllm_recipe.output / "final").exists()
