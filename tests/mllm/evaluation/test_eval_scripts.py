"""The two evaluation scripts from end to end, with the bundled model, on small inputs in the official layouts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mllm.evaluation import naive_vqa
from tests.mllm.evaluation.builders import contents
from tests.mllm.evaluation.fake_judge import exact_grade, serve
from tests.mllm.evaluation.genai_data import write_genai_bench
from tests.mllm.evaluation.vqa_data import Data, make_data, write_jsonl

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
FOLDERS = {"gqa": "gqa", "textvqa": "textvqa", "pope": "pope", "mme": "MME", "mmvet": "mm-vet"}

pytestmark = pytest.mark.slow


def start_script(name: str, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script that has ended, well or not."""
    return subprocess.run(
        ["bash", f"scripts/{name}", *map(str, words)],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run_script(name: str, *words: str | Path, **environment: str) -> str:
    """What a script printed that went well."""
    done = start_script(name, *words, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def make_test_dev(folder: Path) -> Data:
    """VQAv2 as EvalAI wants it: four of the seven questions of the whole split are asked."""
    vqa = make_data("vqav2", folder, is_instructed=False)
    vqa.images.rename(vqa.images.with_name("test2015"))
    questions = naive_vqa.read_jsonl(vqa.questions)
    write_jsonl(folder / "llava_vqav2_mscoco_test2015.jsonl", questions)
    write_jsonl(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", questions[:4])
    return vqa


def test_all_vqa_benchmarks_run_on_two_processes_are_scored_and_reported(tmp_path: Path) -> None:
    """With data laid out as LLaVA's."""
    data = {name: make_data(name, tmp_path / "data" / folder, is_instructed=False) for name, folder in FOLDERS.items()}
    make_test_dev(tmp_path / "data" / "vqav2")
    output = tmp_path / "output"
    words = (tmp_path / "data", output, "--device", "cpu", "--max-new-tokens", "12", "--batch-size", "3")
    with serve(exact_grade) as judge:
        run_script("eval_vqa.sh", *words, PROCESSES="2", JUDGE_URL=judge.url, JUDGE_MODEL="fake")
    submission = json.loads((output / "vqav2" / "vqav2_submission.json").read_text())
    assert len(submission) == 7 and [answer["answer"] for answer in submission[4:]] == ["", "", ""]
    assert {path.name for path in output.iterdir()} == {*FOLDERS, "vqav2", "report.md"}
    report = (output / "report.md").read_text()
    for name in FOLDERS:
        result = json.loads((output / name / "result.json").read_text())
        answers, questions = naive_vqa.read_jsonl(output / name / "answers.jsonl"), data[name].questions
        expected = naive_vqa.SCORERS[name](answers, data[name].annotations, naive_vqa.read_jsonl(questions))
        assert result["scores"][result["headline"]]["value"] == pytest.approx(expected, abs=1e-9)
        assert result["is_complete"] and result["protocol"] in report


def test_benchmarks_without_files_are_left_out(random_model_folder: Path, tmp_path: Path) -> None:
    make_data("gqa", tmp_path / "data" / "gqa")
    words = ("--model", random_model_folder, "--device", "cpu", "--max-new-tokens", "5")
    run_script("eval_vqa.sh", tmp_path / "data", tmp_path / "output", *words)
    assert {path.name for path in (tmp_path / "output").iterdir()} == {"gqa", "report.md"}


def test_a_run_that_fails_ends_the_script_with_its_message(random_model_folder: Path, tmp_path: Path) -> None:
    """It is not taken for a benchmark without files: a report over the rest would look whole."""
    gqa = make_data("gqa", tmp_path / "data" / "gqa")
    shutil.rmtree(gqa.images)
    make_data("pope", tmp_path / "data" / "pope")
    done = start_script("eval_vqa.sh", tmp_path / "data", tmp_path / "output", "--model", random_model_folder)
    assert done.returncode != 0 and "there is no folder of pictures" in done.stderr
    assert not (tmp_path / "output").exists()


def test_a_folder_without_any_question_file_is_refused(tmp_path: Path) -> None:
    done = start_script("eval_vqa.sh", tmp_path, tmp_path / "output")
    assert done.returncode == 2 and f"nothing to evaluate in {tmp_path}" in done.stderr


def test_genai_bench_ends_alike_killed_on_two_processes_and_in_other_batches(tmp_path: Path) -> None:
    """527 prompts and their skills in the official layout, of which the first five are drawn."""
    prompts, _ = write_genai_bench(tmp_path / "data")
    options = ("--limit", "5", "--device", "cpu")

    def run(name: str, *more: str, processes: str = "1") -> dict[str, bytes]:
        words = (tmp_path / "data", tmp_path / name, *options, *more)
        printed = run_script("eval_genai_bench.sh", *words, PROCESSES=processes, SCORER="self")
        assert "PARTIAL: 5 of 527 items" in printed
        return contents(tmp_path / name)

    whole = run("whole", "--batch-size", "5")
    assert sorted(name for name in whole if name.startswith("images/")) == [f"images/0000{n}.png" for n in range(1, 6)]
    result = json.loads(whole["result.json"])
    assert result["protocol"] == "genai-bench-527@vqascore-self" and result["items_scored"] == 5
    assert 0 < result["scores"]["all"]["value"] < 1
    assert run("two", "--batch-size", "2", processes="2") == whole
    words = ["evaluate", "genai-bench-527", "--questions", str(prompts), "--output", str(tmp_path / "killed"), *options]
    kill_in_the_middle(words, tmp_path / "killed" / "parts" / "00000.jsonl", count=5)
    assert run("killed", "--batch-size", "5") == whole


def kill_in_the_middle(words: list[str], part: Path, *, count: int) -> None:
    """Start a run and kill it when it has some of its answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mllm", *words, "--batch-size", "1"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < part.read_bytes().count(b"\n") < count, "the run was killed too late to show anything"


@pytest.mark.parametrize("is_one_word", [False, True])
def test_the_model_that_draws_is_the_one_that_scores(
    is_one_word: bool, random_model_folder: Path, tmp_path: Path
) -> None:
    write_genai_bench(tmp_path / "data")
    model = [f"--model={random_model_folder}"] if is_one_word else ["--model", str(random_model_folder)]
    words = (tmp_path / "data", tmp_path / "run", "--limit", "1", "--device", "cpu", *model)
    run_script("eval_genai_bench.sh", *words, SCORER="self")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["model"]["fingerprint"] in json.dumps(result["judge"])
