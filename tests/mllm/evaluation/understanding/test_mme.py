"""MME: reading answers by hand, accuracy and accuracy+, totals, the official tool's files, and what does not fit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mllm.evaluation.protocol import ScoreOptions, Scores, match_answers
from mllm.evaluation.understanding.mme import (
    BENCHMARK,
    COGNITION,
    INSTRUCTION,
    PERCEPTION,
    SUBTASKS,
    read_gold,
    read_items,
    score_subtask,
    submit,
    verdict_of,
)
from mllm.files import read_lines
from tests.mllm.evaluation.understanding.scoring import score_files, write_jsonl

# (what the model says, how the official tool reads it)
BY_HAND = [
    ("yes", "yes"),
    ("Yes", "yes"),
    ("YES", "yes"),
    ("Yes.", "yes"),
    ("Yes, it is.", "yes"),
    ("no", "no"),
    ("No", "no"),
    ("No.", "no"),
    ("NO!", "no"),
    ("not", "no"),
    ("None", "no"),
    ("know", "no"),  # any "no" within the first four characters
    ("unno", "no"),
    ("eyes", "yes"),
    (" yes", "yes"),
    ("  yes", "other"),  # spaces count: only "  ye" is seen
    ("  no", "no"),
    ("   no", "other"),
    ("'Yes'", "yes"),
    ("\nyes", "yes"),
    ("The answer is yes", "other"),
    ("It is not", "other"),
    ("", "other"),
    ("y", "other"),
    ("n", "other"),
    ("true", "other"),
    ("yno", "no"),
    ("yesno", "yes"),
    ("noye", "no"),
]


@pytest.mark.parametrize(("text", "verdict"), BY_HAND, ids=[repr(text) for text, _ in BY_HAND])
def test_an_answer_is_read_as_the_official_tool_reads_it(text: str, verdict: str) -> None:
    assert verdict_of(text) == verdict


# (right answers of each picture, accuracy + accuracy+)
SUBTASKS_BY_HAND = [
    ([2], 200.0),
    ([0], 0.0),
    ([1], 50.0),
    ([1, 1], 50.0),  # half of the answers, no pair
    ([2, 0], 100.0),  # half of the answers, half of the pairs
    ([2, 1], 125.0),
    ([2, 2, 0], 400 / 3),
    ([2, 1, 0, 1], 75.0),
    ([0, 0, 1], 100 / 6),
]


@pytest.mark.parametrize(("rights", "expected"), SUBTASKS_BY_HAND)
def test_a_subtask_by_hand(rights: list[int], expected: float) -> None:
    assert score_subtask(Counter(rights)) == pytest.approx(expected)


def make_release(folder: Path, gold: dict[str, list[tuple[str, str]]], *, space: str = " ") -> Path:
    """One picture per pair of answers."""
    for subtask, pairs in gold.items():
        for n, pair in enumerate(pairs):
            path = folder / subtask / f"{n:04d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [f"Question {i}?{space}Please answer yes or no.\t{answer}" for i, answer in enumerate(pair)]
            path.write_text("\n".join(rows) + "\n")
    return folder


def make_questions(path: Path, gold: dict[str, list[tuple[str, str]]]) -> Path:
    return write_jsonl(
        path,
        [
            {"question_id": f"{subtask}/{n:04d}.png", "image": "x.png", "text": f"Question {i}?\n{INSTRUCTION}"}
            for subtask, pairs in gold.items()
            for n in range(len(pairs))
            for i in range(2)
        ],
    )


def make_answers(path: Path, questions: Path, texts: list[str]) -> Path:
    records = [line.record for line in read_lines(questions)]
    return write_jsonl(
        path,
        [
            {"question_id": r["question_id"], "prompt": r["text"], "text": text}
            for r, text in zip(records, texts, strict=True)
        ],
    )


def score_it(folder: Path, gold: dict[str, list[tuple[str, str]]], texts: list[str], *, space: str = " ") -> Scores:
    questions = make_questions(folder / "q.jsonl", gold)
    release = make_release(folder / "release", gold, space=space)
    return score_files(BENCHMARK, questions, make_answers(folder / "a.jsonl", questions, texts), release)


def test_there_are_ten_subtasks_of_perception_and_four_of_cognition() -> None:
    assert (len(PERCEPTION), len(COGNITION), len(set(SUBTASKS))) == (10, 4, 14)


def test_totals_add_up_the_subtasks(tmp_path: Path) -> None:
    gold = {subtask: [("Yes", "No")] for subtask in SUBTASKS}
    texts = [text for n in range(14) for text in (("yes", "no") if n % 2 else ("yes", "yes"))]
    scores = score_it(tmp_path, gold, texts)
    assert scores.headline == "perception"
    assert scores.scores["perception"].value == pytest.approx(5 * 200 + 5 * 50)
    assert scores.scores["cognition"].value == pytest.approx(2 * 200 + 2 * 50)
    assert scores.scores["OCR"].value == 200.0 and scores.scores["existence"].value == 50.0
    assert scores.scores["existence accuracy"].value == 50.0 and scores.scores["existence accuracy+"].value == 0.0
    assert scores.protocol == "mme@official-custom-28"
    assert BENCHMARK.protocol("official", count=2374) == "mme@official"


def test_all_right_is_2000_and_800(tmp_path: Path) -> None:
    gold = {subtask: [("Yes", "No"), ("No", "Yes")] for subtask in SUBTASKS}
    scores = score_it(tmp_path, gold, ["Yes", "No", "No", "Yes"] * 14)
    assert (scores.scores["perception"].value, scores.scores["cognition"].value) == (2000.0, 800.0)


def test_there_is_no_total_of_a_part_of_the_subtasks(tmp_path: Path) -> None:
    scores = score_it(tmp_path, {"count": [("Yes", "No")], "OCR": [("No", "No")]}, ["yes", "no", "no", "maybe"])
    assert "perception" not in scores.scores and "cognition" not in scores.scores
    assert scores.scores["count"].value == 200.0
    assert scores.scores["OCR"].value == 50.0  # "maybe" is neither and counts as wrong


def test_two_spaces_before_the_instruction_are_the_same_question(tmp_path: Path) -> None:
    assert score_it(tmp_path, {"count": [("Yes", "No")]}, ["yes", "no"], space="  ").scores["count"].value == 200.0


def test_both_layouts_of_the_release_are_read(tmp_path: Path) -> None:
    release = make_release(tmp_path, {"count": [("Yes", "No")]})
    (release / "OCR" / "questions_answers_YN").mkdir(parents=True)
    (release / "OCR" / "images").mkdir()
    (release / "count" / "0000.txt").replace(release / "OCR" / "questions_answers_YN" / "7.txt")
    assert set(read_gold(release)) == {
        ("OCR", "7.txt", "Question 0? Please answer yes or no."),
        ("OCR", "7.txt", "Question 1? Please answer yes or no."),
    }


def test_the_files_of_the_official_tool(tmp_path: Path) -> None:
    gold = {"count": [("Yes", "No")], "OCR": [("No", "Yes")]}
    questions = make_questions(tmp_path / "q.jsonl", gold)
    answers = make_answers(tmp_path / "a.jsonl", questions, ["Yes", "No\tor\nyes", "no", "yes"])
    answered = match_answers(BENCHMARK, read_items(questions, None), read_lines(answers), answers=answers)
    release = make_release(tmp_path / "release", gold)
    paths = submit(answered, ScoreOptions(annotations=release, folder=tmp_path))
    assert [path.name for path in paths] == ["count.txt", "OCR.txt"]
    assert paths[0].read_text().splitlines() == [
        "0000.txt\tQuestion 0? Please answer yes or no.\tYes\tYes",
        "0000.txt\tQuestion 1? Please answer yes or no.\tNo\tNo or yes",
    ]


# ---- what is refused ----


def test_one_answer_about_a_picture_is_refused(tmp_path: Path) -> None:
    gold = {"count": [("Yes", "No")]}
    questions = make_questions(tmp_path / "q.jsonl", gold)
    questions.write_text(questions.read_text().splitlines(keepends=True)[0])
    release = make_release(tmp_path / "release", gold)
    with pytest.raises(ValueError, match="found 1 about count/0000.txt .*q.jsonl, line 1.*even --limit"):
        score_files(BENCHMARK, questions, make_answers(tmp_path / "a.jsonl", questions, ["yes"]), release)


@pytest.mark.parametrize("question_id", ["0001.png", "dancing/0001.png", "7"])
def test_an_id_without_its_subtask_is_refused(tmp_path: Path, question_id: str) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [{"question_id": question_id, "image": "x.png", "text": "What?"}])
    with pytest.raises(ValueError, match="line 1 has no subtask in its id"):
        read_items(path, None)


def test_a_question_that_was_not_published_is_refused(tmp_path: Path) -> None:
    questions = make_questions(tmp_path / "q.jsonl", {"count": [("Yes", "No")]})
    release = make_release(tmp_path / "release", {"OCR": [("Yes", "No")]})
    with pytest.raises(ValueError, match="q.jsonl, line 1 asks what is not in the published files"):
        score_files(BENCHMARK, questions, make_answers(tmp_path / "a.jsonl", questions, ["yes", "no"]), release)


def test_a_release_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no MME subtask"):
        read_gold(tmp_path)
    release = make_release(tmp_path, {"count": [("Yes", "Perhaps")]})
    with pytest.raises(ValueError, match="0000.txt, line 2 is no question with its answer"):
        read_gold(release)
