"""Benchmarks from files to scores: data in the official layout, a model; real processes, scripts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mllm.cli.main import main
from mllm.evaluation.protocol import find_benchmark
from mllm.files import read_json, read_lines
from tests.mllm.evaluation.builders import contents, exact_grade, score_files, serve, write_genai_bench, write_jsonl
from tests.mllm.evaluation.vqa_data import make_data

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
FOLDERS = {"vqav2": "vqav2", "gqa": "gqa", "textvqa": "textvqa", "pope": "pope", "mme": "MME", "mmvet": "mm-vet"}


def test_benchmarks_are_run_and_scored(random_model_folder: Path, tmp_path: Path) -> None:
    """The scores themselves are those of test_vqa.py and test_mmvet.py; the slow tests run all benchmarks."""
    for name in ("textvqa", "pope", "mmvet"):
        data, run = make_data(name, tmp_path / "data" / name), tmp_path / name
        questions = ["--questions", str(data.questions)]
        words = [*questions, "--images", str(data.images), "--output", str(run), "--model", str(random_model_folder)]
        assert main(["evaluate", name, *words, "--max-new-tokens", "3", "--device", "cpu"]) == 0
        answers = [line.record for line in read_lines(run / "answers.jsonl")]
        assert [(a["question_id"], a["prompt"]) for a in answers] == [(q["question_id"], q["text"]) for q in data.asked]
        with serve(exact_grade) as judge:
            judged = ["--judge-url", judge.url, "--judge-model", "fake"] if name == "mmvet" else []
            words = [str(run), *questions, "--annotations", str(data.annotations), *judged]
            assert main(["evaluate", "score", *words]) == 0
        result = read_json(run / "result.json")
        if name != "mmvet":
            scores = score_files(find_benchmark(name), data.questions, run / "answers.jsonl", data.annotations)
            assert result["scores"][scores.headline]["value"] == scores.scores[scores.headline].value
        count = len(data.asked)
        assert (result["items_expected"], result["items_scored"], result["is_complete"]) == (count, count, True)
        assert result["protocol"].startswith(f"{name}@") and result["protocol"].endswith(f"-custom-{count}")
        assert result["decoding"] == {"greedy": True, "max_new_tokens": 3} and result["prompts"] == "raw"
        assert {"python", "mllm-toolkit", "torch", "transformers", "pillow"} <= set(result["versions"])
        assert len(result["model"]["fingerprint"]) == 16 and result["image_format"]["preparation"]
        assert (result["judge"] is not None) == (name == "mmvet")


# ---- the scripts, with the bundled model ----


def run_script(name: str, *words: str | Path, **environment: str) -> str:
    """What a script printed that went well."""
    command = ["bash", f"scripts/{name}", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


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
        run_script("eval_vqa.sh", *words, PROCESSES="2", JUDGE_URL=judge.url, JUDGE_MODEL="fake")
    submission = read_json(output / "vqav2" / "vqav2_submission.json")
    assert len(submission) == 7 and [answer["answer"] for answer in submission[4:]] == ["", "", ""]
    assert {path.name for path in output.iterdir()} == {*FOLDERS, "report.md"}
    report = (output / "report.md").read_text()
    for name in data:
        result = read_json(output / name / "result.json")
        value = result["scores"][result["headline"]]["value"]
        assert value > 0 or name not in ("gqa", "mme")  # it has learned to answer
        assert result["is_complete"] and result["protocol"] in report


@pytest.mark.slow
def test_genai_bench_ends_alike_killed_and_on_two_processes(tmp_path: Path) -> None:
    """527 prompts and their skills in the official layout, of which the first five are drawn."""
    prompts, _ = write_genai_bench(tmp_path / "data")
    options = ("--limit", "5", "--device", "cpu")

    def run(name: str, size: str, *, processes: str) -> dict[str, bytes]:
        words = (tmp_path / "data", tmp_path / name, *options, "--batch-size", size)
        printed = run_script("eval_genai_bench.sh", *words, PROCESSES=processes, SCORER="self")
        assert "PARTIAL: 5 of 527 items" in printed
        return contents(tmp_path / name)

    complete = run("two", "2", processes="2")
    assert sorted(name for name in complete if "/" in name) == [f"images/0000{n}.png" for n in range(1, 6)]
    result = json.loads(complete["result.json"])
    assert result["protocol"] == "genai-bench-527@vqascore-self" and 0 < result["scores"]["all"]["value"] < 1
    words = ["evaluate", "genai-bench-527", "--questions", str(prompts), "--output", str(tmp_path / "killed"), *options]
    kill_in_the_middle(words, tmp_path / "killed", count=5)
    assert run("killed", "5", processes="1") == complete


def kill_in_the_middle(words: list[str], run: Path, *, count: int) -> None:
    """Start a run and kill it when it has some of its answers."""
    command = [sys.executable, "-m", "mllm", *words, "--batch-size", "1"]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    part, deadline = run / "parts" / "00000.jsonl", time.monotonic() + 120
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < part.read_bytes().count(b"\n") < count, "the run was killed too late to show anything"
    assert not (run / "answers.jsonl").exists()
