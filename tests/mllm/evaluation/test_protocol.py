"""Questions and answers that do not fit are named with file and line; a part is never taken for the whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mllm.cli.main import main
from mllm.evaluation.protocol import match_answers
from mllm.evaluation.vqa import GQA
from mllm.files import read_json, read_lines
from tests.mllm.evaluation.builders import write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[3]
FILES = ["--questions", "q.jsonl", "--annotations", "gold.json"]
SCORE, SCORE_RUN = ["evaluate", "score", "a.jsonl", "--benchmark", "gqa", *FILES], ["evaluate", "score", "run", *FILES]
RUN = ["evaluate", "gqa", "--questions", "q.jsonl", "--images", "images", "--output", "run", "--max-new-tokens", "3"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five questions with images, answers and gold, in the working directory."""
    monkeypatch.chdir(tmp_path)
    records = [{"question_id": str(n), "image": f"{n}.png", "text": f"question {n}"} for n in range(5)]
    write_jsonl(tmp_path / "q.jsonl", records)
    (tmp_path / "images").mkdir()
    for n in range(5):
        Image.new("RGB", (20, 30), "red").save(tmp_path / "images" / f"{n}.png")
    write_answers(tmp_path, *range(5))
    write_json(tmp_path / "gold.json", {str(n): {"answer": "yes"} for n in range(5)})
    return tmp_path


def write_answers(folder: Path, *numbers: int) -> None:
    records = [{"question_id": str(n), "prompt": f"question {n}", "text": "Yes." if n % 2 else "no"} for n in numbers]
    write_jsonl(folder / "a.jsonl", records)


def test_an_answers_file_from_elsewhere_is_scored_without_torch_and_says_so(folder: Path) -> None:
    script = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from mllm.cli.main import main\n"
    script += f"assert main({SCORE!r}) == 0\nassert not {{'torch', 'transformers'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = read_json(folder / "result.json")
    assert result["scores"]["accuracy"]["value"] == pytest.approx(40.0)
    assert result["model"] == result["decoding"] == "unknown: the answers were made elsewhere"
    assert "gqa@exact-match-custom-5, all 5 items" in done.stdout


def test_a_part_is_refused_unless_asked_for_and_then_called_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(folder, 0, 1, 3)
    assert main(SCORE) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "got 3 answers" in printed.err and "'2' (q.jsonl, line 3)" in printed.err
    assert not (folder / "result.json").exists()
    assert main([*SCORE, "--partial"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "PARTIAL: 3 of 5 items" in lines[0] and all(line.endswith("PARTIAL") for line in lines[3:])
    result = read_json(folder / "result.json")
    assert (result["items_expected"], result["items_scored"], result["is_complete"]) == (5, 3, False)
    submit = ["evaluate", "submit", "a.jsonl", "--questions", "q.jsonl", "--benchmark", "gqa"]
    assert main([*submit, "--partial"]) == 0
    assert capsys.readouterr().out == "gqa_predictions.json  PARTIAL: 3 of 5\n"
    (folder / "a.jsonl").write_text("")
    assert main([*SCORE, "--partial"]) == 2


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("a.jsonl", {"question_id": "1"}),  # the second answer to one question
        ("a.jsonl", {"question_id": "9"}),
        ("a.jsonl", {"question_id": "1", "text": None}),
        ("a.jsonl", None),
        ("q.jsonl", {"question_id": "2"}),
        ("q.jsonl", {"image": ""}),
        ("q.jsonl", {"text": " "}),
        ("q.jsonl", {"question_id": None}),
    ],
)
def test_a_question_or_answer_that_does_not_fit_is_named(folder: Path, file: str, change: dict | None) -> None:
    good = {"question_id": "7", "image": "7.png", "text": "x"}
    with (folder / file).open("a") as lines:
        lines.write(json.dumps({} if change is None else good | change) + "\n")
    with pytest.raises(ValueError, match=f"{file}, line 6"):
        items = GQA().read_items(folder / "q.jsonl", None)
        match_answers(GQA(), items, read_lines(folder / "a.jsonl"), answers=folder / "a.jsonl")


def test_an_image_that_does_not_open_is_named_and_what_is_answered_is_a_part(
    folder: Path, random_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = folder / "images" / "3.png"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"q.jsonl, line 4.*3.png"):
        GQA().read_items(folder / "q.jsonl", folder / "images")
    image.write_bytes(b"")
    run = [*RUN, "--model", str(random_model_folder), "--batch-size", "2"]
    assert main(run) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "q.jsonl, line 4" in error and "3.png" in error
    assert main(SCORE_RUN) == 2
    assert "3 of 5 answers" in capfd.readouterr().err
    assert main([*SCORE_RUN, "--partial"]) == 0
    assert "PARTIAL: 3 of 5 items" in capfd.readouterr().out
    image.write_bytes(content)
    assert main(run) == 0 and main(SCORE_RUN) == 0
    assert "all 5 items" in capfd.readouterr().out
    assert main([*run, "--limit", "3", "--output", "limited"]) == 0
    assert "3 of 5 items" in capfd.readouterr().out
    (folder / "q.jsonl").write_text((folder / "q.jsonl").read_text().replace("question 4", "question four"))
    assert main(SCORE_RUN) == 2
    assert "q.jsonl" in capfd.readouterr().err
