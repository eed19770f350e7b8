"""Each VQA benchmark from its files to its score: data in the official layout, a model, and a second scorer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mllm.cli.main import main
from tests.mllm.evaluation import naive_vqa
from tests.mllm.evaluation.builders import contents
from tests.mllm.evaluation.fake_judge import exact_grade, serve
from tests.mllm.evaluation.vqa_data import Data, make_data

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("vqav2", "gqa", "textvqa", "pope", "mme", "mmvet")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Data]:
    folder = tmp_path_factory.mktemp("vqa")
    return {name: make_data(name, folder / name) for name in NAMES}


def words_of(name: str, data: Data, output: Path, *more: str) -> list[str]:
    """The command that runs a benchmark."""
    files = ["--questions", str(data.questions), "--images", str(data.images), "--output", str(output)]
    return ["evaluate", name, *files, "--max-new-tokens", "12", "--device", "cpu", *more]


def score(data: Data, run: Path, *more: str) -> dict:
    """The result of a run, through the command."""
    files = ["--questions", str(data.questions), "--annotations", str(data.annotations)]
    assert main(["evaluate", "score", str(run), *files, *more]) == 0
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def check_end_to_end(name: str, data: Data, run: Path, *model: str) -> dict:
    """Run, score, and score again by the plain scorer; gives the result."""
    assert main(words_of(name, data, run, *model)) == 0
    answers = naive_vqa.read_jsonl(run / "answers.jsonl")
    questions = naive_vqa.read_jsonl(data.questions)
    assert [(a["question_id"], a["prompt"]) for a in answers] == [(q["question_id"], q["text"]) for q in questions]
    with serve(exact_grade) as judge:
        of_judge = ["--judge-url", judge.url, "--judge-model", "fake"] if name == "mmvet" else []
        result = score(data, run, *of_judge)
    expected = naive_vqa.SCORERS[name](answers, data.annotations, questions)
    headline = result["scores"][result["headline"]]
    assert headline["value"] == pytest.approx(expected, abs=1e-9)
    assert headline["low"] <= headline["value"] <= headline["high"]
    assert (result["items_expected"], result["items_scored"], result["is_complete"]) == (data.count, data.count, True)
    assert result["protocol"].startswith(f"{name}@") and result["protocol"].endswith(f"-custom-{data.count}")
    assert result["decoding"] == {"greedy": True, "max_new_tokens": 12} and result["prompts"] == "raw"
    assert {"python", "mllm-toolkit", "torch", "transformers", "pillow"} <= set(result["versions"])
    assert len(result["model"]["fingerprint"]) == 16 and result["image_format"]["preparation"]
    assert (result["judge"] is not None) == (name == "mmvet")
    return result


@pytest.mark.parametrize("name", NAMES)
def test_a_random_model_is_scored_as_by_a_plain_scorer(
    name: str, data: dict[str, Data], random_model_folder: Path, tmp_path: Path
) -> None:
    check_end_to_end(name, data[name], tmp_path / "run", "--model", str(random_model_folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_bundled_model_is_scored_as_by_a_plain_scorer(name: str, tmp_path: Path) -> None:
    """Asked in the words it knows, except where the format of the prompt has a part in the protocol (TextVQA)."""
    data = make_data(name, tmp_path / "data", is_instructed=name == "textvqa")
    result = check_end_to_end(name, data, tmp_path / "run")
    if name in ("vqav2", "gqa", "mme"):
        assert result["scores"][result["headline"]]["value"] > 0  # it has learned to answer


@pytest.mark.slow
def test_answers_of_the_bundled_model_do_not_depend_on_the_batch_size(data: dict[str, Data], tmp_path: Path) -> None:
    for size in ("1", "5", "16"):
        assert main(words_of("textvqa", data["textvqa"], tmp_path / size, "--batch-size", size)) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "5") == contents(tmp_path / "16")


def test_the_batch_size_changes_no_answer(data: dict[str, Data], random_model_folder: Path, tmp_path: Path) -> None:
    for size in ("1", "5", "16"):
        words = words_of("pope", data["pope"], tmp_path / size, "--batch-size", size)
        assert main([*words, "--model", str(random_model_folder), "--temperature", "1.0"]) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "5") == contents(tmp_path / "16")


# ---- real processes ----


def start(launcher: list[str], words: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launcher, "-m", "mllm", *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"],
        ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    ],
    ids=["torchrun", "accelerate launch"],
)
def test_two_processes_give_the_answers_of_one(
    launcher: list[str], data: dict[str, Data], random_model_folder: Path, tmp_path: Path
) -> None:
    model = ("--model", str(random_model_folder))
    assert main(words_of("pope", data["pope"], tmp_path / "one", *model)) == 0
    words = words_of("pope", data["pope"], tmp_path / "two", *model)
    process = start(launcher, words)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors.decode()[-2000:]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert len(list((tmp_path / "two" / "parts").iterdir())) == 2


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(data: dict[str, Data], tmp_path: Path) -> None:
    assert main(words_of("mme", data["mme"], tmp_path / "whole")) == 0
    words = words_of("mme", data["mme"], tmp_path / "run", "--batch-size", "2")
    process = start([], words)
    part = tmp_path / "run" / "parts" / "00000.jsonl"
    deadline = time.monotonic() + 120
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = part.read_bytes().count(b"\n")
    assert 0 < done < data["mme"].count, "the run was killed too late to show anything"
    assert not (tmp_path / "run" / "answers.jsonl").exists()
    assert main(words) == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert score(data["mme"], tmp_path / "run") == score(data["mme"], tmp_path / "whole")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")  # the result files too
