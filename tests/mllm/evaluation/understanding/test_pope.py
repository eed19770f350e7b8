"""POPE: what the reference prints, the parsing by hand, categories, and labels that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.evaluation.protocol import Answered, ScoreOptions, Scores
from mllm.evaluation.understanding.pope import (
    BENCHMARK,
    CATEGORIES,
    Confusion,
    protocol_of,
    read_items,
    says_yes,
    score,
)
from tests.mllm.evaluation.understanding.scoring import score_files, write_jsonl

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "vqa_scoring.json").read_text(encoding="utf-8"))["pope"]

# (what the model says, read as yes)
BY_HAND = [
    ("yes", True),
    ("Yes", True),
    ("no", False),
    ("No", False),
    ("not", False),
    ("Not sure", True),  # only "not" in lower case is in the list
    ("NO", True),  # likewise
    ("No.", False),
    ("no,", False),  # commas go
    ("No, there is no dog.", False),
    ("Yes, there is.", True),
    ("There is not a dog.", False),
    ("There is not a dog. Yes", False),
    ("Yes. There is no dog.", True),  # only the first sentence counts
    ("There isn't a dog.", True),  # the trap: a contraction is a yes
    ("There is no, dog", False),
    ("no!", True),  # the mark belongs to the word
    ("no?", True),
    ("no;", True),
    ("nothing", True),
    ("Nobody", True),
    ("none", True),
    ("know", True),
    ("", True),  # silence is a yes
    (".", True),
    (". no", True),  # the first sentence is empty
    ("yes no", False),
    ("no\n", True),  # words are split at spaces alone
    ("is it? no", False),
    ("maybe", True),
    (" no", False),
    ("\tno", True),
]


@pytest.mark.parametrize(("text", "expected"), BY_HAND, ids=[repr(text) for text, _ in BY_HAND])
def test_an_answer_is_read_as_the_reference_reads_it(text: str, expected: bool) -> None:
    assert says_yes(text) is expected


def make_files(folder: Path, labels: dict[str, list[str]], answers: dict[str, list[str]]) -> tuple[Path, Path, Path]:
    """Question file, answers file and labels folder; ids run through all categories."""
    questions, texts = [], []
    for category, right in labels.items():
        pictures = [f"{category}{n}.jpg" for n in range(len(right))]
        for picture, text in zip(pictures, answers[category], strict=True):
            number = len(questions)
            questions.append({"question_id": number, "image": picture, "text": "Is there?", "category": category})
            texts.append({"question_id": number, "prompt": "Is there?", "text": text})
        rows = [
            {"question_id": n + 1, "image": picture, "text": "Is there?", "label": label}
            for n, (picture, label) in enumerate(zip(pictures, right, strict=True))
        ]
        write_jsonl(folder / "coco" / f"coco_pope_{category}.json", rows)
    return write_jsonl(folder / "q.jsonl", questions), write_jsonl(folder / "a.jsonl", texts), folder / "coco"


def score_it(folder: Path, labels: dict[str, list[str]], answers: dict[str, list[str]]) -> Scores:
    questions, said, coco = make_files(folder, labels, answers)
    return score_files(BENCHMARK, questions, said, coco)


def test_prints_what_the_reference_prints(tmp_path: Path) -> None:
    texts = [answer["text"] for answer in GOLDEN["answers"]]
    scores = score_it(tmp_path, {"random": GOLDEN["labels"]}, {"random": texts})
    counts = scores.extra["counts"]["random"]
    names = ("true_positive", "false_positive", "true_negative", "false_negative")
    confusion = Confusion(*(counts[name] for name in names))
    printed = (
        "TP\tFP\tTN\tFN\t\n"
        + "\t".join(str(counts[name]) for name in names)
        + f"\nAccuracy: {confusion.accuracy}\nPrecision: {confusion.precision}\nRecall: {confusion.recall}\n"
        f"F1 score: {confusion.f1}\nYes ratio: {confusion.yes_ratio}\n"
        f"{confusion.f1:.3f}, {confusion.accuracy:.3f}, {confusion.precision:.3f}, {confusion.recall:.3f}, "
        f"{confusion.yes_ratio:.3f}"
    )
    assert printed.strip() == GOLDEN["printed"].strip()
    assert scores.scores["random f1"].value == pytest.approx(100 * confusion.f1, abs=1e-9)


# (answers, labels, (accuracy, precision, recall, f1, yes ratio))
METRICS_BY_HAND = [
    (["yes", "no"], ["yes", "no"], (1.0, 1.0, 1.0, 1.0, 0.5)),
    (["no", "yes"], ["yes", "no"], (0.0, 0.0, 0.0, 0.0, 0.5)),
    (["yes", "yes"], ["yes", "no"], (0.5, 0.5, 1.0, 2 / 3, 1.0)),
    (["no", "no"], ["yes", "no"], (0.5, 0.0, 0.0, 0.0, 0.0)),
    (["no", "no"], ["no", "no"], (1.0, 0.0, 0.0, 0.0, 0.0)),  # no yes anywhere: the reference divides by zero
    (["yes", "no", "no"], ["yes", "yes", "no"], (2 / 3, 1.0, 0.5, 2 / 3, 1 / 3)),
    (["yes", "yes", "no", "no", "no"], ["yes", "no", "yes", "no", "no"], (0.6, 0.5, 0.5, 0.5, 0.4)),
]


@pytest.mark.parametrize(("answers", "labels", "expected"), METRICS_BY_HAND)
def test_numbers_by_hand(
    tmp_path: Path, answers: list[str], labels: list[str], expected: tuple[float, float, float, float, float]
) -> None:
    scores = score_it(tmp_path, {"popular": labels}, {"popular": answers}).scores
    for name, value in zip(("accuracy", "precision", "recall", "f1", "yes_ratio"), expected, strict=True):
        assert scores[f"popular {name}"].value == pytest.approx(100 * value)


def test_the_headline_is_the_mean_f1_of_the_categories_and_not_that_of_all_answers(tmp_path: Path) -> None:
    labels = {"adversarial": ["yes", "no", "no"], "popular": ["yes"], "random": ["yes", "no"]}
    answers = {"adversarial": ["yes", "yes", "yes"], "popular": ["yes"], "random": ["no", "no"]}
    scores = score_it(tmp_path, labels, answers)
    assert scores.scores["mean f1"].value == pytest.approx(100 * (0.5 + 1.0 + 0.0) / 3)
    assert scores.scores["mean f1"].count == 6
    assert scores.protocol == "pope@llava-3000-custom-6"


def test_the_protocol_names_the_old_random_set() -> None:
    groups = {name: [None] * size for name, size in zip(CATEGORIES, (3000, 3000, 2910), strict=True)}
    assert protocol_of(groups, {"random": 2910}) == "pope@llava-2910"
    assert protocol_of(dict.fromkeys(CATEGORIES, [None] * 3000), {"random": 3000}) == "pope@llava-3000"


def test_mixed_categories_find_their_labels_by_order_within_the_category(tmp_path: Path) -> None:
    order = ["random", "popular", "random", "popular"]
    questions = [
        {"question_id": n, "image": f"{n}.jpg", "text": "Is there?", "category": category}
        for n, category in enumerate(order)
    ]
    items = read_items(write_jsonl(tmp_path / "q.jsonl", questions), None)
    assert [(item.fields["number"], item.fields["of"]) for item in items] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    write_jsonl(tmp_path / "coco_pope_random.json", [{"label": "yes"}, {"label": "no"}])
    write_jsonl(tmp_path / "coco_pope_popular.json", [{"label": "no"}, {"label": "yes"}])
    said = [Answered(item, text) for item, text in zip(items, ["yes", "no", "no", "yes"], strict=True)]
    scores = score(said, ScoreOptions(annotations=tmp_path))
    assert scores.scores["mean f1"].value == 100.0
    part = score(said[2:], ScoreOptions(annotations=tmp_path))  # a part still finds the right ones
    assert part.scores["random accuracy"].value == part.scores["popular accuracy"].value == 100.0


# ---- what is refused ----


def test_fewer_labels_than_questions_are_refused(tmp_path: Path) -> None:
    questions, said, coco = make_files(tmp_path, {"random": ["yes", "no"]}, {"random": ["yes", "no"]})
    write_jsonl(coco / "coco_pope_random.json", [{"label": "yes"}])
    with pytest.raises(ValueError, match="found 1 labels for 2 questions of category 'random' .*q.jsonl, line 1"):
        score_files(BENCHMARK, questions, said, coco)


def test_labels_in_another_order_are_refused(tmp_path: Path) -> None:
    questions, said, coco = make_files(tmp_path, {"random": ["yes", "no"]}, {"random": ["yes", "no"]})
    path = coco / "coco_pope_random.json"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match="random.json, line 1 is about another picture: found random1.jpg"):
        score_files(BENCHMARK, questions, said, coco)


def test_a_label_that_is_none_is_refused(tmp_path: Path) -> None:
    questions, said, coco = make_files(tmp_path, {"random": ["yes", "maybe"]}, {"random": ["yes", "no"]})
    with pytest.raises(ValueError, match="line 2 has no label: found 'maybe'"):
        score_files(BENCHMARK, questions, said, coco)
    (coco / "coco_pope_random.json").unlink()
    with pytest.raises(FileNotFoundError, match="coco_pope_random.json"):
        score_files(BENCHMARK, questions, said, coco)


@pytest.mark.parametrize(("fields", "message"), [({"category": "easy"}, "found 'easy'"), ({}, "has no 'category'")])
def test_a_question_without_its_category_is_refused(tmp_path: Path, fields: dict, message: str) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [{"question_id": 1, "image": "x.jpg", "text": "Is there?", **fields}])
    with pytest.raises(ValueError, match=f"line 1 .*{message}"):
        read_items(path, None)
