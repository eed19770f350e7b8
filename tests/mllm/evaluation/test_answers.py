"""Questions and answers that do not fit are named with file and line; a part is never taken for the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mllm.cli.main import main
from mllm.evaluation.protocol import match_answers, read_questions
from mllm.evaluation.understanding.gqa import BENCHMARK
from mllm.files import fingerprint_of, read_json, read_lines
from tests.mllm.evaluation.understanding.scoring import write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five questions with pictures, answers and gold."""
    (tmp_path / "images").mkdir()
    questions = [{"question_id": str(n), "image": f"{n}.png", "text": f"question {n}"} for n in range(5)]
    for question in questions:
        (tmp_path / "images" / question["image"]).write_bytes(b"")
    write_jsonl(tmp_path / "q.jsonl", questions)
    write_answers(tmp_path, *range(5))
    write_json(tmp_path / "gold.json", {str(n): {"answer": "yes"} for n in range(5)})
    return tmp_path


def write_answers(folder: Path, *numbers: int) -> Path:
    records = [{"question_id": str(n), "prompt": f"question {n}", "text": "Yes." if n % 2 else "no"} for n in numbers]
    return write_jsonl(folder / "a.jsonl", records)


def score(folder: Path, *more: str) -> int:
    files = ["--questions", str(folder / "q.jsonl"), "--annotations", str(folder / "gold.json")]
    return main(["evaluate", "score", str(folder / "a.jsonl"), "--benchmark", "gqa", *files, *more])


def test_scoring_needs_no_torch(folder: Path) -> None:
    words = ["evaluate", "score", str(folder / "a.jsonl"), "--benchmark", "gqa"]
    words += ["--questions", str(folder / "q.jsonl"), "--annotations", str(folder / "gold.json")]
    script = f"import sys; from mllm.cli.main import main; assert main({words!r}) == 0\n"
    script += "assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_answers_file_from_elsewhere_is_scored_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(folder) == 0
    result = read_json(folder / "result.json")
    assert result["scores"]["accuracy"]["value"] == pytest.approx(40.0)
    assert result["model"] == result["decoding"] == "unknown: the answers were made elsewhere"
    assert "gqa@exact-match-custom-5, all 5 items" in capsys.readouterr().out


def test_a_part_is_refused_unless_asked_for_and_then_called_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(folder, 0, 1, 3)
    assert score(folder) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a.jsonl has fewer answers than there are questions: found 3 of 5" in printed.err
    assert f"the first one missing is '2' ({folder / 'q.jsonl'}, line 3)" in printed.err
    assert not (folder / "result.json").exists()
    assert score(folder, "--partial") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "PARTIAL: 3 of 5 items" in lines[0] and all(line.endswith("PARTIAL") for line in lines[3:])
    result = read_json(folder / "result.json")
    assert (result["items_expected"], result["items_scored"], result["is_complete"]) == (5, 3, False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question_id": "1", "text": "no"}, r"a.jsonl, line 6 answers a question twice: .* first on .*line 2"),
        ({"question_id": "9", "text": "no"}, r"a.jsonl, line 6 answers a question that was not asked: found id '9'"),
        ({"question_id": 1, "text": None}, r"a.jsonl, line 6 is no answer: found text None"),
        ({"text": "no"}, r"a.jsonl, line 6 has no 'question_id': found text"),
        ({"question_id": "1"}, r"a.jsonl, line 6 has no 'text'"),
    ],
)
def test_an_answer_that_does_not_fit_is_named(folder: Path, line: dict, message: str) -> None:
    path = folder / "a.jsonl"
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    items = read_questions(folder / "q.jsonl", None)
    with pytest.raises(ValueError, match=message):
        match_answers(BENCHMARK, items, read_lines(path), answers=path)


@pytest.mark.parametrize("text", ['{"question_id": ', "[1, 2]", '"yes"'])
def test_a_line_that_is_no_record_is_named(folder: Path, text: str) -> None:
    path = folder / "a.jsonl"
    path.write_text(path.read_text() + "\n" + text + "\n")  # the empty line is nothing, but counts
    with pytest.raises(ValueError, match=r"a.jsonl, line 7 is no"):
        read_lines(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question_id": "2", "image": "2.png", "text": "x"}, "line 6 asks a question twice: found id '2' again"),
        ({"question_id": "7", "text": "x"}, "line 6 has no 'image'"),
        ({"question_id": "7", "image": "", "text": "x"}, "line 6 has no picture: found image ''"),
        ({"question_id": "7", "image": "7.png", "text": " "}, "line 6 is no question"),
        ({"question_id": "7", "image": "7.png"}, "line 6 has no 'text'"),
        ({"image": "7.png", "text": "x"}, "line 6 has no 'question_id'"),
        ({"question_id": None, "image": "7.png", "text": "x"}, "line 6 is no question"),
    ],
)
def test_a_question_that_is_none_is_named(folder: Path, line: dict, message: str) -> None:
    path = folder / "q.jsonl"
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=f"q.jsonl, {message}"):
        read_questions(path, None)


def test_a_question_whose_picture_is_missing_is_named(folder: Path) -> None:
    (folder / "images" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"q.jsonl, line 4 asks about a picture that is not there: .*3.png"):
        read_questions(folder / "q.jsonl", folder / "images")
    assert len(read_questions(folder / "q.jsonl", None)) == 5  # scoring needs no pictures


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\x89PNG\r\n\xff")
    with pytest.raises(ValueError, match="a.jsonl is no text"):
        read_lines(tmp_path / "a.jsonl")


def test_empty_files_are_refused(folder: Path) -> None:
    (folder / "q.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no question"):
        read_questions(folder / "q.jsonl", None)
    (folder / "a.jsonl").write_text("")
    write_jsonl(folder / "q.jsonl", [{"question_id": "1", "image": "x", "text": "x"}])
    assert score(folder, "--partial") == 2


def test_a_picture_that_does_not_open_is_named_with_its_question(
    folder: Path, random_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for n in (0, 1, 2, 4):
        Image.new("RGB", (20, 30), "red").save(folder / "images" / f"{n}.png")
    files = ["--questions", str(folder / "q.jsonl"), "--images", str(folder / "images")]
    words = ["evaluate", "gqa", *files, "--output", str(folder / "run"), "--model", str(random_model_folder)]
    words += ["--max-new-tokens", "3", "--batch-size", "2"]
    assert main(words) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "q.jsonl, line 4: cannot read picture" in error and "3.png" in error
    scored = ["evaluate", "score", str(folder / "run"), "--annotations", str(folder / "gold.json")]
    scored += ["--questions", str(folder / "q.jsonl")]
    assert main(scored) == 2
    assert "is not finished: found 2 of 5 answers and no answers.jsonl" in capfd.readouterr().err
    assert main([*scored, "--partial"]) == 0
    assert "PARTIAL: 2 of 5 items" in capfd.readouterr().out
    Image.new("RGB", (20, 30), "red").save(folder / "images" / "3.png")
    assert main(words) == 0 and main(scored) == 0
    assert "all 5 items" in capfd.readouterr().out


def test_a_limited_run_is_a_part(folder: Path, random_model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for n in range(5):
        Image.new("RGB", (20, 30), "red").save(folder / "images" / f"{n}.png")
    files = ["--questions", str(folder / "q.jsonl")]
    words = ["evaluate", "gqa", *files, "--images", str(folder / "images"), "--output", str(folder / "run")]
    words += ["--limit", "3", "--max-new-tokens", "3", "--model", str(random_model_folder)]
    assert main(words) == 0
    assert "3 of 5 items" in capfd.readouterr().out
    scored = ["evaluate", "score", str(folder / "run"), "--annotations", str(folder / "gold.json")]
    assert main([*scored, *files]) == 0
    assert "PARTIAL: 3 of 5 items" in capfd.readouterr().out
    (folder / "q.jsonl").write_text((folder / "q.jsonl").read_text().replace("question 4", "question four"))
    assert main([*scored, *files]) == 2
    assert "q.jsonl is not the file that was asked" in capfd.readouterr().err


WRONG = [
    (["score", "none", "--questions", "q.jsonl", "--annotations", "gold.json"], "there is no run none"),
    (["score", "images", "--questions", "q.jsonl", "--annotations", "gold.json"], "images is no folder of a run"),
    (["score", "a.jsonl", "--questions", "q.jsonl", "--annotations", "gold.json"], "give --benchmark"),
    (["score", "a.jsonl", "--questions", "q.jsonl", "--benchmark", "gqa"], "the right answers are missing"),
    (["score", "a.jsonl", "--questions", "q.jsonl", "--benchmark", "mmlu", "--annotations", "gold.json"], "mmlu"),
    (
        ["score", "a.jsonl", "--questions", "none.jsonl", "--benchmark", "gqa", "--annotations", "gold.json"],
        "none.jsonl",
    ),
    (["score", "a.jsonl", "--questions", "q.jsonl", "--benchmark", "gqa", "--annotations", "none"], "there is no none"),
    (["score", "a.jsonl", "--questions", "q.jsonl", "--benchmark", "gqa", "--annotations", "q.jsonl"], "is no JSON"),
    (["submit", "a.jsonl", "--questions", "q.jsonl", "--benchmark", "pope"], "has no 'category'"),
    (["report", "none"], "there is no result none"),
    (["report", "gold.json"], "gold.json is no result"),
]


@pytest.mark.parametrize(("words", "fragment"), WRONG, ids=[" ".join(words)[:60] for words, _ in WRONG])
def test_wrong_words_give_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], fragment: str
) -> None:
    monkeypatch.chdir(folder)
    assert main(["evaluate", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and fragment in printed.err and len(printed.err.splitlines()) == 1


def test_submit_names_what_it_wrote(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    words = ["evaluate", "submit", "a.jsonl", "--questions", "q.jsonl", "--benchmark", "gqa"]
    assert main(words) == 0
    assert capsys.readouterr().out == "gqa_predictions.json\n"
    write_answers(folder, 0, 1)
    assert main([*words, "--partial"]) == 0
    assert capsys.readouterr().out == "gqa_predictions.json  PARTIAL: 2 of 5\n"


def test_the_fingerprint_of_a_folder_of_pictures_follows_their_names_and_sizes(tmp_path: Path) -> None:
    found = []
    for name, content in (("1.png", b"a"), ("1.png", b"ab"), ("2.png", b"a"), ("3.png", b"ab")):
        (tmp_path / name).write_bytes(content)
        found.append(fingerprint_of(tmp_path))
    assert len(set(found)) == 4


def test_the_fingerprint_of_a_folder_follows_its_texts(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "x.json", [1])
    before = fingerprint_of(tmp_path)
    (tmp_path / "a" / "x.png").write_bytes(b"")
    assert fingerprint_of(tmp_path) == before != fingerprint_of(tmp_path / "a")
    write_json(tmp_path / "a" / "x.json", [2])
    assert fingerprint_of(tmp_path) != before
