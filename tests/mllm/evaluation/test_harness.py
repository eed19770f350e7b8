"""The plug-ins against the interfaces of their harnesses as recorded here, and in installed ones.

lmms-eval: `lmms` with `task_dict`, `ModelManifest(model_id, simple_class_path, chat_class_path, aliases)`, requests
whose `args` end in (doc_to_messages, gen_kwargs, doc_id, task, split). VLMEvalKit: `BaseModel`, `supported_VLM`,
messages of {"type", "value"}. LMMS_EVAL_PYTHON and VLMEVAL_PYTHON name the pythons of environments that have them
(docs/evaluation.md).
"""

import base64
import csv
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

import datasets
import pytest
from PIL import Image

from mllm.evaluation.harness import cut_at, read_settings, register, vlmeval_class
from mllm.pipeline import Pipeline
from tests.mllm.evaluation.vqa_data import ask_about, draw_scene

ROOT = Path(__file__).resolve().parents[3]
PYTHON = os.environ.get("LMMS_EVAL_PYTHON", "")
VLMEVAL_PYTHON = os.environ.get("VLMEVAL_PYTHON", "")
RUN_VLMEVAL = """
import sys
from mllm.evaluation.harness import register
register("ours", device="cpu", max_new_tokens=12)
from vlmeval.run import main
sys.argv = ["run.py", "--data", "SmallWorld", "--model", "ours", "--work-dir", "out", "--mode", "infer"]
main()
"""
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
    image = {"type": "image", "url": doc_to_visual(doc)[0]}
    return [{"role": "user", "content": [image, {"type": "text", "text": doc["question"]}]}]
"""


def install(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def lmms_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """Our class, found as lmms-eval finds it: entry point, manifest, class path."""

    class Lmms:
        is_simple = True

    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        install(monkeypatch, name)
    install(monkeypatch, "lmms_eval.api.model", lmms=Lmms)
    install(monkeypatch, "lmms_eval.models.registry_v2", ModelManifest=SimpleNamespace)
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    found = pkgutil.resolve_name(entries["mllm_toolkit"])()
    module, _, name = found.chat_class_path.rpartition(".")
    monkeypatch.delitem(sys.modules, module, raising=False)
    kind = getattr(importlib.import_module(module), name)
    assert found.model_id == "mllm_toolkit" and issubclass(kind, Lmms) and kind.is_simple is False
    return kind


def doc_to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    image = [{"type": "image", "url": doc["image"]}] if "image" in doc else []
    return [{"role": "user", "content": [*image, {"type": "text", "text": doc["question"]}]}]


def test_lmms_eval_gets_the_answers_of_the_pipeline_and_images_that_do_not_depend_on_their_batch(
    lmms_class: type, folder: Path, tmp_path: Path
) -> None:
    """Three documents of two tasks, in other batches and in another order."""
    pipeline = Pipeline.load(folder, device="cpu")
    doc, settings = {"image": Image.new("RGB", (40, 32), "red"), "question": "What?"}, {"max_new_tokens": 6}
    model = lmms_class(pretrained=str(folder), device="cpu", batch_size="1")
    model.task_dict = {"task": {"test": [doc]}}
    arguments = (doc_to_messages, settings, 0, "task", "test")
    requests = [SimpleNamespace(args=arguments), SimpleNamespace(args=("context of old versions", *arguments))]
    expected = pipeline.ask(doc["image"], "What?", greedy=True, max_new_tokens=6)
    assert model.generate_until(requests) == [expected.strip()] * 2

    tasks = {"first": {"test": [{"question": "a red circle"}, {"question": "a star"}]}}
    tasks["second"] = {"test": [{"question": "a star"}]}
    places = [("first", 0), ("first", 1), ("second", 0)]
    requests = [SimpleNamespace(args=(doc_to_messages, {}, n, task, "test")) for task, n in places]
    made = []
    for batch_size, order in ((1, [0, 1, 2]), (2, [2, 1, 0])):
        options = {"batch_size": batch_size, "mode": "image", "output": str(tmp_path / str(batch_size)), "seed": 4}
        model = lmms_class(pretrained=str(folder), device="cpu", **options)
        model.task_dict = tasks
        answers = dict(zip(order, model.generate_until([requests[n] for n in order]), strict=True))
        found = [json.loads(answers[n]) for n in range(3)]
        assert {answer["text"] for answer in found} == {""} and len({answer["images"][0] for answer in found}) == 3
        made.append([Image.open(answer["images"][0]).tobytes() for answer in found])
    assert made[0] == made[1] and made[0][0] == pipeline.draw("a red circle", seed=4)[0].tobytes()


def test_vlmevalkit_finds_a_registered_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlmeval = install(monkeypatch, "vlmeval")
    vlmeval.vlm, vlmeval.config = install(monkeypatch, "vlmeval.vlm"), install(monkeypatch, "vlmeval.config")
    vlmeval.config.supported_VLM = {}
    install(monkeypatch, "vlmeval.vlm.base", BaseModel=object)
    vlmeval_class.cache_clear()
    register("ours", str(folder), device="cpu", max_new_tokens=5)
    model = vlmeval.config.supported_VLM["ours"]()
    assert vlmeval.vlm.MLLMToolkit is type(model)
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "blue").save(image)
    message = [{"type": "image", "value": str(image)}, {"type": "text", "value": "What is it?"}]
    expected = Pipeline.load(folder, device="cpu").ask(image, "What is it?", greedy=True, max_new_tokens=5)
    assert model.generate_inner(message, dataset="MMBench") == expected
    vlmeval_class.cache_clear()


def test_settings_are_read_and_stop_strings_cut() -> None:
    assert read_settings({"temperature": 0, "max_new_tokens": 9}, "text") == {"greedy": True, "max_new_tokens": 9}
    assert read_settings({"temperature": 0.5, "do_sample": True, "num_beams": 1}, "text") == {"temperature": 0.5}
    assert read_settings({"temperature": 0.5}, "image") == {}
    assert cut_at("yes\n\nno", ["\n\n"]) == "yes" and cut_at("yes ", None) == "yes"


# ---- the installed harnesses ----


def make_rows(folder: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Questions about images of the world in words that the bundled model knows, and what the pipeline answers."""
    rng, rows, pipeline = Random(3), [], Pipeline.load(None, device="cpu")
    for number in range(6):
        question, answer = ask_about(draw_scene(folder / f"{number}.png", rng), rng)
        rows.append({"image": str(folder / f"{number}.png"), "question": question, "answer": answer})
    how = {"greedy": True, "max_new_tokens": 12}
    return rows, [pipeline.ask(row["image"], row["question"], **how).strip() for row in rows]


def run_there(python: str, *words: str, folder: Path, **environment: str) -> None:
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run([python, *words], cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and (folder / "out").is_dir(), done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="LMMS_EVAL_PYTHON names no environment with lmms-eval (docs/evaluation.md)")
def test_lmms_eval_finds_the_model_and_scores_its_answers(tmp_path: Path) -> None:
    (rows, expected), words = make_rows(tmp_path), datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "question": words, "answer": words})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "test.parquet")
    (tmp_path / "small_world.yaml").write_text(TASK.format(data=tmp_path / "test.parquet"))
    (tmp_path / "small_world_utils.py").write_text(FUNCTIONS)
    options = "--model mllm_toolkit --model_args device=cpu --tasks small_world --log_samples --include_path . "
    command = ("-m", "lmms_eval", *options.split(), "--output_path", "out")
    run_there(PYTHON, *command, folder=tmp_path, HF_HOME=str(tmp_path / "cache"))
    [samples] = (tmp_path / "out").rglob("*_samples_small_world.jsonl")
    found = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"] for sample in found] == expected
    [aggregated] = (tmp_path / "out").rglob("*_results.json")
    share = sum(given == row["answer"] for given, row in zip(expected, rows, strict=True)) / len(rows)
    assert json.loads(aggregated.read_text())["results"]["small_world"]["exact_match,none"] == pytest.approx(share)


@pytest.mark.slow
@pytest.mark.skipif(not VLMEVAL_PYTHON, reason="VLMEVAL_PYTHON names none with VLMEvalKit (docs/evaluation.md)")
def test_vlmevalkit_runs_the_model_on_a_table_of_questions(tmp_path: Path) -> None:
    rows, expected = make_rows(tmp_path)
    with open(tmp_path / "SmallWorld.tsv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("index", *rows[0]), delimiter="\t")
        writer.writeheader()
        for n, row in enumerate(rows):
            writer.writerow({**row, "index": n, "image": base64.b64encode(Path(row["image"]).read_bytes()).decode()})
    run_there(VLMEVAL_PYTHON, "-c", RUN_VLMEVAL, folder=tmp_path, LMUData=str(tmp_path))
    [table] = (tmp_path / "out").rglob("ours_SmallWorld.xlsx")
    read = f"import pandas; print(pandas.read_excel({str(table)!r}, dtype=str).prediction.to_json(orient='values'))"
    found = subprocess.run([VLMEVAL_PYTHON, "-c", read], capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == expected
