"""Benchmarks and the world's scores in the training loop: those of `mllm evaluate` on the model that is saved."""

import json
from pathlib import Path

import pytest

from mllm.cli.main import main
from mllm.evaluation.run import RunFolder
from mllm.files import append_lines
from tests.mllm.evaluation.vqa_data import make_data
from tests.train.launching import ROOT, changed, losses
from train.recipe import BenchmarkInLoop, MLLMData, MLLMRecipe, Validation, WorldInLoop
from train.trainer import train_mllm

JOBS = ["draw", "ask"]


def test_the_last_validation_scores_the_averaged_model_that_is_saved(
    mllm_recipe: MLLMRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mllm.evaluation.world.CHECKER_COUNT", 2)
    files = make_data("gqa", tmp_path / "gqa")
    sources = {"questions": files.questions, "annotations": files.annotations, "images": files.images}
    benchmark, world = (
        BenchmarkInLoop(name="gqa", batch_size=3, **sources),
        WorldInLoop(count=1, jobs=JOBS, batch_size=1),
    )
    text_config = {**mllm_recipe.model["text_config"], "max_position_embeddings": 1024}
    recipe = changed(
        mllm_recipe,
        {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "report_to": []},
        validation=Validation(batches=1, benchmarks=[benchmark], world=world),
        ema_decay=0.5,
        image_tokenizer=ROOT / "mllm/assets/tiny/image_tokenizer",  # images that the world's checker can read
        model={**mllm_recipe.model, "text_config": text_config},
        data=MLLMData(episodes=4, jobs={"draw": 1, "ask": 1}),
        length=256,
        rows=1,
    )
    of_loop, again = recipe.output / "benchmarks" / "step-2" / "gqa", tmp_path / "again"
    old = RunFolder(of_loop)  # a resumed run may find answers beyond its checkpoint, which are replaced
    old.open({"model": {"fingerprint": "of other weights"}})
    append_lines(old.part_file(0), [{"index": 0, "text": "an answer of other weights"}])
    train_mllm(recipe)
    questions, scores = ["--questions", str(files.questions)], tmp_path / "scores.json"
    model = ["--model", str(recipe.output / "final"), "--device", "cpu", "--batch-size"]
    for words in (
        ["evaluate", "gqa", *questions, "--images", str(files.images), "--output", str(again), *model, "3"],
        ["evaluate", "score", str(again), *questions, "--annotations", str(files.annotations)],
        ["evaluate", "world", "--count", "1", "--jobs", *JOBS, "--json", str(scores), *model, "1"],
    ):
        assert main(words) == 0
    for name in ("run.json", "answers.jsonl"):
        assert (of_loop / name).read_text() == (again / name).read_text()
    in_loop, after = (json.loads((folder / "result.json").read_text()) for folder in (of_loop, again))
    assert in_loop["scores"] == after["scores"] and in_loop["model"] == after["model"]
    found = json.loads(scores.read_text())["scores"]
    expected = [found[name]["rate"] for name in ("draw, seen pairs", "draw, held-out pairs", "ask")]
    logged = [losses(recipe.output, f"eval_world_{name}")[2] for name in ("draw", "draw_held_out", "ask")]
    assert logged == pytest.approx(expected)
    assert losses(recipe.output, "eval_world")[2] == pytest.approx(sum(expected) / 3)
