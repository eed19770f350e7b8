"""Benchmarks from files to scores: data in the official layout, a model; real processes, scripts."""

import json
import sys
from pathlib import Path

import pytest

from mllm.files import read_json
from tests.mllm.evaluation.builders import contents, exact_grade, serve, write_genai_bench, write_jsonl
from tests.mllm.evaluation.vqa_data import make_data
from tests.train.launching import kill_at, run_program

FOLDERS = {"vqav2": "vqav2", "gqa": "gqa", "textvqa": "textvqa", "pope": "pope", "mme": "MME", "mmvet": "mm-vet"}


# ---- the scripts, with the bundled model ----


@pytest.mark.slow
def test_all_vqa_benchmarks_run_on_two_processes_are_scored_and_reported(tmp_path: Path) -> None:
    """With data laid out as LLaVA's, in words that the bundled model knows; four of VQAv2's seven questions."""
    output, files = tmp_path / "output", tmp_path / "data"
    data = {name: make_data(name, files / folder, is_instructed=False) for name, folder in FOLDERS.items()}
    vqa = data.pop("vqav2")
    vqa.images.rename(vqa.images.with_name("test2015"))
    for split, count in (("test2015", 7), ("test-dev2015", 4)):
        write_jsonl(files / "vqav2" / f"llava_vqav2_mscoco_{split}.jsonl", vqa.asked[:count])
    words = (files, output, "--device", "cpu", "--max-new-tokens", "12", "--batch-size", "3")
    with serve(exact_grade) as judge:
        settings = {"PYTHON": sys.executable, "JUDGE_URL": judge.url, "JUDGE_MODEL": "fake"}
        run_program("bash", "scripts/eval_vqa.sh", *words, PROCESSES="2", **settings)
    submission = read_json(output / "vqav2" / "vqav2_submission.json")
    assert len(submission) == 7 and [answer["answer"] for answer in submission[4:]] == ["", "", ""]
    assert {path.name for path in output.iterdir()} == {*FOLDERS, "report.md"}
    report = (output / "report.md").read_text()
    for name in data:
        result = read_json(output / name / "result.json")
        value = result["scores"][result["headline"]]["value"]
        assert value > 0 or name not in ("gqa", "mme")  # it has learned to answer
        count = len(data[name].asked)
        assert (result["items_expected"], result["items_scored"], result["is_complete"]) == (count, count, True)
        assert result["protocol"].endswith(f"-custom-{count}") and result["protocol"] in report
        assert result["decoding"] == {"greedy": True, "max_new_tokens": 12} and result["prompts"] == "raw"
        assert {"python", "mllm-toolkit", "torch", "transformers", "pillow"} <= set(result["versions"])
        assert len(result["model"]["fingerprint"]) == 16 and result["image_format"]["preparation"]
        assert (result["judge"] is not None) == (name == "mmvet")


@pytest.mark.slow
def test_genai_bench_ends_alike_killed_and_on_two_processes(tmp_path: Path) -> None:
    """527 prompts and their skills in the official layout, of which the first five are drawn."""
    prompts, _ = write_genai_bench(tmp_path / "data")
    options = ("--limit", "5", "--device", "cpu")

    def run(name: str, size: str, *, processes: str) -> dict[str, bytes]:
        words = ("scripts/eval_genai_bench.sh", tmp_path / "data", tmp_path / name, *options, "--batch-size", size)
        printed = run_program("bash", *words, PYTHON=sys.executable, PROCESSES=processes, SCORER="self")
        assert "PARTIAL: 5 of 527 items" in printed
        return contents(tmp_path / name)

    complete = run("two", "2", processes="2")
    assert sorted(name for name in complete if "/" in name) == [f"images/0000{n}.png" for n in range(1, 6)]
    result = json.loads(complete["result.json"])
    assert result["protocol"] == "genai-bench-527@vqascore-self" and 0 < result["scores"]["all"]["value"] < 1
    words = [sys.executable, "-m", "mllm", "evaluate", "genai-bench-527", "--questions", str(prompts), *options]
    part = tmp_path / "killed" / "parts" / "00000.jsonl"
    kill_at([*words, "--output", str(tmp_path / "killed"), "--batch-size", "1"], part, lines=1)
    assert part.read_bytes().count(b"\n") < 5 and not (tmp_path / "killed" / "answers.jsonl").exists()
    assert run("killed", "5", processes="1") == complete
