"""The plug-in in an installed lmms-eval, which lives in an environment of its own: found by its entry point, run on a
small task, its answers those of the pipeline.

LMMS_EVAL_PYTHON names that environment's python; docs/evaluation.md says how to make it. Skipped without.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from random import Random

import datasets
import pytest

from mllm.pipeline import Pipeline
from tests.mllm.evaluation.vqa_data import ask_about, draw_scene

ROOT = Path(__file__).resolve().parents[4]
PYTHON = os.environ.get("LMMS_EVAL_PYTHON", "")
TASK = """
task: small_world
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function small_world_utils.doc_to_visual
doc_to_text: !function small_world_utils.doc_to_text
doc_to_messages: !function small_world_utils.doc_to_messages
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 12, temperature: 0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """
def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    picture = {"type": "image", "url": doc_to_visual(doc)[0]}
    return [{"role": "user", "content": [picture, {"type": "text", "text": doc["question"]}]}]
"""


def make_task(folder: Path) -> list[dict[str, str]]:
    """A task of lmms-eval on pictures of the world; gives its rows."""
    rng, rows = Random(3), []
    for number in range(5):
        picture = folder / f"{number}.png"
        question, answer = ask_about(draw_scene(picture, rng), rng)
        rows.append({"image": str(picture), "question": question, "answer": answer})
    words = datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "question": words, "answer": words})
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "test.parquet")
    (folder / "small_world.yaml").write_text(TASK.format(data=folder / "test.parquet"))
    (folder / "small_world_utils.py").write_text(FUNCTIONS)
    return rows


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="LMMS_EVAL_PYTHON names no environment with lmms-eval (docs/evaluation.md)")
def test_lmms_eval_finds_the_model_and_scores_its_answers(tmp_path: Path) -> None:
    rows = make_task(tmp_path)
    words = ["--model", "mllm_toolkit", "--model_args", "device=cpu", "--tasks", "small_world", "--log_samples"]
    folders = ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    done = subprocess.run(
        [PYTHON, "-m", "lmms_eval", *words, *folders],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = (tmp_path / "out").rglob("*_samples_small_world.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    pipeline = Pipeline.load(None, device="cpu")
    expected = [pipeline.ask(row["image"], row["question"], greedy=True, max_new_tokens=12).strip() for row in rows]
    assert [sample["filtered_resps"] for sample in sorted(found, key=lambda sample: sample["doc_id"])] == expected
    [aggregated] = (tmp_path / "out").rglob("*_results.json")
    share = sum(given == row["answer"] for given, row in zip(expected, rows, strict=True)) / len(rows)
    assert json.loads(aggregated.read_text())["results"]["small_world"]["exact_match,none"] == pytest.approx(share)
