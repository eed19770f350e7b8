"""TextVQA: 80 scores of the reference, more by hand, and how a question is found in its prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.evaluation.protocol import Answered, ScoreOptions
from mllm.evaluation.understanding.textvqa import (
    BENCHMARK,
    has_ocr,
    question_of,
    read_items,
    score,
    score_answer,
    variant_of,
)
from tests.mllm.evaluation.understanding.scoring import as_item, score_files, write_json, write_jsonl

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "vqa_scoring.json").read_text(encoding="utf-8"))
SHORT = "Answer the question using a single word or phrase."
OCR = "Reference OCR token: STOP, 7"


@pytest.mark.parametrize("case", GOLDEN["textvqa"], ids=lambda case: ascii(case["prediction"])[:40])
def test_equals_the_reference_to_the_last_digit(case: dict) -> None:
    assert score_answer(case["prediction"], case["answers"]) == case["score"]


# (answer, [(what people said, how many)], accuracy)
BY_HAND = [
    ("stop", [("stop", 10)], 1.0),
    ("STOP", [("stop", 10)], 1.0),
    ("stop", [("STOP", 10)], 1.0),  # people are normalised too, always
    ("go", [("stop", 10)], 0.0),
    ("stop", [("stop", 1), ("go", 9)], 0.3),
    ("stop", [("stop", 2), ("go", 8)], 0.6),
    ("stop", [("stop", 3), ("go", 7)], 0.9),
    ("stop", [("stop", 4), ("go", 6)], 1.0),
    ("two", [("2", 10)], 1.0),
    ("two", [("two", 10)], 1.0),  # unlike on VQAv2's server
    ("a dog", [("a dog", 10)], 1.0),
    ("dog", [("the dog", 10)], 1.0),
    ("1,000", [("1000", 10)], 1.0),
    ("1,000", [("1,000", 10)], 1.0),
    ("$1.50", [("$1.50", 10)], 1.0),
    ("$1.50", [("150", 10)], 0.0),
    ("st. louis", [("st louis", 10)], 1.0),
    ("coca-cola", [("coca cola", 10)], 1.0),
    ("coca-cola", [("cocacola", 10)], 0.0),
    ("mcdonald's", [("mcdonald 's", 10)], 1.0),
    ("mcdonald's", [("mcdonalds", 10)], 0.0),
    ("dont walk", [("don't walk", 10)], 1.0),
    ("", [("stop", 10)], 0.0),
    ("", [("the", 10)], 1.0),  # an article alone is nothing, and so is an empty answer
    ("stop", [("stop", 2), ("Stop", 1), ("stop.", 1), ("go", 6)], 1.0),  # spellings add up
    ("stop sign", [("stop", 10)], 0.0),
    ("yes/no", [("yes no", 10)], 1.0),
    ("12:30", [("12:30", 10)], 1.0),
]


@pytest.mark.parametrize(("text", "said", "expected"), BY_HAND, ids=[repr(case[0]) for case in BY_HAND])
def test_accuracy_by_hand(text: str, said: list[tuple[str, int]], expected: float) -> None:
    people = [word for word, count in said for _ in range(count)]
    assert score_answer(text, people) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        (f"What does it SAY?\n{OCR}\n{SHORT}", "what does it say?"),
        (f"{OCR}\nWhat does it say?\n{SHORT}", "what does it say?"),
        (f"What does it say?\n{SHORT}", "what does it say?"),
        ("OCR tokens: STOP, 7. Question: What does it say? Short answer:", "what does it say?"),
        ("OCR tokens: a\nb. Question: What\nnow? Short answer:", "what\nnow?"),
    ],
)
def test_the_question_is_found_in_its_prompt(prompt: str, question: str) -> None:
    assert question_of(prompt) == question


@pytest.mark.parametrize("prompt", ["What?", "a\nb\nc", "a\nb\nc\nd", "OCR tokens: no question here"])
def test_a_prompt_of_no_known_form_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="line 3 has no form"):
        question_of(prompt, "q.jsonl, line 3")


def test_the_protocol_says_whether_the_prompt_had_ocr_tokens() -> None:
    with_ocr, without = f"What?\n{OCR}\n{SHORT}", f"What?\n{SHORT}"
    assert has_ocr(with_ocr) and has_ocr("OCR tokens: x Question: y Short answer:") and not has_ocr(without)
    assert variant_of([with_ocr, with_ocr]) == "m4c-ocr-prompt"
    assert variant_of([without]) == "m4c-no-ocr"
    assert variant_of([with_ocr, without]) == "m4c-mixed-prompts"
    assert BENCHMARK.protocol("m4c-ocr-prompt", count=5000) == "textvqa@m4c-ocr-prompt"


def annotate(path: Path, *rows: tuple[str, str, list[str]]) -> Path:
    data = [{"image_id": image, "question": words, "answers": said} for image, words, said in rows]
    return write_json(path, {"data": data})


def test_questions_about_one_picture_are_kept_apart(tmp_path: Path) -> None:
    words = ("What color?", "How many?")
    questions = [{"question_id": "ab", "image": "ab.jpg", "text": f"{w}\n{OCR}\n{SHORT}"} for w in words]
    answers = [
        {"question_id": "ab", "prompt": q["text"], "text": t} for q, t in zip(questions, ["red", "6"], strict=True)
    ]
    annotations = annotate(
        tmp_path / "a.json",
        ("ab", "what color?", ["red"] * 10),
        ("ab", "How many?", ["seven"] * 8 + ["six"] * 2),
        ("cd", "How many?", ["6"] * 10),
    )
    path = write_jsonl(tmp_path / "q.jsonl", questions)
    scores = score_files(BENCHMARK, path, write_jsonl(tmp_path / "b.jsonl", answers[::-1]), annotations)
    assert scores.scores["accuracy"].value == pytest.approx(80.0)
    with pytest.raises(ValueError, match="line 3 asks a question twice: found id 'ab' again, first on .*line 1"):
        read_items(write_jsonl(tmp_path / "q.jsonl", [*questions, questions[0]]), None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": []}, "no question 'what\\?' about picture 'ab': it is asked in questions, line 1"),
        ({}, "no list 'data'"),
        (
            {"data": [{"image_id": "ab", "question": "What?", "answers": ["x"] * 11}]},
            "needs 10 human answers: found 11",
        ),
        ({"data": [{"image_id": "ab", "question": "What?"}]}, "needs 10 human answers: found 0"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path: Path, content: dict, message: str) -> None:
    one = Answered(as_item("ab", f"What?\n{SHORT}"), "x")
    with pytest.raises(ValueError, match=message):
        score([one], ScoreOptions(annotations=write_json(tmp_path / "a.json", content)))
