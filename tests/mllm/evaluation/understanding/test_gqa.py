"""GQA: exact match by hand, types of questions, the file for the official script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.evaluation.protocol import ScoreOptions
from mllm.evaluation.understanding.gqa import BENCHMARK, is_right, prediction_of, score, submit
from tests.mllm.evaluation.understanding.scoring import answered, write_json

# (what the model says, the gold answer, whether that is right)
BY_HAND = [
    ("yes", "yes", True),
    ("Yes", "yes", True),
    ("YES", "yes", True),
    ("Yes.", "yes", True),
    ("yes...", "yes", True),  # all periods at the end go
    ("yes!", "yes", False),  # nothing else does
    ("yes,", "yes", False),
    (" yes", "yes", False),  # spaces stay
    ("yes ", "yes", False),
    ("yes. ", "yes", False),  # the period is not last
    (".yes", "yes", False),
    ("yes\n", "yes", False),
    ("no", "yes", False),
    ("yes it is", "yes", False),
    ("yeah", "yes", False),
    ("", "yes", False),
    (".", "yes", False),
    ("Left", "left", True),
    ("dining table", "dining table", True),
    ("dining  table", "dining table", False),
    ("Dining Table.", "dining table", True),
    ("a dog", "dog", False),  # articles stay: no VQA normaliser here
    ("dogs", "dog", False),
    ("two", "2", False),
    ("t-shirt", "t-shirt", True),
    ("T-Shirt.", "t-shirt", True),
    ("e.g.", "e.g", True),  # the gold is not stripped, the prediction is
    ("e.g.", "e.g.", False),
]


@pytest.mark.parametrize(("text", "gold", "right"), BY_HAND, ids=[f"{t!r} for {g!r}" for t, g, _ in BY_HAND])
def test_exact_match_by_hand(text: str, gold: str, right: bool) -> None:
    assert is_right(text, gold) is right


def questions(path: Path, *rows: tuple[str, str], balanced: bool = True) -> Path:
    """(answer, structural type) of questions 0, 1, ..."""
    gold = {
        str(n): {"answer": answer, "isBalanced": balanced, "types": {"structural": structure}}
        for n, (answer, structure) in enumerate(rows)
    }
    return write_json(path, gold)


def test_scores_by_type(tmp_path: Path) -> None:
    gold = questions(
        tmp_path / "q.json", ("yes", "verify"), ("red", "query"), ("no", "logical"), ("cat", "query"), ("x", "choose")
    )
    scores = score(answered("Yes.", "red", "yes", "dog", "x"), ScoreOptions(annotations=gold))
    values = {name: (value.value, value.count) for name, value in scores.scores.items()}
    assert values == {
        "accuracy": (pytest.approx(60.0), 5),
        "binary": (pytest.approx(200 / 3), 3),
        "open": (pytest.approx(50.0), 2),
        "type: choose": (100.0, 1),
        "type: logical": (0.0, 1),
        "type: query": (pytest.approx(50.0), 2),
        "type: verify": (100.0, 1),
    }
    assert list(scores.scores)[:3] == ["accuracy", "binary", "open"]
    assert scores.protocol == "gqa@exact-match-custom-5"
    assert BENCHMARK.protocol("exact-match", count=12578) == "gqa@exact-match"


def test_only_balanced_questions_count_as_in_the_official_script(tmp_path: Path) -> None:
    gold = json.loads(questions(tmp_path / "q.json", ("yes", "verify"), ("no", "verify")).read_text())
    gold["1"]["isBalanced"] = False
    path = write_json(tmp_path / "q.json", gold)
    assert score(answered("yes", "yes"), ScoreOptions(annotations=path)).scores["accuracy"].value == 100.0
    with pytest.raises(ValueError, match="no balanced question"):
        score(answered("yes", first_id=1), ScoreOptions(annotations=path))


def test_the_file_for_the_official_script(tmp_path: Path) -> None:
    [path] = submit(answered("Yes.", "A Dog"), ScoreOptions(folder=tmp_path))
    assert json.loads(path.read_text()) == [
        {"questionId": "0", "prediction": "yes"},
        {"questionId": "1", "prediction": "a dog"},
    ]
    assert prediction_of("A.B..") == "a.b"


@pytest.mark.parametrize(
    ("content", "message"),
    [({}, "has no question 0: it is asked in questions, line 1"), ([1], "holds no GQA"), ({"0": {}}, "holds no GQA")],
)
def test_questions_that_do_not_fit_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(answered("yes"), ScoreOptions(annotations=write_json(tmp_path / "q.json", content)))
